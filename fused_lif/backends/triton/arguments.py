"""What the operators demand of their arguments, and how kernels take them.

The public functions check first and with friendlier words; these checks keep a direct call of an
operator from reading foreign memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from fused_lif.surrogate import EVENT_METHODS, SURROGATES
from fused_lif.types import LIFParameters, Neuron

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

#: The most steps from one kept state to the next: backward has them in registers.
MAX_INTERVAL = 16

# Names of the methods by id; not the second names that some surrogates have.
_METHODS = {s.id: name for name, s in reversed(SURROGATES.items())} | {
    k: name for name, k in EVENT_METHODS.items()
}

_NEURONS = {int(n) for n in Neuron}
_CONSTANTS = (*LIFParameters._fields[:5], "alpha")


def fail(op: str, message: str) -> NoReturn:
    """Raises an error of an operator."""
    raise RuntimeError(f"fused_lif: {op}: {message}")


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that an input is computed in, and that of states."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def divide_up(a: int, b: int) -> int:
    """Returns the quotient, rounded up."""
    return -(-a // b)


def power_of_2(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def check(
    op: str, name: str, t: Tensor | None, shape: Sequence[int], dtype: torch.dtype, like: Tensor
) -> None:
    """Checks a tensor, if it is given."""
    if t is not None and (
        t.shape != torch.Size(shape) or t.dtype != dtype or t.device != like.device
    ):
        fail(
            op,
            f"{name} must have shape {list(shape)} and be {dtype} on {like.device}, "
            f"got shape {list(t.shape)}, {t.dtype} on {t.device}",
        )


def check_weights(op: str, name: str, t: Tensor, shape: tuple[int, int], like: Tensor) -> None:
    """Checks weights, of any floating-point dtype."""
    check(op, name, t, shape, t.dtype if t.dtype in FLOATS else torch.float32, like)


def steps_of(op: str, name: str, sequence: Tensor, v: Tensor) -> int:
    """T of a sequence ``[T, *step]``, 1 of a single step ``[*step]``; v has the dimensions of one.

    Raises:
        RuntimeError: If it has other dimensions, no time step, or a dtype that is not supported.
    """
    has_time = sequence.dim() == v.dim() + 1
    if not (has_time or sequence.dim() == v.dim()) or (has_time and len(sequence) == 0):
        fail(
            op,
            f"{name} must have at least one time step and match v of shape {list(v.shape)}, "
            f"got shape {list(sequence.shape)}",
        )
    if sequence.dtype not in FLOATS:
        fail(op, f"{name} must be float64, float32, float16 or bfloat16, got {sequence.dtype}")
    return len(sequence) if has_time else 1


def check_interval(op: str, interval: int) -> None:
    """Checks after how many steps states are kept."""
    if not 0 <= interval <= MAX_INTERVAL:
        fail(op, f"state_interval must be between 0 and {MAX_INTERVAL}, got {interval}")


def check_neuron(
    op: str,
    neuron: int,
    x: Tensor,
    v: Tensor,
    i: Tensor | None,
    constants: Sequence[Tensor | None],
    needs_alpha: bool,
) -> torch.Size:
    """Checks that states and the six constants are those of the neuron; returns a step's shape."""
    if neuron not in _NEURONS:
        fail(op, f"neuron must be 0, 1 or 2, got {neuron}")
    has_synapse, has_threshold = neuron != Neuron.CURRENT_ENCODER, neuron != Neuron.LI
    if (i is not None) != has_synapse or (constants[0] is not None) != has_synapse:
        fail(op, "i and tau_syn_inv must be given, except for the current encoder")
    if any((c is not None) != has_threshold for c in constants[3:5]):
        fail(op, "v_th and v_reset must be given, except for LI")
    check_alpha(op, constants[5], has_threshold and needs_alpha)
    step = x.shape[x.dim() - v.dim() :]
    check(op, "v", v, step, state_dtype(x.dtype), x)
    check(op, "i", i, step, state_dtype(x.dtype), x)
    return step


def check_alpha(op: str, alpha: Tensor | None, needed: bool) -> None:
    """Checks that a backward gets the sharpness, and a forward for smooth spikes only."""
    if (alpha is not None) != needed:
        fail(op, f"alpha must be given{'' if needed else ' for smooth spikes only'}")


