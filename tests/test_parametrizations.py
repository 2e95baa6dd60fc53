"""Parametrised constants: natural values, bounds, gradients, copies, checkpoints, sharing."""

from __future__ import annotations

import copy
import gc
import io
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

import fused_lif
from fused_lif import LI, LIF, LICell, LIFCell, LIFParameters, LIParameters, SequentialState
from fused_lif.parametrizations import Log, SigmoidDecay, Softplus, parametrize

DT = 0.001
BOUNDS = {"lower": 10.0, "upper": 500.0}
ALL = {
    "log": Log(),
    "log, lower": Log(lower=10.0),
    "log, bounds": Log(**BOUNDS),
    "softplus": Softplus(100.0),
    "softplus, lower": Softplus(100.0, lower=10.0),
    "softplus, bounds": Softplus(100.0, **BOUNDS),
    "sigmoid": SigmoidDecay(DT),
    "sigmoid, bounds": SigmoidDecay(DT, **BOUNDS),
}
every = pytest.mark.parametrize("parametrization", ALL.values(), ids=ALL)
kinds = pytest.mark.parametrize("kind", ["log", "softplus", "sigmoid"])


def learnable_lif(*values, dtype=torch.float32):
    return LIF(LIFParameters(tau_mem_inv=nn.Parameter(torch.tensor(values, dtype=dtype))))


