"""The limit: the least time that a computation can take on a machine.

A layer must move its input and its output once, and a layer with weights must multiply. How fast
the machine copies and multiplies is measured in turns with the layers, by the candidates "copy" and
"matmul". What a layer moves besides (checkpoints, constants, weights) is not in the limit; of a
network, the currents and spikes between its layers are. Products are counted dense: a layer that
adds only weights of spikes can be faster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from rows import COPIED_BYTES, MATMUL_SIZE

if TYPE_CHECKING:
    from problems import Setting


class Work(NamedTuple):
    """What a computation must do at least."""

    elements: int
    flop: int = 0

    def __add__(self, other: Work) -> Work:  # type: ignore[override]
        """Returns the work of both."""
        return Work(self.elements + other.elements, self.flop + other.flop)


def itemsize(setting: Setting) -> int:
    """Returns the bytes of an element of the input."""
    return int(getattr(torch, setting.dtype).itemsize)


def copied_elements(setting: Setting) -> int:
    """Returns the elements of the buffers of "copy": those of the output, but at least some."""
    return max(setting.T * setting.B * setting.N, COPIED_BYTES // itemsize(setting))


def _forward(s: Setting) -> Work:
    steps, inputs = s.T * s.B, s.input_size or 0
    neurons = steps * s.N
    if s.model == "encoder":  # its input is one step
        return Work(neurons)
    if s.model == "notebook":
        return Work(s.B * inputs, 2 * neurons * (inputs + s.N))
    if s.model == "three_layers":  # x; of each layer the current and z
        return Work(steps * inputs + 6 * neurons, 2 * neurons * (inputs + 2 * s.N))
    if s.is_recurrent:
        return Work(steps * inputs + neurons, 2 * neurons * (inputs + s.N))
    return Work((6 if s.is_cell else 2) * neurons)  # x and z; of a cell, v and i before and after


def _backward(s: Setting) -> Work:
    steps, inputs = s.T * s.B, s.input_size or 0
    neurons = steps * s.N
    if s.model == "encoder":  # grad_z
        return Work(neurons)
    if s.model == "notebook":  # the input needs no gradient
        return Work(s.B * inputs, 2 * neurons * (inputs + 2 * s.N))
    if s.model == "three_layers":  # nor here
        return Work(steps * inputs + 9 * neurons, 2 * neurons * (inputs + 4 * s.N))
    if s.is_recurrent:  # input, its gradient, grad_z; both weights, and what is sent back
        return Work(2 * steps * inputs + neurons, 4 * neurons * (inputs + s.N))
    return Work((9 if s.is_cell else 3) * neurons)  # x, grad_z, grad_x; of a cell, of v and i too


def least_work(setting: Setting, mode: str) -> Work:
    """Returns what a mode of a computation must move and multiply."""
    if mode == "backward":
        return _backward(setting)
    forward = _forward(setting)
    return forward + _backward(setting) if mode == "forward_backward" else forward


def least_ms(setting: Setting, mode: str, copy_ms: float, matmul_ms: float | None) -> float | None:
    """Returns the least milliseconds, given those of "copy" and of "matmul"; `None`: unknown."""
    work = least_work(setting, mode)
    moving = work.elements / (2 * copied_elements(setting)) * copy_ms
    if not work.flop:
        return moving
    if matmul_ms is None:
        return None
    return max(moving, work.flop / (2 * MATMUL_SIZE[setting.device] ** 3) * matmul_ms)


def least_bytes(setting: Setting, mode: str) -> int:
    """Returns the least bytes of a mode: what is ``saved`` is x, at the ``peak`` outputs join it.

    At the peak, x is there already: what is counted is z and, if there is one, the gradient of x.
    """
    inputs = setting.T * setting.B * (setting.input_size or setting.N)
    outputs = setting.T * setting.B * setting.N
    return itemsize(setting) * (inputs if mode == "saved" else inputs + outputs)
