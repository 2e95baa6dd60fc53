"""Triton operators called directly, and by torch.compile: schemas, fake functions, messages."""

from __future__ import annotations

import re

import pytest
import torch
from cuda_cases import operator_arguments, run_operators, run_recurrent_operators
from helpers import DEVICE, NEURONS, gradients, moved, random_case, random_recurrent_case
from test_lif_forward import DTYPES
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_map_only
from triton_cases import TRITON_DEVICE, assert_same, ops

import fused_lif
from fused_lif import LI, LIF, LIFParameters, LIFRecurrent, LIFState
from fused_lif.backends import triton
from fused_lif.backends.triton import operators
from fused_lif.functional.lif import lif_current_encoder_integral

pytestmark = pytest.mark.usefixtures("plans")

# ---- torch's own checks ----


def opcheck(name, arguments, **options):
    if not triton.IS_INTERPRETED:
        arguments = moved(arguments, DEVICE)
    arguments = tree_map_only(torch.Tensor, torch.Tensor.detach, arguments)
    operator = getattr(torch.ops.fused_lif, f"{name}_triton").default
    torch.library.opcheck(operator, arguments, **options)


def forward_arguments(case, interval, has_time=True):
    tensors, _, *options = operator_arguments(case)
    return (case.x if has_time else case.x[0], *tensors, 0.001, *options, interval)


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
    ("neuron", "has_time", "interval", "needs"),
    [
        ("lif", True, 0, 255),
        ("lif", True, 1, 0b00011000),
        ("lif", True, 2, 1),
        ("lif", False, 0, 255),
        ("li", True, 2, 255),
        ("encoder", True, 1, 255),
        ("encoder", False, 1, 0),
    ],
)
def test_backward(neuron, has_time, interval, needs):
    case = random_case((5 if has_time else 1, 2, 3), neuron=neuron)
    arguments = forward_arguments(case, interval, has_time)
    states = ops.lif_forward(*arguments)[3]
    x, *tensors = arguments[:8]
    grads = [torch.randn(x.shape), torch.randn(2, 3), None]
    grads.append(torch.randn(states.shape) if interval == 1 else None)
    alpha = None if neuron == "li" else case.alpha
    options = (*arguments[8:], 1, False, needs)
    opcheck("lif_backward", (*grads, x, states, *tensors, alpha, *options))


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
    options = (0.001, False, exact, interval, needs_grad)
    opcheck("lif_recurrent_forward", (x, *case[1:6], *case.constants, *options))


@pytest.mark.parametrize(
    ("interval", "has_time", "needs", "with_grads"),
    [(0, True, 255, False), (1, True, 0, True), (3, True, 0b00011000, True), (0, False, 1, True)],
)
def test_recurrent_backward(interval, has_time, needs, with_grads):
    case = random_recurrent_case((4, 2, 3, 5))
    x = case.x if has_time else case.x[0]
    arguments = (x, *case[1:6], *case.constants, 0.001, False, False, interval, True)
    out, v, i, i_jump, states = ops.lif_recurrent_forward(*arguments)
    grads = [torch.randn_like(t.detach()) if with_grads else None for t in (out, v, i, states)]
    if interval != 1:
        grads[3] = None
    tensors = (i_jump, states, case.v, case.recurrent_weights, *case.constants, case.alpha)
    opcheck("lif_recurrent_backward", (*grads, *tensors, 0.001, False, interval, 1, False, needs))


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


def recurrent(x):
    weights = x[0].t() @ x[1] / 2, x[0].t() @ x[0] / 4
    state = LIFState(x[1] * 0, x[1] * 0.1, x[1] * 0.2)
    p = LIFParameters(v_th=0.3, alpha=2.0)
    out, s = fused_lif.lif_step_integral(x, state, *weights, p, backend="triton")
    return out, s.v, s.i


FUNCTIONS = (sequence, encoder, leaky_integrator, recurrent)


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


