"""Spikes and states of every backend are those of the reference, bit for bit."""

from __future__ import annotations

import pytest
import torch
from helpers import (
    METHODS,
    NEURONS,
    all_backends,
    assert_same_bits,
    call,
    instruction_set,
    random_case,
)

from fused_lif import LIFFeedForwardState, LIFParameters, lif_feed_forward_integral
from fused_lif.backends import native

pytestmark = pytest.mark.skipif(
    native.IMPORT_ERROR is not None, reason="the C++ extension is not built"
)

# The second has a tail of less than a vector, the third several tiles and segments of checkpoints,
# the fourth feature maps, the fifth no batch, the sixth an empty batch.
SHAPES = [(1, 1, 1), (7, 3, 5), (70, 3, 700), (33, 2, 3, 4, 4), (40, 33), (5, 0, 3)]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def capability(request):
    """Runs a test of the CPU alone with the kernels of each instruction set."""
    with instruction_set(request.param):
        yield request.param


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_reference(shape, dtype, neuron, kernels):
    case = random_case(shape, dtype, neuron)
    actual, expected = case.run(kernels), case.run("reference")
    for name, a, e in zip(("out", "v", "i"), actual, expected):
        assert_same_bits(a, e, name)
    if neuron != "li" and actual[0].numel() > 100:
        assert 0.01 < actual[0].float().mean() < 0.5


@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize(
    "constant_shape", [(), (5,), (3, 5), (3, 1), (1,), (1, 5), (1, 1)], ids=str
)
def test_constants_broadcast(constant_shape, reset, backend):
    case = random_case((40, 3, 5), constant_shape=constant_shape, reset=reset)
    for a, e in zip(case.run(backend), case.run("reference")):
        assert_same_bits(a, e)


@pytest.mark.parametrize("constant_shape", [(4, 1, 1), (4, 1, 6), (4, 5, 6), (2, 1, 5, 1)], ids=str)
def test_constants_of_feature_maps(constant_shape, backend):
    case = random_case((9, 2, 4, 5, 6), constant_shape=constant_shape)
    for a, e in zip(case.run(backend), case.run("reference")):
        assert_same_bits(a, e)


@pytest.mark.parametrize("neuron", ["lif", "li"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_recorded_states(dtype, neuron, backend):
    case = random_case((40, 3, 5), dtype, neuron, record_states=True)
    for name, a, e in zip(("out", "v", "i"), case.run(backend), case.run("reference")):
        assert_same_bits(a, e, name)
    last = case._replace(options={}).run(backend)
    states = case.run(backend)
    assert states[1].shape == (40, 3, 5)
    assert_same_bits(states[1][-1], last[1])
    assert_same_bits(states[2][-1], last[2])


def layouts(x):
    """Views of the same numbers, each laid out differently."""
    T, B, N = x.shape
    padded = torch.zeros(T, B, N + 3)
    padded[..., :N] = x
    yield "batch first", x.transpose(0, 1).contiguous().transpose(0, 1)
    yield "neurons first", x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    yield "every second step", torch.stack([x, x], 1).flatten(0, 1)[::2]
    yield "padded rows", padded[..., :N]
    yield "every second neuron", torch.stack([x, x], -1).flatten(2)[..., ::2]
    yield "flipped", x.flip(0).flip(0)


@pytest.mark.parametrize("shape", [(40, 3, 5), (20, 3, 200), (1, 4, 70)], ids=str)
def test_any_layout(shape, backend):
    case = random_case(shape)
    expected = case.run("reference")
    for name, x in layouts(case.x.detach()):
        assert torch.equal(x, case.x), name
        for a, e in zip(case._replace(x=x).run(backend), expected):
            assert_same_bits(a, e, name)


@pytest.mark.parametrize("expanded", ["time", "batch", "all"])
def test_expanded_input(expanded, backend):
    case = random_case((40, 6, 70))
    x = {
        "time": case.x[:1].expand(40, -1, -1),
        "batch": case.x[:, :1].expand(-1, 6, -1),
        "all": case.x[:1, :1, :1].expand(40, 6, 70),
    }[expanded].detach()
    for a, e in zip(case._replace(x=x).run(backend), case._replace(x=x).run("reference")):
        assert_same_bits(a, e)


def test_more_columns_than_a_tile_and_threads(backend):
    case = random_case((3, 5, 70_001))
    for a, e in zip(case.run(backend), case.run("reference")):
        assert_same_bits(a, e)


def test_scalar_step(backend):
    """No batch and no neuron dimension: a sequence of numbers."""
    case = random_case((50,), constant_shape=())
    for a, e in zip(case.run(backend), case.run("reference")):
        assert_same_bits(a, e)


@pytest.mark.parametrize("method", METHODS)
def test_surrogate_does_not_change_spikes(method, backend):
    expected = random_case((40, 3, 5)).run(backend)
    for a, e in zip(random_case((40, 3, 5), method=method).run(backend), expected):
        assert_same_bits(a, e)


def test_non_finite_input_comes_out(backend):
    case = random_case((9, 1, 5))
    x = case.x.detach().clone()
    x[2] = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e38, -1e38])
    actual, expected = case._replace(x=x).run(backend), case._replace(x=x).run("reference")
    for a, e in zip(actual, expected):
        assert_same_bits(a, e)
    assert actual[1][0, 0].isnan()  # a NaN stays in the potential
    assert actual[2][0, :3].isnan().all()  # inf - inf in the current