@every
def test_inverse_and_derivative(parametrization):
    parametrization = copy.deepcopy(parametrization).double()
    values = torch.tensor([10.01, 20.0, 100.0, 300.0, 499.0], dtype=torch.float64)
    w = parametrization.right_inverse(values).requires_grad_()
    torch.testing.assert_close(parametrization(w), values, rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(parametrization, w)


@every
def test_any_parameter_gives_a_value_between_the_bounds(parametrization):
    parametrization = copy.deepcopy(parametrization).double()
    values = parametrization(torch.linspace(-15, 15, 301, dtype=torch.float64))
    assert (values >= parametrization.lower).all()
    assert (values <= parametrization.upper).all()
    assert (values > 0).all()
    rises = values.diff() > 0
    assert rises.all() or not rises.any()


def test_values_by_hand():
    w = torch.tensor(math.log(3.0))  # sigmoid(w) is 3/4, e^w is 3
    assert Log()(w).item() == pytest.approx(3.0)
    assert Log(lower=2.0)(w).item() == pytest.approx(5.0)
    assert Log(upper=8.0)(w).item() == pytest.approx(6.0)
    assert Softplus(10.0)(w).item() == pytest.approx(10 * math.log(4.0))
    assert SigmoidDecay(DT)(w).item() == pytest.approx(250.0)
    assert 1 - DT * SigmoidDecay(DT)(w).item() == pytest.approx(0.75)


@pytest.mark.parametrize("unit", [1.0, 1e-3, 1e3])
@pytest.mark.parametrize("bounds", [False, True])
@kinds
def test_a_step_of_adam_is_about_a_percent(kind, bounds, unit):
    layer = LIF(
        LIFParameters(tau_mem_inv=nn.Parameter(torch.tensor([70.0, 100.0, 150.0]) * unit)),
        dt=DT / unit,
    )
    limits = {name: bound * unit for name, bound in BOUNDS.items()} if bounds else {}
    parametrize(layer, "tau_mem_inv", kind, **limits)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    before = layer.p.tau_mem_inv
    (before / unit).square().sum().backward()
    optimizer.step()
    change = (layer.p.tau_mem_inv / before - 1).detach()
    assert ((change > -0.0105) & (change < -0.005)).all()


@pytest.mark.parametrize(
    "bounds", [{"lower": 90.0, "upper": 110.0}, {"lower": 5.0}, {"upper": 200.0}]
)
@kinds
def test_narrow_bounds_are_not_slower(kind, bounds):
    layer = parametrize(learnable_lif(100.0), "tau_mem_inv", kind, **bounds)
    (raw,) = layer.parameters()
    layer.p.tau_mem_inv.log().sum().backward()
    assert 0.45 < raw.grad.abs().item() < 1.05


LAYERS = {
    "LIF": lambda p: LIF(p()),
    "LIFCell": lambda p: LIFCell(p()),
    "LIFRecurrent": lambda p: fused_lif.LIFRecurrent(4, 4, p()),
    "LIFRecurrentCell": lambda p: fused_lif.LIFRecurrentCell(4, 4, p()),
    "LI": lambda p: LI(LIParameters(*p()[:3])),
    "LICell": lambda p: LICell(LIParameters(*p()[:3])),
    "LILinearCell": lambda p: fused_lif.LILinearCell(4, 4, LIParameters(*p()[:3])),
    "ConstantCurrentLIFEncoder": lambda p: fused_lif.ConstantCurrentLIFEncoder(6, p()),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer(name):
    """Same output as with the natural values, and the gradients of the chain rule."""

    def run(parametrized):
        torch.manual_seed(1)
        layer = LAYERS[name](
            lambda: LIFParameters(
                nn.Parameter(torch.full((4,), 250.0)), nn.Parameter(torch.full((4,), 150.0))
            )
        )
        if parametrized:
            parametrize(layer, ["tau_syn_inv", "tau_mem_inv"])
        out = layer(torch.rand(*((6,) * ("Cell" not in name)), 3, 4) * 4)
        out = out if isinstance(out, torch.Tensor) else out[0] + out[1].v
        out.sum().backward()
        raw = dict(layer.named_parameters())
        key = "parametrizations.tau_mem_inv.original" if parametrized else "tau_mem_inv"
        return layer, out, raw[f"constants.{key}"]

    (_, expected, natural), (layer, actual, raw) = run(False), run(True)
    assert layer.p.tau_mem_inv.tolist() == pytest.approx([150.0] * 4)
    torch.testing.assert_close(raw, torch.full((4,), math.log(150.0)))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(raw.grad, 150.0 * natural.grad, rtol=1e-3, atol=1e-4)
    assert natural.grad.abs().min() > 0


def test_threshold():
    layer = LIF(LIFParameters(v_th=nn.Parameter(torch.tensor(0.5))))
    parametrize(layer, "v_th", "softplus", lower=0.1)
    assert layer.p.v_th.item() == pytest.approx(0.5)
    layer(torch.rand(20, 3, 4))[1].v.sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


@kinds
def test_assignment(kind):
    layer = parametrize(learnable_lif(100.0, 200.0), "tau_mem_inv", kind, **BOUNDS)
    layer.constants.tau_mem_inv = torch.tensor([50.0, 60.0])
    assert layer.p.tau_mem_inv.tolist() == pytest.approx([50.0, 60.0])
    layer.constants.tau_mem_inv = 70
    assert layer.p.tau_mem_inv.tolist() == pytest.approx([70.0, 70.0])
    with pytest.raises(ValueError, match="value must be above 10 and below 500, got 500"):
        layer.constants.tau_mem_inv = 500.0
    with pytest.raises(ValueError, match="p must not be assigned while tau_mem_inv are"):
        layer.p = LIFParameters()
    assert layer.p.tau_mem_inv.tolist() == pytest.approx([70.0, 70.0])


def test_the_optimiser_keeps_the_parameter():
    layer = learnable_lif(100.0)
    (parameter,) = layer.parameters()
    parametrize(layer, "tau_mem_inv")
    (raw,) = layer.parameters()
    assert raw is parameter
    assert raw.item() == pytest.approx(math.log(100.0))


def save_and_load(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), save_and_load]
)
@kinds
def test_copies(kind, clone):
    layer = parametrize(learnable_lif(100.0, 200.0), "tau_mem_inv", kind)
    other = clone(layer)
    x = torch.rand(20, 3, 2) * 3
    assert torch.equal(layer(x)[0], other(x)[0])
    assert [n for n, _ in other.named_parameters()] == [n for n, _ in layer.named_parameters()]
    other.constants.tau_mem_inv = 50.0
    assert layer.p.tau_mem_inv.tolist() == pytest.approx([100.0, 200.0])
    # torch's own copies share a class: a further parametrisation of one would break the others.
    other.p.v_th.fill_(2.0)
    register_parametrization(other.constants, "v_th", Log())
    assert layer.constants.v_th == 1.0
    assert layer.p.v_th == 1.0


