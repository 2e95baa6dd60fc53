"""Layers with recurrent connections equal those of the installed Norse."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from norse_common import norse
from torch import nn

import fused_lif

KINDS = ["LIFRecurrent", "LIFRecurrentCell"]
METHODS = ["heaviside", "super", "triangle", "tanh", "circ", "heavi_erfc"]
WEIGHTS = ["input_weights", "recurrent_weights"]
FEATURES, NEURONS = 10, 24


def spikes(*shape):
    return (torch.rand(shape) < 0.3).float()


def constants(library, learnable=False, method="super"):
    """One value per neuron, but for ``v_leak``: Norse's recurrent layers start from one potential.

    Norse 1.1.0 computes ``super`` with an alpha of 1, whatever is given.
    """
    generator = torch.Generator().manual_seed(4)
    low_and_range = [(200.0, 16.0), (300.0, 16.0), (0.0, 0.1), (0.4, 0.25), (0.0, 0.1)]
    values = [low + r * torch.rand(NEURONS, generator=generator) for low, r in low_and_range]
    values[2] = torch.tensor(0.05)
    values = [v.requires_grad_() for v in values] if learnable else values
    return library.LIFParameters(*values, method=method, alpha=torch.tensor(1.0))


def exact_weights(columns, seed):
    """Multiples of 1/256, whose sums are exact in any order."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(NEURONS, columns, generator=generator) * 0.25 * 256).round() / 256


def layer(library, kind, p=None, **options):
    """A layer whose sums over weights are exact."""
    return getattr(library, kind)(
        FEATURES,
        NEURONS,
        constants(library) if p is None else p,
        input_weights=nn.Parameter(exact_weights(FEATURES, 1)),
        recurrent_weights=nn.Parameter(exact_weights(NEURONS, 2)),
        **options,
    )


def run(module, x, state=None):
    """Spikes of all steps and the last state; a cell is called once per step."""
    if not type(module).__name__.endswith("Cell"):
        return module(x, state)
    out = []
    for x_t in x:
        z, state = module(x_t, state)
        out.append(z)
    return torch.stack(out), state


def assert_same(mine, other):
    """Spikes and states, bit for bit."""
    (a, s), (b, r) = mine, other
    assert 0.02 < a.mean() < 0.9
    assert type(s).__name__ == type(r).__name__ == "LIFState"
    assert s._fields == r._fields
    for p, q in zip((a, *s), (b, *r)):
        assert p.dtype == q.dtype
        assert torch.equal(p, q)


