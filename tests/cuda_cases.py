"""What the tests of the emulated CUDA kernels share."""

from __future__ import annotations

import torch
from helpers import CONSTANTS, TOLERANCE, assert_same_bits
from test_lif_backward import check as check_gradients

from fused_lif.surrogate import method_id
from fused_lif.types import Neuron

HALVES = (torch.float16, torch.bfloat16)
SUPER = method_id("super")


def check_spikes(case):
    for name, a, e in zip(("out", "v", "i"), case.run("emulated"), case.run("reference")):
        assert_same_bits(a, e, name)


def check(case):
    """Compares outputs and gradients with those of the reference."""
    check_spikes(case)
    check_gradients(case, "emulated")


def with_input(case, x):
    """The case with a view of the same numbers as input."""
    assert torch.equal(x, case.x)
    return case._replace(x=x.detach().requires_grad_())


def at_offset(t, elements):
    """The same tensor, some elements behind the beginning of its memory."""
    memory = torch.empty(t.numel() + elements, dtype=t.dtype)
    return memory[elements:].view(t.shape).copy_(t.detach())


def operator_arguments(case):
    constants = dict(zip(CONSTANTS, case.constants))
    if case.neuron == "encoder":
        constants["tau_syn_inv"] = None
    if case.neuron == "li":
        constants["v_th"] = constants["v_reset"] = None
    i = None if case.neuron == "encoder" else case.i
    tensors = (case.v, i, *constants.values())
    neuron = {"lif": Neuron.LIF, "li": Neuron.LI, "encoder": Neuron.CURRENT_ENCODER}[case.neuron]
    alpha = None if case.neuron == "li" else case.alpha
    return tensors, alpha, int(neuron), case.options.get("reset") == "soft"


@torch.no_grad()
def run_operators(ops, x, case, interval, *, grads=None, needs=255, method=SUPER, smooth=False):
    """Calls lif_forward and lif_backward; returns the results of both."""
    tensors, alpha, neuron, soft = operator_arguments(case)
    options = (0.001, neuron, soft, interval, method, smooth)
    forward = ops.lif_forward(x, *tensors, alpha if smooth else None, *options)
    if grads is None:
        generator = torch.Generator().manual_seed(3)
        weights = [torch.randn(o.shape, generator=generator).to(o.dtype) for o in forward]
        grads = (weights[0], weights[1], None if tensors[1] is None else weights[2], None)
        if interval == 1:
            grads = (*grads[:3], weights[3])
    backward = (*grads, x, forward[3], *tensors, alpha, *options, False, needs)
    return *forward, *ops.lif_backward(*backward)


@torch.no_grad()
def run_recurrent_operators(
    ops, case, interval, *, grads=None, needs=255, method=SUPER, smooth=False
):
    soft = case.options.get("reset") == "soft"
    constants = (*case.constants, case.alpha if smooth else None)
    options = (0.001, soft, False, interval, method, smooth, True)
    forward = ops.lif_recurrent_forward(*case[:6], *constants, *options)[:5]
    out, v, i, i_jump, states = forward
    if grads is None:
        generator = torch.Generator().manual_seed(3)
        weights = [torch.randn(o.shape, generator=generator).to(o.dtype) for o in (out, v, i)]
        recorded = torch.randn(states.shape, generator=generator).to(v.dtype)
        grads = (*weights, recorded if interval == 1 else None)
    state = (i_jump, states, case.v, case.i)
    backward = (*state, case.recurrent_weights, *case.constants, case.alpha)
    options = (0.001, soft, interval, method, smooth, False, needs)
    return *forward, *ops.lif_recurrent_backward(*grads, *backward, *options)


def assert_close_sequences(actual, expected, dtype):
    """Same shapes and dtypes, and numbers within the limits of gradients."""
    for k, (a, e) in enumerate(zip(actual, expected)):
        assert a.shape == e.shape, k
        assert a.dtype == e.dtype, k
        if e.numel():
            scale = e.double().abs().max().clamp(min=1e-300)
            worst = ((a.double() - e.double()).abs().max() / scale).item()
            assert worst <= 10 * TOLERANCE[dtype].grad, (k, worst)
