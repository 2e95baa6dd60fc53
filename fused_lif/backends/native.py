"""C++ backends: fake functions and autograd of the operators in ``csrc``."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad

from fused_lif.backends._base import Backend
from fused_lif.surrogate import SURROGATES
from fused_lif.types import LIFProblem, LIFResult, Neuron

try:
    from fused_lif import _C  # noqa: F401  (loading it registers torch.ops.fused_lif.*)

    IMPORT_ERROR: ImportError | None = None
except ImportError as error:
    IMPORT_ERROR = error

#: Forward keeps the state after every so many steps; backward recomputes the steps in between.
#: In float32, 32 steps cost 1/16 of the input's memory, and a block of columns fits the L1 cache.
CHECKPOINT_INTERVAL = 32


def _state_rows(x: Tensor, v: Tensor, state_interval: int) -> int:
    steps = 1 if x.dim() == v.dim() else x.shape[0]
    if state_interval == 0:
        return 0
    return steps if state_interval == 1 else (steps - 1) // state_interval


def _lif_forward_fake(
    x: Tensor, v: Tensor, i: Tensor | None, *constants: Tensor | None, **options: Any
) -> tuple[Tensor, ...]:
    *_, state_interval = constants
    assert isinstance(state_interval, int)
    states = v.new_empty((1 if i is None else 2, _state_rows(x, v, state_interval), *v.shape))
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    return out, v.new_empty(v.shape), v.new_empty((0,) if i is None else v.shape), states


def _lif_backward_fake(
    grad_out: Tensor | None,
    grad_v: Tensor | None,
    grad_i: Tensor | None,
    grad_states: Tensor | None,
    x: Tensor,
    states: Tensor,
    v: Tensor,
    i: Tensor | None,
    *constants_and_options: Any,
) -> tuple[Tensor, ...]:
    constants, needs = constants_and_options[:5], constants_and_options[-1]
    return (
        x.new_empty(x.shape if needs & 1 else (0,)),
        v.new_empty(v.shape),
        v.new_empty((0,) if i is None else v.shape),
        *(
            v.new_empty((0,)) if c is None or not needs >> (3 + k) & 1 else c.new_empty(c.shape)
            for k, c in enumerate(constants)
        ),
    )


def _surrogate_grad_fake(s: Tensor, method: int, alpha: float) -> Tensor:
    return s.new_empty(s.shape)


if IMPORT_ERROR is None:
    torch.library.register_fake("fused_lif::lif_forward", _lif_forward_fake)
    torch.library.register_fake("fused_lif::lif_backward", _lif_backward_fake)
    torch.library.register_fake("fused_lif::surrogate_grad", _surrogate_grad_fake)
    _lif_forward = torch.ops.fused_lif.lif_forward.default
    _lif_backward = torch.ops.fused_lif.lif_backward.default


class _NoSecondDerivative(torch.autograd.Function):
    """Identity of all but the first argument, that cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, requires_grad: Tensor, *grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(g.clone() for g in grads)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError(
            "fused_lif has no second derivative of a neuron; backend='reference' has one"
        )


class _Options(NamedTuple):
    """What a call of the operators needs besides tensors, in the order of their arguments."""

    dt: float
    neuron: int
    soft_reset: bool
    state_interval: int
    method: int
    detach_reset: bool


class _LIFSequence(torch.autograd.Function):
    """Gradients of ``lif_forward`` with respect to ``x``, ``v``, ``i`` and the constants."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        v: Tensor,
        i: Tensor | None,
        tau_syn_inv: Tensor | None,
        tau_mem_inv: Tensor,
        v_leak: Tensor,
        v_th: Tensor | None,
        v_reset: Tensor | None,
        alpha: Tensor | None,
        options: _Options,
    ) -> tuple[Tensor, ...]:
        constants = (tau_syn_inv, tau_mem_inv, v_leak, v_th, v_reset)
        out, v_end, i_end, states = _lif_forward(x, v, i, *constants, *options[:4])
        ctx.save_for_backward(x, states, v, i, *constants, alpha)
        ctx.options = options
        ctx.set_materialize_grads(False)
        if options.state_interval == 1:
            return out, v_end, i_end, states
        return out, v_end, i_end

    @staticmethod
    def backward(
        ctx: Any,
        grad_out: Tensor | None,
        grad_v: Tensor | None,
        grad_i: Tensor | None,
        grad_states: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        options: _Options = ctx.options
        # The encoder's i is empty and nobody's output, but torch.compile passes zeros for it.
        if options.neuron == Neuron.CURRENT_ENCODER:
            grad_i = None
        needs, bit = 0, 1
        for needed in ctx.needs_input_grad[:8]:
            needs, bit = needs | bit * needed, 2 * bit
        arguments = (grad_out, grad_v, grad_i, grad_states, *ctx.saved_tensors, *options, needs)
        if torch.is_grad_enabled():  # create_graph=True
            with torch.no_grad():
                results = _lif_backward(*arguments)
            results = _NoSecondDerivative.apply(torch.ones((), requires_grad=True), *results)
        else:
            results = _lif_backward(*arguments)
        return (
            *[g if n else None for g, n in zip(results, ctx.needs_input_grad, strict=False)],
            None,
            None,
        )


def _needs_grad(problem: LIFProblem) -> bool:
    if torch.is_grad_enabled():
        for t in problem[:8]:
            if t is not None and t.requires_grad:
                return True
    return False


def _run(problem: LIFProblem) -> LIFResult:
    *tensors, alpha, dt, neuron, method, soft_reset, detach_reset, record_states = problem
    if _needs_grad(problem):
        interval = 1 if record_states else CHECKPOINT_INTERVAL
        surrogate = SURROGATES[method].id
        options = _Options(dt, int(neuron), soft_reset, interval, surrogate, detach_reset)
        out, v, i, *rest = _LIFSequence.apply(*tensors, alpha, options)
        states = rest[0] if rest else None
    else:
        interval = 1 if record_states else 0
        out, v, i, states = _lif_forward(*tensors, dt, int(neuron), soft_reset, interval)
    if neuron is Neuron.CURRENT_ENCODER:
        i = None
    return LIFResult(out, v, i, states if record_states else None)


def _unavailable() -> list[str]:
    if IMPORT_ERROR is None:
        return []
    return [f"the C++ extension could not be loaded ({IMPORT_ERROR})"]


def _reasons_against(device_type: str, problem: LIFProblem) -> list[str]:
    reasons = []
    if IMPORT_ERROR is not None:
        reasons += _unavailable()
    if problem.x.device.type != device_type:
        reasons.append(f"the input is on {problem.x.device.type}")
    if not torch.compiler.is_compiling() and peek_interpreter_stack() is not None:
        reasons.append("the kernels cannot be transformed by torch.func")
    if forward_ad._current_level >= 0:
        reasons.append("the kernels have no forward-mode derivative")
    return reasons


CPU = Backend("cpu", _unavailable, partial(_reasons_against, "cpu"), _run)
