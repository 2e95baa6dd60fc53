"""The keyword ``learnable``: what is drawn, what is learned, and what stays as it was."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import fused_lif
from fused_lif import (
    LI,
    LIF,
    LICell,
    LIFCell,
    LIFParameters,
    LIFRecurrent,
    LIFRecurrentCell,
    LILinearCell,
    LIParameters,
    init,
)

LAYERS = {  # name -> how to make it for 5 neurons, shape of the input
    "LIF": (lambda **k: LIF(neurons=5, **k), (6, 3, 5)),
    "LIFCell": (lambda **k: LIFCell(neurons=5, **k), (3, 5)),
    "LIFRecurrent": (lambda **k: LIFRecurrent(4, 5, **k), (6, 3, 4)),
    "LIFRecurrentCell": (lambda **k: LIFRecurrentCell(4, 5, **k), (3, 4)),
    "LI": (lambda **k: LI(neurons=5, **k), (6, 3, 5)),
    "LICell": (lambda **k: LICell(neurons=5, **k), (3, 5)),
    "LILinearCell": (lambda **k: LILinearCell(4, 5, **k), (3, 4)),
}
PER_LAYER = {
    "LIF": lambda **k: LIF(**k),
    "LIFRecurrent": lambda **k: LIFRecurrent(4, 5, neurons=None, **k),
    "LILinearCell": lambda **k: LILinearCell(4, 5, neurons=None, **k),
}
every_layer = pytest.mark.parametrize("name", LAYERS)
N = 20_000


@every_layer
def test_one_value_per_neuron(name):
    make, shape = LAYERS[name]
    layer = make(learnable=["tau_mem_inv", "v_leak"])
    assert layer.p.tau_mem_inv.shape == layer.p.v_leak.shape == (5,)
    assert len(set(layer.p.tau_mem_inv.tolist())) == 5
    assert {n for n, _ in layer.named_parameters() if "weights" not in n} == {
        "constants.parametrizations.tau_mem_inv.original",
        "constants.v_leak",
    }
    layer(torch.rand(shape) * 5)[1].v.sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("name", PER_LAYER)
def test_one_value_per_layer(name):
    layer = PER_LAYER[name](learnable=("tau_mem_inv", "v_leak"), parametrization=None)
    assert layer.p.tau_mem_inv.shape == ()
    assert layer.p.tau_mem_inv == 100.0
    assert layer.p.v_leak == 0.0
    assert isinstance(layer.p.tau_mem_inv, nn.Parameter)


def test_feature_maps():
    layer = LIF(learnable="tau_mem_inv", neurons=(4, 1, 1))
    assert layer.p.tau_mem_inv.shape == (4, 1, 1)
    assert layer(torch.rand(5, 2, 4, 3, 3))[0].shape == (5, 2, 4, 3, 3)


def test_default_distributions():
    """Time constants: gamma of shape 3 around that of p; potentials: normal, v_th / 10."""
    p = LIFParameters(tau_mem_inv=50.0, v_leak=-0.5, v_th=2.0)
    layer = LIF(p, learnable=["tau_mem_inv", "v_leak", "v_th"], neurons=N, dt=1e-6)
    tau = 1 / layer.p.tau_mem_inv.detach().double()
    assert tau.mean().item() == pytest.approx(0.02, rel=0.01)
    assert tau.std().item() == pytest.approx(0.02 / 3**0.5, rel=0.02)
    for name, mean in (("v_leak", -0.5), ("v_th", 2.0)):
        values = getattr(layer.p, name).detach()
        assert values.mean().item() == pytest.approx(mean, abs=0.005)
        assert values.std().item() == pytest.approx(0.2, rel=0.02)
    assert (layer.p.v_th > 0).all()
    assert layer.p.v_reset == 0.0


def test_per_neuron_values_of_p_are_means():
    p = LIFParameters(tau_mem_inv=torch.tensor([20.0, 200.0]))
    draws = [LIF(p, learnable=["tau_mem_inv"], neurons=2).p.tau_mem_inv for _ in range(2000)]
    tau = 1 / torch.stack(draws).detach()
    torch.testing.assert_close(tau.mean(0), torch.tensor([0.05, 0.005]), rtol=0.05, atol=0)
    layer = LIF(p, learnable=["tau_mem_inv"])  # nothing is drawn
    torch.testing.assert_close(layer.p.tau_mem_inv.detach(), p.tau_mem_inv)


@pytest.mark.parametrize("initializer", [None, init.gamma(800.0, 3.0), init.uniform(1.0, 2000.0)])
def test_initial_values_are_stable(initializer):
    layer = LIF(LIFParameters(tau_mem_inv=800.0), learnable={"tau_mem_inv": initializer}, neurons=N)
    assert (layer.p.tau_mem_inv > 0).all()
    assert (layer.p.tau_mem_inv < 1000.0).all()
    assert (layer.p.tau_mem_inv > 900.0).any()


def test_initialisers_by_name():
    layer = LIFRecurrent(
        4,
        5,
        learnable={
            "v_reset": init.constant(-0.25, positive=False),
            "v_th": lambda size: torch.linspace(1.0, 2.0, *size),
            "tau_syn_inv": None,
        },
    )
    assert layer.p.v_reset.tolist() == [-0.25] * 5
    assert layer.p.v_th.tolist() == pytest.approx([1.0, 1.25, 1.5, 1.75, 2.0])
    assert len(set(layer.p.tau_syn_inv.tolist())) == 5
    assert layer.p.tau_mem_inv.shape == ()


@pytest.mark.parametrize(
    ("parametrization", "names"),
    [("log", "Log Log"), ("softplus", "Softplus Softplus"), ("sigmoid", "SigmoidDecay Log")],
)
def test_parametrization(parametrization, names):
    layer = LIF(
        learnable=["v_th", "tau_mem_inv", "v_leak"], neurons=3, parametrization=parametrization
    )
    found = layer.constants.parametrizations
    assert [type(found[n][0]).__name__ for n in ("tau_mem_inv", "v_th")] == names.split()
    assert len(found) == 2


def test_weights_are_those_without_learnable():
    def weights(make, **keywords):
        torch.manual_seed(3)
        return [p for n, p in make(4, 5, **keywords).named_parameters() if "weights" in n]

    for make in (LIFRecurrent, LIFRecurrentCell, LILinearCell):
        plain, learnable = weights(make), weights(make, learnable=["tau_mem_inv", "v_leak"])
        assert plain
        assert all(map(torch.equal, plain, learnable))


def test_random_numbers():
    """The same seed, the same values, in whatever order they are named; none without learnable."""

    def draw(names):
        torch.manual_seed(3)
        layer = LIF(learnable=names, neurons=4)
        return {name: getattr(layer.p, name) for name in names}

    one, other = draw(["tau_mem_inv", "v_th"]), draw(["v_th", "tau_mem_inv"])
    assert all(torch.equal(one[name], other[name]) for name in one)
    state = torch.get_rng_state()
    LIF()
    LIF(learnable=["tau_mem_inv"])
    assert torch.equal(torch.get_rng_state(), state)


def test_dtype_and_p_are_kept():
    p = LIFParameters(tau_mem_inv=torch.tensor(100.0, dtype=torch.float64), v_th=torch.tensor(1))
    layer = LIF(p, learnable=["tau_mem_inv", "v_th"], neurons=3)
    assert layer.p.tau_mem_inv.dtype is torch.float64
    assert layer.p.v_th.dtype is torch.float32
    assert p.tau_mem_inv == 100.0


@every_layer
def test_copies_and_checkpoints(name):
    make, shape = LAYERS[name]
    layer, x = make(learnable=["tau_syn_inv", "tau_mem_inv"]), torch.rand(shape)
    loaded = make(learnable=["tau_syn_inv", "tau_mem_inv"])
    loaded.load_state_dict(layer.state_dict())
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert torch.equal(other(x)[1].v, layer(x)[1].v)


def test_learns():
    """Time constants find those of a teacher, from the potentials alone."""
    x, dt = torch.rand(50, 8, 3), 0.001
    teacher = LI(LIParameters(tau_mem_inv=torch.tensor([30.0, 100.0, 300.0])), dt)
    layer = LI(dt=dt, learnable=["tau_mem_inv"], neurons=3)
    optimizer = torch.optim.Adam(fused_lif.optim.param_groups(layer, neuron_lr=0.05))
    for _ in range(200):
        optimizer.zero_grad()
        (layer(x)[0] - teacher(x)[0]).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(layer.p.tau_mem_inv, teacher.p.tau_mem_inv, rtol=0.02, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LIF(learnable=["tau"]), "learnable must be among tau_syn_inv, .*, got 'tau'"),
        (lambda: LIF(learnable=["alpha"]), "got 'alpha'"),
        (lambda: LI(learnable=["v_th"]), "tau_syn_inv, tau_mem_inv, v_leak, got 'v_th'"),
        (
            lambda: LIF(LIFParameters(v_th=nn.Parameter(torch.ones(3))), learnable=["v_th"]),
            r"p\.v_th must not be a parameter if v_th is learnable",
        ),
        (lambda: LIF(neurons=3), "neurons must be None without learnable, got 3"),
        (
            lambda: LIF(learnable=["v_th"], neurons="all"),
            "neurons must be None, a positive integer or a shape, got 'all'",
        ),
        (
            lambda: LIFRecurrent(2, 3, learnable=["v_th"], neurons=0),
            "must be 'all', None, .*, got 0",
        ),
        (lambda: LIF(learnable=["v_th"], neurons=True), "or a shape, got True"),
        (lambda: LIF(learnable=["v_th"], neurons=(3, 1.5)), r"got \(3, 1\.5\)"),
        (
            lambda: LIF(learnable={"tau_mem_inv": init.constant(1000.0)}, neurons=3),
            "initial values of tau_mem_inv must be above 0 and below 1000, got 1000 again",
        ),
        (
            lambda: LIF(learnable={"v_th": init.constant(-1.0, positive=False)}),
            "initial values of v_th must be above 0, got -1 again",
        ),
        (
            lambda: LIF(LIFParameters(v_th=-1.0), learnable=["v_th"]),
            "v_th must be above 0, got -1",
        ),
        (
            lambda: LIF(learnable={"v_th": lambda size: torch.ones(2)}, neurons=3),
            r"the initialiser of v_th must return shape \(3,\), got \(2,\)",
        ),
        (
            lambda: LIF(
                LIFParameters(tau_mem_inv=torch.ones(3)), learnable=["tau_mem_inv"], neurons=4
            ),
            r"p\.tau_mem_inv must broadcast to the shape \(4,\) of neurons, got \(3,\)",
        ),
        (
            lambda: LIF(LIFParameters(v_th=torch.ones(3)), learnable=["v_leak"], neurons=4),
            r"p\.v_th must broadcast to the shape \(4,\)",
        ),
        (lambda: LIF(learnable=["v_th"], parametrization="exp"), "parametrization must be one of"),
        (lambda: LIF(learnable=["v_leak"], parametrization="exp"), "parametrization must be one"),
    ],
)
def test_messages(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_message_of_a_number():
    with pytest.raises(TypeError, match=r"learnable\['v_th'\] must be an initialiser .*got 1\.0"):
        LIF(learnable={"v_th": 1.0})


def test_message_of_a_flag():
    with pytest.raises(TypeError, match=r"learnable must be names of constants, .*, got True"):
        LIF(learnable=True)
