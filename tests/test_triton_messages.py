"""What a direct call of a Triton operator says of wrong arguments, before it launches anything."""

from __future__ import annotations

import re

import pytest
import torch
from triton_cases import TRITON_DEVICE, ops

from fused_lif.backends import triton
from fused_lif.backends.triton import operators

pytestmark = pytest.mark.usefixtures("plans")

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
        "alpha": None,
        "dt": 0.001,
        "neuron": 0,
        "soft_reset": False,
        "state_interval": 2,
        "method": 1,
        "smooth": False,
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
        "smooth": False,
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
        "alpha": None,
        "dt": 0.001,
        "soft_reset": False,
        "exact": False,
        "state_interval": 2,
        "method": 1,
        "smooth": False,
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
        "i": zeros(B, H),
        "recurrent_weights": zeros(H, H),
        **CONSTANTS,
        "alpha": C,
        "dt": 0.001,
        "soft_reset": False,
        "state_interval": 2,
        "method": 1,
        "smooth": False,
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


# Of all operators.
SPIKES = [
    ({"method": 11}, "unknown method 11; known ones are 0 to 10"),
    ({"method": -1}, "unknown method -1; known ones are 0 to 10"),
    ({"smooth": True}, "smooth spikes need float64, got torch.float32"),
    ({"smooth": True, "method": 9}, "an event-based method has no smooth spikes"),
]

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
        ({"v_th": None}, "v_th and v_reset must be given, except for LI"),
        ({"v_reset": None}, "v_th and v_reset must be given, except for LI"),
        ({"neuron": 1}, "v_th and v_reset must be given, except for LI"),
        ({"alpha": C}, "alpha must be given for smooth spikes only"),
        *SPIKES,
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
        ({"alpha": None}, "alpha must be given"),
        ({"alpha": zeros(7)}, "alpha must broadcast to one time step of shape [2, 4], got shape"),
        ({"alpha": long()}, "alpha must be floating-point and on the device of x"),
        ({"v_th": zeros(N, 1)}, "v_th must broadcast to one time step of shape [2, 4], got shape"),
        ({"neuron": 5}, "neuron must be 0, 1 or 2, got 5"),
        *SPIKES,
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
        ({"alpha": C}, "alpha must be given for smooth spikes only"),
        *SPIKES,
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
        ({"i": zeros(H)}, expected("i", [2, 5], "float32", [5], "float32")),
        *SPIKES,
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


def test_smooth_spikes_need_alpha():
    doubles = {"x": double(T, B, N), "v": double(B, N), "i": double(B, N), "smooth": True}
    with pytest.raises(RuntimeError, match=r"alpha must be given$"):
        forward(**doubles)


OPTIONS = {
    "alpha": None,
    "dt": 0.001,
    "neuron": 0,
    "soft_reset": False,
    "state_interval": 0,
    "method": 1,
    "smooth": False,
}


@pytest.mark.parametrize("name", ["v", "i", "v_th", "tau_syn_inv"])
def test_arguments_on_another_device(name):
    given = {"x": zeros(T, B, N), "v": zeros(B, N), "i": zeros(B, N), **CONSTANTS}
    given = {k: t.to("meta" if k == name else TRITON_DEVICE) for k, t in given.items()}
    message = f"{name} must .* on meta$" if name in "vi" else f"{name} must .* on the device of x$"
    with pytest.raises(RuntimeError, match=message):
        operators.lif_forward(**given, **OPTIONS)


def test_constant_of_too_many_elements():
    large = torch.empty(2**31, device="meta")
    given = {"x": large, "v": large, "i": large, **{k: c.to("meta") for k, c in CONSTANTS.items()}}
    given["v_th"] = large
    message = re.escape("v_th must have fewer than 2^31 elements, got 2147483648")
    with pytest.raises(RuntimeError, match=message):
        operators.lif_forward(**given, **OPTIONS)
