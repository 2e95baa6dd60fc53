"""What is launched: grids that fit, variants that do not depend on the length, no autocast."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_same_bits, gradients, random_case, running

from fused_lif import LIFRecurrent
from fused_lif.backends import triton

if triton.IMPORT_ERROR is not None:
    pytest.skip("; ".join(triton.TRITON.unavailable()), allow_module_level=True)


from fused_lif.backends.triton import launch


@pytest.fixture(autouse=True)
def _runs():
    with running("triton"):
        yield


@pytest.mark.parametrize(
    ("columns", "size", "stride"),
    [(300_000_000, 1, 1), (320_000_000, 32, 1), (2**31, 1, 1), (2**33, 4, 2**29), (100, 100, 1)],
)
def test_grid_of_the_sums_fits(columns, size, stride, monkeypatch):
    grids = []
    monkeypatch.setattr(launch, "launch", lambda kernel, grid, *a, **k: grids.append((grid, k)))
    sums = torch.empty(1).expand(columns)
    launch._add_up((sums,), (torch.empty(size),), 0.001, 1, size, stride)
    length = columns // size
    for (_, chunks, constants), arguments in grids:
        assert chunks <= 65535
        assert constants == 1
        assert arguments["length"] == length
        assert (chunks - 1) * arguments["chunk"] < length <= chunks * arguments["chunk"]
        assert arguments["chunk"] % arguments["ROWS"] == 0
        length = chunks
    assert length == 1


def test_lengths_share_kernels(plans):
    """A few kernels serve all lengths from two chunks on."""
    plans.sequence(block=16, chunk=8, interval=16)
    for T in (33, 40, 47, 48, 63, 64):
        gradients(random_case((T, 5)), "triton")
    variants = {}
    for one in plans.launches:
        constants = {k: a for k, a in one.arguments.items() if k.isupper() and len(k) > 1}
        variants.setdefault(one.kernel, set()).add(tuple(sorted(constants.items())))
    assert len(variants["lif_forward_kernel"]) <= 2
    assert len(variants["lif_backward_kernel"]) <= 3  # the sums of one go on in the other


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_of_weights_are_not_autocast(compiled, inside):
    device = "cpu" if triton.IS_INTERPRETED else "cuda"
    layer = LIFRecurrent(4, 6, backend="triton").to(device)
    x = (20 * torch.rand(5, 2, 4, device=device)).requires_grad_()
    weights = torch.randn(5, 2, 6, device=device)
    inputs = [x, *layer.parameters()]
    expected = torch.autograd.grad(layer(x)[0], inputs, weights)
    run = torch.compile(layer, backend="aot_eager", fullgraph=True) if compiled else layer
    with torch.autocast(device, dtype=torch.bfloat16):
        spikes, _ = run(x)
        if inside:
            actual = torch.autograd.grad(spikes, inputs, weights)
    if not inside:
        actual = torch.autograd.grad(spikes, inputs, weights)
    for a, e in zip(actual, expected):
        assert e.any()
        assert_same_bits(a, e)
