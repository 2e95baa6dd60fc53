"""What the backends with operators share: fake functions, autograd, and how a problem is run.

The operators have the schemas of ``csrc/ops.cpp``, on whatever device and in whatever language.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad

from fused_lif.surrogate import EVENT_METHODS, method_id
from fused_lif.types import LIFProblem, LIFResult, Neuron, Recurrence


def constant_result(function: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a function whose result torch.compile may keep.

    `torch.compiler.assume_constant_result` does the same, and imports the compiler, in 0.8 s.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


class Operators(NamedTuple):
    """The operators of a backend."""

    lif_forward: Callable[..., Any]
    lif_backward: Callable[..., Any]
    lif_recurrent_forward: Callable[..., Any]
    lif_recurrent_backward: Callable[..., Any]
    input_grad: Callable[..., Tensor]
    weight_grad: Callable[..., Tensor]


def rows_of(T: int, interval: int) -> int:
    """How many states are kept of T time steps."""
    return 0 if interval == 0 else T if interval == 1 else (T - 1) // interval


def _state_rows(x: Tensor, v: Tensor, state_interval: int) -> int:
    return rows_of(1 if x.dim() == v.dim() else x.shape[0], state_interval)


def lif_forward_fake(
    x: Tensor, v: Tensor, i: Tensor | None, *constants: Tensor | None, **options: Any
) -> tuple[Tensor, ...]:
    *_, state_interval, _, _ = constants
    assert isinstance(state_interval, int)
    states = v.new_empty((1 if i is None else 2, _state_rows(x, v, state_interval), *v.shape))
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    return out, v.new_empty(v.shape), v.new_empty((0,) if i is None else v.shape), states


def lif_backward_fake(
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


def lif_recurrent_forward_fake(
    input_tensor: Tensor,
    z: Tensor,
    v: Tensor,
    i: Tensor,
    *weights_constants_and_options: Any,
) -> tuple[Tensor, ...]:
    exact, state_interval, _, smooth, needs_grad = weights_constants_and_options[-5:]
    packs = needs_grad and not exact and not smooth and v.device.type == "cpu"
    rows = _state_rows(input_tensor, v, state_interval)
    sequence = (*input_tensor.shape[:-1], v.shape[-1])
    return (
        input_tensor.new_empty(sequence),
        v.new_empty(v.shape),
        v.new_empty(v.shape),
        v.new_empty(sequence if needs_grad else (0,)),
        v.new_empty((2 if state_interval == 1 else 1, rows, *v.shape)),
        *(
            torch.empty(
                (*shape[:-1], 1 + (shape[-1] + 63) // 64) if packs else (0,),
                dtype=torch.int64,
                device=v.device,
            )
            for shape in (input_tensor.shape, sequence)
        ),
    )


def lif_recurrent_backward_fake(
    grad_out: Tensor | None,
    grad_v: Tensor | None,
    grad_i: Tensor | None,
    grad_states: Tensor | None,
    i_jump: Tensor,
    states: Tensor,
    v: Tensor,
    i: Tensor,
    recurrent_weights: Tensor,
    *constants_and_options: Any,
) -> tuple[Tensor, ...]:
    constants, needs = constants_and_options[:5], constants_and_options[-1]
    return (
        i_jump.new_empty(i_jump.shape),
        v.new_empty(v.shape if needs & 1 else (0,)),
        v.new_empty(v.shape),
        v.new_empty(v.shape),
        *(
            c.new_empty(c.shape) if needs >> (3 + k) & 1 else v.new_empty((0,))
            for k, c in enumerate(constants)
        ),
    )


def input_grad_fake(grad: Tensor, weights: Tensor) -> Tensor:
    return grad.new_empty((*grad.shape[:-1], weights.shape[1]))


def weight_grad_fake(
    grad: Tensor, input_tensor: Tensor | None, spikes: Tensor | None, columns: int
) -> Tensor:
    return grad.new_empty((grad.shape[-1], columns))


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
    smooth: bool
    detach_reset: bool

    def sequence_forward(self, alpha: Tensor | None) -> tuple[Any, ...]:
        """Returns the last arguments of ``lif_forward``; alpha is for smooth spikes only."""
        return (alpha if self.smooth else None, *self[:6])

    def recurrent_forward(
        self, alpha: Tensor | None, *, exact: bool, needs_grad: bool
    ) -> tuple[Any, ...]:
        """Returns the last arguments of ``lif_recurrent_forward``, likewise."""
        dt, _, soft_reset, state_interval, method, smooth, _ = self
        alpha = alpha if smooth else None
        return (alpha, dt, soft_reset, exact, state_interval, method, smooth, needs_grad)


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
        operators: Operators,
    ) -> tuple[Tensor, ...]:
        constants = (tau_syn_inv, tau_mem_inv, v_leak, v_th, v_reset)
        out, v_end, i_end, states = operators.lif_forward(
            x, v, i, *constants, *options.sequence_forward(alpha)
        )
        ctx.save_for_backward(x, states, v, i, *constants, alpha)
        ctx.options = options
        ctx.operators = operators
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
                results = ctx.operators.lif_backward(*arguments)
            results = _NoSecondDerivative.apply(torch.ones((), requires_grad=True), *results)
        else:
            results = ctx.operators.lif_backward(*arguments)
        return (
            *[g if n else None for g, n in zip(results, ctx.needs_input_grad, strict=False)],
            *[None] * 3,
        )


class _LIFRecurrent(torch.autograd.Function):
    """Gradients of ``lif_recurrent_forward``: input, state, weights and constants."""

    @staticmethod
    def forward(
        ctx: Any,
        input_tensor: Tensor,
        z: Tensor,
        v: Tensor,
        i: Tensor,
        input_weights: Tensor,
        recurrent_weights: Tensor,
        tau_syn_inv: Tensor,
        tau_mem_inv: Tensor,
        v_leak: Tensor,
        v_th: Tensor,
        v_reset: Tensor,
        alpha: Tensor,
        options: _Options,
        operators: Operators,
        exact: bool,
        autapses: bool,
    ) -> tuple[Tensor, ...]:
        weights = (input_weights, recurrent_weights)
        constants = (tau_syn_inv, tau_mem_inv, v_leak, v_th, v_reset)
        out, v_end, i_end, i_jump, states, *packed = operators.lif_recurrent_forward(
            input_tensor,
            z,
            v,
            i,
            *weights,
            *constants,
            *options.recurrent_forward(alpha, exact=exact, needs_grad=True),
        )
        is_packed = len(packed) > 0 and packed[0].shape[-1] > 0
        input_spikes, hidden_spikes = packed if is_packed else (None, None)
        # What the gradients of the weights need; spikes as bits, where they are.
        *_, needs_in, needs_rec = ctx.needs_input_grad[:6]
        ctx.save_for_backward(
            *((input_tensor, input_spikes) if needs_in else (None, None)),
            *((z, None if is_packed else out, hidden_spikes) if needs_rec else (None, None, None)),
            *(i_jump, states, v, i, *weights, *constants, alpha),
        )
        ctx.options = options
        ctx.operators = operators
        ctx.autapses = autapses
        ctx.input_dtype = input_tensor.dtype
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
        grads = (grad_out, grad_v, grad_i, grad_states)
        if torch.is_grad_enabled():  # create_graph=True
            with torch.no_grad():
                results = _recurrent_grads(ctx, *grads)
            results = _NoSecondDerivative.apply(torch.ones((), requires_grad=True), *results)
        else:
            results = _recurrent_grads(ctx, *grads)
        return (
            *[g if n else None for g, n in zip(results, ctx.needs_input_grad, strict=False)],
            *[None] * 5,
        )


def _recurrent_grads(ctx: Any, *grads: Tensor | None) -> tuple[Tensor, ...]:
    """Returns the gradients in the order of the forward's inputs; empty where not needed."""
    input_tensor, input_spikes, z, out, hidden_spikes, *rest = ctx.saved_tensors
    i_jump, states, v, i, input_weights, recurrent_weights, *constants = rest
    options: _Options = ctx.options
    operators: Operators = ctx.operators
    needs_input, needs_z, needs_v, needs_i, needs_in, needs_rec, *needs_constants, _ = (
        ctx.needs_input_grad[:12]
    )
    needs, bit = 0, 1
    for needed in (needs_z, needs_v, needs_i, *needs_constants):
        needs, bit = needs | bit * needed, 2 * bit
    dt, _, *options_backward = options
    grad_x, *grad_others = operators.lif_recurrent_backward(
        *grads, i_jump, states, v, i, recurrent_weights, *constants, dt, *options_backward, needs
    )
    grad_input = grad_in = grad_rec = v.new_empty((0,))
    hidden_size, input_size = input_weights.shape
    has_time = grad_x.dim() > v.dim()
    if needs_input:
        grad_input = operators.input_grad(grad_x, input_weights).to(ctx.input_dtype)
    if is_adjoint := options.method == EVENT_METHODS["adjoint"]:
        _, _, grad_i, grad_states = grads
        grad_x = _norse_currents(grad_x if has_time else grad_x[None], grad_i, grad_states)
        grad_x = grad_x if has_time else grad_x[0]
    if needs_in:
        grad_in = operators.weight_grad(grad_x, input_tensor, input_spikes, input_size)
        grad_in = grad_in.to(input_weights.dtype)
    if needs_rec and is_adjoint:
        grad_rec = operators.weight_grad(grad_x, out, hidden_spikes, hidden_size)
    elif needs_rec:
        grad_rec = operators.weight_grad(grad_x[0] if has_time else grad_x, z, None, hidden_size)
        if has_time and len(grad_x) > 1:
            before = (None if t is None else t[:-1] for t in (out, hidden_spikes))
            grad_rec += operators.weight_grad(grad_x[1:], *before, hidden_size)
    if needs_rec:
        if not ctx.autapses:
            grad_rec.fill_diagonal_(0.0)
        grad_rec = grad_rec.to(recurrent_weights.dtype)
    return (grad_input, *grad_others[:3], grad_in, grad_rec, *grad_others[3:])


