"""Sets what is emulated: the order of the threads, barriers to leave out, the device."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: How threads take turns; ``random:1`` and ``random:2`` are different ones.
SCHEDULES = ("forward", "reverse", "random:1", "random:2")

_ORDERS = {"forward": 0, "reverse": 1, "random": 2}
_DEVICE = {"capability": 90, "multiprocessors": 4, "shared_memory": 227 << 10}


class Control:
    """A library of emulated kernels and its settings, which hold for the whole process."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.library.cuda_emulator_executed_barriers.restype = ctypes.c_char_p
        self._device = dict(_DEVICE)

    @contextmanager
    def schedule(self, name: str) -> Iterator[None]:
        """Runs threads in the order ``forward``, ``reverse``, or ``random:<seed>``."""
        order, _, seed = name.partition(":")
        set_schedule = self.library.cuda_emulator_set_schedule
        set_schedule(_ORDERS[order], ctypes.c_uint64(int(seed or 0)))
        try:
            yield
        finally:
            set_schedule(_ORDERS["forward"], ctypes.c_uint64(0))

    @contextmanager
    def sites(self) -> Iterator[list[str]]:
        """Yields a list that holds, afterwards, the barriers that were executed.

        For example ``lif_recurrent.cu:123 __syncthreads``.
        """
        executed: list[str] = []
        self.library.cuda_emulator_forget_executed_barriers()
        yield executed
        executed += self.library.cuda_emulator_executed_barriers().decode().splitlines()

    @contextmanager
    def skipping(self, site: str) -> Iterator[None]:
        """Leaves out one barrier. A wait without its arrival does not block."""
        self.library.cuda_emulator_skip_barrier(site.encode())
        try:
            yield
        finally:
            self.library.cuda_emulator_skip_barrier(b"")

    @contextmanager
    def device(self, **properties: int) -> Iterator[None]:
        """Emulates a GPU of another ``capability``, ``multiprocessors`` or ``shared_memory``."""
        before = dict(self._device)
        self._set_device(before | properties)
        try:
            yield
        finally:
            self._set_device(before)

    def _set_device(self, properties: dict[str, int]) -> None:
        if properties.keys() != _DEVICE.keys():
            raise TypeError(f"a device has {', '.join(_DEVICE)}")
        self._device = properties
        self.library.cuda_emulator_set_device(
            properties["capability"],
            properties["multiprocessors"],
            ctypes.c_size_t(properties["shared_memory"]),
        )
