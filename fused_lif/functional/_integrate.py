"""Checks the arguments of the public functions, and runs the backend."""

from __future__ import annotations

import math
import numbers
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack

from fused_lif import debug
from fused_lif.backends import select_backend
from fused_lif.surrogate import METHODS, SURROGATES
from fused_lif.types import LIFProblem, LIFResult, Neuron, Recurrence

_RESETS = ("hard", "soft")
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_DTYPE_NAMES = "float32, float64, bfloat16, float16"
_CONSTANTS = ("tau_syn_inv", "tau_mem_inv", "v_leak", "v_th", "v_reset", "alpha")
_LI, _ENCODER = Neuron.LI, Neuron.CURRENT_ENCODER  # an attribute of an enum is slow to look up


def integrate(
    neuron: Neuron,
    input_tensor: Tensor,
    v: Any,
    i: Any,
    p: Any,
    dt: float,
    *,
    single_step: bool = False,
    reset: str = "hard",
    detach_reset: bool = False,
    record_states: bool = False,
    recurrence: Recurrence | None = None,
    backend: str | None = None,
) -> LIFResult:
    """Runs a neuron over ``input_tensor``, ``[T, *step]`` or ``[*step]`` if ``single_step``.

    Args:
        neuron: What is integrated.
        input_tensor: Input current.
        v: Initial membrane potential; a number or a tensor that broadcasts to one step.
        i: Initial synaptic current, likewise; ignored by the current encoder.
        p: Constants of the neuron: a ``LIFParameters`` or ``LIParameters``, or what has their
            attributes.
        dt: Length of one step, in seconds.
        single_step: The input has no time dimension.
        reset: ``"hard"`` or ``"soft"``.
        detach_reset: Stop the gradient at the reset.
        record_states: Also return the states after all steps.
        recurrence: Weights and initial spikes of a recurrent layer, as the user gave them; the
            input is then ``[T, *batch, I]`` or ``[*batch, I]``.
        backend: Name of the backend to use; ``None`` picks the first that can run.

    Raises:
        TypeError: If an argument is of the wrong type or dtype.
        ValueError: If a shape, a device or a value does not fit.
        RuntimeError: If ``backend`` is given and cannot run this input.
    """
    check_input(input_tensor, single_step)
    check_dt(dt)
    x, device = input_tensor, input_tensor.device
    tau_syn_inv = i_or_none = v_th = v_reset = alpha = None
    method = "heaviside"
    tau_mem_inv = as_constant("tau_mem_inv", p.tau_mem_inv, device)
    v_leak = as_constant("v_leak", p.v_leak, device)
    if neuron is not _ENCODER:
        tau_syn_inv = as_constant("tau_syn_inv", p.tau_syn_inv, device)
    if neuron is not _LI:
        v_th, v_reset = (
            as_constant("v_th", p.v_th, device),
            as_constant("v_reset", p.v_reset, device),
        )
        alpha, method = as_constant("alpha", p.alpha, device), p.method
        check_method(method)
        check_reset(reset)
        if single_step and method == "eventprop":
            raise ValueError(
                "p.method 'eventprop' needs a sequence, not a single step: it compares the "
                "gradient of a spike with that of the next step"
            )

    constants = (tau_syn_inv, tau_mem_inv, v_leak, v_th, v_reset, alpha)
    step = x.shape if single_step else x.shape[1:]
    if recurrence is not None:
        step = _check_weights(x, step, recurrence)
    for c in constants:
        if c is not None and c.dim() and c.shape != step[-c.dim() :]:
            x, step = _broadcast_input(x, step, constants, single_step, recurrence is not None)
            break
    dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
    if recurrence is not None:
        recurrence = recurrence._replace(z=_as_state("z", recurrence.z, x, step, dtype))
    v = _as_state("v", v, x, step, dtype)
    if neuron is not _ENCODER:
        i_or_none = _as_state("i", i, x, step, dtype)
    problem = LIFProblem(
        x,
        v,
        i_or_none,
        *constants,
        dt,
        neuron,
        method,
        reset == "soft",
        detach_reset,
        record_states,
        neuron is not _LI and _smooth_spikes_wanted(x.dtype, method),
        recurrence,
    )
    chosen = select_backend(problem, backend)
    if debug.is_enabled():
        debug.raise_if_not_finite(problem, chosen)
    return chosen.run(problem)