def _norse_currents(grad_x: Tensor, grad_i: Tensor | None, grad_states: Tensor | None) -> Tensor:
    """Returns the gradients of the currents after each step.

    From them, instead of from those of the step's input, Norse's adjoint takes the gradients of
    weights: the gradient of the current after a step is that of the next step's input.
    """
    last = torch.zeros_like(grad_x[-1]) if grad_i is None else grad_i
    after = torch.cat([grad_x[1:], last.unsqueeze(0)])
    return after if grad_states is None else after + grad_states[1]


def _needs_grad(tensors: Iterable[Tensor | None]) -> bool:
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return False


def run(problem: LIFProblem, operators: Operators, checkpoint_interval: int) -> LIFResult:
    """Integrates a problem with the operators of a backend.

    Forward keeps the state after every so many steps; backward recomputes the steps in between.
    """
    if problem.recurrence is not None:
        return _run_recurrent(problem, problem.recurrence, operators, checkpoint_interval)
    *tensors, alpha, dt, neuron, name, soft_reset, detach_reset, record_states, smooth, _ = problem
    method, needs_grad = method_id(name), _needs_grad(tensors)
    interval = 1 if record_states else checkpoint_interval if needs_grad else 0
    options = _Options(dt, int(neuron), soft_reset, interval, method, smooth, detach_reset)
    if needs_grad:
        out, v, i, *rest = _LIFSequence.apply(*tensors, alpha, options, operators)
        states = rest[0] if rest else None
    else:
        out, v, i, states = operators.lif_forward(*tensors, *options.sequence_forward(alpha))
    if neuron is Neuron.CURRENT_ENCODER:
        i = None
    return LIFResult(out, v, i, states if record_states else None)


