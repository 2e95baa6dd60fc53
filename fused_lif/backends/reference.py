"""Pure-torch backend. It defines the right answer: all other backends are tested against it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from fused_lif.backends._base import Backend
from fused_lif.backends._events import EventSequence, Options
from fused_lif.surrogate import EVENT_METHODS, SURROGATES, Surrogate
from fused_lif.types import LIFProblem, LIFResult, Neuron


class _Spike(torch.autograd.Function):
    """z = H(s), with a surrogate derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(s: Tensor, alpha: Tensor, surrogate: Surrogate) -> Tensor:
        return (s > 0).to(s.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.surrogate = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor) -> tuple[Tensor, None, None]:
        s, alpha = ctx.saved_tensors
        return grad_z * ctx.surrogate.grad(s, alpha), None, None


class _SmoothSpike(_Spike):
    """z = S(s), the primitive of the surrogate derivative."""

    @staticmethod
    def forward(s: Tensor, alpha: Tensor, surrogate: Surrogate) -> Tensor:
        return surrogate.primitive(s, alpha)


class _Choose(torch.autograd.Function):
    """z * a + (1 - z) * b for z of 0 or 1, exact also where the other one is infinite."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.where(z > 0, a, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z, a, b = ctx.saved_tensors
        grad_a = torch.where(z > 0, grad, 0).sum_to_size(a.shape)
        return grad * (a - b), grad_a, torch.where(z > 0, 0, grad)


def _mix(z: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return z * a + (1 - z) * b


def _rate(dt: float, tau_inv: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns dt * tau_inv, formed in the dtype of tau_inv but for half types, as in csrc."""
    if tau_inv.dtype in (torch.float16, torch.bfloat16):
        tau_inv = tau_inv.float()
    return (dt * tau_inv).to(dtype)


def _without_autapse_gradients(weights: Tensor) -> Tensor:
    on_diagonal = torch.eye(weights.shape[0], dtype=torch.bool, device=weights.device)
    return torch.where(on_diagonal, weights.detach(), weights)


def _run(problem: LIFProblem) -> LIFResult:
    q, v, i, dtype = problem, problem.v, problem.i, problem.v.dtype
    single_step, z = q.x.dim() == v.dim(), None
    if q.recurrence is not None:
        z, input_weights, recurrent_weights, autapses, _ = q.recurrence
        input_weights = input_weights.to(dtype)
        recurrent_weights = recurrent_weights.to(dtype)
        if not autapses:
            recurrent_weights = _without_autapse_gradients(recurrent_weights)
    a = _rate(q.dt, q.tau_mem_inv, dtype)
    b = None if q.tau_syn_inv is None else _rate(q.dt, q.tau_syn_inv, dtype)
    v_leak = q.v_leak.to(dtype)
    if q.v_th is not None and q.v_reset is not None and q.alpha is not None:
        v_th, v_reset, alpha = q.v_th.to(dtype), q.v_reset.to(dtype), q.alpha.detach().to(dtype)

    x = (q.x.unsqueeze(0) if single_step else q.x).to(dtype)
    if q.method in EVENT_METHODS:
        weights = (input_weights, recurrent_weights) if q.recurrence is not None else (None, None)
        options = Options(q.dt, q.soft_reset, q.method == "adjoint")
        out, recorded = EventSequence.apply(
            *(x, z, v, i, *weights, a, b, v_leak, v_th, v_reset, options)
        )
        v, i = recorded[0, -1], None if i is None else recorded[1, -1]
        out = (out[0] if single_step else out).to(q.x.dtype)
        return LIFResult(out, v, i, recorded if q.record_states else None)

    outputs, states = [], []
    for x_t in x.unbind(0):
        if q.recurrence is not None:
            assert i is not None
            assert z is not None
            i_jump = (i + linear(x_t, input_weights)) + linear(z, recurrent_weights)
        else:
            i_jump = x_t if i is None else i + x_t
        v_decayed = v + a * ((v_leak - v) + i_jump)
        if q.neuron is Neuron.LI:
            out = v = v_decayed
        else:
            spike, choose = (
                (_SmoothSpike.apply, _mix) if q.smooth else (_Spike.apply, _Choose.apply)
            )
            out = z = spike(v_decayed - v_th, alpha, SURROGATES[q.method])
            v_spiked = v_decayed - v_th if q.soft_reset else v_reset
            v = choose(out.detach() if q.detach_reset else out, v_spiked, v_decayed)
        if b is not None:
            i = i_jump - b * i_jump
        outputs.append(out)
        if q.record_states:
            states.append(torch.stack([v] if i is None else [v, i]))

    out = outputs[0] if single_step else torch.stack(outputs)
    return LIFResult(out.to(q.x.dtype), v, i, torch.stack(states, dim=1) if states else None)


def _run_without_autocast(problem: LIFProblem) -> LIFResult:
    device = problem.x.device.type
    # Without recurrence, no operation is one that autocast would touch.
    if problem.recurrence is None or not torch.amp.is_autocast_available(device):
        return _run(problem)
    with torch.autocast(device, enabled=False):
        return _run(problem)


REFERENCE = Backend("reference", lambda: [], lambda problem: [], _run_without_autocast)