# ---- messages ----

T, B, N, H = 3, 2, 4, 5  # N inputs of H neurons


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


def double(*shape):
    return zeros(*shape, dtype=torch.float64)


def long(*shape):
    return zeros(*shape, dtype=torch.int64)


C = torch.tensor(1.0)
CONSTANTS = {name: C for name in ("tau_syn_inv", "tau_mem_inv", "v_leak", "v_th", "v_reset")}


def forward(**changes):
    arguments = {
        "x": zeros(T, B, N),
        "v": zeros(B, N),
        "i": zeros(B, N),
        **CONSTANTS,
        "dt": 0.001,
        "neuron": 0,
        "soft_reset": False,
        "state_interval": 2,
    }
    return ops.lif_forward(**{**arguments, **changes})


def backward(**changes):
    arguments = {
        "grad_out": zeros(T, B, N),
        "grad_v": None,
        "grad_i": None,
        "grad_states": None,
        "x": zeros(T, B, N),
        "states": zeros(2, 1, B, N),
        "v": zeros(B, N),
        "i": zeros(B, N),
        **CONSTANTS,
        "alpha": C,
        "dt": 0.001,
        "neuron": 0,
        "soft_reset": False,
        "state_interval": 2,
        "method": 1,
        "detach_reset": False,
        "needs": 255,
    }
    return ops.lif_backward(**{**arguments, **changes})


def recurrent_forward(**changes):
    arguments = {
        "input": zeros(T, B, N),
        **{name: zeros(B, H) for name in "zvi"},
        "input_weights": zeros(H, N),
        "recurrent_weights": zeros(H, H),
        **CONSTANTS,
        "dt": 0.001,
        "soft_reset": False,
        "exact": False,
        "state_interval": 2,
        "needs_grad": True,
    }
    return ops.lif_recurrent_forward(**{**arguments, **changes})


def recurrent_backward(**changes):
    arguments = {
        "grad_out": zeros(T, B, H),
        "grad_v": None,
        "grad_i": None,
        "grad_states": None,
        "i_jump": zeros(T, B, H),
        "states": zeros(1, 1, B, H),
        "v": zeros(B, H),
        "recurrent_weights": zeros(H, H),
        **CONSTANTS,
        "alpha": C,
        "dt": 0.001,
        "soft_reset": False,
        "state_interval": 2,
        "method": 1,
        "detach_reset": True,
        "needs": 255,
    }
    return ops.lif_recurrent_backward(**{**arguments, **changes})


#: A tensor that must have a shape and dtype: ``{name} must ...``, on the device of the kernels.
EXPECTED = "{} must have shape {} and be torch.{} on {device}, got shape {}, torch.{} on {device}"
A_STEP = "must have at least one time step and match v of shape"


def expected(name, shape, dtype, got_shape, got_dtype):
    device = "cpu" if triton.IS_INTERPRETED else "cuda:0"
    return EXPECTED.format(name, shape, dtype, got_shape, got_dtype, device=device)


