"""Layers: registration of constants, state_dict, moving, copying, compiling."""

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
    LIFFeedForwardState,
    LIFParameters,
    LILinearCell,
    LIParameters,
    SequentialState,
)

LAYERS = {
    "LIF": (LIF, LIFParameters, (6, 3, 4)),
    "LIFCell": (LIFCell, LIFParameters, (3, 4)),
    "LI": (LI, LIParameters, (6, 3, 4)),
    "LICell": (LICell, LIParameters, (3, 4)),
}


@pytest.fixture(params=LAYERS)
def layer_and_input(request):
    """A layer with a learnable, a fixed and default constants, and an input."""
    make, parameters, shape = LAYERS[request.param]
    tau_mem_inv = nn.Parameter(torch.full((4,), 300.0))
    layer = make(parameters(tau_mem_inv=tau_mem_inv, tau_syn_inv=torch.full((4,), 250.0)))
    return layer, torch.rand(shape) * 2


def test_parameter_is_registered_once(layer_and_input):
    layer, _ = layer_and_input
    assert [n for n, _ in layer.named_parameters()] == ["constants.tau_mem_inv"]
    assert list(layer.state_dict()) == ["constants.tau_mem_inv"]
    assert layer.p.tau_mem_inv is next(layer.parameters())
    assert isinstance(layer.p, tuple)
    assert layer.p.tau_syn_inv.tolist() == [250.0] * 4


def test_shared_parameters_are_one():
    p = LIFParameters(tau_mem_inv=nn.Parameter(torch.full((4,), 100.0)))
    model = SequentialState(LIF(p), nn.Linear(4, 4), LIF(p))
    assert len(list(model.parameters())) == 3
    for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.double()):
        assert same[0].p.tau_mem_inv is same[2].p.tau_mem_inv


def test_parameter_registered_outside_too():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.tau_mem_inv = nn.Parameter(torch.full((4,), 100.0))
            self.cell = LIFCell(LIFParameters(tau_mem_inv=self.tau_mem_inv))

    model = Model()
    assert len(list(model.parameters())) == 1
    model.load_state_dict({"tau_mem_inv": torch.arange(4.0)})  # as Norse saves it: strict
    assert model.cell.p.tau_mem_inv.tolist() == [0, 1, 2, 3]


def test_state_dict_round_trip(layer_and_input):
    layer, _ = layer_and_input
    other = type(layer)(type(layer.p)(tau_mem_inv=nn.Parameter(torch.ones(4))))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.p.tau_mem_inv, layer.p.tau_mem_inv)
    other.load_state_dict({})  # a checkpoint of Norse has no constants
    with pytest.raises(RuntimeError, match="Unexpected key"):
        other.load_state_dict(
            {"constants.tau_mem_inv": torch.ones(4), "constants.v_leak": torch.ones(4)}
        )
    two = SequentialState(
        LIF(LIFParameters(v_th=nn.Parameter(torch.ones(4)), v_leak=nn.Parameter(torch.ones(4))))
    )
    with pytest.raises(RuntimeError, match="Missing key"):
        two.load_state_dict({"0.constants.v_th": torch.ones(4)})


def test_optimiser_moves_the_constants():
    tau_mem_inv, v_th = nn.Parameter(torch.full((4,), 100.0)), nn.Parameter(torch.tensor(0.5))
    layer = LIF(LIFParameters(tau_mem_inv=tau_mem_inv, v_th=v_th))
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    spikes, _ = layer(torch.rand(40, 3, 4))
    spikes.mean().backward()
    optimizer.step()
    assert (tau_mem_inv != 100.0).all()
    assert v_th != 0.5


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_compute_the_same(layer_and_input, clone):
    layer, x = layer_and_input
    other = clone(layer)
    assert torch.equal(other(x)[0], layer(x)[0])
    with torch.no_grad():
        other.p.tau_mem_inv.fill_(1.0)
    assert layer.p.tau_mem_inv[0] == 300.0


def test_constants_keep_their_dtype():
    layer = LIF(LIFParameters(tau_mem_inv=nn.Parameter(torch.tensor(100.0)), v_th=0.3))
    layer.half()
    assert layer.p.tau_mem_inv.dtype == torch.float16
    assert layer.p.v_th.dtype == torch.float32


def test_to_empty_and_meta_keep_fixed_constants():
    with torch.device("meta"):
        layer = LIF(LIFParameters(v_th=nn.Parameter(torch.ones(4)), v_leak=0.2))
    assert layer.p.v_leak.item() == pytest.approx(0.2)
    assert layer.p.v_th.is_meta
    layer.to_empty(device="cpu")
    assert layer.p.v_leak.item() == pytest.approx(0.2)
    layer.load_state_dict({"constants.v_th": torch.full((4,), 0.5)})
    assert LIF().to("meta").to_empty(device="cpu").p.tau_syn_inv.item() == 200.0
    layer.load_state_dict({"constants.v_th": torch.full((4,), 0.7)}, assign=True)
    assert layer.p.v_th.tolist() == pytest.approx([0.7] * 4)


