"""What the tests of the Triton kernels share: operators called directly, and other plans."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from helpers import DEVICE, assert_same_bits, moved
from test_lif_backward import check as check_gradients
from torch import Tensor

from fused_lif.backends import triton
from fused_lif.backends.triton import launch, operators, plan

#: Where the kernels run.
TRITON_DEVICE = torch.device("cpu" if triton.IS_INTERPRETED else DEVICE, None)


class _Operators:
    """The operators by the names of those in C++. Arguments and results are on the CPU."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        operator = getattr(torch.ops.fused_lif, f"{name}_triton").default

        def call(*arguments: Any, **options: Any) -> Any:
            if triton.IS_INTERPRETED:
                return operator(*arguments, **options)
            with torch.no_grad():
                results = operator(*moved(arguments, DEVICE), **moved(options, DEVICE))
                return moved(results, "cpu")

        return call


ops = _Operators()


class Launch(NamedTuple):
    """A kernel that was launched."""

    kernel: str
    grid: tuple[int, ...]
    arguments: dict[str, Any]


class Plans:
    """Other plans than those of the table, and what was launched with them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._arguments: dict[str, Any] = {}
        self.launches: list[Launch] = []
        really_launch = launch.launch

        def recording(
            kernel: Any, grid: tuple[int, ...], device: torch.device, warps: int, **arguments: Any
        ) -> None:
            arguments |= {k: a for k, a in self._arguments.items() if k in arguments}
            self.launches.append(Launch(kernel.fn.__name__, grid, arguments))
            if device.type != "meta":
                really_launch(kernel, grid, device, warps, **arguments)

        for module in (launch, operators):
            monkeypatch.setattr(module, "launch", recording)

    def arguments(self, **arguments: Any) -> None:
        """Replaces arguments of all kernels that have them."""
        self._arguments = arguments

    def sequence(self, block: int, chunk: int = 4, interval: int = 8) -> None:
        """Columns per program, steps at once of the forward, steps between kept states."""
        self._set("sequence_plan", lambda *problem: plan.SequencePlan(block, 1, chunk))
        self._set("checkpoint_interval", lambda *problem: interval)

    def recurrent(
        self, forward: int | None, backward: int | None, kept: bool = False, rows: int = 1
    ) -> None:
        """Senders and receivers at once, or ``None`` to go by steps; batch rows per program."""

        def recurrent_plan(device: Any, kernel: str, neurons: int) -> plan.RecurrentPlan | None:
            is_forward = kernel == "lif_recurrent_forward"
            unroll = forward if is_forward else backward
            return None if unroll is None else plan.RecurrentPlan(1, unroll, kept)

        self._set("recurrent_plan", recurrent_plan)
        self._set("rows_of_program", lambda *problem: rows)

    def input_sums(self, rows: int, block: int) -> None:
        """Rows of the input and neurons per program."""
        self._set("input_sums_plan", lambda device: plan.InputSumsPlan(rows, block, 1))

    def gpu(self) -> plan.Device:
        """Plans of a GPU with one multiprocessor, which is not in the table."""
        device = plan.Device("cuda:0.0", 1)
        for module in (launch, operators, plan):
            self._monkeypatch.setattr(module, "device_of", lambda _: device)
        return device

    def programs(self, kernel: str) -> list[int]:
        """How many programs each launch of a kernel had since the last call."""
        grids = [grid[0] for name, grid, _ in self.launches if name == kernel]
        self.launches.clear()
        return grids

    def _set(self, name: str, function: Callable[..., Any]) -> None:
        self._monkeypatch.setattr(plan, name, function)


def check_spikes(case: Any) -> None:
    """Compares outputs with those of the reference, bit for bit."""
    with torch.no_grad():
        for name, a, e in zip(("out", "v", "i"), case.run("triton"), case.run("reference")):
            assert_same_bits(a, e, name)


def check(case: Any) -> None:
    """Compares outputs and gradients of a sequence with those of the reference."""
    check_spikes(case)
    check_gradients(case, "triton")


def assert_same(actual: Any, expected: Any) -> None:
    """Two sequences or dictionaries of tensors have the same bits."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        named = [(name, actual[name], expected[name]) for name in expected]
    else:
        assert len(actual) == len(expected)
        named = [(f"result {k}", *pair) for k, pair in enumerate(zip(actual, expected))]
    for name, a, e in named:
        assert isinstance(a, Tensor)
        assert_same_bits(a, e, name)