# Arguments that are wrong, and what the message must say: the argument, the rule and the value.
MESSAGES = {
    forward: [
        ({"x": zeros(B)}, f"x {A_STEP} [2, 4], got shape [2]"),
        ({"x": zeros()}, f"x {A_STEP} [2, 4], got shape []"),
        ({"x": zeros(1, T, B, N)}, f"x {A_STEP} [2, 4], got shape [1, 3, 2, 4]"),
        ({"x": zeros(0, B, N)}, f"x {A_STEP} [2, 4], got shape [0, 2, 4]"),
        ({"x": long(T, B, N)}, "x must be float64, float32, float16 or bfloat16, got torch.int64"),
        (
            {"x": double(T, B, N)},
            expected("v", [2, 4], "float64", [2, 4], "float32"),
        ),
        ({"v": zeros(B, 5)}, expected("v", [2, 4], "float32", [2, 5], "float32")),
        ({"v": zeros(N, B)}, expected("v", [2, 4], "float32", [4, 2], "float32")),
        ({"v": zeros(B, N, dtype=torch.float16)}, "v must have shape [2, 4] and be torch.float32"),
        ({"v": zeros(N)}, f"x {A_STEP} [4], got shape [3, 2, 4]"),
        ({"i": zeros(N)}, expected("i", [2, 4], "float32", [4], "float32")),
        ({"i": double(B, N)}, expected("i", [2, 4], "float32", [2, 4], "float64")),
        ({"i": None}, "i and tau_syn_inv must be given, except for the current encoder"),
        ({"tau_syn_inv": None}, "i and tau_syn_inv must be given, except for the current encoder"),
        ({"neuron": 2}, "i and tau_syn_inv must be given, except for the current encoder"),
        ({"v_th": None}, "v_th, v_reset and alpha must be given, except for LI"),
        ({"v_reset": None}, "v_th, v_reset and alpha must be given, except for LI"),
        ({"neuron": 1}, "v_th, v_reset and alpha must be given, except for LI"),
        ({"neuron": 3}, "neuron must be 0, 1 or 2, got 3"),
        ({"neuron": -1}, "neuron must be 0, 1 or 2, got -1"),
        ({"state_interval": -1}, "state_interval must be between 0 and 16, got -1"),
        ({"state_interval": 17}, "state_interval must be between 0 and 16, got 17"),
        ({"v_th": zeros(7)}, "v_th must broadcast to one time step of shape [2, 4], got shape [7]"),
        (
            {"v_leak": zeros(T, B, N)},
            "v_leak must broadcast to one time step of shape [2, 4], got shape [3, 2, 4]",
        ),
        (
            {"v_reset": zeros(1, 1, 1)},
            "v_reset must broadcast to one time step of shape [2, 4], got shape [1, 1, 1]",
        ),
        ({"tau_mem_inv": zeros(B)}, "tau_mem_inv must broadcast to one time step"),
        ({"tau_mem_inv": zeros(0)}, "tau_mem_inv must broadcast to one time step"),
        ({"tau_syn_inv": long(N)}, "tau_syn_inv must be floating-point and on the device of x"),
    ],
    backward: [
        (
            {"grad_out": zeros(B, N)},
            expected("grad_out", [3, 2, 4], "float32", [2, 4], "float32"),
        ),
        (
            {"grad_out": double(T, B, N)},
            expected("grad_out", [3, 2, 4], "float32", [3, 2, 4], "float64"),
        ),
        ({"grad_v": zeros(N)}, expected("grad_v", [2, 4], "float32", [4], "float32")),
        ({"grad_i": double(B, N)}, expected("grad_i", [2, 4], "float32", [2, 4], "float64")),
        ({"grad_states": zeros(2, T, B, N)}, "grad_states needs state_interval = 1"),
        (
            {"state_interval": 1, "states": zeros(2, T, B, N), "grad_states": zeros(1, T, B, N)},
            expected("grad_states", [2, 3, 2, 4], "float32", [1, 3, 2, 4], "float32"),
        ),
        (
            {"states": zeros(2, 0, B, N)},
            expected("states", [2, 1, 2, 4], "float32", [2, 0, 2, 4], "float32"),
        ),
        (
            {"states": zeros(1, 1, B, N)},
            expected("states", [2, 1, 2, 4], "float32", [1, 1, 2, 4], "float32"),
        ),
        (
            {"states": double(2, 1, B, N)},
            "states must have shape [2, 1, 2, 4] and be torch.float32",
        ),
        ({"state_interval": 1}, "states must have shape [2, 3, 2, 4]"),
        ({"state_interval": 17}, "state_interval must be between 0 and 16, got 17"),
        (
            {"x": zeros(17, B, N), "grad_out": None, "state_interval": 0},
            "states must be kept by the forward for more than 16 time steps",
        ),
        ({"x": zeros(0, B, N), "grad_out": None}, f"x {A_STEP} [2, 4], got shape [0, 2, 4]"),
        ({"x": long(T, B, N)}, "x must be float64, float32, float16 or bfloat16, got torch.int64"),
        ({"v": zeros(B, 5)}, expected("v", [2, 4], "float32", [2, 5], "float32")),
        ({"alpha": None}, "v_th, v_reset and alpha must be given, except for LI"),
        ({"alpha": zeros(7)}, "alpha must broadcast to one time step of shape [2, 4], got shape"),
        ({"alpha": long()}, "alpha must be floating-point and on the device of x"),
        ({"v_th": zeros(N, 1)}, "v_th must broadcast to one time step of shape [2, 4], got shape"),
        ({"neuron": 5}, "neuron must be 0, 1 or 2, got 5"),
        ({"method": 9}, "method must be the id of a surrogate, got 9"),
        ({"method": -1}, "method must be the id of a surrogate, got -1"),
    ],
    recurrent_forward: [
        (
            {"input": zeros(T, B, 6)},
            expected("input_weights", [5, 6], "float32", [5, 4], "float32"),
        ),
        (
            {"input": zeros(T, 3, N)},
            "input must have the batch of v, of shape [2, 5], got shape [3",
        ),
        ({"input": zeros(0, B, N)}, f"input {A_STEP} [2, 5], got shape [0, 2, 4]"),
        ({"input": zeros(N)}, f"input {A_STEP} [2, 5], got shape [4]"),
        ({"input": zeros()}, f"input {A_STEP} [2, 5], got shape []"),
        ({"input": zeros(1, T, B, N)}, f"input {A_STEP} [2, 5], got shape [1, 3, 2, 4]"),
        ({"input": long(T, B, N)}, "input must be float64, float32, float16 or bfloat16, got"),
        ({"input": double(T, B, N)}, expected("z", [2, 5], "float64", [2, 5], "float32")),
        ({"v": zeros()}, "v must have shape [*batch, H], got []"),
        ({"v": zeros(B, 6)}, expected("z", [2, 6], "float32", [2, 5], "float32")),
        ({"v": double(B, H)}, expected("v", [2, 5], "float32", [2, 5], "float64")),
        ({"z": long(B, H)}, expected("z", [2, 5], "float32", [2, 5], "int64")),
        ({"i": zeros(B, H, 1)}, expected("i", [2, 5], "float32", [2, 5, 1], "float32")),
        ({"input_weights": zeros(N, H)}, "input_weights must have shape [5, 4]"),
        (
            {"input_weights": long(H, N)},
            "input_weights must have shape [5, 4] and be torch.float32",
        ),
        ({"recurrent_weights": zeros(H, N)}, "recurrent_weights must have shape [5, 5]"),
        ({"recurrent_weights": zeros(H * H)}, "recurrent_weights must have shape [5, 5]"),
        ({"v_th": zeros(N)}, "v_th must broadcast to one time step of shape [2, 5], got shape [4]"),
        ({"v_leak": long()}, "v_leak must be floating-point"),
        ({"state_interval": -1}, "state_interval must be between 0 and 16, got -1"),
        ({"state_interval": 32}, "state_interval must be between 0 and 16, got 32"),
        (
            {"exact": True, "input": zeros(T, B, N, dtype=torch.bfloat16)},
            "exact needs input and weights in float32, or all in float64",
        ),
        (
            {"exact": True, "input_weights": double(H, N)},
            "exact needs input and weights in float32",
        ),
    ],
    recurrent_backward: [
        ({"grad_out": zeros(B, H)}, expected("grad_out", [3, 2, 5], "float32", [2, 5], "float32")),
        ({"grad_out": double(T, B, H)}, "grad_out must be of a type that is computed in that of"),
        ({"grad_out": long(T, B, H)}, "grad_out must be of a type that is computed in that of"),
        ({"grad_v": zeros(H)}, expected("grad_v", [2, 5], "float32", [5], "float32")),
        ({"grad_i": double(B, H)}, expected("grad_i", [2, 5], "float32", [2, 5], "float64")),
        ({"grad_states": zeros(2, T, B, H)}, "grad_states needs state_interval = 1"),
        ({"i_jump": zeros(H)}, f"i_jump {A_STEP} [2, 5], got shape [5]"),
        ({"i_jump": zeros(0, B, H)}, f"i_jump {A_STEP} [2, 5], got shape [0, 2, 5]"),
        (
            {"i_jump": zeros(T, B, 6)},
            expected("i_jump", [3, 2, 5], "float32", [3, 2, 6], "float32"),
        ),
        ({"i_jump": double(T, B, H)}, "i_jump must have shape [3, 2, 5] and be torch.float32"),
        ({"states": zeros(2, 1, B, H)}, "states must have shape [1, 1, 2, 5]"),
        ({"state_interval": 1}, "states must have shape [2, 3, 2, 5]"),
        ({"state_interval": 17}, "state_interval must be between 0 and 16, got 17"),
        (
            {"i_jump": zeros(17, B, H), "grad_out": None, "state_interval": 0},
            "states must be kept by the forward for more than 16 time steps",
        ),
        ({"v": zeros()}, "v must have shape [*batch, H], got []"),
        (
            {"v": zeros(B, H, dtype=torch.float16)},
            "v must be float32 or float64, got torch.float16",
        ),
        ({"recurrent_weights": zeros(H, N)}, "recurrent_weights must have shape [5, 5]"),
        (
            {"recurrent_weights": long(H, H)},
            "recurrent_weights must have shape [5, 5] and be torch.",
        ),
        (
            {"alpha": zeros(7)},
            "alpha must broadcast to one time step of shape [2, 5], got shape [7]",
        ),
        ({"v_reset": long()}, "v_reset must be floating-point"),
        ({"method": 9}, "method must be the id of a surrogate, got 9"),
    ],
}