def test_constants_can_be_assigned():
    layer = LIF()
    layer.p = layer.p._replace(v_th=nn.Parameter(torch.tensor(0.5)))
    assert [n for n, _ in layer.named_parameters()] == ["constants.v_th"]


def test_defaults_are_not_shared():
    first, second = LIF(), LIF()
    first.p.v_th.fill_(5.0)
    assert second.p.v_th == 1.0
    assert LIFParameters().v_th == 1.0


def test_initial_state_follows_the_input(layer_and_input):
    layer, x = layer_and_input
    for dtype, state_dtype in [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ]:
        out, state = layer(x.to(dtype))
        assert out.dtype == dtype
        assert state.v.dtype == state.i.dtype == state_dtype


@pytest.mark.parametrize(("cls", "shape"), [(LIF, (6, 3, 4)), (LIFCell, (3, 4)), (LI, (6, 3, 4))])
def test_per_neuron_v_leak(cls, shape):
    v_leak = nn.Parameter(torch.tensor([0.0, 0.1, 0.2, 0.3]))
    parameters = LIParameters if cls is LI else LIFParameters
    layer = cls(parameters(v_leak=v_leak))
    state = layer.initial_state(torch.zeros(shape))
    assert state.v.shape == (3, 4)
    assert torch.equal(state.v[1], v_leak.detach())
    _, state = layer(torch.zeros(shape))
    torch.testing.assert_close(state.v, v_leak.detach().expand(3, 4))
    state.v.sum().backward()
    assert v_leak.grad.shape == (4,)


def test_one_input_for_many_neurons():
    """The input broadcasts against the constants: one current, several time constants."""
    layer = LIF(LIFParameters(tau_mem_inv=torch.linspace(50, 500, 7)))
    x = torch.rand(20, 3, 1, requires_grad=True)
    spikes, state = layer(x)
    assert spikes.shape == (20, 3, 7)
    assert state.v.shape == (3, 7)
    expected, _ = layer(x.expand(20, 3, 7))
    assert torch.equal(spikes, expected)
    state.v.sum().backward()
    assert x.grad.shape == x.shape


def test_record_states():
    x = torch.rand(20, 3, 4)
    _, states = LIF(record_states=True)(x)
    assert states.v.shape == states.i.shape == (20, 3, 4)
    _, last = LIF()(x)
    assert torch.equal(states.v[-1], last.v)
    assert LI(record_states=True)(x)[1].v.shape == (20, 3, 4)


def test_cell_loop_equals_layer():
    x = torch.rand(30, 3, 4)
    p = LIFParameters(v_leak=torch.rand(4) * 0.1, v_th=torch.full((4,), 0.5))
    expected, end = LIF(p)(x)
    cell, state, spikes = LIFCell(p), None, []
    for x_t in x:
        z, state = cell(x_t, state)
        spikes.append(z)
    assert torch.equal(torch.stack(spikes), expected)
    assert torch.equal(state.v, end.v)


def test_options_reach_the_kernel():
    x = torch.rand(30, 3, 4)
    soft, hard = LIF(reset="soft")(x * 4), LIF()(x * 4)
    assert not torch.equal(soft[1].v, hard[1].v)
    cell_soft = LIFCell(reset="soft", detach_reset=True)(x[0] * 20)
    assert (cell_soft[1].v > 0).any()


def test_li_linear_cell():
    cell = LILinearCell(5, 3)
    assert list(cell.state_dict()) == ["input_weights"]
    out, state = cell(torch.rand(2, 5))
    assert out.shape == state.v.shape == (2, 3)
    out.sum().backward()
    assert cell.input_weights.grad.shape == (3, 5)
    assert repr(cell).startswith("LILinearCell(input_size=5, hidden_size=3, p=LIParameters(")


def test_repr_is_norses():
    assert repr(LIF()) == (
        "LIF(p=LIFParameters(tau_syn_inv=tensor(200.), tau_mem_inv=tensor(100.), "
        "v_leak=tensor(0.), v_th=tensor(1.), v_reset=tensor(0.), method='super', "
        "alpha=tensor(100.)), dt=0.001)"
    )


