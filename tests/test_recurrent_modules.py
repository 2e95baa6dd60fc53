"""Recurrent layers as modules: weights, state_dict, copies, streaming, compiling, transforms."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict

import pytest
import torch
from helpers import assert_same_bits
from torch import nn
from torch.nn.utils import prune

import fused_lif
from fused_lif import (
    LI,
    LICell,
    LIFParameters,
    LIFRecurrent,
    LIFRecurrentCell,
    LIFState,
    SequentialState,
)
from fused_lif.backends import native

needs_extension = pytest.mark.skipif(
    native.IMPORT_ERROR is not None, reason="the C++ extension is not built"
)
BACKENDS = [pytest.param("cpu", marks=needs_extension), "reference"]
WEIGHTS = ["input_weights", "recurrent_weights"]
LAYERS = {
    "LIFRecurrent": (LIFRecurrent, (12, 3, 4)),
    "LIFRecurrentCell": (LIFRecurrentCell, (3, 4)),
}
COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m))}


def make(cls=LIFRecurrent, p=None, **options):
    """A layer of 4 inputs and 8 neurons that spikes soon, with one learnable constant."""
    if p is None:
        p = LIFParameters(
            tau_mem_inv=nn.Parameter(torch.full((8,), 600.0)), v_th=torch.tensor(0.3), alpha=5.0
        )
    return cls(4, 8, p, **options)


def spikes(*shape):
    return (torch.rand(shape) < 0.4).float()


@pytest.fixture(params=LAYERS)
def layer_and_input(request):
    cls, shape = LAYERS[request.param]
    return make(cls), spikes(*shape)


def loss_of(result):
    out, state = result
    factors = torch.linspace(-1, 1, out.shape[-1])
    return (out * factors).sum() + (state.v * factors).sum() + (state.i * factors).sum()


def grads_of(layer, x):
    """Gradients of all parameters, by name."""
    grads = torch.autograd.grad(loss_of(layer(x)), list(layer.parameters()))
    return dict(zip(dict(layer.named_parameters()), grads))


@pytest.mark.parametrize("cls", [LIFRecurrent, LIFRecurrentCell])
def test_state_dict(cls):
    layer = cls(4, 8)
    assert sorted(layer.state_dict()) == WEIGHTS
    assert [n for n, _ in layer.named_parameters()] == WEIGHTS
    assert layer.input_weights.shape == (8, 4)
    assert layer.recurrent_weights.shape == (8, 8)
    assert not layer.recurrent_weights.diagonal().any()
    other = cls(4, 8)
    assert not torch.equal(other.input_weights, layer.input_weights)
    other.load_state_dict(layer.state_dict())
    for name in WEIGHTS:
        assert torch.equal(getattr(other, name), getattr(layer, name))


def test_learnable_constants_are_parameters(layer_and_input):
    layer, x = layer_and_input
    names = [n for n, _ in layer.named_parameters()]
    assert sorted(names) == ["constants.tau_mem_inv", *WEIGHTS]
    assert layer.p.tau_mem_inv is dict(layer.named_parameters())["constants.tau_mem_inv"]
    other = make(type(layer))
    other.load_state_dict({n: layer.state_dict()[n] for n in WEIGHTS})  # as Norse saves it: strict
    assert torch.equal(other(x)[0], layer(x)[0])


def test_constants_registered_outside_too():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.tau_mem_inv = nn.Parameter(torch.full((8,), 100.0))
            self.v_th = nn.Parameter(torch.full((8,), 0.5))
            p = LIFParameters(tau_mem_inv=self.tau_mem_inv, v_th=self.v_th)
            self.cell = LIFRecurrentCell(4, 8, p)

    model = Model()
    assert len(list(model.parameters())) == 4
    assert len({id(p) for p in model.parameters()}) == 4
    torch.optim.Adam(model.parameters())  # refuses duplicates


@pytest.mark.parametrize("clone", COPIES.values(), ids=COPIES)
def test_copies_compute_the_same(layer_and_input, clone):
    layer, x = layer_and_input
    other = clone(layer)
    assert layer(x)[0].sum() > 0
    assert torch.equal(other(x)[0], layer(x)[0])
    expected = layer.input_weights.detach().clone()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.fill_(1.0)
    assert torch.equal(layer.input_weights, expected)
    assert layer.p.tau_mem_inv[0] == 600.0


def test_constructor_takes_norses_arguments_and_options():
    weights = torch.rand(8, 4), torch.rand(8, 8)
    p = LIFParameters(v_th=0.25)
    layer = LIFRecurrent(4, 8, p, *weights, True, 0.002, True)
    assert torch.equal(layer.input_weights, weights[0])
    assert torch.equal(layer.recurrent_weights, weights[1])
    assert (layer.autapses, layer.dt, layer.record_states) == (True, 0.002, True)
    assert layer(spikes(5, 3, 4))[1].v.shape == (5, 3, 8)
    cell = LIFRecurrentCell(4, 8, p, *weights, True, 0.002, reset="soft", detach_reset=False)
    assert (cell.autapses, cell.dt, cell.reset, cell.detach_reset) == (True, 0.002, "soft", False)


def test_options_reach_the_kernel():
    x = spikes(30, 3, 4)
    layers = [make(**o) for o in ({}, {"reset": "soft"}, {"detach_reset": False}, {"dt": 0.002})]
    for other in layers[1:]:
        other.load_state_dict(layers[0].state_dict())
    hard, soft, attached, long = (layer(x) for layer in layers)
    assert not torch.equal(hard[1].v, soft[1].v)
    assert not torch.equal(hard[1].v, long[1].v)
    assert torch.equal(hard[1].v, attached[1].v)
    grads = [grads_of(layers[k], x)["input_weights"] for k in (0, 2)]
    assert not torch.equal(*grads)


def test_exact_reaches_the_backend(layer_and_input, monkeypatch):
    """For some shapes the sums have the same bits with and without it."""
    reference, seen = fused_lif.backends.BACKENDS["reference"], []

    def spy(problem):
        seen.append(problem.recurrence.exact)
        return reference.run(problem)

    monkeypatch.setitem(fused_lif.backends.BACKENDS, "reference", reference._replace(run=spy))
    layer, x = layer_and_input
    for exact in (False, True):
        make(type(layer), exact=exact, backend="reference")(x)
    assert seen == [False, True]


def test_frozen_parameter_stays_frozen():
    weights = nn.Parameter(torch.ones(8, 8), requires_grad=False)
    layer = make(recurrent_weights=weights)
    assert layer.recurrent_weights is weights
    assert not weights.requires_grad
    assert not weights.diagonal().any()  # in place, as in Norse
    loss_of(layer(spikes(12, 3, 4))).backward()
    assert weights.grad is None
    assert layer.input_weights.grad.any()


def test_tensor_becomes_a_buffer():
    given = {"input_weights": torch.rand(8, 4), "recurrent_weights": torch.rand(8, 8)}
    kept = {name: t.clone() for name, t in given.items()}
    layer = LIFRecurrent(4, 8, **given)
    assert not list(layer.parameters())
    assert sorted(dict(layer.named_buffers(recurse=False))) == sorted(layer.state_dict()) == WEIGHTS
    assert not layer.recurrent_weights.diagonal().any()
    off_diagonal = kept["recurrent_weights"].clone().fill_diagonal_(0)
    assert torch.equal(layer.recurrent_weights, off_diagonal)
    for name, t in given.items():
        assert torch.equal(t, kept[name]), name
    assert layer.double().input_weights.dtype == torch.float64
    with_autapses = LIFRecurrent(4, 8, recurrent_weights=torch.ones(8, 8), autapses=True)
    assert with_autapses.recurrent_weights.all()


def test_tensor_with_a_history_keeps_it():
    """Weights that another network computes get their gradient through the layer."""
    source = torch.rand(8, 8, requires_grad=True)
    layer = make(recurrent_weights=source * 0.5)
    loss_of(layer(spikes(12, 3, 4))).backward()
    assert source.grad.any()
    assert not source.grad.diagonal().any()


def test_shared_weights_are_one_parameter():
    weights = nn.Parameter(torch.rand(8, 8) - 0.5)
    first = LIFRecurrent(4, 8, recurrent_weights=weights)
    second = LIFRecurrent(8, 8, input_weights=weights, recurrent_weights=weights)
    model = SequentialState(first, second)
    assert first.recurrent_weights is second.recurrent_weights is second.input_weights
    assert len(list(model.parameters())) == 2
    for same in (*(clone(model) for clone in COPIES.values()), model.double()):
        assert same[0].recurrent_weights is same[1].recurrent_weights
        assert same[1].input_weights is same[1].recurrent_weights
    out, _ = model(torch.rand(9, 3, 4).double() * 4)
    out.sum().backward()
    assert weights.grad.any()


def load(layer):
    other = make()
    other.load_state_dict(layer.state_dict())
    return other


AUTAPSE_COPIES = {
    **COPIES,
    "load_state_dict": load,
    "double": lambda m: copy.deepcopy(m).double(),
}


@pytest.mark.parametrize("clone", AUTAPSE_COPIES.values(), ids=AUTAPSE_COPIES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_autapses_after_copies(backend, clone):
    """Norse loses its hook in a deepcopy."""
    layer = clone(make(backend=backend))
    x = spikes(12, 3, 4).to(layer.input_weights.dtype)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1, weight_decay=0.1)
    before = layer.recurrent_weights.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(layer(x)).backward()
        assert layer.recurrent_weights.grad.any()
        assert not layer.recurrent_weights.grad.diagonal().any()
        optimizer.step()
    assert not layer.recurrent_weights.diagonal().any()
    assert not torch.equal(layer.recurrent_weights, before)


def test_autapses_learn_if_allowed():
    layer = make(autapses=True)
    assert layer.recurrent_weights.diagonal().all()
    loss_of(layer(spikes(12, 3, 4))).backward()
    assert layer.recurrent_weights.grad.diagonal().any()


def test_dtype_and_device():
    layer = make().to(torch.float64)
    assert layer.input_weights.dtype == torch.float64
    assert layer.p.v_th.dtype == torch.float32  # constants that are not learned keep their dtype
    out, state = layer(spikes(6, 3, 4).double())
    assert out.dtype == state.z.dtype == state.v.dtype == torch.float64
    layer = make().to("meta")
    assert layer.input_weights.is_meta
    out, state = layer(torch.empty(6, 3, 4, device="meta"))
    assert out.is_meta
    assert out.shape == (6, 3, 8)
    assert state.v.shape == (3, 8)
    with torch.device("meta"):
        layer = LIFRecurrent(4, 8)
    layer.to_empty(device="cpu").load_state_dict(LIFRecurrent(4, 8).state_dict())
    assert layer(torch.ones(9, 3, 4))[0].shape == (9, 3, 8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_initial_state_follows_the_input(layer_and_input, dtype):
    layer, x = layer_and_input
    x = x.to(dtype)
    state = layer.initial_state(x)
    state_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    assert isinstance(state, LIFState)
    assert state.z.dtype == dtype
    assert state.v.dtype == state.i.dtype == state_dtype
    assert state.z.shape == state.v.shape == state.i.shape == (3, 8)
    out, end = layer(x)
    assert out.dtype == end.z.dtype == dtype
    assert torch.equal(out, layer(x, state)[0])


def test_per_neuron_v_leak():
    v_leak = nn.Parameter(torch.linspace(0, 0.2, 8))
    layer = make(p=LIFParameters(v_leak=v_leak))
    state = layer.initial_state(torch.zeros(6, 3, 4))
    assert torch.equal(state.v, v_leak.detach().expand(3, 8))
    _, state = layer(torch.zeros(6, 3, 4))
    torch.testing.assert_close(state.v, v_leak.detach().expand(3, 8))
    state.v.sum().backward()
    assert v_leak.grad.shape == (8,)


def test_cell_loop_equals_layer():
    layer, x = make(), spikes(30, 3, 4)
    cell = make(LIFRecurrentCell)
    cell.load_state_dict(layer.state_dict())
    expected, end = layer(x)
    state, out = None, []
    for x_t in x:
        z, state = cell(x_t, state)
        out.append(z)
    assert 0.05 < expected.mean() < 0.95
    assert torch.equal(torch.stack(out), expected)
    for a, e in zip(state, end):
        assert_same_bits(a, e)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["spikes", "currents"])
def test_chunks_equal_one_call(kind, backend):
    layer = make(backend=backend)
    x = spikes(100, 3, 4) if kind == "spikes" else torch.rand(100, 3, 4)
    whole, end = layer(x)
    state, chunks = None, []
    for chunk in x.split(33):
        z, state = layer(chunk, state)
        chunks.append(z)
    assert_same_bits(torch.cat(chunks), whole)
    for name, a, e in zip("zvi", state, end):
        assert_same_bits(a, e, name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_truncated_backpropagation(backend):
    """A detached state ends the graph: gradients are those of the last chunk by itself."""
    layer, x = make(backend=backend), spikes(60, 3, 4)
    state = None
    for chunk in x.split(20):
        state = None if state is None else LIFState(*(s.detach() for s in state))
        before = state
        result = layer(chunk, state)
        state = result[1]
        layer.zero_grad()
        loss_of(result).backward()
    expected = torch.autograd.grad(loss_of(layer(x[40:], before)), list(layer.parameters()))
    for parameter, e in zip(layer.parameters(), expected):
        assert_same_bits(parameter.grad, e)
    whole = grads_of(layer, x)["input_weights"]
    assert not torch.allclose(whole, layer.input_weights.grad)


def test_gradient_flows_through_a_carried_state():
    layer, x = make().double(), spikes(60, 3, 4).double()
    expected = grads_of(layer, x)
    first, state = layer(x[:25])
    second, state = layer(x[25:], state)
    loss = loss_of((torch.cat([first, second]), state))
    actual = torch.autograd.grad(loss, list(layer.parameters()))
    for a, (name, e) in zip(actual, expected.items()):
        torch.testing.assert_close(
            a, e, rtol=1e-12, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_network(backend):
    with fused_lif.backend(backend):
        p = LIFParameters(v_th=torch.tensor(0.3), alpha=5.0)
        model = SequentialState(
            OrderedDict(first=LIFRecurrent(4, 8, p), second=LIFRecurrent(8, 6, p), out=LI())
        )
        x = spikes(40, 3, 4)
        out, states = model(x)
        assert out.shape == (40, 3, 6)
        assert [type(s).__name__ for s in states] == ["LIFState", "LIFState", "LIState"]
        out.square().sum().backward()
        assert sorted(dict(model.named_parameters())) == [
            f"{layer}.{name}" for layer in ("first", "second") for name in WEIGHTS
        ]
        assert all(parameter.grad.any() for parameter in model.parameters())
        assert not torch.equal(model(x, states)[0], out)


@pytest.mark.parametrize("backend", BACKENDS)
def test_network_of_cells(backend):
    p = LIFParameters(v_th=torch.tensor(0.3), alpha=5.0)
    cell = LIFRecurrentCell(4, 8, p, backend=backend)
    model = SequentialState(cell, nn.Linear(8, 2), LICell(backend=backend))
    assert model.stateful_layers == [True, False, True]
    state, out = None, []
    for x in spikes(30, 3, 4):
        v, state = model(x, state)
        out.append(v)
    torch.stack(out).square().sum().backward()
    assert out[0].shape == (3, 2)
    assert all(parameter.grad.any() for parameter in model.parameters())


def test_training_lowers_the_loss():
    """The layer learns to fire as often as it is told."""
    layer = make()
    optimizer, x = torch.optim.Adam(layer.parameters(), lr=0.02), spikes(30, 4, 4)
    target, losses = torch.linspace(0.1, 0.8, 8), []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (layer(x)[0].mean((0, 1)) - target).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_functional_call_replaces_weights():
    layer, x = make(), spikes(12, 3, 4)
    weights = {name: (torch.rand_like(p) - 0.3) for name, p in layer.named_parameters()}
    weights["constants.tau_mem_inv"] = torch.full((8,), 300.0)
    weights = {name: t.requires_grad_() for name, t in weights.items()}
    out = torch.func.functional_call(layer, weights, (x,))
    other = make()
    other.load_state_dict(weights)
    assert torch.equal(out[0], other(x)[0])
    assert not torch.equal(out[0], layer(x)[0])
    grads = torch.autograd.grad(loss_of(out), list(weights.values()))
    expected = grads_of(other, x)
    for (name, _), g in zip(weights.items(), grads):
        assert_same_bits(g, expected[name], name)


def test_parametrizations_apply():
    class Inhibitory(nn.Module):
        def forward(self, value):
            return -value.exp()

    layer = make()
    nn.utils.parametrize.register_parametrization(layer, "recurrent_weights", Inhibitory())
    assert (layer.recurrent_weights < 0).all()
    loss_of(layer(spikes(12, 3, 4))).backward()
    original = layer.parametrizations.recurrent_weights.original
    assert original.grad.any()
    assert not original.grad.diagonal().any()
    assert layer.input_weights.grad.any()


def test_weight_norm_and_pruning_apply():
    layer, x = make(), spikes(12, 3, 4)
    prune.l1_unstructured(layer, "recurrent_weights", amount=0.5)
    nn.utils.parametrizations.weight_norm(layer, "input_weights")
    loss_of(layer(x)).backward()
    pruned = layer.recurrent_weights_mask == 0
    assert not layer.recurrent_weights_orig.grad[pruned].any()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_repr_shows_sizes_and_constants():
    assert repr(LIFRecurrent(4, 8)) == (
        "LIFRecurrent(input_size=4, hidden_size=8, p=LIFParameters(tau_syn_inv=tensor(200.), "
        "tau_mem_inv=tensor(100.), v_leak=tensor(0.), v_th=tensor(1.), v_reset=tensor(0.), "
        "method='super', alpha=tensor(100.)), autapses=False, dt=0.001)"
    )


@pytest.mark.parametrize("compiler", ["eager", "aot_eager", "inductor"])
def test_compiles_without_graph_breaks(layer_and_input, compiler):
    layer, x = layer_and_input
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend=compiler)
    x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
    actual, expected = compiled(x1), layer(x2)
    for a, e in zip((actual[0], *actual[1]), (expected[0], *expected[1])):
        assert torch.equal(a, e)
    parameters = [p for _, p in layer.named_parameters()]
    compiled_grads = torch.autograd.grad(loss_of(actual), [x1, *parameters])
    for a, e in zip(compiled_grads, torch.autograd.grad(loss_of(expected), [x2, *parameters])):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
@pytest.mark.parametrize("options", [{"record_states": True}, {"exact": True}], ids=str)
def test_compiles_with_options(options, compiler):
    layer, x = make(**options), spikes(12, 3, 4)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend=compiler)
    state = LIFState(torch.zeros(3, 8), torch.rand(3, 8), torch.rand(3, 8))
    actual, expected = compiled(x, state), layer(x, state)
    for a, e in zip((actual[0], *actual[1]), (expected[0], *expected[1])):
        assert torch.equal(a, e)
    grads = [torch.autograd.grad(loss_of(r), layer.input_weights) for r in (actual, expected)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("strict", [False, True])
def test_exports(layer_and_input, strict):
    layer, x = layer_and_input
    exported = torch.export.export(layer, (x,), strict=strict)
    actual, expected = exported.module()(x), layer(x)
    assert torch.equal(actual[0], expected[0])
    for a, e in zip(actual[1], expected[1]):
        assert torch.equal(a, e)


@pytest.mark.parametrize("exact", [False, True])
def test_autocast(exact):
    """Linear layers give bfloat16 currents; spikes stay bfloat16, states float32."""
    model = SequentialState(nn.Linear(4, 4), make(exact=exact), nn.Linear(8, 2), LI())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, states = model(torch.rand(20, 3, 4))
    assert out.dtype == torch.bfloat16
    assert states[1].z.dtype == torch.bfloat16
    assert states[1].v.dtype == states[1].i.dtype == torch.float32
    out.float().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_does_not_round_weights(backend, exact):
    layer, x = make(exact=exact, backend=backend), spikes(20, 3, 4)
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = layer(x)
    for a, e in zip((actual[0], *actual[1]), (expected[0], *expected[1])):
        assert_same_bits(a, e)


@needs_extension
@pytest.mark.parametrize("exact", [False, True])
def test_backward_within_autocast(exact):
    """Gradients are those of a backward pass outside of the block."""
    layer, x = make(exact=exact, backend="cpu"), spikes(20, 3, 4)
    x.requires_grad_()
    result, leaves = layer(x), [x, *layer.parameters()]
    expected = torch.autograd.grad(loss_of(result), leaves, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = torch.autograd.grad(loss_of(result), leaves)
    for a, e in zip(actual, expected):
        assert_same_bits(a, e)


def test_func_transforms_run_on_the_reference():
    layer = make(p=LIFParameters(v_th=nn.Parameter(torch.tensor(0.3)), alpha=3.0))
    x = spikes(2, 30, 3, 4)
    batched = torch.func.vmap(lambda x: layer(x)[0])(x)
    with fused_lif.backend("reference"):
        assert torch.equal(batched, torch.stack([layer(k)[0] for k in x]))

    def loss(parameters, x):
        return torch.func.functional_call(layer, parameters, (x,))[1].v.square().sum()

    parameters = dict(layer.named_parameters())
    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for k in range(2):
        expected = torch.autograd.grad(loss(parameters, x[k]), parameters.values())
        for name, e in zip(parameters, expected):
            torch.testing.assert_close(
                per_sample[name][k],
                e,
                rtol=1e-4,
                atol=1e-5,
                msg=lambda m, name=name: f"{name}: {m}",
            )
    assert not per_sample["recurrent_weights"].diagonal(dim1=1, dim2=2).any()

    layer.backend = "cpu"
    with pytest.raises(RuntimeError, match=r"cannot be transformed by torch\.func"):
        torch.func.vmap(lambda x: layer(x)[0])(x)


def test_vmap_over_weights():
    """An ensemble: the same input through layers with weights of their own."""
    layers, x = [make() for _ in range(3)], spikes(12, 3, 4)
    parameters, _ = torch.func.stack_module_state(layers)

    def call(parameters):
        return torch.func.functional_call(layers[0], parameters, (x,))[0]

    out = torch.func.vmap(call)(parameters)
    for k, layer in enumerate(layers):
        with fused_lif.backend("reference"):
            assert torch.equal(out[k], layer(x)[0])


@needs_extension
def test_forward_mode_is_refused():
    layer, x = make(backend="cpu"), spikes(6, 3, 4)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(RuntimeError, match="no forward-mode derivative"):
            layer(dual)


def test_check_finite_looks_at_weights_and_states():
    layer, x = make(), spikes(6, 3, 4)
    state = layer.initial_state(x)
    with fused_lif.check_finite():
        layer(x)
        state.z[1, 2] = float("nan")
        with pytest.raises(FloatingPointError, match=r"^state.z must be finite, got nan"):
            layer(x, state)
        with torch.no_grad():
            layer.recurrent_weights[3, 1] = float("inf")
        with pytest.raises(FloatingPointError, match=r"^recurrent_weights must be .* \(3, 1\)$"):
            layer(x)
