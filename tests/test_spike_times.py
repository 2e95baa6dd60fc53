"""Spike times, and that eventprop finds their gradients in what goes back to the layer."""

from __future__ import annotations

import math

import pytest
import torch

from fused_lif import LIF, LIFParameters, spike_times


def random_spikes(*shape, dtype=torch.float64, probability=0.3):
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(shape, generator=generator) < probability).to(dtype)


def times_by_hand(spikes, dt, count):
    """One neuron: spikes ``[T]``."""
    times = [(t + 1) * dt for t, z in enumerate(spikes.tolist()) if z][:count]
    return times + [len(spikes) * dt] * (count - len(times))


@pytest.mark.parametrize("count", [1, 2, 9, 20])
@pytest.mark.parametrize("step", [(), (5,), (3, 4), (2, 3, 2, 2), (0, 3)], ids=str)
def test_times(step, count):
    spikes = random_spikes(20, *step)
    actual = spike_times(spikes, 0.5, count)
    assert actual.shape == (count, *step)
    columns = spikes.reshape(20, -1).unbind(1)
    expected = [times_by_hand(z, 0.5, count) for z in columns]
    assert actual.reshape(count, -1).T.tolist() == expected


@pytest.mark.parametrize("count", [1, 4, 12])
def test_differences_of_the_gradient(count):
    """gz[t] - gz[t + 1] is -dt dL/dt_s where one of the spikes is, zero where none is."""
    spikes = random_spikes(12, 50, probability=0.5).requires_grad_()
    dt = 0.25
    times = spike_times(spikes, dt, count)
    grad_times = torch.randint(-9, 9, times.shape).double()
    (grad,) = torch.autograd.grad(times, spikes, grad_times)
    expected = torch.zeros(11, 50, dtype=torch.float64)
    for n in range(50):
        for k, t in enumerate(spikes[:, n].nonzero()[:count, 0].tolist()):
            if t < 11:
                expected[t, n] = -dt * grad_times[k, n]
    assert (spikes[:-1] * spikes[1:]).any()  # consecutive ones too
    assert torch.equal(grad[:-1] - grad[1:], expected)


def test_missing_spikes_and_the_last_step():
    spikes = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]], requires_grad=True)
    times = spike_times(spikes, 1.0)
    assert times.tolist() == [[3.0, 3.0]]
    times.square().sum().backward()
    assert not spikes.grad.any()


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_dtypes(dtype, count):
    """Times are float32: a bfloat16 cannot count to 300."""
    spikes = random_spikes(400, 8, dtype=dtype, probability=0.01).requires_grad_()
    exact = spikes.detach().double().requires_grad_()
    times, expected = spike_times(spikes, count=count), spike_times(exact, count=count)
    assert times.dtype is torch.float32
    torch.testing.assert_close(times, expected.float(), rtol=2e-7, atol=0)
    weights = torch.linspace(1, 2, times.numel()).reshape(times.shape)
    (weights * times).sum().backward()
    (weights * expected).sum().backward()
    assert spikes.grad.dtype is dtype
    limit = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 1e-6}[dtype]
    torch.testing.assert_close(spikes.grad.double(), exact.grad, rtol=limit, atol=1e-7)


@pytest.mark.parametrize("count", [1, 2])
def test_compile_and_vmap(count):
    spikes = random_spikes(20, 6).requires_grad_()

    def gradient(function):
        return torch.autograd.grad(function(spikes).square().sum(), spikes)[0]

    def eager(z):
        return spike_times(z, count=count)

    compiled = torch.compile(eager, fullgraph=True, backend="aot_eager")
    mapped = torch.vmap(eager, in_dims=1, out_dims=1)
    for function in (compiled, mapped):
        assert torch.equal(function(spikes), eager(spikes))
        assert torch.equal(gradient(function), gradient(eager))


def test_errors():
    with pytest.raises(TypeError, match=r"spikes must be a floating-point tensor, got torch.int64"):
        spike_times(torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"spikes must be a floating-point tensor, got list"):
        spike_times([0.0])
    with pytest.raises(ValueError, match=r"time as first dimension"):
        spike_times(torch.tensor(1.0))
    for count in (0, 4, 1.5):
        with pytest.raises(ValueError, match=rf"between 1 and the 3 steps, got {count}"):
            spike_times(torch.zeros(3, 2), count=count)
    for dt in (-1.0, "a"):
        with pytest.raises(ValueError, match=rf"dt must be a positive .*, got {dt!r}"):
            spike_times(torch.zeros(3, 2), dt)


def test_learns_a_spike_time():
    """With default constants, v = i (exp(-100 t) - exp(-200 t)) after an input i."""
    weight = torch.nn.Parameter(torch.tensor(6.0, dtype=torch.float64))
    layer = LIF(LIFParameters(method="eventprop"), dt=1e-4)
    x = torch.zeros(200, 1, dtype=torch.float64)
    x[0] = 1.0
    optimizer = torch.optim.SGD([weight], lr=1e5)
    for _ in range(50):
        optimizer.zero_grad()
        times = spike_times(layer(weight * x)[0], dt=1e-4)
        (times - 0.004).square().sum().backward()
        optimizer.step()
    assert weight.item() == pytest.approx(1 / (math.exp(-0.4) - math.exp(-0.8)), rel=0.05)
