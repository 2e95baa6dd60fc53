"""Triton operators called directly, and by torch.compile: schemas, fake functions."""

from __future__ import annotations

import pytest
import torch
from cuda_cases import SUPER, operator_arguments, run_operators, run_recurrent_operators
from helpers import DEVICE, NEURONS, gradients, moved, random_case, random_recurrent_case
from test_lif_forward import DTYPES
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_map_only
from triton_cases import TRITON_DEVICE, assert_same, ops

import fused_lif
from fused_lif import LI, LIF, LIFParameters, LIFRecurrent, LIFState
from fused_lif.backends import triton
from fused_lif.functional.lif import lif_current_encoder_integral
from fused_lif.surrogate import method_id

pytestmark = pytest.mark.usefixtures("plans")

# ---- torch's own checks ----


def opcheck(name, arguments, **options):
    if not triton.IS_INTERPRETED:
        arguments = moved(arguments, DEVICE)
    arguments = tree_map_only(torch.Tensor, torch.Tensor.detach, arguments)
    operator = getattr(torch.ops.fused_lif, f"{name}_triton").default
    torch.library.opcheck(operator, arguments, **options)


ADJOINT, EVENTPROP = map(method_id, ("adjoint", "eventprop"))


def forward_arguments(case, interval, has_time=True, method=SUPER, smooth=False):
    tensors, alpha, *options = operator_arguments(case)
    x, alpha = case.x if has_time else case.x[0], alpha if smooth else None
    return (x, *tensors, alpha, 0.001, *options, interval, method, smooth)


@pytest.mark.parametrize(
    ("neuron", "has_time", "interval"),
    [
        ("lif", True, 0),
        ("lif", True, 1),
        ("lif", True, 2),
        ("lif", False, 0),
        ("li", True, 1),
        ("li", False, 1),
        ("encoder", True, 2),
        ("encoder", False, 1),
    ],
)
def test_forward(neuron, has_time, interval):
    case = random_case((5 if has_time else 1, 2, 3), neuron=neuron)
    opcheck("lif_forward", forward_arguments(case, interval, has_time))


@pytest.mark.parametrize(
    ("neuron", "has_time", "interval", "needs", "method"),
    [
        ("lif", True, 0, 255, SUPER),
        ("lif", True, 1, 0b00011000, EVENTPROP),
        ("lif", True, 2, 1, SUPER),
        ("lif", False, 0, 255, ADJOINT),
        ("li", True, 2, 255, SUPER),
        ("encoder", True, 1, 255, SUPER),
        ("encoder", False, 1, 0, SUPER),
    ],
)
def test_backward(neuron, has_time, interval, needs, method):
    case = random_case((5 if has_time else 1, 2, 3), neuron=neuron)
    arguments = forward_arguments(case, interval, has_time, method)
    states = ops.lif_forward(*arguments)[3]
    x, *tensors = arguments[:8]
    grads = [torch.randn(x.shape), torch.randn(2, 3), None]
    grads.append(torch.randn(states.shape) if interval == 1 else None)
    alpha = None if neuron == "li" else case.alpha
    options = (*arguments[9:], False, needs)
    opcheck("lif_backward", (*grads, x, states, *tensors, alpha, *options))


def test_smooth_spikes():
    case = random_case((3, 2, 3), torch.float64)
    arguments = forward_arguments(case, 2, smooth=True)
    opcheck("lif_forward", arguments)
    x, *tensors = arguments[:9]
    grads = (torch.randn_like(x), None, None, None)
    states = ops.lif_forward(*arguments)[3]
    opcheck("lif_backward", (*grads, x, states, *tensors, *arguments[9:], False, 255))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_forward_of_other_dtypes(dtype):
    opcheck("lif_forward", forward_arguments(random_case((3, 2, 3), dtype), 2))


@pytest.mark.parametrize(
    ("shape", "interval", "exact", "needs_grad"),
    [
        ((4, 2), 0, False, False),
        ((4, 2), 1, False, True),
        ((4, 2), 3, True, True),
        ((2,), 1, False, True),
        ((2,), 0, True, False),
    ],
    ids=str,
)
def test_recurrent_forward(shape, interval, exact, needs_grad):
    case = random_recurrent_case((*shape, 3, 5) if len(shape) > 1 else (1, *shape, 3, 5))
    x = case.x if len(shape) > 1 else case.x[0]
    options = (None, 0.001, False, exact, interval, SUPER, False, needs_grad)
    opcheck("lif_recurrent_forward", (x, *case[1:6], *case.constants, *options))


