"""Operators of the Triton backend: check and describe the arguments, allocate, and launch kernels.

No value is read on the host. Arguments and results are those of the C++ operators of the same name,
see ``csrc/ops.cpp``, but for the spikes packed into bits, which these do not return.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

import torch
from torch import Tensor

from fused_lif.backends._autograd import rows_of
from fused_lif.backends.triton import plan
from fused_lif.backends.triton.arguments import (
    FLOATS,
    Constants,
    check,
    check_alpha,
    check_interval,
    check_neuron,
    check_states,
    check_weights,
    divide_up,
    fail,
    layout_of,
    method_of,
    power_of_2,
    state_dtype,
    steps_of,
)
from fused_lif.backends.triton.launch import (
    Backward,
    ConstantSums,
    Forward,
    device_of,
    launch,
    segment_of,
)
from fused_lif.backends.triton.recurrent import (
    lif_input_sums_kernel,
    lif_recurrent_backward_kernel,
    lif_recurrent_forward_kernel,
)
from fused_lif.surrogate import EVENT_METHODS
from fused_lif.types import Neuron


def lif_forward(
    x: Tensor,
    v: Tensor,
    i: Tensor | None,
    tau_syn_inv: Tensor | None,
    tau_mem_inv: Tensor,
    v_leak: Tensor,
    v_th: Tensor | None,
    v_reset: Tensor | None,
    alpha: Tensor | None,
    dt: float,
    neuron: int,
    soft_reset: bool,
    state_interval: int,
    method: int,
    smooth: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns spikes (or potentials), v and i after the last step, and the states it kept."""
    op = "lif_forward_triton"
    T = steps_of(op, "x", x, v)
    constants = (tau_syn_inv, tau_mem_inv, v_leak, v_th, v_reset, alpha)
    name = method_of(op, method, smooth, x.dtype)
    step = check_neuron(op, neuron, x, v, i, constants, smooth)
    check_interval(op, state_interval)
    given = Constants(op, constants, step, x)

    rows = rows_of(T, state_interval)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    v_end = v.new_empty(step)
    i_end = v.new_empty(0 if i is None else step)
    states = v.new_empty((1 if i is None else 2, rows, *step))
    if v.numel() > 0:
        x, layout = layout_of(x, v.dim())
        Forward(
            x=x,
            layout=layout,
            v=v.contiguous(),
            i=_contiguous(i),
            constants=given,
            T=T,
            dt=dt,
            neuron=neuron,
            soft_reset=soft_reset,
            smooth=name if smooth else None,
            out=out,
            v_end=v_end,
            i_end=i_end,
            states=states,
            rows=rows,
            interval=state_interval,
        ).launch()
    return out, v_end, i_end, states