def _run_recurrent(
    problem: LIFProblem, recurrence: Recurrence, operators: Operators, checkpoint_interval: int
) -> LIFResult:
    x, v, i, *constants = problem[:8]
    *spikes_and_weights, autapses, exact = recurrence
    tensors = (x, spikes_and_weights[0], v, i, *spikes_and_weights[1:], *constants)
    interval = 1 if problem.record_states else 0
    needs_grad = _needs_grad(tensors)
    options = _Options(
        problem.dt,
        int(problem.neuron),
        problem.soft_reset,
        (interval or checkpoint_interval) if needs_grad else interval,
        method_id(problem.method),
        problem.smooth,
        problem.detach_reset,
    )
    if needs_grad:
        out, v_end, i_end, *rest = _LIFRecurrent.apply(
            *tensors, problem.alpha, options, operators, exact, autapses
        )
        states = rest[0] if rest else None
    else:
        out, v_end, i_end, _, states, *_ = operators.lif_recurrent_forward(
            *tensors, *options.recurrent_forward(problem.alpha, exact=exact, needs_grad=False)
        )
    return LIFResult(out, v_end, i_end, states if problem.record_states else None)


def reasons_against_kernels(problem: LIFProblem) -> list[str]:
    """Returns what no kernel can do."""
    reasons = []
    if not torch.compiler.is_compiling() and peek_interpreter_stack() is not None:
        reasons.append("the kernels cannot be transformed by torch.func")
    if problem.recurrence is not None and problem.recurrence.exact:
        dtypes = {problem.x.dtype, *(w.dtype for w in problem.recurrence[1:3])}
        if dtypes != {problem.v.dtype}:
            reasons.append("exact=True needs input and weights in float32, or all in float64")
    if forward_ad._current_level >= 0:
        reasons.append("the kernels have no forward-mode derivative")
    return reasons
