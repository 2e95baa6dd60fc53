"""LIF and LI layers, cells and functions equal those of the installed Norse."""

from __future__ import annotations

import importlib
import inspect

import pytest
import torch
from differences import NEW_NAMES, WIDER_SIGNATURES
from norse_common import norse
from torch import nn

import fused_lif

METHODS = ["heaviside", "super", "triangle", "tanh", "circ", "heavi_erfc"]
PUBLIC = [n for n in fused_lif.__all__ if not n.startswith("__") and n not in NEW_NAMES]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_and_signature(name):
    ours, theirs = getattr(fused_lif, name), getattr(norse, name)
    mine, other = (list(inspect.signature(f).parameters.values()) for f in (ours, theirs))
    positional = [p for p in mine if p.kind is not p.KEYWORD_ONLY]
    if name in WIDER_SIGNATURES:
        other = [p for p in other if p.kind is not p.VAR_KEYWORD]
        assert [p.name for p in positional][: len(other)] == [p.name for p in other]
        return
    assert [p.name for p in positional] == [p.name for p in other if p.kind is not p.KEYWORD_ONLY]
    for p, q in zip(positional, other):
        if isinstance(p.default, (int, float, str)) or q.default is q.empty:
            # Ours may have a default where Norse has none.
            assert p.default == q.default or q.default is q.empty
        elif isinstance(p.default, tuple):
            assert list(map(str, p.default)) == list(map(str, q.default))


@pytest.mark.parametrize(
    "path", ["functional.lif", "functional.leaky_integrator", "functional.encode", "module"]
)
def test_sub_paths(path):
    ours = importlib.import_module(f"fused_lif.{path}")
    for name in getattr(ours, "__all__", []):
        theirs = [importlib.import_module(f"norse.torch.{path}"), norse]
        known = any(hasattr(t, name) for t in theirs) or name.endswith(("_integral", "EncoderStep"))
        assert known, f"{path}.{name} is not in Norse"


@pytest.mark.parametrize("name", ["LIFParameters", "LIParameters"])
def test_default_constants(name):
    ours, theirs = getattr(fused_lif, name)(), getattr(norse, name)()
    assert ours._fields == theirs._fields
    for a, b in zip(ours, theirs):
        assert a == b
        assert type(a) is type(b)


@pytest.mark.parametrize("name", ["LIFState", "LIFFeedForwardState", "LIState"])
def test_states_have_the_same_fields(name):
    assert getattr(fused_lif, name)._fields == getattr(norse, name)._fields


def test_bio_parameters():
    from norse.torch.functional import lif as theirs

    from fused_lif.functional import lif as ours

    assert list(ours.default_bio_parameters) == list(theirs.default_bio_parameters)
    assert list(ours.default_bio_initial_state) == list(theirs.default_bio_initial_state)


def constants(n, learnable):
    """One value per neuron that is exact in float32, so that both libraries get the same."""
    values = [
        200 + 16 * torch.rand(n),
        150 + 16 * torch.rand(n),
        0.1 * torch.rand(n),
        0.5 + 0.25 * torch.rand(n),
        0.1 * torch.rand(n),
    ]
    return [nn.Parameter(v) if learnable else v for v in values]