def lif_backward(
    grad_out: Tensor | None,
    grad_v: Tensor | None,
    grad_i: Tensor | None,
    grad_states: Tensor | None,
    x: Tensor,
    states: Tensor,
    v: Tensor,
    i: Tensor | None,
    tau_syn_inv: Tensor | None,
    tau_mem_inv: Tensor,
    v_leak: Tensor,
    v_th: Tensor | None,
    v_reset: Tensor | None,
    alpha: Tensor | None,
    dt: float,
    neuron: int,
    soft_reset: bool,
    state_interval: int,
    method: int,
    smooth: bool,
    detach_reset: bool,
    needs: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns the gradients of x, v, i and of the constants."""
    op = "lif_backward_triton"
    T = steps_of(op, "x", x, v)
    constants = (tau_syn_inv, tau_mem_inv, v_leak, v_th, v_reset, alpha)
    name = method_of(op, method, smooth, x.dtype)
    step = check_neuron(op, neuron, x, v, i, constants, True)
    check(op, "grad_out", grad_out, x.shape, x.dtype, x)
    rows = rows_of(T, state_interval)
    kept = (1 if i is None else 2, rows, *step)
    check_states(op, grad_v, grad_i, grad_states, states, kept, v, T, state_interval)
    given = Constants(op, constants, step, x)

    grad_x = torch.empty(x.shape if needs & 1 else 0, dtype=x.dtype, device=x.device)
    grad_v0 = v.new_empty(step)
    grad_i0 = v.new_empty(0 if i is None else step)
    sums = ConstantSums(constants, needs, v)
    if v.numel() > 0:
        x, layout = layout_of(x, v.dim())
        grad_out_layout = layout
        if grad_out is not None:
            grad_out, grad_out_layout = layout_of(grad_out, v.dim())
        grad_states_v, grad_states_i = _recorded(grad_states)
        Backward(
            grad_out=grad_out,
            grad_out_layout=grad_out_layout,
            grad_v=_contiguous(grad_v),
            grad_i=_contiguous(grad_i),
            grad_states_v=grad_states_v,
            grad_states_i=grad_states_i,
            x=x,
            layout=layout,
            states=states.contiguous(),
            v=v.contiguous(),
            i=_contiguous(i),
            constants=given,
            grad_x=grad_x if needs & 1 else None,
            grad_v0=grad_v0,
            grad_i0=None if i is None else grad_i0,
            sums=sums,
            T=T,
            dt=dt,
            neuron=neuron,
            soft_reset=soft_reset,
            detach_reset=detach_reset,
            method=name,
            rows=rows,
            interval=state_interval,
            smooth=name if smooth else None,
        ).launch()
    return (grad_x, grad_v0, grad_i0, *sums.finish(given, dt))  # type: ignore[return-value]


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def _recorded(grad_states: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the recorded potentials and currents; a current encoder has none of these."""
    if grad_states is None:
        return None, None
    grad_states = grad_states.contiguous()
    return grad_states[0], grad_states[-1]


# ---- recurrent layers ----


def lif_recurrent_forward(
    input: Tensor,
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
    alpha: Tensor | None,
    dt: float,
    soft_reset: bool,
    exact: bool,
    state_interval: int,
    method: int,
    smooth: bool,
    needs_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns spikes, v and i after the last step, i_jump, and the states it kept."""
    op = "lif_recurrent_forward_triton"
    T = _steps_of_layer(op, "input", input, v)
    check_interval(op, state_interval)
    dtype = state_dtype(input.dtype)
    for state, t in (("z", z), ("v", v), ("i", i)):
        check(op, state, t, v.shape, dtype, input)
    H, features = v.shape[-1], input.shape[-1]
    if input.shape[input.dim() - v.dim() : -1] != v.shape[:-1]:
        fail(
            op,
            f"input must have the batch of v, of shape {list(v.shape)}, "
            f"got shape {list(input.shape)}",
        )
    check_weights(op, "input_weights", input_weights, (H, features), input)
    check_weights(op, "recurrent_weights", recurrent_weights, (H, H), input)
    if exact and {input.dtype, input_weights.dtype, recurrent_weights.dtype} != {dtype}:
        fail(op, "exact needs input and weights in float32, or all in float64")
    name = method_of(op, method, smooth, input.dtype)
    check_alpha(op, alpha, smooth)
    constants = (tau_syn_inv, tau_mem_inv, v_leak, v_th, v_reset, alpha)
    given = Constants(op, constants, v.shape, input)

    rows = rows_of(T, state_interval)
    out = input.new_empty((*input.shape[:-1], H))
    v_end, i_end = v.new_empty(v.shape), v.new_empty(v.shape)
    x = v.new_empty(out.shape)  # W_in input, then i_jump
    states = v.new_empty((2 if state_interval == 1 else 1, rows, *v.shape))
    if v.numel() > 0:
        B = v.numel() // H
        layer = Forward(
            x=x.view(T, B, H),
            layout=(v.numel(), None, None),
            v=v.contiguous(),
            i=i.contiguous(),
            constants=given,
            T=T,
            dt=dt,
            neuron=Neuron.LIF,
            soft_reset=soft_reset,
            smooth=name if smooth else None,
            out=out.view(T, B, H),
            v_end=v_end,
            i_end=i_end,
            i_jump=x.view(T, B, H) if needs_grad else None,
            states=states,
            rows=rows,
            interval=state_interval,
        )
        z = z.reshape(B, H)
        inputs = input.reshape(T, B, features)
        from_input, from_hidden = input_weights.to(dtype).t(), recurrent_weights.to(dtype).t()
        p = plan.recurrent_plan(device_of(v), "lif_recurrent_forward", H * v.itemsize // 4)
        if not exact:
            _input_sums(inputs, from_input, layer.x)
        if p is None or exact or smooth:
            _forward_by_steps(layer, z, from_hidden, inputs if exact else None, from_input)
        else:
            _forward_at_once(layer, z, from_hidden, p)
    return out, v_end, i_end, x if needs_grad else v.new_empty(0), states


def _steps_of_layer(op: str, name: str, sequence: Tensor, v: Tensor) -> int:
    if v.dim() < 1:
        fail(op, f"v must have shape [*batch, H], got {list(v.shape)}")
    return steps_of(op, name, sequence, v)


def _input_sums(inputs: Tensor, from_input: Tensor, x: Tensor) -> None:
    """W_in input of all steps: inputs [T, B, I], weights [I, H], to x [T, B, H]."""
    T, B, features = inputs.shape
    H = x.shape[-1]
    p = plan.input_sums_plan(device_of(x))
    block = min(power_of_2(H), p.block)
    rows = min(power_of_2(T * B), p.rows)
    launch(
        lif_input_sums_kernel,
        (divide_up(T * B, rows), divide_up(H, block)),
        x.device,
        p.warps,
        input_ptr=inputs.contiguous(),
        weights_ptr=from_input.contiguous(),
        x_ptr=x,
        rows=T * B,
        features=features,
        H=H,
        ROWS=rows,
        BLOCK=block,
        UNROLL=8,
    )


def _forward_at_once(f: Forward, z: Tensor, from_hidden: Tensor, p: plan.RecurrentPlan) -> None:
    """One kernel for all steps."""
    assert f.i_end is not None
    B, H = z.shape
    weights = from_hidden.contiguous()
    block = power_of_2(H)
    values = z.new_empty((B, 2, block))
    launch(
        lif_recurrent_forward_kernel,
        (B,),
        z.device,
        p.warps,
        x_ptr=f.x,
        weights_ptr=weights,
        infinite_ptr=weights.isfinite().all().logical_not().to(torch.int32),
        z_ptr=z.contiguous(),
        v_ptr=f.v,
        i_ptr=f.i,
        **f.constants.arguments(),
        out_ptr=f.out,
        v_end_ptr=f.v_end,
        i_end_ptr=f.i_end,
        i_jump_ptr=f.i_jump,
        states_ptr=f.states,
        values_ptr=values,
        senders_ptr=values.new_empty(values.shape, dtype=torch.int32),
        T=f.T,
        B=B,
        H=H,
        rows=f.rows,
        dt=f.dt,
        SOFT_RESET=f.soft_reset,
        INTERVAL=f.interval,
        UNROLL=p.unroll,
        BLOCK=block,
    )


def _forward_by_steps(
    f: Forward, z: Tensor, from_hidden: Tensor, inputs: Tensor | None, from_input: Tensor
) -> None:
    """A matrix product and a kernel for each step.

    Smooth spikes need it: they are no zeros, of which a list of senders would be left.
    With ``inputs``, x is computed step by step too, as eager torch does.
    """
    assert f.out is not None
    assert f.v_end is not None
    assert f.states is not None
    r = z.new_empty(z.shape)
    step = replace(f, layout=(0, None, None), T=1, r=r, states=None, rows=0, interval=0)
    for t in range(f.T):
        if inputs is not None:
            torch.mm(inputs[t], from_input, out=f.x[t])
        torch.mm(z, from_hidden, out=r)
        step.x, step.out = f.x[t], f.out[t]
        step.i_jump = None if f.i_jump is None else f.i_jump[t]
        step.launch()
        step.v, step.i = f.v_end, f.i_end
        z = f.out[t].to(z.dtype)
        if f.interval > 0 and (t + 1) % f.interval == 0 and t // f.interval < f.rows:
            f.states[0, t // f.interval].copy_(f.v_end)
            if f.interval == 1 and f.i_end is not None:
                f.states[1, t].copy_(f.i_end)


def lif_recurrent_backward(
    grad_out: Tensor | None,
    grad_v: Tensor | None,
    grad_i: Tensor | None,
    grad_states: Tensor | None,
    i_jump: Tensor,
    states: Tensor,
    v: Tensor,
    i: Tensor,
    recurrent_weights: Tensor,
    tau_syn_inv: Tensor,
    tau_mem_inv: Tensor,
    v_leak: Tensor,
    v_th: Tensor,
    v_reset: Tensor,
    alpha: Tensor,
    dt: float,
    soft_reset: bool,
    state_interval: int,
    method: int,
    smooth: bool,
    detach_reset: bool,
    needs: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns the gradients of x = W_in input, z, v, i and of the constants."""
    op = "lif_recurrent_backward_triton"
    constants = (tau_syn_inv, tau_mem_inv, v_leak, v_th, v_reset, alpha)
    T = _steps_of_layer(op, "i_jump", i_jump, v)
    dtype, H = v.dtype, v.shape[-1]
    if dtype not in (torch.float32, torch.float64):
        fail(op, f"v must be float32 or float64, got {dtype}")
    check(op, "i_jump", i_jump, (*i_jump.shape[: i_jump.dim() - v.dim()], *v.shape), dtype, v)
    check(op, "i", i, v.shape, dtype, v)
    kept = (2 if state_interval == 1 else 1, rows_of(T, state_interval), *v.shape)
    check_states(op, grad_v, grad_i, grad_states, states, kept, v, T, state_interval)
    if grad_out is not None:
        if grad_out.dtype not in FLOATS or state_dtype(grad_out.dtype) != dtype:
            fail(op, "grad_out must be of a type that is computed in that of i_jump")
        check(op, "grad_out", grad_out, i_jump.shape, grad_out.dtype, v)
    check_weights(op, "recurrent_weights", recurrent_weights, (H, H), v)
    given = Constants(op, constants, v.shape, v)
    name = method_of(op, method, smooth, dtype)

    grad_x = i_jump.new_empty(i_jump.shape)
    grad_z0, grad_v0, grad_i0 = (v.new_empty(v.shape) for _ in range(3))
    sums = ConstantSums(constants, needs, v)
    if v.numel() > 0:
        B = v.numel() // H
        grad_states_v, grad_states_i = _recorded(grad_states)
        layer = Backward(
            grad_out=None if grad_out is None else grad_out.reshape(T, B, H).contiguous(),
            grad_out_layout=(0, None, None),
            grad_v=_contiguous(grad_v),
            grad_i=_contiguous(grad_i),
            grad_states_v=grad_states_v,
            grad_states_i=grad_states_i,
            x=i_jump.reshape(T, B, H).contiguous(),
            layout=(v.numel(), None, None),
            states=states.contiguous(),
            v=v.contiguous(),
            i=i.contiguous() if name == "adjoint" else None,
            constants=given,
            grad_x=grad_x.view(T, B, H),
            grad_v0=grad_v0,
            grad_i0=grad_i0,
            sums=sums,
            T=T,
            dt=dt,
            neuron=Neuron.LIF,
            soft_reset=soft_reset,
            detach_reset=detach_reset,
            method=name,
            rows=0,
            interval=state_interval,
            smooth=name if smooth else None,
            from_jump=True,
        )
        weights = recurrent_weights.to(dtype).contiguous()
        p = plan.recurrent_plan(device_of(v), "lif_recurrent_backward", H * v.itemsize // 4)
        if p is None or smooth:
            _backward_by_steps(layer, weights, grad_z0.view(B, H))
        else:
            _backward_at_once(layer, weights, grad_z0, p)
    grads = (grad_x, grad_z0 if needs & 1 else v.new_empty(0), grad_v0, grad_i0)
    return (*grads, *sums.finish(given, dt))  # type: ignore[return-value]


def _backward_at_once(b: Backward, weights: Tensor, grad_z0: Tensor, p: plan.RecurrentPlan) -> None:
    """One kernel for all steps."""
    T, B, H = b.x.shape
    segment = min(segment_of(b.interval), power_of_2(T))
    rows = plan.rows_of_program(device_of(b.v), B, p.kept)
    launch(
        lif_recurrent_backward_kernel,
        (divide_up(B, rows),),
        b.v.device,
        p.warps,
        grad_out_ptr=b.grad_out,
        grad_v_ptr=b.grad_v,
        grad_i_ptr=b.grad_i,
        grad_states_v_ptr=b.grad_states_v,
        grad_states_i_ptr=b.grad_states_i,
        i_jump_ptr=b.x,
        states_ptr=b.states,
        v_ptr=b.v,
        i_ptr=b.i,
        weights_ptr=weights,
        **b.constants.arguments(),
        potentials_ptr=b.v.new_empty((segment, B, H)),
        grad_x_ptr=b.grad_x,
        grad_z0_ptr=grad_z0,
        grad_v0_ptr=b.grad_v0,
        grad_i0_ptr=b.grad_i0,
        sums_ptr=b.sums.tensors,
        T=T,
        B=B,
        H=H,
        dt=b.dt,
        SOFT_RESET=b.soft_reset,
        DETACH_RESET=b.detach_reset,
        METHOD=b.method,
        INTERVAL=b.interval,
        SEGMENT=segment,
        ROWS=rows,
        BLOCK=power_of_2(H),
        UNROLL=p.unroll,
        KEPT=p.kept,
    )


def _backward_by_steps(b: Backward, weights: Tensor, grad_z: Tensor) -> None:
    """A kernel and a matrix product for each step."""
    assert b.grad_x is not None
    T = b.T
    segment = min(segment_of(b.interval), T)
    potentials = b.v.new_empty((segment, *b.v.shape))  # before each step
    # A current encoder is a neuron whose potentials follow from the current alone.
    recompute = Forward(
        x=b.x,
        layout=b.layout,
        v=b.v,
        i=None,
        constants=b.constants,
        T=0,
        dt=b.dt,
        neuron=Neuron.CURRENT_ENCODER,
        soft_reset=b.soft_reset,
        smooth=b.smooth,
        states=potentials[1:],
        interval=1,
    )
    totals = b.v.new_empty((2, *b.v.shape)) if b.method in EVENT_METHODS else None
    step = replace(b, layout=(0, None, None), T=1, interval=0)
    for start in reversed(range(0, T, segment)):
        steps = min(segment, T - start)
        before = b.v if start == 0 else b.states[0, start // max(b.interval, 1) - 1]
        potentials[0].copy_(before)
        if steps > 1:
            recompute.x, recompute.v = b.x[start : start + steps - 1], before
            recompute.T = recompute.rows = steps - 1
            recompute.launch()
        for t in reversed(range(start, start + steps)):
            step.grad_out = None if b.grad_out is None else b.grad_out[t]
            step.grad_states_v = None if b.grad_states_v is None else b.grad_states_v[t]
            step.grad_states_i = None if b.grad_states_i is None else b.grad_states_i[t]
            step.x, step.v, step.grad_x = b.x[t], potentials[t - start], b.grad_x[t]
            if totals is not None:
                step.grad_next, step.grad_first = step.grad_first, totals[t % 2]
            if b.i is not None:
                step.i, step.i_jump_before = (b.i, None) if t == 0 else (None, b.x[t - 1])
            step.launch()
            torch.mm(b.grad_x[t], weights, out=grad_z)
            step.grad_z, step.grad_v, step.grad_i = grad_z, b.grad_v0, b.grad_i0
            step.add_to_sums = True


# ---- gradients of weights and input, for autograd ----


def _without_autocast(device: str) -> contextlib.AbstractContextManager[object]:
    if not torch.amp.is_autocast_available(device):
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)


def weight_grad(grad: Tensor, input: Tensor, spikes: None, columns: int) -> Tensor:
    """grad^T input, of shape ``[H, columns]``."""
    rows = grad.shape[:-1].numel()  # -1 would be ambiguous without neurons or columns
    with _without_autocast(grad.device.type):
        x = input.reshape(rows, columns).to(grad.dtype)
        return torch.mm(grad.reshape(rows, grad.shape[-1]).t(), x)


def input_grad(grad: Tensor, weights: Tensor) -> Tensor:
    """Grad weights, of shape ``[*rows, I]``."""
    with _without_autocast(grad.device.type):
        return torch.matmul(grad, weights.to(grad.dtype))
