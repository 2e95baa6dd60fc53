"""Gradients of spike times against the exact ones; ``python tests/convergence.py`` draws the plot.

Random small networks are solved exactly (exact.py) and by the layers of this package with shorter
and shorter steps. Input spikes lie on the grid of the longest step. What docs/convergence.png shows
is explained in docs/gradients.md.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import exact
import torch
from torch import Tensor
from torch.nn.functional import linear

from fused_lif import LIFFeedForwardState, LIFParameters, LIFState, spike_times
from fused_lif.functional.lif import lif_feed_forward_integral, lif_step_integral

#: Neurons of one network: the last ``seen`` have their spike times in the loss.
KINDS = {"one layer": 1, "two layers": 4, "recurrent": 3}
HIDDEN = {"one layer": 0, "two layers": 3, "recurrent": 0}
CONSTANTS = LIFParameters._fields[:5]
NAMES = (*CONSTANTS, "v", "i", "input_weights", "recurrent_weights")

COARSE = 1e-3  # seconds; input spikes lie on multiples of it
END = 0.02  # seconds
INPUTS = 5  # senders, with two spikes each
COUNT = 3  # spikes of a neuron in the loss


class Case(NamedTuple):
    """Independent networks, side by side in one; ``grads`` are the exact gradients of the loss."""

    kind: str
    reset: str
    inputs: list[tuple[float, int]]
    network: exact.Network
    loss_weights: Tensor  # [COUNT, N], zero for hidden neurons
    grads: dict[str, Tensor]


def loss(times: Tensor, weights: Tensor) -> Tensor:
    """Of times ``[COUNT, N]``; not linear, so that it matters where it is differentiated."""
    return (weights * times.square()).sum() / 2


def flat(network: exact.Network) -> tuple[Tensor, ...]:
    """Returns the tensors of a network in the order of ``NAMES``."""
    return (*network.p[:5], *network[1:])


def from_flat(tensors: Iterable[Tensor]) -> exact.Network:
    *constants, v, i, input_weights, recurrent_weights = tensors
    return exact.Network(LIFParameters(*constants), v, i, input_weights, recurrent_weights)


def side_by_side(columns: Iterable[tuple[Tensor, ...]]) -> list[Tensor]:
    *vectors, matrices = zip(*columns)
    return [*map(torch.cat, vectors), torch.block_diag(*matrices)]


def random_network(kind: str, generator: torch.Generator) -> exact.Network:
    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)

    N = KINDS[kind]
    p = LIFParameters(
        tau_syn_inv=uniform(150, 250, N),
        tau_mem_inv=uniform(80, 120, N),
        v_leak=uniform(-0.2, 0.2, N),
        v_th=uniform(0.8, 1.2, N),
        v_reset=uniform(-0.3, 0.3, N),
    )
    v, i, input_weights = uniform(0, 0.5, N), uniform(0, 0.5, N), uniform(0.3, 1.8, N, INPUTS)
    recurrent_weights = uniform(-0.5, 0.5, N, N)
    if kind != "recurrent":
        recurrent_weights = torch.zeros(N, N, dtype=torch.float64)
    if kind == "two layers":
        input_weights[-1] = 0
        recurrent_weights[-1, :-1] = uniform(0.5, 1.5, N - 1)
    return exact.Network(p, v, i, input_weights, recurrent_weights)


def exact_loss(tensors, inputs, reset, loss_weights) -> Tensor:
    """Missing spikes have the time ``END``, as those of ``spike_times``."""
    times = exact.simulate(from_flat(tensors), inputs, END, reset).times
    end = torch.tensor(END, dtype=torch.float64)
    times = torch.stack([torch.stack([*t, *[end] * COUNT][:COUNT]) for t in times], dim=1)
    return loss(times, loss_weights)


def is_generic(network, inputs, reset, hidden) -> bool:
    """Neurons in the loss spike twice, and no event changes places if thresholds change a little.

    Where two events swap, the exact gradient jumps; where a potential only just reaches the
    threshold, it diverges.
    """
    orders = []
    for scale in (0.99, 1.0, 1.01):
        p = network.p._replace(v_th=scale * network.p.v_th)
        solution = exact.simulate(network._replace(p=p), inputs, END, reset)
        if any(len(times) < 2 for times in solution.times[hidden:]):
            return False
        orders.append(solution.order)
    return orders[0] == orders[1] == orders[2]


@functools.cache
def random_case(kind: str, reset: str, size: int) -> Case:
    """Returns ``size`` networks of one kind, with the same input spikes."""
    generator = torch.Generator().manual_seed(0)
    inputs = []
    for j in range(INPUTS):
        steps = 1 + torch.randperm(round(END / COARSE) - 2, generator=generator)[:2]
        inputs += [(COARSE * step, j) for step in steps.tolist()]
    found: list[tuple[Tensor, ...]] = []
    while len(found) < size:
        network = random_network(kind, generator)
        loss_weights = torch.randn(COUNT, KINDS[kind], generator=generator, dtype=torch.float64)
        loss_weights[:, : HIDDEN[kind]] = 0
        if is_generic(network, inputs, reset, HIDDEN[kind]):
            tensors = [t.clone().requires_grad_() for t in flat(network)]
            value = exact_loss(tensors, inputs, reset, loss_weights)
            grads = torch.autograd.grad(value, tensors, materialize_grads=True)
            found.append((*flat(network), loss_weights.T, *grads))
    n = len(NAMES)
    return Case(
        kind,
        reset,
        inputs,
        from_flat(side_by_side(row[:n] for row in found)),
        torch.cat([row[n] for row in found]).T,
        dict(zip(NAMES, side_by_side(row[n + 1 :] for row in found))),
    )


def input_spikes(inputs: list[tuple[float, int]], dt: float) -> Tensor:
    """Returns a spike at time t in the step that begins then, shape ``[T, INPUTS]``."""
    x = torch.zeros(round(END / dt), INPUTS, dtype=torch.float64)
    for time, j in inputs:
        x[round(time / dt), j] = 1
    return x


def run(case: Case, network: exact.Network, dt: float, method: str, backend: str) -> Tensor:
    """Returns the spikes of the layers, ``[T, N]`` for the neurons in the loss."""
    x = input_spikes(case.inputs, dt)
    p, v, i, input_weights, recurrent_weights = network
    p, options = p._replace(method=method), {"reset": case.reset, "backend": backend}
    if case.kind == "recurrent":
        state = LIFState(torch.zeros_like(v)[None], v[None], i[None])  # a batch of one
        weights = (input_weights, recurrent_weights)
        return lif_step_integral(x[:, None], state, *weights, p, dt, **options)[0][:, 0]

    def layer(current: Tensor, of: Tensor) -> Tensor:
        constants = p._replace(**{name: getattr(p, name)[of] for name in CONSTANTS})
        state = LIFFeedForwardState(v[of], i[of])
        return lif_feed_forward_integral(current, state, constants, dt, **options)[0]

    seen = case.loss_weights.any(0)
    if case.kind == "one layer":
        return layer(linear(x, input_weights), seen)
    hidden = layer(linear(x, input_weights[~seen]), ~seen)
    return layer(linear(hidden, recurrent_weights[seen][:, ~seen]), seen)


def discretised_grads(case: Case, steps: int, method: str, backend: str) -> tuple[Tensor, ...]:
    """Differentiates the loss through the layers, with ``steps`` steps per ``COARSE``.

    Norse's adjoint wants -dL/dt of each spike as its gradient, and scales those of currents.
    """
    dt = COARSE / steps
    tensors = [t.clone().requires_grad_() for t in flat(case.network)]
    network = from_flat(tensors)
    spikes = run(case, network, dt, method, backend)
    loss_weights = case.loss_weights[:, case.loss_weights.any(0)]
    if method == "eventprop":
        value = loss(spike_times(spikes, dt, COUNT), loss_weights)
        return torch.autograd.grad(value, tensors, materialize_grads=True)
    times = spike_times(spikes.detach(), dt, COUNT).requires_grad_()
    (grad_times,) = torch.autograd.grad(loss(times, loss_weights), times)
    steps_of_spikes = (times.detach() / dt).round().long() - 1
    grad_spikes = torch.zeros_like(spikes).scatter(0, steps_of_spikes, -grad_times)
    grads = torch.autograd.grad(spikes, tensors, grad_spikes, materialize_grads=True)
    scale = network.p.tau_mem_inv / network.p.tau_syn_inv
    *others, grad_i, grad_in, grad_rec = grads
    return (*others, scale * grad_i, scale[:, None] * grad_in, scale[:, None] * grad_rec)


def relative_errors(case: Case, actual, expected: dict[str, Tensor]) -> dict[str, float]:
    """Returns for each name the sum of the errors over the sum of the exact gradients.

    Left out are v_reset where it is not used, and weights that are zero: they do not exist.
    """
    result = {}
    for name, tensor, grad in zip(NAMES, flat(case.network), actual):
        exists = (tensor != 0) | (not name.endswith("weights"))
        size = expected[name][exists].abs().sum()
        if size > 0:
            result[name] = ((grad - expected[name])[exists].abs().sum() / size).item()
    return result


def errors(case: Case, steps: int, method: str, backend: str) -> dict[str, float]:
    """Returns the relative error of the gradient by name, with ``steps`` steps per ``COARSE``."""
    return relative_errors(case, discretised_grads(case, steps, method, backend), case.grads)


def order(steps: list[int], errors_of_steps: list[float]) -> float:
    """Returns the exponent of dt in the error, by least squares."""
    x, y = (torch.tensor(t, dtype=torch.float64).log() for t in (steps, errors_of_steps))
    x, y = x - x.mean(), y - y.mean()
    return (-(x * y).sum() / (x * x).sum()).item()


def draw(path: Path, size: int, backend: str) -> None:
    """Draws the errors over dt, and prints their orders."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    all_steps = [2**k for k in range(1, 11)]
    dts = [COARSE / steps for steps in all_steps]
    figure, axes = plt.subplots(2, 3, figsize=(11, 7.4), sharex=True, sharey=True)
    for column, kind in zip(axes.T, KINDS):
        case = random_case(kind, "hard", size)
        for axis, method in zip(column, ("eventprop", "adjoint")):
            table = [errors(case, steps, method, backend) for steps in all_steps]
            for k, name in enumerate(NAMES):
                values = [row.get(name) for row in table]
                if None in values:
                    continue
                label = f"{name} at time 0" if name in ("v", "i") else name
                axis.loglog(dts, values, "o-", ms=3, lw=1, color=f"C{k}", label=label)
                print(f"{kind:10} {method:9} {name:17} {order(all_steps[2:], values[2:]):.2f}")
            axis.loglog(dts, [200 * dt for dt in dts], "k--", lw=1, label="first order")
            axis.set_title(f'{kind}, method="{method}"', fontsize=10)
            axis.grid(alpha=0.3)
        column[1].set_xlabel("dt in seconds")
    for axis in axes[:, 0]:
        axis.set_ylabel("relative error of the gradient")
    handles, labels = axes[0, 2].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=5, fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=32, help="networks of each kind")
    parser.add_argument("--backend", default="cpu")
    default = Path(__file__).parents[1] / "docs" / "convergence.png"
    parser.add_argument("--out", type=Path, default=default)
    options = parser.parse_args()
    draw(options.out, options.size, options.backend)