@pytest.mark.parametrize(
    ("interval", "has_time", "needs", "with_grads", "method", "smooth"),
    [
        (0, True, 255, False, SUPER, False),
        (1, True, 0, True, ADJOINT, False),
        (3, True, 0b00011000, True, SUPER, True),
        (0, False, 1, True, EVENTPROP, False),
    ],
)
def test_recurrent_backward(interval, has_time, needs, with_grads, method, smooth):
    case = random_recurrent_case((4, 2, 3, 5), torch.float64)
    x = case.x if has_time else case.x[0]
    alpha = case.alpha if smooth else None
    options = (alpha, 0.001, False, False, interval, method, smooth, True)
    arguments = (x, *case[1:6], *case.constants, *options)
    if smooth:
        opcheck("lif_recurrent_forward", arguments)
    out, v, i, i_jump, states = ops.lif_recurrent_forward(*arguments)
    grads = [torch.randn_like(t.detach()) if with_grads else None for t in (out, v, i, states)]
    if interval != 1:
        grads[3] = None
    state = (i_jump, states, case.v, case.i)
    tensors = (*state, case.recurrent_weights, *case.constants, case.alpha)
    options = (0.001, False, interval, method, smooth, False, needs)
    opcheck("lif_recurrent_backward", (*grads, *tensors, *options))


# ---- fake functions ----


def described(results):
    return [(t.dtype, tuple(t.shape), t.stride()) for t in results]


def layouts(x):
    """The input as it is, with batch and time swapped in memory, repeated, without time."""
    yield x
    yield x.transpose(0, 1).contiguous().transpose(0, 1)
    yield x[:1].expand(x.shape)
    yield x[0]
    yield x[0].t().contiguous().t()


def in_fake_mode(run, x, case):
    mode = FakeTensorMode()

    def fake(t):
        return mode.from_tensor(t.detach().to(TRITON_DEVICE))

    x, case = tree_map_only(torch.Tensor, fake, (x, case))
    with mode, torch.no_grad():
        return run(_FakeOperators(), x, case)


class _FakeOperators:
    """The same operators, whose arguments stay where they are."""

    def __getattr__(self, name):
        return getattr(torch.ops.fused_lif, f"{name}_triton").default


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("neuron", NEURONS)
def test_fake_functions_of_sequences(neuron, dtype):
    case = random_case((3, 2, 5), dtype, neuron)
    case = case._replace(constants=tuple(c.to(torch.float16) for c in case.constants))
    for x, interval, needs in zip(layouts(case.x.detach()), (0, 1, 2, 1, 0), (0, 255, 1, 0x55, 7)):

        def run(ops, x, case, interval=interval, needs=needs):
            return run_operators(ops, x, case, interval, needs=needs)

        assert described(in_fake_mode(run, x, case)) == described(run(ops, x, case))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fake_functions_of_recurrent_layers(dtype):
    case = random_recurrent_case((3, 2, 4, 5), dtype, weight_dtype=torch.float16)
    for x, interval, needs in zip(layouts(case.x.detach()), (0, 1, 2, 1, 0), (0, 255, 1, 0x55, 7)):

        def run(ops, x, case, interval=interval, needs=needs):
            case = case._replace(x=x)
            return run_recurrent_operators(ops, case, interval, needs=needs)

        assert described(in_fake_mode(run, x, case)) == described(run(ops, x, case))


# ---- torch.compile ----


def sequence(x):
    state = fused_lif.LIFFeedForwardState(x[0] * 0.1, x[0] * 0.2)
    p = LIFParameters(v_th=0.6, method="tanh", alpha=2.0)
    out, s = fused_lif.lif_feed_forward_integral(x, state, p, backend="triton")
    return out, s.v, s.i


def encoder(x):
    p = LIFParameters(v_th=0.3, alpha=2.0)
    return lif_current_encoder_integral(x * 10, x[0], p, backend="triton")


def leaky_integrator(x):
    state = fused_lif.LIState(x[1] * 0.1, x[1] * 0.2)
    out, s = fused_lif.li_feed_forward_step(x[0], state, backend="triton")
    return out, s.v


