"""How CUDA would run a call: the choice of kernels, which needs no GPU."""

from __future__ import annotations

import pytest

from fused_lif.backends import native
from fused_lif.types import Neuron

pytestmark = pytest.mark.skipif(
    native.IMPORT_ERROR is not None, reason="the C++ extension is not built"
)

H200 = {"capability": 90, "multiprocessors": 132, "shared_memory": 227 << 10}
FLOAT, DOUBLE, HALF = 4, 8, 2


def sequence(columns, element_bytes, *, backward=False, neuron=Neuron.LIF, **options):
    return native._C.cuda_sequence_plan(
        backward, columns, element_bytes, int(neuron), options.pop("soft", False), 132, **options
    )


@pytest.mark.parametrize(
    ("element_bytes", "forward", "backward"),
    [(FLOAT, 4, 2), (DOUBLE, 1, 1), (HALF, 8, 4)],
    ids=["float32", "float64", "half"],
)
def test_large_layers_take_wide_accesses(element_bytes, forward, backward):
    columns = 64 * 4096
    assert sequence(columns, element_bytes) == (forward, 128)
    assert sequence(columns, element_bytes, backward=True) == (backward, 32)


@pytest.mark.parametrize("element_bytes", [FLOAT, HALF])
def test_small_layers_spread_over_the_device(element_bytes):
    columns, threads = sequence(32 * 256, element_bytes)
    assert columns == FLOAT // element_bytes  # what can be copied ahead
    assert 32 * 256 / (columns * threads) >= 0.9 * 132


def test_narrow_where_rows_are_not_aligned():
    assert sequence(64 * 4096 + 2, FLOAT)[0] == 1
    assert sequence(64 * 4096 + 2, HALF)[0] == 2
    assert sequence(64 * 4096 + 1, HALF)[0] == 1
    assert sequence(64 * 4096, FLOAT, alignment=8)[0] == 1
    assert sequence(64 * 4096, HALF, alignment=2)[0] == 1


def test_rare_neurons_have_no_wide_kernel():
    assert sequence(64 * 4096, FLOAT, neuron=Neuron.CURRENT_ENCODER)[0] == 1
    assert sequence(64 * 4096, FLOAT, soft=True)[0] == 1
    assert sequence(64 * 4096, FLOAT, neuron=Neuron.LI)[0] == 4


def cluster(T=1000, B=32, H=512, *, is_double=False, segment=0, **device):
    return native._C.cuda_cluster_rows(T, B, H, is_double, segment, **{**H200, **device})


@pytest.mark.parametrize("segment", [0, 32], ids=["forward", "backward"])
def test_clusters_fit_on_the_device_at_once(segment):
    rows = cluster(segment=segment)
    assert rows == 3  # 11 clusters of 8 blocks on 132 multiprocessors
    blocks = -(-32 // rows) * 8
    assert blocks <= 132


def test_rows_of_large_batches_are_balanced():
    assert cluster(B=14 * 16) == 16  # one wave of 14 clusters
    assert cluster(B=14 * 16 + 1) == 9  # two waves of the same size
    assert cluster(B=1) == 1
    assert cluster(B=100_000) == 16
    assert cluster(B=100_000, segment=32) == 8


@pytest.mark.parametrize(
    "change",
    [
        {"H": 513},
        {"T": 7},
        {"B": 0},
        {"H": 0},
        {"is_double": True},
        {"capability": 86},
        {"shared_memory": 100 << 10},
    ],
    ids=str,
)
def test_matrix_products_otherwise(change):
    assert cluster(**change) == 0


def test_less_shared_memory_means_smaller_layers_and_fewer_rows():
    """Devices of compute capability 12.0 have 99 KiB per block."""
    device = {"capability": 120, "shared_memory": 99 << 10}
    assert cluster(H=256, B=100_000, **device) == 16
    assert cluster(H=400, B=100_000, **device) == 0
    assert 0 < cluster(H=256, B=100_000, segment=32, **device) < 8