@pytest.mark.parametrize(
    ("call", "changes", "message"),
    [
        pytest.param(call, *case, id=f"{call.__name__}-{'-'.join(case[0])}-{n}")
        for call, cases in MESSAGES.items()
        for n, case in enumerate(cases)
    ],
)
def test_message(call, changes, message, plans):
    """Before anything is launched."""
    with pytest.raises(RuntimeError, match=re.escape(message)) as raised:
        call(**changes)
    assert str(raised.value).startswith(f"fused_lif: lif_{call.__name__}_triton: ")
    assert plans.launches == []


@pytest.mark.parametrize("call", MESSAGES, ids=lambda call: call.__name__)
def test_right_arguments(call):
    """The test above changes one argument of a call that runs."""
    assert all(t.isfinite().all() for t in call())


@pytest.mark.parametrize("name", ["v", "i", "v_th", "tau_syn_inv"])
def test_arguments_on_another_device(name):
    given = {"x": zeros(T, B, N), "v": zeros(B, N), "i": zeros(B, N), **CONSTANTS}
    given = {k: t.to("meta" if k == name else TRITON_DEVICE) for k, t in given.items()}
    message = f"{name} must .* on meta$" if name in "vi" else f"{name} must .* on the device of x$"
    with pytest.raises(RuntimeError, match=message):
        operators.lif_forward(**given, dt=0.001, neuron=0, soft_reset=False, state_interval=0)


def test_constant_of_too_many_elements():
    large = torch.empty(2**31, device="meta")
    given = {"x": large, "v": large, "i": large, **{k: c.to("meta") for k, c in CONSTANTS.items()}}
    given["v_th"] = large
    message = re.escape("v_th must have fewer than 2^31 elements, got 2147483648")
    with pytest.raises(RuntimeError, match=message):
        operators.lif_forward(**given, dt=0.001, neuron=0, soft_reset=False, state_interval=0)


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