def check_states(
    op: str,
    grad_v: Tensor | None,
    grad_i: Tensor | None,
    grad_states: Tensor | None,
    states: Tensor,
    shape: Sequence[int],
    v: Tensor,
    T: int,
    interval: int,
) -> None:
    """Checks the states that the forward kept, and gradients of those that it returned."""
    check_interval(op, interval)
    if interval == 0 and T > MAX_INTERVAL:
        fail(op, f"states must be kept by the forward for more than {MAX_INTERVAL} time steps")
    if grad_states is not None and interval != 1:
        fail(op, "grad_states needs state_interval = 1")
    check(op, "states", states, shape, v.dtype, v)
    check(op, "grad_v", grad_v, v.shape, v.dtype, v)
    check(op, "grad_i", grad_i, v.shape, v.dtype, v)
    check(op, "grad_states", grad_states, shape, v.dtype, v)


def method_of(op: str, method: int, smooth: bool, dtype: torch.dtype) -> str:
    """The name of a surrogate or an event-based method; checks whether spikes can be smooth."""
    if method not in _METHODS:
        fail(op, f"unknown method {method}; known ones are 0 to {max(_METHODS)}")
    name = _METHODS[method]
    if smooth and name in EVENT_METHODS:
        fail(op, "an event-based method has no smooth spikes")
    if smooth and dtype != torch.float64:
        fail(op, f"smooth spikes need float64, got {dtype}")
    return name


class Constants:
    """Constants as kernels take them: tensors, and size and stride of each.

    Column m of ``[*step]`` has element ``m // stride % size``. A constant whose dimensions are not
    adjacent in the step, such as ``[C, 1, W]``, is repeated until they are.
    """

    def __init__(
        self, op: str, constants: Sequence[Tensor | None], step: torch.Size, like: Tensor
    ) -> None:
        self.tensors: tuple[Tensor | None, ...] = ()
        self.sizes: tuple[int, ...] = ()
        self.strides: tuple[int, ...] = ()
        for name, c in zip(_CONSTANTS, constants, strict=False):
            size = stride = 1
            if c is not None:
                if c.dtype not in FLOATS or c.device != like.device:
                    fail(op, f"{name} must be floating-point and on the device of x")
                c, size, stride = _adjacent(op, name, c, step)
                if size >= 2**31:
                    fail(op, f"{name} must have fewer than 2^31 elements, got {size}")
            self.tensors += (c,)
            self.sizes += (size,)
            self.strides += (stride,)

    def arguments(self) -> dict[str, Any]:
        """Arguments of a kernel."""
        return {"constants": self.tensors, "sizes": self.sizes, "strides": self.strides}


def _adjacent(op: str, name: str, c: Tensor, step: torch.Size) -> tuple[Tensor, int, int]:
    missing = len(step) - c.dim()
    if missing >= 0 and c.shape == step[missing:]:
        return c.contiguous(), c.numel(), 1
    if missing >= 0 and c.numel() == 1:
        return c, 1, 1
    if missing < 0 or any(n not in (1, of) for n, of in zip(c.shape, step[missing:], strict=True)):
        fail(
            op,
            f"{name} must broadcast to one time step of shape {list(step)}, "
            f"got shape {list(c.shape)}",
        )
    own = [d for d, n in enumerate(c.shape) if n != 1]
    first, last = own[0], own[-1]
    if c.shape[first : last + 1] != step[missing + first : missing + last + 1]:
        c = c.expand(
            (*c.shape[:first], *step[missing + first : missing + last + 1], *c.shape[last + 1 :])
        )
    return c.contiguous(), c.numel(), math.prod(step[missing + last + 1 :])


#: Memory layout of a sequence ``[T, M]``: element (t, m) is at
#: ``t * stride_t + m // row * stride_row + m % row``; contiguous columns have no row.
Layout = tuple[int, int | None, int | None]

_SHORTEST_ROW = 16  # elements; shorter ones are copied


def layout_of(x: Tensor, step_dims: int) -> tuple[Tensor, Layout]:
    """A sequence as it lies, if that can be described; otherwise a copy.

    Its columns may be contiguous, or contiguous rows at equal distances as in batch-first views. A
    step that is repeated is copied once.
    """
    has_time = x.dim() > step_dims
    stride_t = x.stride(0) if has_time and len(x) > 1 else 0
    if x.is_contiguous():
        return x, (stride_t, None, None)
    sizes, strides = x.shape[x.dim() - step_dims :], x.stride()[x.dim() - step_dims :]
    row, d = 1, step_dims
    while d > 0 and (sizes[d - 1] == 1 or strides[d - 1] == row):
        d -= 1
        row *= sizes[d]
    if d == 0:
        return x, (stride_t, None, None)
    if row >= _SHORTEST_ROW and all(strides[k - 1] == strides[k] * sizes[k] for k in range(1, d)):
        return x, (stride_t, row, strides[d - 1])
    if has_time and stride_t == 0:
        return x[0].contiguous(), (0, None, None)
    return x.contiguous(), (math.prod(sizes) if stride_t else 0, None, None)