def run(library, kind, values, method, x):
    """Outputs, final state and gradients of x and the constants."""
    values = [v.detach().clone().requires_grad_() for v in values]
    x = x.detach().clone().requires_grad_()
    if kind.startswith("LI") and not kind.startswith("LIF"):
        p = library.LIParameters(*values[:3])
        values = values[:3]
        state = library.LIState
    else:
        p = library.LIFParameters(*values, method=method, alpha=torch.tensor(1.0))
        state = library.LIFFeedForwardState
    step = x.shape if kind.endswith("Cell") else x.shape[1:]
    s = state(torch.full(step, 0.1), torch.full(step, 0.2))
    layer = getattr(library, kind)(p)
    if kind.endswith("Cell"):
        outputs = []
        for _ in range(20):
            out, s = layer(x, s)
            outputs.append(out)
        out = torch.stack(outputs)
    else:
        out, s = layer(x, s)
    generator = torch.Generator().manual_seed(0)
    loss = (out * torch.randn(out.shape, generator=generator)).sum() + s.v.sum() + 2 * s.i.sum()
    grads = torch.autograd.grad(loss, [x, *values], allow_unused=True, materialize_grads=True)
    return out, s.v, s.i, grads


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["LIF", "LIFCell"])
def test_lif_equals_norse(kind, method):
    shape = (3, 6) if kind == "LIFCell" else (30, 3, 6)
    x, values = torch.rand(shape) * (1.5 if kind == "LIFCell" else 0.5), constants(6, True)
    a, b = run(fused_lif, kind, values, method, x), run(norse, kind, values, method, x)
    assert 0.01 < a[0].mean() < 0.5
    for mine, other in zip(a[:3], b[:3]):
        assert torch.equal(mine, other)
        assert mine.dtype == other.dtype
    for mine, other in zip(a[3], b[3]):
        torch.testing.assert_close(mine, other, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kind", ["LI", "LICell"])
def test_li_equals_norse(kind):
    shape = (3, 6) if kind == "LICell" else (30, 3, 6)
    x, values = torch.randn(shape), constants(6, True)
    a, b = run(fused_lif, kind, values, "super", x), run(norse, kind, values, "super", x)
    for mine, other in zip(a[:3], b[:3]):
        assert torch.equal(mine, other)
    for mine, other in zip(a[3], b[3]):
        torch.testing.assert_close(mine, other, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kind", ["LIF", "LI", "LIFCell", "LICell"])
@pytest.mark.parametrize("numbers", [True, False])
def test_defaults_and_no_state(kind, numbers):
    """Default constants or plain numbers, and no initial state."""
    shapes = [(3, 6), (6,)] if "Cell" in kind else [(20, 3, 6), (20, 6), (20, 2, 3, 4, 4)]
    if kind == "LIF":
        shapes.append((20,))  # Norse's LI fails here
    for shape in shapes:
        x = torch.rand(shape)
        results = []
        for library in (fused_lif, norse):
            p = (library.LIFParameters if "F" in kind else library.LIParameters)()
            if numbers and "F" in kind:
                p = p._replace(tau_mem_inv=300.0, v_th=0.2, v_reset=-0.1)
            layer = getattr(library, kind)(p=p, dt=0.002)
            results.append(layer(x))
        (a, s), (b, r) = results
        assert torch.equal(a, b)
        assert torch.equal(s.v, r.v)
        assert torch.equal(s.i, r.i)
        assert type(s).__name__ == type(r).__name__


def test_float64():
    """Numbers become float32 constants, as in Norse, so dt / tau is 0.10000000149 in float64."""
    x = torch.rand(30, 3, 6, dtype=torch.float64)
    state = [torch.zeros(3, 6, dtype=torch.float64)] * 2
    a, s = fused_lif.LIF()(x, fused_lif.LIFFeedForwardState(*state))
    b, r = norse.LIF()(x, norse.LIFFeedForwardState(*state))
    assert torch.equal(a, b)
    assert torch.equal(s.v, r.v)
    assert torch.equal(s.i, r.i)


def test_record_states_equals_norse():
    x = torch.rand(20, 3, 6)
    for kind in ("LIF", "LI"):
        (_, s), (_, r) = (getattr(lib, kind)(record_states=True)(x) for lib in (fused_lif, norse))
        assert torch.equal(s.v, r.v)
        assert torch.equal(s.i, r.i)


def test_functional_steps_equal_norse():
    x = torch.rand(3, 6)
    for name, state, p in [
        ("lif_feed_forward_step", "LIFFeedForwardState", "LIFParameters"),
        ("li_feed_forward_step", "LIState", "LIParameters"),
    ]:
        results = []
        for library in (fused_lif, norse):
            s = getattr(library, state)(torch.full((3, 6), 0.95), torch.full((3, 6), 0.5))
            results.append(getattr(library, name)(x, s, getattr(library, p)()))
        (a, s), (b, r) = results
        assert torch.equal(a, b)
        assert torch.equal(s.v, r.v)
        assert torch.equal(s.i, r.i)


def test_integral_equals_norse():
    from norse.torch.functional.lif import lif_feed_forward_integral

    x, state = torch.rand(30, 3, 6), [torch.zeros(3, 6), torch.zeros(3, 6)]
    p = fused_lif.LIFParameters(v_th=torch.tensor(0.5))
    a, s = fused_lif.lif_feed_forward_integral(x, fused_lif.LIFFeedForwardState(*state), p)
    b, r = lif_feed_forward_integral(x, norse.LIFFeedForwardState(*state), norse.LIFParameters(*p))
    assert torch.equal(a, b)
    assert torch.equal(s.v, r.v)
    assert torch.equal(s.i, r.i)


def test_current_encoder_equals_norse():
    x, v = torch.rand(3, 6) * 5, torch.full((3, 6), 0.9)
    a, b = (lib.lif_current_encoder(x, v, lib.LIFParameters()) for lib in (fused_lif, norse))
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])
    assert 0 < a[0].mean() < 1


def test_li_linear_cell_equals_norse():
    cells = []
    for library in (fused_lif, norse):
        torch.manual_seed(3)
        cells.append(library.LILinearCell(5, 4))
    assert torch.equal(cells[0].input_weights, cells[1].input_weights)
    cells[0].load_state_dict(cells[1].state_dict())
    x, results = torch.rand(2, 5), []
    for cell in cells:
        out, s = cell(x)
        out, s = cell(x, s)
        out.sum().backward()
        results.append((out, s.v, s.i, cell.input_weights.grad))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)


def test_repr_equals_norse():
    for name in ("LIF", "LIFCell", "LI", "LICell"):
        assert repr(getattr(fused_lif, name)()) == repr(getattr(norse, name)())


def test_network_and_its_checkpoint():
    """A Norse model's state_dict loads into ours, which then computes the same."""

    def model(library):
        return library.SequentialState(
            nn.Linear(10, 20), library.LIF(), nn.Linear(20, 5), library.LIF(), library.LI()
        )

    ours, theirs = model(fused_lif), model(norse)
    ours.load_state_dict(theirs.state_dict())
    x = torch.rand(50, 3, 10) * 4
    (a, s), (b, r) = ours(x), theirs(x)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert len(s) == len(r)
    assert [type(k).__name__ for k in s] == [type(k).__name__ for k in r]
