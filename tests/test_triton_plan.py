"""Plans of the Triton kernels: what the table has, and which of its rows is taken."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from fused_lif.backends.triton import arguments, plan

SEQUENCES = ("lif_forward", "lif_backward")
RECURRENT = ("lif_recurrent_forward", "lif_recurrent_backward")
SIZES = ("2", "4", "8")  # bytes of an element

architectures = pytest.mark.parametrize("architecture", plan.table())


def is_power_of_two(n):
    return isinstance(n, int) and n > 0 and n & (n - 1) == 0


def limits_of(rows):
    return [math.inf if limit is None else limit for limit, *_ in rows]


# ---- the table ----


@architectures
def test_names(architecture):
    """``cuda:9.0``, ``hip:gfx942``, ``default`` or the interpreter, each with all kernels."""
    if architecture not in ("default", plan.INTERPRETER):
        kind, _, name = architecture.partition(":")
        assert kind in ("cuda", "hip")
        assert name
    kernels = {*SEQUENCES, *RECURRENT, "lif_input_sums"}
    assert plan.table()[architecture].keys() == kernels


@pytest.mark.parametrize("kernel", SEQUENCES)
@architectures
def test_rows_of_sequences(architecture, kernel):
    """Limits ascend, and the last row has none; blocks, warps and chunks are powers of two."""
    by_size = plan.table()[architecture][kernel]
    assert by_size.keys() == set(SIZES)
    for size, rows in by_size.items():
        limits = limits_of(rows)
        assert limits == sorted(set(limits))
        assert limits[-1] == math.inf
        for _, *row in rows:
            p = plan.SequencePlan(*row)
            assert is_power_of_two(p.block)
            assert is_power_of_two(p.warps)
            assert p.warps <= 32
            if kernel == "lif_forward":
                assert is_power_of_two(p.chunk)
                assert p.chunk <= 32
            else:
                assert p.chunk == 0, f"{size}: the backward takes segments"


@pytest.mark.parametrize("kernel", RECURRENT)
@architectures
def test_rows_of_recurrent_layers(architecture, kernel):
    """Limits ascend; a product has a power of two of terms; kept weights are all of them."""
    rows = plan.table()[architecture][kernel]
    limits = limits_of(rows)
    assert limits == sorted(set(limits))
    assert limits[-1] < math.inf
    for limit, *row in rows:
        p = plan.RecurrentPlan(*row)
        assert is_power_of_two(p.warps)
        assert is_power_of_two(p.unroll)
        assert isinstance(p.kept, bool)
        assert not p.kept or (kernel == "lif_recurrent_backward" and p.unroll >= limit)


@architectures
def test_row_of_input_sums(architecture):
    p = plan.InputSumsPlan(*plan.table()[architecture]["lif_input_sums"])
    assert all(map(is_power_of_two, p))


# ---- which row ----


@pytest.fixture
def small_table(monkeypatch):
    table = {
        "default": {
            "lif_forward": {"4": [[10, 32, 1, 32], [20, 64, 2, 16], [None, 128, 4, 8]]},
            "lif_recurrent_forward": [[5, 1, 8, False], [9, 2, 4, False]],
            "lif_input_sums": [32, 64, 4],
        },
        "cuda:9.0": {
            "lif_forward": {"4": [[7, 16, 1, 1]]},
            "lif_recurrent_forward": [],
            "lif_input_sums": [8, 16, 2],
        },
    }
    monkeypatch.setattr(plan, "table", lambda: table)
    clear()
    yield
    clear()


def clear():
    plan.sequence_plan.cache_clear()
    plan.recurrent_plan.cache_clear()


@pytest.mark.parametrize(
    ("columns", "multiprocessors", "block"),
    [
        *((1, 1, 32), (10, 1, 32), (11, 1, 64), (20, 1, 64), (21, 1, 128), (10**12, 1, 128)),
        *((30, 3, 32), (31, 3, 64), (60, 3, 64), (61, 3, 128)),
    ],
)
def test_limits_are_columns_per_multiprocessor(columns, multiprocessors, block, small_table):
    device = plan.Device("cuda:8.0", multiprocessors)  # not in the table
    p = plan.sequence_plan(device, "lif_forward", columns, 4)
    assert p.block == block
    assert p in [(32, 1, 32), (64, 2, 16), (128, 4, 8)]


def test_architecture_of_its_own(small_table):
    device = plan.Device("cuda:9.0", 2)
    assert plan.sequence_plan(device, "lif_forward", 14, 4) == (16, 1, 1)
    assert plan.recurrent_plan(device, "lif_recurrent_forward", 1) is None
    assert plan.input_sums_plan(device) == (8, 16, 2)
    with pytest.raises(ValueError, match="has no plan of lif_forward for 15 columns"):
        plan.sequence_plan(device, "lif_forward", 15, 4)


@pytest.mark.parametrize(
    ("neurons", "expected"),
    [(1, (1, 8, False)), (5, (1, 8, False)), (6, (2, 4, False)), (9, (2, 4, False)), (10, None)],
)
def test_limits_are_neurons(neurons, expected, small_table):
    device = plan.Device("cuda:8.0", 100)
    assert plan.recurrent_plan(device, "lif_recurrent_forward", neurons) == expected


def test_amd_devices_have_half_the_warps(small_table):
    """They are twice as wide; there is no half of one."""
    device = plan.Device("hip:gfx942", 1)
    warps = [plan.sequence_plan(device, "lif_forward", n, 4).warps for n in (10, 20, 21)]
    assert warps == [1, 1, 2]
    assert plan.sequence_plan(device, "lif_forward", 21, 4) == (128, 2, 8)
    assert plan.recurrent_plan(device, "lif_recurrent_forward", 9) == (1, 4, False)
    assert plan.input_sums_plan(device) == (32, 64, 2)


def test_look_ups_are_cached(small_table, monkeypatch):
    device = plan.Device("cuda:8.0", 1)
    first = plan.sequence_plan(device, "lif_forward", 5, 4)
    layer = plan.recurrent_plan(device, "lif_recurrent_forward", 5)
    monkeypatch.setattr(plan, "table", lambda: pytest.fail("read again"))
    assert plan.sequence_plan(device, "lif_forward", 5, 4) is first
    assert plan.recurrent_plan(device, "lif_recurrent_forward", 5) is layer


def test_the_table_is_read_once():
    assert plan.table() is plan.table()
    assert plan.TABLE_PATH.is_file()


# ---- devices ----


@pytest.mark.parametrize(
    ("hip", "expected"),
    [
        (None, plan.Device("cuda:9.0", 132)),
        ("6.4", plan.Device("hip:gfx942", 132)),
    ],
)
def test_devices(hip, expected, monkeypatch):
    """Asked for once; features of an AMD device are not part of its name."""
    properties = SimpleNamespace(
        major=9, minor=0, multi_processor_count=132, gcnArchName="gfx942:sramecc+:xnack-"
    )
    asked = []
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: asked.append(index) or properties
    )
    plan.device_of.cache_clear()
    try:
        assert plan.device_of(3) == plan.device_of(3) == expected
        assert asked == [3]
    finally:
        plan.device_of.cache_clear()


def test_the_interpreter_is_a_device():
    device = plan.device_of(None)
    assert device.architecture == plan.INTERPRETER
    assert device.architecture in plan.table()


@pytest.mark.parametrize("architecture", ["cuda:8.0", "cuda:9.0", "hip:gfx942", plan.INTERPRETER])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_checkpoint_interval(architecture, dtype):
    """A power of two, for chunks of the forward to divide it, which the operators take."""
    device = plan.Device(architecture, 1)
    interval = plan.checkpoint_interval(device, dtype)
    assert is_power_of_two(interval)
    assert 1 < interval <= arguments.MAX_INTERVAL
    assert interval <= plan.checkpoint_interval(device, torch.float32)


@pytest.mark.parametrize(
    ("architecture", "kept", "limit"),
    [
        ("cuda:9.0", False, 2),
        ("cuda:9.0", True, 1),
        (plan.INTERPRETER, False, 64),
        (plan.INTERPRETER, True, 64),
    ],
)
def test_rows_of_a_program(architecture, kept, limit):
    """Powers of two: one row as long as all multiprocessors have one, then up to a limit."""
    device = plan.Device(architecture, 8)
    rows = [plan.rows_of_program(device, batch, kept) for batch in range(1, 2000)]
    assert all(map(is_power_of_two, rows))
    assert rows == sorted(rows)
    assert rows[:8] == [1] * 8
    assert rows[8:16] == [min(2, limit)] * 8
    assert rows[-1] == limit