@pytest.mark.parametrize("compiler", ["eager", "aot_eager", "inductor"])
def test_compiles_without_graph_breaks(layer_and_input, compiler):
    layer, x = layer_and_input
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend=compiler)
    x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
    actual, expected = compiled(x1), layer(x2)
    assert torch.equal(actual[0], expected[0])
    (actual[0].sum() + actual[1].i.sum()).backward()
    compiled_grad = layer.p.tau_mem_inv.grad.clone()
    layer.zero_grad()
    (expected[0].sum() + expected[1].i.sum()).backward()
    torch.testing.assert_close(x1.grad, x2.grad)
    torch.testing.assert_close(compiled_grad, layer.p.tau_mem_inv.grad)


def test_compiles_with_recorded_states_and_encoder():
    torch._dynamo.reset()
    encoder = fused_lif.ConstantCurrentLIFEncoder(20)
    model = SequentialState(nn.Linear(4, 4), LIF(record_states=True, backend="cpu"))

    def run(x):
        return model(encoder(x))

    x = torch.rand(3, 4) * 20
    for compiler in ("aot_eager", "inductor"):
        torch._dynamo.reset()
        compiled = torch.compile(run, fullgraph=True, backend=compiler)
        x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
        (actual, (_, s1)), (expected, (_, s2)) = compiled(x1), run(x2)
        torch.testing.assert_close(actual, expected)
        (actual.sum() + s1.v.sum()).backward()
        (expected.sum() + s2.v.sum()).backward()
        torch.testing.assert_close(x1.grad, x2.grad)


def test_exports():
    x = torch.rand(6, 3, 4)
    exported = torch.export.export(LIF(), (x,))
    assert torch.equal(exported.module()(x)[0], LIF()(x)[0])


def test_autocast():
    """Linear layers give bfloat16 currents; spikes stay bfloat16, states float32."""
    model = SequentialState(nn.Linear(4, 8), LIF(), nn.Linear(8, 2), LI())
    x = torch.rand(20, 3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, states = model(x)
    assert out.dtype == torch.bfloat16
    assert states[1].v.dtype == states[3].v.dtype == torch.float32
    out.float().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_func_transforms_run_on_the_reference():
    layer = LIF(LIFParameters(v_th=nn.Parameter(torch.tensor(0.5)), alpha=3.0))
    x = torch.rand(2, 30, 3, 4)
    assert torch.equal(
        torch.func.vmap(lambda x: layer(x)[0])(x), torch.stack([layer(k)[0] for k in x])
    )

    def loss(constants, x):
        return torch.func.functional_call(layer, constants, (x,))[1].v.square().sum()

    constants = dict(layer.named_parameters())
    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(constants, x)
    for k in range(2):
        (expected,) = torch.autograd.grad(loss(constants, x[k]), constants.values())
        torch.testing.assert_close(per_sample["constants.v_th"][k], expected)

    with pytest.raises(RuntimeError, match=r"cannot be transformed by torch\.func"):
        torch.func.vmap(lambda x: LIF(backend="cpu")(x)[0])(x)


def test_forward_mode_runs_on_the_reference():
    x = torch.rand(6, 3, 4)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(RuntimeError, match="no forward-mode derivative"):
            LI(backend="cpu")(dual)
        tangent = torch.autograd.forward_ad.unpack_dual(LI()(dual)[0]).tangent
    expected = (LI()(x + 0.5)[0] - LI()(x - 0.5)[0]).detach()  # an LI is linear
    torch.testing.assert_close(tangent.detach(), expected, rtol=1e-4, atol=1e-5)


def test_functional_call_replaces_constants():
    layer = LIF(LIFParameters(v_th=nn.Parameter(torch.tensor(0.5))))
    x = torch.rand(20, 3, 4)
    spikes, _ = torch.func.functional_call(layer, {"constants.v_th": torch.tensor(100.0)}, (x,))
    assert spikes.sum() == 0
    assert layer(x)[0].sum() > 0


def test_state_broadcasts_and_converts():
    x = torch.rand(20, 3, 4)
    layer = LIF()
    expected = layer(x, LIFFeedForwardState(torch.full((3, 4), 1.0), torch.zeros(3, 4)))
    actual = layer(x, LIFFeedForwardState(torch.tensor(1), 0))  # 0-dim and integer, as in Norse
    assert torch.equal(actual[0], expected[0])


def test_layers_without_learnable_constants_still_have_a_graph():
    """Norse's initial potential requires a gradient, so code calls backward() on any output."""
    out, _ = LIF()(torch.rand(6, 3, 4))
    out.sum().backward()


def test_parametrizations_apply():
    layer = LIF(LIFParameters(tau_mem_inv=nn.Parameter(torch.zeros(4))))

    class Exp(nn.Module):
        def forward(self, value):
            return 100 * value.exp()

    nn.utils.parametrize.register_parametrization(layer.constants, "tau_mem_inv", Exp())
    assert layer.p.tau_mem_inv.tolist() == [100.0] * 4
    layer(torch.rand(6, 3, 4))[1].v.sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