def events(x):
    p = LIFParameters(v_th=0.3, method="eventprop")
    state = fused_lif.LIFFeedForwardState(x[0] * 0.1, x[0] * 0.2)
    out, s = fused_lif.lif_feed_forward_integral(x * 10, state, p, backend="triton")
    return out, s.v


def recurrent(x):
    weights = x[0].t() @ x[1] / 2, x[0].t() @ x[0] / 4
    state = LIFState(x[1] * 0, x[1] * 0.1, x[1] * 0.2)
    p = LIFParameters(v_th=0.3, alpha=2.0)
    out, s = fused_lif.lif_step_integral(x, state, *weights, p, backend="triton")
    return out, s.v, s.i


FUNCTIONS = (sequence, encoder, leaky_integrator, events, recurrent)


def run_compiled(function, compiler, parameters=()):
    """Results and gradients, eager and compiled."""
    torch._dynamo.reset()
    results = []
    for run in (function, torch.compile(function, fullgraph=True, backend=compiler)):
        x = torch.rand(5, 2, 4, generator=torch.Generator().manual_seed(0))
        x = x.to(TRITON_DEVICE).requires_grad_()
        outputs = run(x)
        loss = sum((k + 1) * o.float().cos().sum() for k, o in enumerate(outputs))
        grads = torch.autograd.grad(loss, [x, *parameters])
        assert all(g.any() for g in grads)
        results.append([*(o.detach() for o in outputs), *grads])
    return results


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_compiled_functions(function):
    """The same operators in one graph: the same bits."""
    eager, compiled = run_compiled(function, "aot_eager")
    assert_same(compiled, eager)


@pytest.mark.parametrize("recurrent", [False, True])
def test_compiled_layers(recurrent):
    torch.manual_seed(0)
    p = LIFParameters(v_th=torch.nn.Parameter(torch.full((4,), 0.3)), alpha=2.0)
    options = {"backend": "triton", "record_states": True}
    layer = LIFRecurrent(4, 4, p, **options) if recurrent else LIF(p, **options)
    layer = layer.to(TRITON_DEVICE)
    last = LI(backend="triton").to(TRITON_DEVICE)

    def run(x):
        out, s = layer(x * 3)
        out, end = last(out)
        return out, s.v, end.v

    eager, compiled = run_compiled(run, "aot_eager", list(layer.parameters()))
    assert_same(compiled, eager)


@pytest.mark.filterwarnings("ignore")  # those of the compiler
def test_compiled_by_inductor():
    eager, compiled = run_compiled(sequence, "inductor")
    for a, e in zip(compiled, eager):
        torch.testing.assert_close(a, e)


def test_compiled_for_inference():
    layer = LIF(backend="triton").to(TRITON_DEVICE)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.rand(4, 2, 3).to(TRITON_DEVICE)
    with torch.no_grad():
        assert_same([compiled(x * 9)[0]], [layer(x * 9)[0]])


# ---- nothing ----


@pytest.mark.parametrize("step", [(0, 3), (3, 0), (0,)], ids=str)
@pytest.mark.parametrize("neuron", NEURONS)
def test_no_columns(neuron, step, plans):
    """Gradients of constants that the neurons share are zero; no kernel is launched."""
    for constant_shape in ((), step, step[-1:]):
        case = random_case((5, *step), neuron=neuron, constant_shape=constant_shape)
        assert [tuple(t.shape) for t in case.run("triton")[:2]] == [(5, *step), step]
        for name, g in gradients(case, "triton").items():
            assert g.shape == case.inputs()[name].shape
            assert not g.any(), name
    assert plans.launches == []


@pytest.mark.parametrize(
    ("batch", "features", "neurons"), [(0, 4, 5), (2, 4, 0), (2, 0, 5), (0, 0, 0)]
)
def test_no_rows_neurons_or_inputs(batch, features, neurons, plans):
    case = random_recurrent_case((3, batch, features, neurons))
    with torch.no_grad():
        assert_same(case.run("triton"), case.run("reference"))
    actual = gradients(case, "triton")
    for name, g in gradients(case, "reference").items():
        assert actual[name].shape == g.shape, name
        assert actual[name].dtype == g.dtype, name
        torch.testing.assert_close(actual[name], g)
    if batch * neurons == 0:
        assert plans.launches == []
