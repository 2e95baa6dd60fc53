"""Which tile, how many warps, how far ahead: looked up in a table, ``plans.json``.

The table has an entry for each architecture (``cuda:9.0``, ``hip:gfx942``) that was measured, and
``default`` for all others; ``python benchmarks/tune_triton.py`` writes one. Nothing is tuned at run
time. The interpreter pays for every program and step, so it gets few and large tiles.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

#: ``TRITON_INTERPRET=1`` as the architecture of the CPU.
INTERPRETER = "interpreter"

TABLE_PATH = Path(__file__).with_name("plans.json")


class Device(NamedTuple):
    """What the choice of a plan depends on, besides the problem."""

    architecture: str
    multiprocessors: int


class SequencePlan(NamedTuple):
    """How a kernel of ``sequence.py`` runs.

    Attributes:
        block: Columns per program.
        warps: Warps per program.
        chunk: Time steps that the forward computes, and loads ahead, at once.
    """

    block: int
    warps: int
    chunk: int


class RecurrentPlan(NamedTuple):
    """How a kernel of ``recurrent.py`` runs.

    Attributes:
        warps: Warps per program.
        unroll: Senders (forward) or receivers (backward) that are loaded at once.
        kept: The backward keeps the weights in registers; then ``unroll`` is all of them.
    """

    warps: int
    unroll: int
    kept: bool


class InputSumsPlan(NamedTuple):
    """How ``lif_input_sums_kernel`` runs.

    Attributes:
        rows: Rows of the input per program, at most.
        block: Neurons per program, at most.
        warps: Warps per program.
    """

    rows: int
    block: int
    warps: int


P = TypeVar("P", SequencePlan, RecurrentPlan, InputSumsPlan)


@functools.cache
def table() -> dict[str, Any]:
    """The table as it is stored."""
    return json.loads(TABLE_PATH.read_text())  # type: ignore[no-any-return]


@functools.cache
def device_of(index: int | None) -> Device:
    """The device of an index; the interpreter for ``None``."""
    if index is None:
        return Device(INTERPRETER, 1)
    properties = torch.cuda.get_device_properties(index)
    name = (
        f"hip:{properties.gcnArchName.split(':')[0]}"
        if torch.version.hip
        else f"cuda:{properties.major}.{properties.minor}"
    )
    return Device(name, properties.multi_processor_count)


def _rows(device: Device, kernel: str) -> Any:
    plans = table()
    return plans.get(device.architecture, plans["default"])[kernel]


def _of_device(device: Device, plan: P) -> P:
    """The same with half the warps for AMD, where each has 64 threads instead of 32."""
    is_wide = device.architecture.startswith("hip:")
    return plan._replace(warps=max(1, plan.warps // 2)) if is_wide else plan


@functools.cache
def sequence_plan(device: Device, kernel: str, columns: int, element_bytes: int) -> SequencePlan:
    """The plan of a kernel for so many columns; the table has limits per multiprocessor."""
    for limit, *plan in _rows(device, kernel)[str(element_bytes)]:
        if limit is None or columns <= limit * device.multiprocessors:
            return _of_device(device, SequencePlan(*plan))
    raise ValueError(f"{TABLE_PATH.name} has no plan of {kernel} for {columns} columns")


@functools.cache
def recurrent_plan(device: Device, kernel: str, neurons: int) -> RecurrentPlan | None:
    """The plan of a kernel for a layer; ``None`` if it is to take a matrix product per step.

    A float64 neuron counts as two: it takes twice the registers.
    """
    for limit, *plan in _rows(device, kernel):
        if neurons <= limit:
            return _of_device(device, RecurrentPlan(*plan))
    return None


def checkpoint_interval(device: Device, dtype: torch.dtype) -> int:
    """After how many steps the forward keeps the state: backward has these steps in registers."""
    return 8 if dtype == torch.float64 or device.architecture == INTERPRETER else 16


def input_sums_plan(device: Device) -> InputSumsPlan:
    """The plan of the sums over the weights of the input."""
    return _of_device(device, InputSumsPlan(*_rows(device, "lif_input_sums")))


def rows_of_program(device: Device, batch: int, kept: bool) -> int:
    """Batch rows that a program of the recurrent backward takes: they share weights as they come.

    Where the weights fill the registers there is room for one row.
    """
    rows, limit = 1, 64 if device.architecture == INTERPRETER else 1 if kept else 2
    while rows < limit and rows * device.multiprocessors < batch:
        rows *= 2
    return rows
