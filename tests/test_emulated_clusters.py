"""CUDA kernels on the CPU: recurrent layers in clusters of blocks."""

from __future__ import annotations

import pytest
import torch
from cuda_cases import HALVES, assert_close_sequences, check_spikes, run_recurrent_operators
from helpers import (
    assert_same_bits,
    random_recurrent_case,
)
from test_recurrent_backward import check as check_recurrent_gradients
from test_recurrent_forward import run_as_promised, with_binary_spikes

from fused_lif.backends import native
from fused_lif.surrogate import EVENT_METHODS

pytestmark = pytest.mark.usefixtures("emulated")

cpu = torch.ops.fused_lif


# T, batch, I, H: one to eight blocks of 64 neurons, some of them not full.
CLUSTERS = [
    (9, 1, 3, 1),
    (8, 3, 5, 63),
    (20, 17, 5, 64),
    (33, 2, 5, 65),
    (9, 3, 5, 128),
    (9, 5, 5, 129),
    (40, 5, 7, 200),
    (9, 2, 3, 256),
    (9, 2, 3, 257),
    (65, 33, 3, 70),
    (9, 2, 3, 512),
]


def rows_per_cluster(shape, **device):
    T, B, _, H = shape
    device = {"capability": 90, "multiprocessors": 4, "shared_memory": 227 << 10, **device}
    return native._C.cuda_cluster_rows(T, B, H, False, 0, **device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", CLUSTERS, ids=str)
def test_clusters(shape, dtype):
    assert rows_per_cluster(shape) > 0
    case = random_recurrent_case(shape, dtype)
    check_spikes(case)
    check_recurrent_gradients(case, "emulated")


@pytest.mark.parametrize(
    "device",
    [{"capability": 80}, {"shared_memory": 48 << 10}, {"multiprocessors": 132}],
    ids=str,
)
def test_clusters_and_matrix_products_agree(device, emulated):
    shape = (40, 5, 7, 200)
    case = random_recurrent_case(shape, record_states=True)
    expected = case.run("emulated")
    assert (rows_per_cluster(shape, **device) > 0) == ("multiprocessors" in device)
    with emulated.device(**device):
        for a, e in zip(case.run("emulated"), expected):
            assert_same_bits(a, e)
        check_recurrent_gradients(case, "emulated")


@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("method", EVENT_METHODS)
@pytest.mark.parametrize("shape", CLUSTERS, ids=str)
def test_clusters_take_events(shape, method, reset, emulated, cuda):
    """They wait where the kernels of surrogates do, and agree with matrix products."""
    case, method = random_recurrent_case(shape, reset=reset), EVENT_METHODS[method]
    with emulated.sites() as sites:
        clusters = run_recurrent_operators(cuda, case, 1, method=method)
    with emulated.sites() as sites_of_surrogate:
        run_recurrent_operators(cuda, case, 1)
    assert sites == sites_of_surrogate
    with emulated.device(capability=80), emulated.sites() as others:
        products = run_recurrent_operators(cuda, case, 1, method=method)
    assert not any("lif_cluster.cu" in site for site in others)
    assert_close_sequences(clusters, products, torch.float32)


@pytest.mark.parametrize("options", [{"reset": "soft"}, {"record_states": True}], ids=str)
@pytest.mark.parametrize("constant_shape", [(), (5, 1), (5, 70)], ids=str)
def test_clusters_with_options(constant_shape, options):
    case = random_recurrent_case((40, 5, 7, 70), constant_shape=constant_shape, **options)
    check_spikes(case)
    check_recurrent_gradients(case, "emulated")


@pytest.mark.parametrize("recurrent_mean", [-0.05, -0.02, 0.01])
@pytest.mark.parametrize("shape", [(20, 3, 70, 150), (20, 3, 300, 50)], ids=str)
def test_sums_are_in_ascending_order(shape, recurrent_mean):
    case = random_recurrent_case(shape, exact_sums=False, recurrent_mean=recurrent_mean)
    case = with_binary_spikes(case)
    expected = run_as_promised(case)
    for a, e in zip(case.run("emulated"), expected):
        assert_same_bits(a, e)
    assert 0.05 < expected[0].mean() < 0.99
    assert not torch.equal(run_as_promised(case, -1)[2], expected[2])


@pytest.mark.parametrize("density", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_recurrent_layers_have_the_bits_of_the_cpu(dtype, density, cuda):
    """For spikes of any density, and weights whose sums are not exact."""
    case = with_binary_spikes(
        random_recurrent_case((33, 10, 140, 90), dtype, exact_sums=False, density=density)
    )
    actual, expected = (run_recurrent_operators(ops, case, 32) for ops in (cuda, cpu))
    assert 0.05 < expected[0].float().mean() < 0.95
    for a, e in zip(actual[:5], expected[:5]):
        assert_same_bits(a, e)
    assert_close_sequences(actual[5:], expected[5:], torch.float32)


@pytest.mark.parametrize("name", ["input_weights", "recurrent_weights"])
@pytest.mark.parametrize("where", [(0, 0), (149, 139), (70, 65)], ids=str)
@pytest.mark.parametrize("weight", [float("inf"), float("nan")])
def test_infinite_weights_of_silent_senders(name, where, weight):
    """Zero times infinity is NaN: then no sender can be left out."""
    case = random_recurrent_case((9, 3, 150, 150), density=0.02)
    case = case._replace(x=case.x.detach().clone(), z=torch.zeros_like(case.z))
    case.x[..., where[1]] = 0
    weights = getattr(case, name).detach().clone()
    weights[where] = weight
    case = case._replace(**{name: weights})
    assert case.run("reference")[1][:, where[0]].isnan().all()
    check_spikes(case)