@pytest.mark.parametrize("kind", KINDS)
def test_signature(kind):
    """Norse's recurrent layers take these in this order, most of them by keyword only."""
    base = {"LIFRecurrent": "SNNRecurrent", "LIFRecurrentCell": "SNNRecurrentCell"}[kind]
    module = __import__("norse.torch.module.snn", fromlist=[base])
    theirs = inspect.signature(getattr(module, base)).parameters
    ours = inspect.signature(getattr(fused_lif, kind)).parameters
    positional = [name for name, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    not_public = {"activation", "activation_sparse", "state_fallback"}
    assert positional == [name for name in theirs if name not in not_public]
    for name in set(positional) - {"p"}:
        assert ours[name].default == theirs[name].default, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("autapses", [False, True])
def test_initial_weights(kind, autapses):
    layers = []
    for library in (fused_lif, norse):
        torch.manual_seed(5)
        layers.append(getattr(library, kind)(3, 7, autapses=autapses))
    for name in WEIGHTS:
        assert torch.equal(getattr(layers[0], name), getattr(layers[1], name)), name
    assert layers[0].recurrent_weights.diagonal().any() == autapses


@pytest.mark.parametrize("kind", KINDS)
def test_repr(kind):
    for options in ({}, {"autapses": True, "dt": 0.002}):
        ours, theirs = (getattr(lib, kind)(3, 7, **options) for lib in (fused_lif, norse))
        assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_both_ways(kind):
    ours, theirs = (getattr(library, kind)(3, 7) for library in (fused_lif, norse))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    ours.load_state_dict(theirs.state_dict())
    again = getattr(norse, kind)(3, 7)
    again.load_state_dict(ours.state_dict())
    for name in WEIGHTS:
        assert torch.equal(getattr(ours, name), getattr(theirs, name))
        assert torch.equal(getattr(again, name), getattr(theirs, name))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "shape", [(20, 3, FEATURES), (20, FEATURES), (20, 2, 3, FEATURES)], ids=str
)
def test_spikes_and_states(kind, shape):
    x = spikes(*shape)
    ours, theirs = layer(fused_lif, kind), layer(norse, kind)
    assert_same(run(ours, x), run(theirs, x))
    state = [torch.full((*shape[1:-1], NEURONS), value) for value in (1.0, 0.1, 0.3)]
    assert_same(run(ours, x, fused_lif.LIFState(*state)), run(theirs, x, norse.LIFState(*state)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_gradient", [True, False])
@pytest.mark.parametrize("kind_of_input", ["spikes", "currents"])
def test_exact_has_norses_bits(kind, with_gradient, kind_of_input):
    """Any weights and inputs, as in a run of old: the same products of matrices."""
    x = spikes(50, 3, 70) if kind_of_input == "spikes" else torch.randn(50, 3, 70)
    layers = []
    for library, options in ((fused_lif, {"exact": True}), (norse, {})):
        torch.manual_seed(6)
        p = library.LIFParameters(v_th=torch.tensor(0.7), tau_mem_inv=torch.tensor(250.0))
        layers.append(getattr(library, kind)(70, 100, p, **options))
    with torch.set_grad_enabled(with_gradient):
        assert_same(run(layers[0], x), run(layers[1], x))


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_are_close(kind):
    """Without ``exact`` the sums are rounded in another order."""
    x, layers = spikes(50, 3, 70), []
    for library in (fused_lif, norse):
        torch.manual_seed(7)
        layers.append(getattr(library, kind)(70, 100))
    (a, s), (b, r) = run(layers[0], x), run(layers[1], x)
    assert b.mean() > 0.01
    assert torch.equal(a, b)
    for p, q in zip(s, r):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_gradients(kind, method):
    """Of the input, the state, the weights and the constants; the reset is detached in both."""
    x = spikes(20, 3, FEATURES)
    results = []
    for library in (fused_lif, norse):
        p = constants(library, True, method)
        module, x_leaf = layer(library, kind, p), x.clone().requires_grad_()
        state = library.LIFState(
            *(torch.full((3, NEURONS), k).requires_grad_() for k in (0.5, 0.1, 0.3))
        )
        out, s = run(module, x_leaf, state)
        factors = torch.linspace(-1, 1, NEURONS)
        loss = (out * factors).sum() + s.v.sum() + 2 * s.i.sum() + (s.z * factors).sum()
        leaves = [x_leaf, *state, module.input_weights, module.recurrent_weights, *p[:5]]
        results.append(
            (
                out,
                torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True),
            )
        )
    assert torch.equal(results[0][0], results[1][0])
    names = ["x", "z", "v", "i", *WEIGHTS, *constants(fused_lif)._fields]
    for name, mine, other in zip(names, results[0][1], results[1][1]):
        torch.testing.assert_close(
            mine, other, rtol=5e-5, atol=5e-5, msg=lambda m, name=name: f"{name}: {m}"
        )
        assert method == "heaviside" or other.any(), name
    assert not results[0][1][5].diagonal().any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("v_leak", [0.0, 0.25])
def test_initial_state(kind, v_leak):
    x = torch.rand((5, 3, 4) if kind == "LIFRecurrent" else (3, 4))
    states = []
    for library in (fused_lif, norse):
        p = library.LIFParameters(v_leak=torch.tensor(v_leak))
        states.append(getattr(library, kind)(4, 7, p).initial_state(x))
    ours, theirs = states
    assert ours._fields == theirs._fields
    for a, b in zip(ours, theirs):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
        assert a.requires_grad == b.requires_grad


def test_initial_state_of_half_inputs():
    x = torch.rand(5, 3, 4).bfloat16()
    ours, theirs = (lib.LIFRecurrent(4, 7).initial_state(x) for lib in (fused_lif, norse))
    assert [t.dtype for t in ours] == [t.dtype for t in theirs]


def test_record_states():
    x = spikes(20, 3, FEATURES)
    ours, theirs = (
        layer(library, "LIFRecurrent", record_states=True) for library in (fused_lif, norse)
    )
    assert_same(ours(x), theirs(x))
    assert ours(x)[1].z.shape == (20, 3, NEURONS)


@pytest.mark.parametrize("shape", [(3,), ()], ids=["batch", "no batch"])
def test_lif_step(shape):
    x, results = spikes(*shape, FEATURES), []
    for library in (fused_lif, norse):
        state = library.LIFState(*(torch.full((*shape, NEURONS), k) for k in (1.0, 0.3, 0.4)))
        weights = exact_weights(FEATURES, 1), exact_weights(NEURONS, 2)
        results.append(library.lif_step(x, state, *weights, constants(library), 0.002))
    assert_same(*results)


def test_lif_step_integral():
    """Norse's documentation promises the spikes of all steps; it returns those of the last one."""
    from norse.torch.functional.lif import lif_step_integral

    x, weights = spikes(20, 3, FEATURES), (exact_weights(FEATURES, 1), exact_weights(NEURONS, 2))
    state = [torch.zeros(3, NEURONS)] * 3
    a, s = fused_lif.lif_step_integral(
        x, fused_lif.LIFState(*state), *weights, constants(fused_lif)
    )
    b, r = lif_step_integral(x, norse.LIFState(*state), *weights, constants(norse))
    assert a.shape == (20, 3, NEURONS)
    assert b.shape == (3, NEURONS)
    assert_same((a[-1], s), (b, r))


@pytest.mark.parametrize("kind", KINDS)
def test_training_step_with_sgd(kind):
    """After some steps of an optimiser the weights are still those of Norse."""
    x, layers = spikes(20, 3, FEATURES), [layer(lib, kind) for lib in (fused_lif, norse)]
    for module in layers:
        optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, weight_decay=0.1)
        out, state = run(module, x)
        (out.mean() + state.v.square().mean()).backward()
        optimizer.step()
    for name in WEIGHTS:
        mine, other = (getattr(module, name) for module in layers)
        assert not torch.equal(mine, layer(fused_lif, kind).get_parameter(name))
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    assert not layers[0].recurrent_weights.diagonal().any()