_testing = threading.local()


@contextmanager
def smooth_spikes() -> Iterator[None]:
    """See :func:`fused_lif.testing.smooth_spikes`."""
    before = getattr(_testing, "smooth", False)
    _testing.smooth = True
    try:
        yield
    finally:
        _testing.smooth = before


def _smooth_spikes_wanted(dtype: torch.dtype, method: str) -> bool:
    if not getattr(_testing, "smooth", False):
        return False
    if dtype is not torch.float64:
        raise TypeError(f"smooth spikes need a float64 input_tensor, got {dtype}")
    if method not in SURROGATES:
        raise ValueError(
            f"smooth spikes need the primitive of a surrogate, p.method {method!r} has none"
        )
    return True


def check_input(input_tensor: Tensor, single_step: bool) -> None:
    """Raises if ``input_tensor`` is not a floating-point tensor with at least one time step."""
    if not isinstance(input_tensor, Tensor):
        raise TypeError(f"input_tensor must be a tensor, got {type(input_tensor).__name__}")
    if input_tensor.layout is not torch.strided:
        raise TypeError(f"input_tensor must be dense, got the layout {input_tensor.layout}")
    if input_tensor.dtype not in _DTYPES:
        raise TypeError(f"input_tensor must be one of {_DTYPE_NAMES}, got {input_tensor.dtype}")
    if single_step:
        return
    if input_tensor.dim() == 0:
        raise ValueError("input_tensor must have time as its first dimension, got shape ()")
    if input_tensor.shape[0] == 0:
        raise ValueError(
            f"input_tensor must have at least one time step, got shape {tuple(input_tensor.shape)}"
        )


def check_dt(dt: float) -> None:
    """Raises if ``dt`` is not a positive, finite number."""
    if not isinstance(dt, numbers.Real) or not 0 < dt < math.inf:
        raise ValueError(f"dt must be a positive and finite number, in seconds, got {dt!r}")


def check_method(method: str) -> None:
    """Raises if there is no surrogate of that name."""
    if method not in METHODS:
        raise ValueError(f"p.method must be one of {', '.join(METHODS)}, got {method!r}")


def check_reset(reset: str) -> None:
    """Raises if there is no reset of that name."""
    if reset not in _RESETS:
        raise ValueError(f"reset must be one of {', '.join(_RESETS)}, got {reset!r}")


def check_weights_type(name: str, weights: object) -> None:
    """Raises if ``weights`` is not a dense floating-point tensor."""
    if not isinstance(weights, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(weights).__name__}")
    if weights.layout is not torch.strided:
        raise TypeError(f"{name} must be dense, got the layout {weights.layout}")
    if weights.dtype not in _DTYPES:
        raise TypeError(f"{name} must be one of {_DTYPE_NAMES}, got {weights.dtype}")