@all_backends
def test_hand_calculated_trace(backend):
    """a = 0.1, b = 0.2, x = 1: i_jump = 1, 1.8, 2.44, 2.952, ...; v' = v + 0.1 (i_jump - v)."""
    x = torch.ones(6, 1, 1, dtype=torch.float64)
    p = LIFParameters(200.0, 100.0, 0.0, 0.7, 0.05)
    state = LIFFeedForwardState(torch.zeros(1, 1), torch.zeros(1, 1))
    z, s = call(lif_feed_forward_integral, x, state, p, record_states=True, backend=backend)
    assert z.flatten().tolist() == [0, 0, 0, 1, 0, 1]
    # 0.1; 0.09 + 0.18; 0.243 + 0.244; 0.4383 + 0.2952 > 0.7, reset; 0.045 + 0.33616;
    # 0.343044 + 0.368928 > 0.7, reset
    v = torch.tensor([0.1, 0.27, 0.487, 0.05, 0.38116, 0.05], dtype=torch.float64)
    i = torch.tensor([0.8, 1.44, 1.952, 2.3616, 2.68928, 2.951424], dtype=torch.float64)
    torch.testing.assert_close(s.v.flatten(), v, rtol=0, atol=1e-15)
    torch.testing.assert_close(s.i.flatten(), i, rtol=0, atol=1e-15)


@all_backends
def test_soft_reset_keeps_the_excess(backend):
    x = torch.full((1, 1), 8.0, dtype=torch.float64)
    p = LIFParameters(200.0, 100.0, 0.0, 0.7, 0.0)
    state = LIFFeedForwardState(torch.zeros(1), torch.zeros(1))
    z, s = call(lif_feed_forward_integral, x, state, p, reset="soft", backend=backend)
    assert z.item() == 1
    assert s.v.item() == pytest.approx(0.1 * 8 - 0.7, abs=1e-15)


@all_backends
def test_spike_needs_more_than_the_threshold(backend):
    """v' = v_th exactly is not a spike, as H(0) = 0."""
    p = LIFParameters(0.0, 1000.0, 0.0, 0.5, 0.0)
    state = LIFFeedForwardState(torch.zeros(3), torch.zeros(3))
    x = torch.tensor([[0.5, 0.5000001, 0.4999999]])
    z, _ = call(lif_feed_forward_integral, x, state, p, backend=backend)
    assert z.tolist() == [[0, 1, 0]]


@all_backends
def test_chunks_equal_one_call(backend):
    x, p = 2 * torch.rand(100, 3, 5), LIFParameters()
    state = LIFFeedForwardState(torch.zeros(3, 5), torch.zeros(3, 5))
    whole, end = call(lif_feed_forward_integral, x, state, p, backend=backend)
    assert whole.any()
    chunks = []
    for chunk in x.split(33):
        z, state = call(lif_feed_forward_integral, chunk, state, p, backend=backend)
        chunks.append(z)
    assert_same_bits(torch.cat(chunks), whole)
    assert_same_bits(state.v, end.v)
    assert_same_bits(state.i, end.i)


def test_half_input_is_not_recomputed_from_rounded_potentials(backend):
    """bfloat16 spikes are those of the float32 computation on the rounded input."""
    case = random_case((100, 4, 64), torch.bfloat16)
    z, v, i = case.run(backend)
    z32, v32, i32 = case.to(torch.float32)._replace(v=case.v, i=case.i).run("reference")
    assert z.dtype == torch.bfloat16
    assert_same_bits(z.float(), z32)
    assert_same_bits(v, v32)
    assert_same_bits(i, i32)


@pytest.mark.parametrize("v_th", [0.6, 0.0])
def test_denormals_do_not_change_a_spike(v_th, backend):
    """Denormals are flushed only where they cannot matter; at v_th = 0 they do."""
    x = torch.zeros(3000, 1, 64)
    x[:3] = torch.rand(3, 1, 64) - (0.5 if v_th == 0 else 0)
    p = LIFParameters(v_th=torch.tensor(v_th))
    state = LIFFeedForwardState(torch.zeros(1, 64), torch.zeros(1, 64))
    z, s = call(lif_feed_forward_integral, x, state, p, backend=backend)
    z_ref, s_ref = lif_feed_forward_integral(x, state, p, backend="reference")
    assert_same_bits(z, z_ref)
    assert (s.v - s_ref.v).abs().max() < 1e-36
    if v_th == 0:
        assert_same_bits(s.i, s_ref.i)
        assert 0 < s.i.abs().max() < 1.2e-38  # the currents did become denormal


def test_unstable_constants_do_not_flush_denormals(backend):
    """With |1 - dt / tau| > 1 a denormal grows to anything, so it must not be lost."""
    x = torch.zeros(400, 1, 4)
    p = LIFParameters(tau_syn_inv=torch.tensor(2500.0), v_th=torch.tensor(0.6))
    state = LIFFeedForwardState(torch.zeros(1, 4), torch.full((1, 4), 1e-40))
    z, s = call(lif_feed_forward_integral, x, state, p, backend=backend)
    z_ref, s_ref = lif_feed_forward_integral(x, state, p, backend="reference")
    assert z.sum() > 0
    assert_same_bits(z, z_ref)
    assert_same_bits(s.i, s_ref.i)
