"""Direct calls of the operators of recurrent layers with bad arguments: their messages."""

from __future__ import annotations

import re

import pytest
import torch

from fused_lif.backends import native

pytestmark = pytest.mark.skipif(
    native.IMPORT_ERROR is not None, reason="the C++ extension is not built"
)

ops = torch.ops.fused_lif

T, B, N, H = 6, 2, 4, 3  # N inputs


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


def forward(**changes):
    c = torch.tensor(1.0)
    arguments = {
        "input": zeros(T, B, N),
        **{name: zeros(B, H) for name in "zvi"},
        "input_weights": zeros(H, N),
        "recurrent_weights": zeros(H, H),
        **{name: c for name in ("tau_syn_inv", "tau_mem_inv", "v_leak", "v_th", "v_reset")},
        "alpha": None,
        "dt": 0.001,
        "soft_reset": False,
        "exact": False,
        "state_interval": 32,
        "method": 1,
        "smooth": False,
        "needs_grad": True,
    }
    return ops.lif_recurrent_forward(**{**arguments, **changes})


def backward(**changes):
    c = torch.tensor(1.0)
    arguments = {
        "grad_out": zeros(T, B, H),
        "grad_v": None,
        "grad_i": None,
        "grad_states": None,
        "i_jump": zeros(T, B, H),
        "states": zeros(1, 0, B, H),
        "v": zeros(B, H),
        "i": zeros(B, H),
        "recurrent_weights": zeros(H, H),
        **{name: c for name in ("tau_syn_inv", "tau_mem_inv", "v_leak", "v_th", "v_reset")},
        "alpha": c,
        "dt": 0.001,
        "soft_reset": False,
        "state_interval": 32,
        "method": 1,
        "smooth": False,
        "detach_reset": True,
        "needs": 255,
    }
    return ops.lif_recurrent_backward(**{**arguments, **changes})


def weight_grad(**changes):
    arguments = {"grad": zeros(T, B, H), "input": zeros(T, B, N), "spikes": None, "columns": N}
    return ops.weight_grad(**{**arguments, **changes})


def input_grad(**changes):
    return ops.input_grad(**{"grad": zeros(T, B, H), "weights": zeros(H, N), **changes})


def long(*shape):
    return zeros(*shape, dtype=torch.int64)


def double(*shape):
    return zeros(*shape, dtype=torch.float64)