def check_number(name: str, value: object) -> float:
    """Returns a constant given as a number; raises if it is none or makes no sense."""
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number or a tensor, got {type(value).__name__}")
    value = float(value)
    if name.startswith("tau") and not 0 <= value < math.inf:
        raise ValueError(f"{name} must be finite and not negative, in 1/s, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return value


def as_constant(name: str, value: object, device: torch.device) -> Tensor:
    """Returns a constant of the neuron as a floating-point tensor on ``device``."""
    if isinstance(value, Tensor):
        if value.device == device and value.dtype in _DTYPES:
            return value
        if value.dim() == 0 and value.device.type == "cpu":
            value = _scalar_to(value, device)  # a scalar on the CPU goes anywhere, as in torch
        if value.device != device:
            raise ValueError(
                f"{name} must be on the device of input_tensor ({device}), got {value.device}"
            )
        if value.is_complex() or (value.is_floating_point() and value.dtype not in _DTYPES):
            raise TypeError(f"{name} must be one of {_DTYPE_NAMES}, got {value.dtype}")
        return value if value.is_floating_point() else value.to(torch.get_default_dtype())
    return torch.full((), check_number(name, value), dtype=torch.float64, device=device)


def _scalar_to(value: Tensor, device: torch.device) -> Tensor:
    """Moves a scalar from the CPU.

    Filling a new tensor neither waits for the device nor disturbs the capture of a CUDA graph, as a
    copy would; but it has no gradient.
    """
    is_plain = not torch.compiler.is_compiling() and peek_interpreter_stack() is None
    if device.type == "cuda" and is_plain and not value.requires_grad:
        return torch.full((), value.item(), dtype=value.dtype, device=device)
    return value.to(device)


def _check_weights(x: Tensor, step: torch.Size, recurrence: Recurrence) -> torch.Size:
    """Returns the shape of one time step of the neurons; raises if the weights do not fit."""
    shapes = {}
    for name in ("input_weights", "recurrent_weights"):
        weights = getattr(recurrence, name)
        check_weights_type(name, weights)
        if weights.device != x.device:
            raise ValueError(
                f"{name} must be on the device of input_tensor ({x.device}), got {weights.device}"
            )
        shapes[name] = tuple(weights.shape)
    if not step:
        raise ValueError(
            f"input_tensor must have input features as its last dimension, got shape "
            f"{tuple(x.shape)}"
        )
    if len(shapes["input_weights"]) != 2 or shapes["input_weights"][1] != step[-1]:
        raise ValueError(
            f"input_weights must have shape (hidden_size, {step[-1]}) to match input_tensor "
            f"{tuple(x.shape)}, got {shapes['input_weights']}"
        )
    hidden_size = shapes["input_weights"][0]
    if shapes["recurrent_weights"] != (hidden_size, hidden_size):
        raise ValueError(
            f"recurrent_weights must have shape {(hidden_size, hidden_size)} to match "
            f"input_weights {shapes['input_weights']}, got {shapes['recurrent_weights']}"
        )
    return torch.Size((*step[:-1], hidden_size))


def _as_state(name: str, value: object, x: Tensor, step: torch.Size, dtype: torch.dtype) -> Tensor:
    """Returns a state of shape ``step``; numbers and smaller tensors are broadcast."""
    if not isinstance(value, Tensor):
        value = torch.full((), check_number(f"state.{name}", value), device=x.device)
    if value.shape == step and value.dtype is dtype and value.device == x.device:
        return value
    if value.is_complex():
        raise TypeError(f"state.{name} must be real, got {value.dtype}")
    if value.device != x.device and (value.dim() or value.device.type != "cpu"):
        raise ValueError(
            f"state.{name} must be on the device of input_tensor ({x.device}), got {value.device}"
        )
    if value.device != x.device:
        value = _scalar_to(value, x.device)
    if value.shape != step:
        try:
            value = value.expand(step)
        except RuntimeError:
            raise ValueError(
                f"state.{name} must have shape {tuple(step)} to match input_tensor "
                f"{tuple(x.shape)}, got {tuple(value.shape)}"
            ) from None
    return value.to(dtype)


def _broadcast_input(
    x: Tensor,
    step: torch.Size,
    constants: Sequence[Tensor | None],
    single_step: bool,
    recurrent: bool,
) -> tuple[Tensor, torch.Size]:
    """Expands the input where constants are larger, as in ``[T, B, 1]`` to ``N`` neurons."""
    full = step
    for name, constant in zip(_CONSTANTS, constants, strict=True):
        if constant is None:
            continue
        try:
            full = torch.broadcast_shapes(full, constant.shape)
            fits = not recurrent or full[-1] == step[-1]
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"{name} must broadcast against one time step of shape {tuple(step)}, "
                f"got shape {tuple(constant.shape)}"
            )
    if full == step:
        return x, step
    time = () if single_step else x.shape[:1]
    x = x.reshape(*time, *(1,) * (len(full) - len(step)), *x.shape[len(time) :])
    # The weights make the last dimension of a recurrent layer's input that of the step.
    return x.expand(*time, *full[:-1], x.shape[-1] if recurrent else full[-1]), full