@kinds
def test_state_dict(kind):
    layer = parametrize(learnable_lif(100.0, 200.0), "tau_mem_inv", kind)
    other = parametrize(learnable_lif(30.0, 40.0), "tau_mem_inv", kind)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.p.tau_mem_inv, layer.p.tau_mem_inv)
    other.load_state_dict({k: v.clone() for k, v in layer.state_dict().items()}, assign=True)
    assert torch.equal(other.p.tau_mem_inv, layer.p.tau_mem_inv)
    with pytest.raises(RuntimeError, match=r"Missing key.*tau_mem_inv.original"):
        other.load_state_dict({"constants.v_th": torch.ones(2)})


@pytest.mark.parametrize("assign", [False, True])
@kinds
def test_checkpoint_of_natural_values(kind, assign):
    natural = {"0.constants.tau_mem_inv": torch.tensor([30.0, 40.0], dtype=torch.float64)}
    model = nn.Sequential(parametrize(learnable_lif(100.0, 200.0), "tau_mem_inv", kind, **BOUNDS))
    model.load_state_dict(natural, assign=assign)
    assert model[0].p.tau_mem_inv.tolist() == pytest.approx([30.0, 40.0])
    assert model[0].p.tau_mem_inv.dtype is torch.float32
    assert all(p.is_leaf and p.requires_grad for p in model.parameters())
    assert list(natural) == ["0.constants.tau_mem_inv"]
    with pytest.raises(RuntimeError, match=r"constants.tau_mem_inv: value must be above 10 .* 5"):
        model.load_state_dict({"0.constants.tau_mem_inv": torch.tensor([5.0, 40.0])})
    with pytest.raises(RuntimeError, match=r"size mismatch for 0.constants.*tau_mem_inv.original"):
        model.load_state_dict({"0.constants.tau_mem_inv": torch.tensor([30.0])})


@pytest.mark.parametrize("assign", [False, True])
def test_checkpoint_of_norse(assign):
    """It has weights, but no constants."""
    model = SequentialState(nn.Linear(2, 2), LIF(learnable=["tau_mem_inv", "v_leak"], neurons=2))
    expected = model[1].p
    parameters = dict(model.named_parameters())
    model.load_state_dict({"0.weight": torch.ones(2, 2), "0.bias": torch.ones(2)}, assign=assign)
    assert torch.equal(model[1].p.tau_mem_inv, expected.tau_mem_inv)
    assert model[1].p.v_leak is expected.v_leak
    assert model[0].weight.tolist() == [[1, 1], [1, 1]]
    for name, parameter in model.named_parameters():
        assert (parameter is parameters[name]) != (assign and name.startswith("0"))


def test_dtype():
    layer = parametrize(learnable_lif(100.0), "tau_mem_inv", "softplus", **BOUNDS)
    assert layer.double().p.tau_mem_inv.dtype is torch.float64
    assert layer(torch.rand(5, 2, 1).double())[1].v.dtype is torch.float64
    assert layer.half().p.tau_mem_inv.dtype is torch.float16
    assert layer.p.v_th.dtype is torch.float32


def test_meta_device():
    def make():
        return LIF(learnable=["tau_mem_inv", "v_th"], neurons=3, parametrization="softplus")

    with torch.device("meta"):
        layer = make()
    assert all(p.is_meta for p in layer.parameters())
    other = make()
    layer.to_empty(device="cpu").load_state_dict(other.state_dict())
    assert torch.equal(layer.p.tau_mem_inv, other.p.tau_mem_inv)
    assert torch.equal(layer.p.v_th, other.p.v_th)