# Arguments that are wrong, and what the message must say: the argument, the rule and the value.
MESSAGES = {
    forward: [
        ({"input": zeros(T, B, 5)}, "input_weights must have shape [3, 5]"),
        ({"input": zeros(T, 5, N)}, "input must have the batch of v, of shape [2, 3], got"),
        ({"input": zeros(5, N)}, "input must have the batch of v, of shape [2, 3], got shape [5"),
        ({"input": zeros(0, B, N)}, "input must have at least one time step"),
        ({"input": zeros(N)}, "match v of shape [2, 3], got shape [4]"),
        ({"input": zeros()}, "match v of shape [2, 3], got shape []"),
        ({"input": zeros(1, T, B, N)}, "match v of shape [2, 3], got shape [1, 6, 2, 4]"),
        ({"input": long(T, B, N)}, "input must be float64, float32, float16 or bfloat16"),
        ({"input": double(T, B, N)}, "z must have the dtype float64, got float32"),
        ({"v": zeros()}, "v must have shape [*batch, H], got []"),
        ({"v": zeros(B, 5)}, "recurrent_weights must have shape [5, 5]"),
        ({"v": zeros(H)}, "match v of shape [3], got shape [6, 2, 4]"),
        ({"v": double(B, H)}, "v must have the dtype float32, got float64"),
        ({"z": zeros(H)}, "z must have shape [2, 3]"),
        ({"z": zeros(B, 5)}, "z must have shape [2, 3]"),
        ({"z": long(B, H)}, "z must have the dtype float32, got int64"),
        ({"i": zeros(B, H, 1)}, "i must have shape [2, 3]"),
        ({"i": zeros(B, H, dtype=torch.float16)}, "i must have the dtype float32, got float16"),
        ({"input_weights": zeros(N, H)}, "input_weights must have shape [3, 4]"),
        ({"input_weights": zeros(H * N)}, "input_weights must have shape [3, 4]"),
        ({"input_weights": long(H, N)}, "input_weights must be floating-point"),
        ({"recurrent_weights": zeros(H, N)}, "recurrent_weights must have shape [3, 3]"),
        ({"recurrent_weights": zeros()}, "recurrent_weights must have shape [3, 3]"),
        ({"recurrent_weights": long(H, H)}, "recurrent_weights must be floating-point"),
        ({"v_th": zeros(5)}, "v_th must broadcast to one time step of shape [2, 3], got shape [5]"),
        ({"v_leak": zeros(T, B, H)}, "v_leak must broadcast to one time step of shape [2, 3], got"),
        ({"tau_mem_inv": long(H)}, "tau_mem_inv must be floating-point"),
        ({"state_interval": -1}, "state_interval must be between 0 and 32, got -1"),
        ({"state_interval": 33}, "state_interval must be between 0 and 32, got 33"),
        (
            {"exact": True, "input": zeros(T, B, N, dtype=torch.bfloat16)},
            "exact needs input and weights in float32, or all in float64",
        ),
        ({"exact": True, "input_weights": double(H, N)}, "exact needs input and weights in"),
        ({"exact": True, "recurrent_weights": double(H, H)}, "exact needs input and weights in"),
    ],
    backward: [
        ({"grad_out": zeros(T, B, 5)}, "grad_out must have shape [6, 2, 3]"),
        ({"grad_out": zeros(B, H)}, "grad_out must have shape [6, 2, 3]"),
        ({"grad_out": double(T, B, H)}, "grad_out must be of a type"),
        ({"grad_out": long(T, B, H)}, "grad_out must be"),
        ({"grad_out": zeros(T, B, H, dtype=torch.bool)}, "grad_out must be"),
        ({"grad_v": zeros(H)}, "grad_v must have shape [2, 3]"),
        ({"grad_v": double(B, H)}, "grad_v must have the dtype float32, got float64"),
        ({"grad_i": zeros(B, H, 1)}, "grad_i must have shape [2, 3]"),
        ({"grad_states": zeros(2, T, B, H)}, "grad_states needs state_interval = 1"),
        (
            {
                "grad_states": zeros(T, B, H),
                "states": zeros(2, T, B, H),
                "state_interval": 1,
            },
            "grad_states must have shape [2, 6, 2, 3]",
        ),
        ({"i_jump": zeros(H)}, "match v of shape [2, 3], got shape [3]"),
        ({"i_jump": zeros(0)}, "match v of shape [2, 3], got shape [0]"),
        ({"i_jump": zeros(0, B, H)}, "at least one time step"),
        ({"i_jump": zeros(T, B, 5)}, "i_jump must have shape [6, 2, 3]"),
        ({"i_jump": long(T, B, H)}, "must be float64, float32, float16 or bfloat16"),
        (
            {"i_jump": zeros(T, B, H, dtype=torch.float16)},
            "i_jump must have the dtype float32, got float16",
        ),
        ({"states": zeros(2, T, B, H)}, "states must have shape [1, 0, 2, 3]"),
        ({"states": double(1, 0, B, H)}, "states must have the dtype float32, got float64"),
        ({"state_interval": 1}, "states must have shape [2, 6, 2, 3]"),
        ({"state_interval": 2}, "states must have shape [1, 2, 2, 3]"),
        ({"state_interval": 33}, "state_interval must be between 0 and 32, got 33"),
        (
            {"i_jump": zeros(33, B, H), "state_interval": 0},
            "states must be kept by the forward for more than 32 time steps",
        ),
        ({"v": zeros()}, "v must have shape [*batch, H], got []"),
        ({"v": double(B, H)}, "v must have the dtype float32, got float64"),
        ({"recurrent_weights": zeros(H, N)}, "recurrent_weights must have shape [3, 3]"),
        ({"recurrent_weights": long(H, H)}, "recurrent_weights must be floating-point"),
        ({"alpha": zeros(7)}, "alpha must broadcast to one time step of shape [2, 3]"),
        ({"v_th": long()}, "v_th must be floating-point"),
        ({"method": 11}, "unknown method 11; known ones are 0 to 10"),
        ({"method": -1}, "unknown method -1; known ones are 0 to 10"),
    ],
    weight_grad: [
        ({"grad": zeros(T, H)}, "input must have shape [6, 4] to match"),
        ({"grad": zeros(), "input": zeros()}, "grad must be float32 or float64, of shape [*rows"),
        ({"grad": zeros(T, 5, H)}, "input must have shape [6, 5, 4] to match"),
        ({"grad": zeros(5, B, H)}, "input must have shape [5, 2, 4] to match"),
        ({"columns": 5}, "input must have shape [6, 2, 5] to match"),
        ({"columns": -1}, "columns must not be negative, got -1"),
        ({"input": None}, "input or spikes must be given"),
        ({"grad": double(T, B, H)}, "grad must be of the type that input is computed in"),
        ({"grad": zeros(T, B, H, dtype=torch.float16)}, "grad must be float32 or float64"),
        ({"input": double(T, B, N)}, "grad must be of the type that input is computed in"),
        ({"input": long(T, B, N)}, "grad must be of the type that input is computed in"),
        ({"spikes": long(T, B, 3)}, "spikes must have shape [6, 2, 2]"),
        ({"spikes": long(T, 2)}, "spikes must have shape [6, 2, 2]"),
        ({"spikes": zeros(T, B, 2)}, "spikes must have the dtype int64, got float32"),
        (
            {"spikes": zeros(T, B, 2, dtype=torch.int32)},
            "spikes must have the dtype int64",
        ),
    ],
    input_grad: [
        ({"grad": zeros()}, "grad must have shape [*rows, H]"),
        ({"grad": zeros(T, B, 5)}, "weights must have shape [5, 4]"),
        ({"grad": long(T, B, H)}, "grad must be float32 or float64"),
        ({"grad": zeros(T, B, H, dtype=torch.bfloat16)}, "grad must be float32 or float64"),
        ({"weights": zeros(N, H)}, "weights must have shape [3, 3]"),
        ({"weights": zeros(H)}, "weights must have shape"),
        ({"weights": zeros(1, H, N)}, "weights must have shape"),
        ({"weights": long(H, N)}, "weights must be floating-point"),
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
def test_message(call, changes, message):
    call()
    with pytest.raises(RuntimeError, match=re.escape(message)) as raised:
        call(**changes)
    assert str(raised.value).startswith("fused_lif: ")
