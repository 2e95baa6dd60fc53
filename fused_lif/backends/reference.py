"""Pure-torch backend. It defines the right answer: all other backends are tested against it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_lif.backends._base import Backend
from fused_lif.surrogate import SURROGATES, Surrogate
from fused_lif.types import LIFProblem, LIFResult, Neuron


class _Spike(torch.autograd.Function):
    """z = H(s), with a surrogate derivative."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, alpha: Tensor, surrogate: Surrogate) -> Tensor:
        ctx.save_for_backward(s, alpha)
        ctx.surrogate = surrogate
        return (s > 0).to(s.dtype)

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor) -> tuple[Tensor, None, None]:
        s, alpha = ctx.saved_tensors
        return grad_z * ctx.surrogate.grad(s, alpha), None, None


class _Choose(torch.autograd.Function):
    """z * a + (1 - z) * b for z of 0 or 1, exact also where the other one is infinite."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(z, a, b)
        return torch.where(z > 0, a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z, a, b = ctx.saved_tensors
        grad_a = torch.where(z > 0, grad, 0)
        return grad * (a - b), grad_a.sum_to_size(a.shape), grad - grad_a


def _rate(dt: float, tau_inv: Tensor, dtype: torch.dtype) -> Tensor:
    """dt * tau_inv, formed in the dtype of tau_inv but for half types, as in csrc."""
    if tau_inv.dtype in (torch.float16, torch.bfloat16):
        tau_inv = tau_inv.float()
    return (dt * tau_inv).to(dtype)


def _run(problem: LIFProblem) -> LIFResult:
    x, v, i, tau_syn_inv, tau_mem_inv, v_leak, v_th, v_reset, alpha, dt, neuron, *options = problem
    method, soft_reset, detach_reset, record_states = options
    dtype = v.dtype
    single_step = x.dim() == v.dim()
    a = _rate(dt, tau_mem_inv, dtype)
    b = None if tau_syn_inv is None else _rate(dt, tau_syn_inv, dtype)
    v_leak = v_leak.to(dtype)
    if neuron is not Neuron.LI:
        assert v_th is not None and v_reset is not None and alpha is not None
        v_th, v_reset, alpha = v_th.to(dtype), v_reset.to(dtype), alpha.detach().to(dtype)
        surrogate = SURROGATES[method]

    outputs, v_states, i_states = [], [], []
    for x_t in (x.unsqueeze(0) if single_step else x).to(dtype).unbind(0):
        i_jump = x_t if i is None else i + x_t
        v_decayed = v + a * ((v_leak - v) + i_jump)
        if neuron is Neuron.LI:
            out = v = v_decayed
        else:
            out = _Spike.apply(v_decayed - v_th, alpha, surrogate)
            v_spiked = v_decayed - v_th if soft_reset else v_reset
            v = _Choose.apply(out.detach() if detach_reset else out, v_spiked, v_decayed)
        if b is not None:
            i = i_jump - b * i_jump
        outputs.append(out)
        if record_states:
            v_states.append(v)
            i_states.append(i)

    out = outputs[0] if single_step else torch.stack(outputs)
    states = None
    if record_states:
        sequences = [v_states] if i is None else [v_states, i_states]
        states = torch.stack([torch.stack(s) for s in sequences])
    return LIFResult(out.to(x.dtype), v, i, states)


REFERENCE = Backend("reference", lambda: [], lambda problem: [], _run)