@pytest.mark.parametrize(
    ("kind", "compiler"),
    [("log", "inductor"), ("softplus", "aot_eager"), ("sigmoid", "aot_eager")],
)
def test_compiles_without_graph_breaks(kind, compiler):
    torch._dynamo.reset()
    layer = parametrize(learnable_lif(100.0, 200.0), "tau_mem_inv", kind, upper=900.0)
    x = torch.rand(20, 3, 2) * 3
    (raw,) = layer.parameters()
    grads = []
    for run in (layer, torch.compile(layer, fullgraph=True, backend=compiler)):
        run(x)[1].v.sum().backward()
        grads.append(raw.grad)
        raw.grad = None
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-6)


def test_exports_and_functional_call():
    layer = parametrize(learnable_lif(100.0, 200.0), "tau_mem_inv")
    x = torch.rand(6, 3, 2)
    exported = torch.export.export(layer, (x,))
    assert torch.equal(exported.module()(x)[0], layer(x)[0])
    raw = {name: p + 1.0 for name, p in layer.named_parameters()}
    _, state = torch.func.functional_call(layer, raw, (x,))
    expected = learnable_lif(*[v * math.e for v in (100.0, 200.0)])(x)[1]
    torch.testing.assert_close(state.v, expected.v)


class Counting(Log):
    calls = 0

    def forward(self, w):
        self.calls += 1
        return super().forward(w)


@pytest.mark.parametrize("name", LAYERS)
def test_computed_once_per_call(name):
    layer = LAYERS[name](
        lambda: LIFParameters(torch.tensor(200.0), nn.Parameter(torch.full((4,), 150.0)))
    )
    parametrize(layer, "tau_mem_inv", Counting())
    counting = layer.constants.parametrizations.tau_mem_inv[0]
    counting.calls = 0
    layer(torch.rand(*((6,) * ("Cell" not in name)), 3, 4))
    assert counting.calls == 1


def test_cached():
    cell = parametrize(LIFCell(learnable_lif(100.0).p), "tau_mem_inv")
    with torch.nn.utils.parametrize.cached():
        assert cell.p.tau_mem_inv is cell.p.tau_mem_inv


def test_model():
    model = SequentialState(
        LIF(learnable=["tau_mem_inv", "v_th"], neurons=2, parametrization=None),
        nn.Linear(2, 2),
        LIF(),
        LI(LIParameters(tau_mem_inv=nn.Parameter(torch.tensor(50.0)))),
    )
    assert parametrize(model, ["tau_mem_inv", "v_th"]) is model
    names = [name for name, _ in model.named_parameters() if "parametrizations" in name]
    assert names == [
        "0.constants.parametrizations.tau_mem_inv.original",
        "0.constants.parametrizations.v_th.original",
        "3.constants.parametrizations.tau_mem_inv.original",
    ]


def test_a_module_is_copied():
    bounds = Log(lower=10.0)
    layer = LIF(learnable=["tau_syn_inv", "tau_mem_inv"], parametrization=None)
    parametrize(layer, ["tau_syn_inv", "tau_mem_inv"], bounds)
    found = [entry[0] for entry in layer.constants.parametrizations.values()]
    assert [module.lower for module in found] == [10.0, 10.0]
    assert len({id(module) for module in (bounds, *found)}) == 3


@kinds
def test_shared_constants_stay_shared(kind):
    p = learnable_lif(100.0, 200.0).p
    model = SequentialState(LIF(p), nn.Linear(2, 2), LIF(p))
    gc.collect()  # the layer that made p
    parametrize(model, "tau_mem_inv", kind)
    for same in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.double()):
        assert len(list(same.parameters())) == 3
        for layer in (same[0], same[2]):
            assert layer.p.tau_mem_inv.tolist() == pytest.approx([100.0, 200.0])
        same[0].constants.tau_mem_inv = 50.0
        assert same[2].p.tau_mem_inv.tolist() == pytest.approx([50.0, 50.0])
        same[2].constants.tau_mem_inv = torch.tensor([100.0, 200.0])


