"""Triton's interpreter, ``TRITON_INTERPRET=1``, mended, watchful and faster.

It truncates when it rounds to bfloat16, which no GPU does; it does not see when a kernel reads or
writes where no argument lies, or reads what another thread of the program may not have written
yet, for want of a barrier; and it wraps Triton's language anew in every call of a function.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter


def _bits_of_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 rounded to the nearest bfloat16, as its bits."""
    bits = values.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def _float32_of_bits(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


class _Memory:
    """What the arguments of a launch lie in."""

    def __init__(self, arguments: Any, reads_again: bool = False) -> None:
        self.reads_again = reads_again
        self.written: list[np.ndarray] = []  # since the last barrier
        ranges = sorted(set(self._ranges(arguments)))
        self.firsts = np.array([first for first, _ in ranges], dtype=np.uint64)
        self.ends = np.array([end for _, end in ranges], dtype=np.uint64)

    def _ranges(self, tree: Any) -> Iterator[tuple[int, int]]:
        if isinstance(tree, torch.Tensor):
            storage = tree.untyped_storage()
            yield storage.data_ptr(), storage.data_ptr() + storage.nbytes()
        elif isinstance(tree, (tuple, list)):
            for t in tree:
                yield from self._ranges(t)

    def check(self, pointers: np.ndarray, mask: np.ndarray, size: int) -> None:
        used = pointers[mask]
        if used.size == 0:
            return
        at = np.searchsorted(self.firsts, used, side="right")
        inside = (at > 0) & (used + np.uint64(size) <= self.ends[at - 1])
        if not inside.all():
            raise IndexError(f"{(~inside).sum()} addresses lie in no argument of the kernel")

    def write(self, pointers: np.ndarray, mask: np.ndarray, size: int) -> None:
        self.check(pointers, mask, size)
        if self.reads_again:
            self.written.append(pointers[mask])

    def read(self, pointers: np.ndarray, mask: np.ndarray, size: int) -> None:
        self.check(pointers, mask, size)
        if self.written and np.isin(pointers[mask], np.concatenate(self.written)).any():
            raise RuntimeError("the program reads without a barrier what it has written")


@contextmanager
def mended() -> Iterator[None]:
    """Within the block the interpreter rounds to bfloat16, and checks addresses and barriers."""
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    function = interpreter.InterpretedFunction
    before = {
        (owner, name): getattr(owner, name)
        for owner, name in (
            (builder, "cast_impl"),
            (builder, "create_masked_load"),
            (builder, "create_masked_store"),
            (builder, "create_barrier"),
            (builder, "set_grid_idx"),
            (executor, "_init_args_hst"),
            (function, "__call__"),
        )
    }
    memory = _Memory(())
    wrapped_core = None

    def cast_impl(self: Any, source: Any, dtype: Any) -> Any:
        of, to = source.dtype.scalar, dtype.scalar
        if (of, to) == (tl.float32, tl.bfloat16):
            return interpreter.TensorHandle(_bits_of_bfloat16(source.data), to)
        if (of, to) == (tl.bfloat16, tl.float32):
            return interpreter.TensorHandle(_float32_of_bits(source.data), to)
        return before[builder, "cast_impl"](self, source, dtype)

    def create_masked_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        size = pointers.get_element_ty().primitive_bitwidth // 8
        memory.read(pointers.data, mask.data, size)
        return before[builder, "create_masked_load"](self, pointers, mask, *rest)

    def create_masked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        memory.write(pointers.data, mask.data, value.data.itemsize)
        return before[builder, "create_masked_store"](self, pointers, value, mask, *rest)

    def init_args(self: Any, arguments: Any, options: Any) -> Any:
        nonlocal memory
        results = before[executor, "_init_args_hst"](self, arguments, options)
        # Only these read what they have written; for the others the check would take long.
        reads_again = "recurrent" in self.fn.__name__
        memory = _Memory([*results[0], *results[1].values()], reads_again)
        return results

    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        # The launch has wrapped triton.language, not what its own functions use.
        nonlocal wrapped_core
        if wrapped_core is None and self.fn.__module__.startswith("triton.language"):
            wrapped_core = interpreter._patch_lang(self.fn)
        return self.rewrite()(*arguments, **options)

    def create_barrier(self: Any) -> None:
        memory.written.clear()

    def set_grid_idx(self: Any, *index: int) -> None:
        memory.written.clear()
        before[builder, "set_grid_idx"](self, *index)

    loads_and_stores = (create_masked_load, create_masked_store, create_barrier, set_grid_idx)
    for (owner, name), replacement in zip(before, (cast_impl, *loads_and_stores, init_args, call)):
        setattr(owner, name, replacement)
    try:
        yield
    finally:
        for (owner, name), original in before.items():
            setattr(owner, name, original)
        if wrapped_core is not None:
            wrapped_core.restore()