def test_parameters_given_are_changed_in_place_as_in_norse():
    for library in (fused_lif, norse):
        weights = nn.Parameter(torch.ones(7, 7))
        cell = library.LIFRecurrentCell(3, 7, recurrent_weights=weights)
        assert cell.recurrent_weights is weights
        assert not weights.diagonal().any()
        assert weights.sum() == 42


def test_tensors_and_frozen_parameters_are_left_as_they_are():
    """Norse zeroes the diagonal of the caller's tensor, and lets it and frozen weights learn."""
    ours, theirs = [], []
    for library, seen in ((fused_lif, ours), (norse, theirs)):
        tensor, frozen = torch.ones(7, 7), nn.Parameter(torch.ones(7, 7), requires_grad=False)
        library.LIFRecurrentCell(3, 7, recurrent_weights=frozen)
        cell = library.LIFRecurrentCell(3, 7, recurrent_weights=tensor)
        seen += [frozen.requires_grad, tensor.requires_grad, tensor.detach().sum().item()]
        seen.append("recurrent_weights" in cell.state_dict())
    assert ours == [False, False, 49, True]
    assert theirs == [True, True, 42, False]


def test_a_copy_keeps_its_rule_about_autapses():
    """Norse's hook is lost in a deepcopy, and the diagonal of the copy learns."""
    x = spikes(20, 3, FEATURES)
    diagonals = []
    for library in (fused_lif, norse):
        module = copy.deepcopy(layer(library, "LIFRecurrent"))
        out, state = module(x)
        (out.sum() + state.v.sum()).backward()
        diagonals.append(module.recurrent_weights.grad.diagonal())
    assert not diagonals[0].any()
    assert diagonals[1].any()


def test_network_and_its_checkpoint():
    """A recurrent network of Norse loads into ours, which then computes the same."""

    def model(library):
        torch.manual_seed(8)
        p = library.LIFParameters(v_th=torch.tensor(0.5))
        return library.SequentialState(
            library.LIFRecurrent(FEATURES, 20, p),
            library.LIFRecurrent(20, 15, p),
            nn.Linear(15, 5),
            library.LI(),
        )

    ours, theirs = model(fused_lif), model(norse)
    ours.load_state_dict(theirs.state_dict())
    x = spikes(50, 3, FEATURES)
    (a, s), (b, r) = ours(x), theirs(x)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert b.abs().sum() > 0.1
    assert torch.equal(s[0].z, r[0].z)
    assert [type(k).__name__ for k in s] == [type(k).__name__ for k in r]
