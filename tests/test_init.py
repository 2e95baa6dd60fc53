"""Initialisers: the distributions they promise, positive, and reproducible."""

from __future__ import annotations

import math

import pytest
import torch

from fused_lif import init

N = 200_000

# initialiser -> mean and standard deviation, calculated by hand
MOMENTS = {
    "constant": (init.constant(3.0), 3.0, 0.0),
    "normal": (init.normal(100.0, 10.0), 100.0, 10.0),
    "lognormal": (init.lognormal(100.0, 60.0), 100.0, 60.0),
    "gamma": (init.gamma(100.0, 3.0), 100.0, 100.0 / math.sqrt(3)),
    "uniform": (init.uniform(50.0, 150.0), 100.0, 100.0 / math.sqrt(12)),
    # 1 / gamma of shape k is inverse gamma: mean k / (k - 1), variance mean^2 / (k - 2)
    "reciprocal": (init.reciprocal(init.gamma(0.01, 6.0)), 120.0, 60.0),
    # the upper half of a normal distribution around a mean of nearly zero
    "half normal": (init.normal(1e-9, 1.0), math.sqrt(2 / math.pi), math.sqrt(1 - 2 / math.pi)),
    "potential": (init.normal(-0.5, 0.1, positive=False), -0.5, 0.1),
}


@pytest.mark.parametrize("name", MOMENTS)
def test_mean_and_deviation(name):
    initializer, mean, std = MOMENTS[name]
    values = initializer((N,)).double()
    assert values.shape == (N,)
    assert values.isfinite().all()
    assert (values > 0).all() == (mean > 0)
    assert values.mean().item() == pytest.approx(mean, rel=0.01)
    assert values.std().item() == pytest.approx(std, rel=0.03)


def test_shape_of_the_gamma_distribution():
    """Erlang's distribution function for shape 3 at its mean and at half of it."""
    values = init.gamma(1.0, 3.0)((N,))
    for x in (0.5, 1.0):
        expected = 1 - math.exp(-3 * x) * (1 + 3 * x + (3 * x) ** 2 / 2)
        assert (values < x).float().mean().item() == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize(
    "initializer",
    [
        init.normal(0.1, 1.0),
        init.lognormal(1.0, 50.0),
        init.gamma(1.0, 0.01),
        init.uniform(0, 1e-45),
    ],
)
def test_positive_where_the_distribution_reaches_zero(initializer):
    values = initializer((2000,))
    assert (values > 0).all()
    assert values.isfinite().all()


@pytest.mark.parametrize("name", [name for name in MOMENTS if name != "constant"])
def test_reproducible(name):
    initializer, _, _ = MOMENTS[name]
    drawn = []
    for _ in range(2):
        torch.manual_seed(5)
        drawn.append(initializer((3, 1, 1)))
    before = torch.get_rng_state()
    for _ in range(2):
        drawn.append(initializer((3, 1, 1), generator=torch.Generator().manual_seed(5)))
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[2], drawn[3])
    assert not torch.equal(drawn[0], initializer((3, 1, 1)))
    torch.set_rng_state(before)
    initializer((3,), generator=torch.Generator())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: init.constant(0.0), r"value must be positive, got 0\.0"),
        (lambda: init.constant(math.inf, positive=False), "value must be a finite number, got inf"),
        (lambda: init.normal(-1.0, 1.0), r"mean must be positive, got -1\.0"),
        (lambda: init.normal(1.0, 0.0), r"std must be positive, got 0\.0"),
        (lambda: init.lognormal(1.0, -1.0), r"std must be positive, got -1\.0"),
        (lambda: init.gamma(100.0, "3"), "shape must be a finite number, got '3'"),
        (
            lambda: init.uniform(-1.0, 1.0),
            r"low must not be negative nor above high, got low=-1\.0",
        ),
        (
            lambda: init.uniform(2.0, 1.0, positive=False),
            r"low must not be above high, got low=2\.0",
        ),
        (
            lambda: init.reciprocal(init.constant(-1.0, positive=False))((2,)),
            "draws must be finite and positive, got -1 again and again",
        ),
    ],
)
def test_messages(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("initializer", [init.constant(1.0), init.reciprocal(init.gamma(1.0, 3.0))])
def test_message_of_a_number(initializer):
    with pytest.raises(TypeError, match=r"size must be a shape, such as \(5,\), got 3"):
        initializer(3)