def test_shared_constants_are_not_untied():
    p = learnable_lif(100.0).p
    first, second = LIF(p), LIF(p)
    with pytest.raises(ValueError, match="in LIF only, but it is also tau_mem_inv of a layer"):
        parametrize(first, "tau_mem_inv")

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.tau = p.tau_mem_inv
            self.layers = nn.ModuleList([first, second])

    with pytest.raises(ValueError, match="in Outer only, but it is also tau of Outer"):
        parametrize(Outer(), "tau_mem_inv")
    both = LIF(p._replace(tau_syn_inv=nn.Parameter(torch.tensor(100.0))))
    both.p = both.p._replace(tau_mem_inv=both.p.tau_syn_inv)
    with pytest.raises(ValueError, match="it is also tau_mem_inv of a layer"):
        parametrize(both, ["tau_syn_inv", "tau_mem_inv"])
    assert first.p.tau_mem_inv is second.p.tau_mem_inv
    assert first.p.tau_mem_inv.item() == 100.0


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (LIF, ("tau_mem_inv",), "tau_mem_inv of LIF must be a parameter.*got a fixed value; learn"),
        (LI, ("v_th",), "v_th of LI must be a parameter.*got none"),
        (
            lambda: nn.Sequential(LIF()),
            ("v_th",),
            "layer must be or contain a layer with a learnable v_th",
        ),
        (lambda: learnable_lif(0.0), ("tau_mem_inv",), "tau_mem_inv must be above 0, got 0"),
        (lambda: learnable_lif(math.nan), ("tau_mem_inv",), "tau_mem_inv must be above 0, got nan"),
        (
            lambda: learnable_lif(1000.0),
            ("tau_mem_inv", "sigmoid"),
            "tau_mem_inv must be above 0 and below 1000, got 1000",
        ),
        (lambda: learnable_lif(1.0), ("tau",), "name must be one of tau_syn_inv, .*, got 'tau'"),
        (lambda: learnable_lif(1.0), ("v_leak",), "which are positive, got 'v_leak'"),
        (
            lambda: learnable_lif(1.0),
            ("tau_mem_inv", "exp"),
            "parametrization must be one of log, ",
        ),
        (
            lambda: LIF(LIFParameters(v_th=nn.Parameter(torch.ones(())))),
            ("v_th", "sigmoid"),
            "'sigmoid' must be that of an inverse time constant, got 'v_th'",
        ),
        (
            lambda: nn.Sequential(LIF(learnable=["tau_mem_inv"])),
            ("tau_mem_inv",),
            "tau_mem_inv of LIF '0' must not be parametrized, but it is already",
        ),
    ],
)
def test_messages(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        parametrize(make(), *arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Log(lower=2.0, upper=1.0),
            "0 <= lower < upper <= inf, got lower=2.0 and upper=1.0",
        ),
        (lambda: Log(lower=-1.0), "0 <= lower < upper"),
        (lambda: SigmoidDecay(DT, upper=2000.0), "upper <= 1000, got lower=None and upper=2000.0"),
        (lambda: SigmoidDecay(0.0), "dt must be a positive and finite number"),
        (lambda: Softplus(0.0), r"scale must be positive and finite, got 0\.0"),
        (
            lambda: parametrize(learnable_lif(100.0), "tau_mem_inv", Log(), lower=1.0),
            "lower and upper must be None, as parametrization has its own",
        ),
    ],
)
def test_messages_of_bounds(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_message_of_a_number():
    with pytest.raises(TypeError, match="name must be the name of a constant, or several, got 3"):
        parametrize(learnable_lif(100.0), 3)


def test_looks_for_shared_constants_once(monkeypatch):
    scans = []
    monkeypatch.setattr(gc, "get_objects", lambda get=gc.get_objects: scans.append(1) or get())
    names = ["tau_syn_inv", "tau_mem_inv", "v_th"]
    parametrize(
        nn.Sequential(*(LIF(learnable=names, parametrization=None) for _ in range(5))), names
    )
    assert len(scans) == 1


def test_nothing_changes_if_one_fails():
    layer = learnable_lif(100.0)
    with pytest.raises(ValueError, match="v_th of LIF must be a parameter"):
        parametrize(layer, ["tau_mem_inv", "v_th"])
    assert [name for name, _ in layer.named_parameters()] == ["constants.tau_mem_inv"]
