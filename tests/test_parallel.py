"""Determinism, threads, forked workers, and the memory that training keeps."""

from __future__ import annotations

import threading

import pytest
import torch
from helpers import gradients, random_case
from torch.utils.data import DataLoader, Dataset

from fused_lif import LIF, LIFFeedForwardState, LIFParameters, lif_feed_forward_integral


def test_same_bits_again():
    case = random_case((50, 8, 300))
    first, second = gradients(case, None), gradients(case, None)
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_called_from_several_threads():
    cases = [random_case((50, 4, 100 + k), seed=k) for k in range(8)]
    expected = [gradients(case, None) for case in cases]
    actual = [None] * len(cases)

    def work(k):
        for _ in range(5):
            actual[k] = gradients(cases[k], None)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(cases))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for a, e in zip(actual, expected):
        for name in e:
            assert torch.equal(a[name], e[name]), name


def test_threads_do_not_see_each_others_backend():
    import fused_lif

    seen = []

    def work():
        seen.append(fused_lif.backends._requested.names[-1])

    with fused_lif.backend("reference"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert seen == [None]


def test_denormals_are_as_before_the_call():
    """Flushing ends with the call, also in the caller's thread."""
    LIF()(torch.rand(20, 3, 4))
    tiny = torch.tensor([1e-40])
    assert (tiny * 0.5).item() > 0


class Spikes(Dataset):
    """Encodes in the worker process."""

    layer = LIF(LIFParameters(v_th=torch.tensor(0.5)))

    def __len__(self):
        return 8

    def __getitem__(self, k):
        generator = torch.Generator().manual_seed(k)
        with torch.no_grad():
            return self.layer(torch.rand(40, 700, 300, generator=generator))[0]


def test_forked_workers():
    """The parent has used its threads already: a fork must not wait for them."""
    dataset = Spikes()
    expected = dataset[3]
    loader = DataLoader(
        dataset, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    batches = list(loader)
    assert len(batches) == 8
    assert torch.equal(batches[3], expected)


@pytest.mark.parametrize(("T", "limit"), [(1, 1.6), (32, 1.1), (1000, 1.1)])
def test_memory_kept_for_backward(T, limit):
    """Nothing is kept per step but the input: checkpoints take 1/16 of it.

    A single step keeps the initial state, which is not smaller than its input.
    """
    x = torch.rand(T, 4, 64, requires_grad=True)
    constants = [torch.full((64,), c, requires_grad=True) for c in (200.0, 100.0, 0.0, 1.0, 0.0)]
    state = LIFFeedForwardState(torch.zeros(4, 64), torch.zeros(4, 64))
    kept = {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        lif_feed_forward_integral(x, state, LIFParameters(*constants))
    given = {t.data_ptr() for t in (*constants, *state)} if T > 1 else set()
    total = sum(size for pointer, size in kept.items() if pointer not in given)
    assert total <= limit * x.nbytes * (1 if T > 1 else 3)
    assert x.data_ptr() in kept
