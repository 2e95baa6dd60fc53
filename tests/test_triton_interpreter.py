"""The interpreter of tests/triton_interpreter.py sees what a GPU would not forgive."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
import triton_interpreter
from helpers import assert_same_bits
from triton.runtime import interpreter

from fused_lif.backends.triton import IS_INTERPRETED

pytestmark = pytest.mark.skipif(not IS_INTERPRETED, reason="kernels run on a GPU")


@triton.jit
def copy_kernel(from_ptr, to_ptr, first, count, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    """Copies ``count`` elements, from the given one on, to the same places."""
    m = first + tl.arange(0, BLOCK)
    if MASKED:
        mask = m < first + count
        tl.store(
            to_ptr + m, tl.load(from_ptr + m, mask=mask).to(to_ptr.dtype.element_ty), mask=mask
        )
    else:
        tl.store(to_ptr + m, tl.load(from_ptr + m).to(to_ptr.dtype.element_ty))


@triton.jit
def gather_kernel(from_tuple, places_ptr, to_ptr, BLOCK: tl.constexpr):
    m = tl.arange(0, BLOCK)
    tl.store(to_ptr + m, tl.load(from_tuple[1] + tl.load(places_ptr + m)))


@triton.jit
def words_kernel(from_ptr, to_ptr, BLOCK: tl.constexpr):
    """Reads two elements of 16 bits as one of 32."""
    m = tl.arange(0, BLOCK)
    tl.store(to_ptr + m, tl.load(from_ptr.to(tl.pointer_type(tl.float32)) + m))


@triton.jit
def recurrent_kernel(to_ptr, BLOCK: tl.constexpr, BARRIER: tl.constexpr):
    """Reads what it has written, as the kernels of recurrent layers do."""
    m = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(to_ptr + m, m)
    if BARRIER:
        tl.debug_barrier()
    tl.store(to_ptr + m, tl.load(to_ptr + m) * 2)


def copy(source, target, first=0, count=None, block=8, masked=True):
    count = block if count is None else count
    with triton_interpreter.mended():
        copy_kernel[1,](source, target, first, count, BLOCK=block, MASKED=masked)
    return target


# ---- addresses ----

OUTSIDE = "lie in no argument"


def test_what_lies_inside():
    source = torch.arange(8.0)
    assert torch.equal(copy(source, torch.zeros(8)), source)
    assert torch.equal(copy(source, torch.zeros(8), masked=False), source)
    assert torch.equal(copy(source, torch.zeros(5), count=5), source[:5])
    assert torch.equal(copy(source, torch.zeros(5), first=-3, count=0), torch.zeros(5))
    assert torch.equal(copy(source, torch.zeros(64), first=1000, count=0), torch.zeros(64))


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("first", [-1, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_load_and_store_outside(dtype, first, masked):
    """By one element, before or behind."""
    memory = torch.zeros(10, dtype=dtype)
    short = torch.zeros(8, dtype=dtype)
    outside = pytest.raises(interpreter.InterpreterError, match=f"1 addresses {OUTSIDE}")
    with outside:
        copy(short, memory[1:], first=first, masked=masked)
    with outside:
        copy(memory[1:], short, first=first, masked=masked)
    assert not short.any()
    copy(memory[1:9], memory[1:9].clone(), masked=masked)


def test_a_view_may_use_all_of_its_memory():
    memory = torch.arange(10.0)
    assert copy(memory[4:6], torch.zeros(16), first=-4, count=0).sum() == 0
    target = torch.zeros(12)
    copy(memory[2:6], target[2:], first=-2, block=8)
    assert torch.equal(target[:8], memory[:8])


def test_half_an_element_outside():
    memory = torch.zeros(7, dtype=torch.bfloat16)
    with triton_interpreter.mended():
        words_kernel[1,](memory[1:], torch.zeros(2), BLOCK=2)
        with pytest.raises(interpreter.InterpreterError, match=f"1 addresses {OUTSIDE}"):
            words_kernel[1,](memory, torch.zeros(4), BLOCK=4)


def test_between_two_arguments():
    """Tensors in a tuple count; what lies between their memory does not."""
    a, b = torch.zeros(5), torch.ones(5)
    distance = (b.data_ptr() - a.data_ptr()) // 4
    places, target = torch.tensor([0, 4, distance, distance + 4]), torch.zeros(4)
    with triton_interpreter.mended():
        gather_kernel[1,]((b, a), places, target, BLOCK=4)
        assert target.tolist() == [0.0, 0.0, 1.0, 1.0]
        for outside in (5, -1, distance + 5, distance - 1):
            places[2] = outside
            with pytest.raises(interpreter.InterpreterError, match=f"1 addresses {OUTSIDE}"):
                gather_kernel[1,]((b, a), places, target, BLOCK=4)


def test_arguments_of_the_launch_before_do_not_count():
    first = torch.zeros(8)
    copy(first, torch.zeros(8))
    other = torch.zeros(8)
    distance = (first.data_ptr() - other.data_ptr()) // 4
    with pytest.raises(interpreter.InterpreterError, match=f"8 addresses {OUTSIDE}"):
        copy(other, torch.zeros(8), first=distance)


def test_read_without_a_barrier():
    target = torch.zeros(8, dtype=torch.int32)
    with triton_interpreter.mended():
        recurrent_kernel[2,](target, BLOCK=4, BARRIER=True)
        assert target.tolist() == list(range(0, 16, 2))
        with pytest.raises(interpreter.InterpreterError, match="without a barrier"):
            recurrent_kernel[1,](target, BLOCK=4, BARRIER=False)


def test_the_interpreter_is_as_before():
    owners = (
        interpreter.InterpreterBuilder,
        interpreter.GridExecutor,
        interpreter.InterpretedFunction,
    )
    before = [dict(vars(owner)) for owner in owners]
    language = dict(vars(tl)), dict(vars(tl.core)), dict(vars(tl.tensor))
    copy(torch.zeros(8), torch.zeros(8))
    with pytest.raises(interpreter.InterpreterError):
        copy(torch.zeros(8), torch.zeros(7))
    assert [dict(vars(owner)) for owner in owners] == before
    assert (dict(vars(tl)), dict(vars(tl.core)), dict(vars(tl.tensor))) == language


# ---- bfloat16 ----


def converted(values, dtype):
    return copy(values, torch.empty(values.shape, dtype=dtype), block=values.numel())


def test_rounds_as_torch_does():
    """Random bits, ties and their neighbours, denormals, infinities, all kinds of NaN."""
    random = np.random.default_rng(0).integers(0, 2**32, 2**14, dtype=np.uint32)
    ties = np.arange(2**16, dtype=np.uint32)[::37] << 16 | 0x8000
    denormals = np.array([0, 1, 0x80000001, 0x7FFF, 0x8000, 0x8001, 0x807F8000], dtype=np.uint32)
    largest = np.array([0x7F7F7FFF, 0x7F7F8000, 0x7F7FFFFF, 0xFF7FFFFF], dtype=np.uint32)
    not_finite = np.array(
        [0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF, 0x7FFF8000],
        dtype=np.uint32,
    )
    bits = np.concatenate([random, ties, ties - 1, ties + 1, denormals, largest, not_finite])
    values = torch.zeros(2**15)
    values[: bits.size] = torch.from_numpy(bits.view(np.float32))
    actual = converted(values, torch.bfloat16)
    assert_same_bits(actual, values.to(torch.bfloat16))
    assert torch.equal(torch.signbit(actual), torch.signbit(values) & ~values.isnan())


def test_every_bfloat16_is_read():
    values = torch.arange(2**16).to(torch.uint16).view(torch.bfloat16)
    actual = converted(values, torch.float32)
    assert_same_bits(actual, values.float())
    assert torch.equal(torch.signbit(actual), torch.signbit(values))
