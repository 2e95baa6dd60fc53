"""The comparison with the reference, before the clock starts."""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
from networks import make_problem
from problems import (
    BOTH,
    CONSTANTS,
    FORWARD,
    REFERENCE,
    YARDSTICKS,
    Candidate,
    Problem,
    Setting,
)
from torch import Tensor

Results = dict[str, Tensor]


class WrongResultError(Exception):
    """One of our candidates differs from the reference."""


#: Relative error of sums over neurons of which one may have a spike at another time; 2.7e-2 was
#: measured, of jax in a recurrent layer.
MOVED_SPIKE_LIMIT = 5e-2
RAISES = "raises "  # begins a difference: there is no result


def describe(error: BaseException) -> str:
    """Returns what was raised first, in a line; Triton adds an error for every function around."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def differences(
    actual: Results, expected: Results, candidate: Candidate, setting: Setting
) -> list[str]:
    """Returns how a candidate differs from the reference by more than rounding.

    Exact candidates must spike alike. In others one neuron in 100 may have a spike at another
    time; it is left out of the comparison, and so are the sums it is part of. In a recurrent layer
    and in a network all neurons of the batch element receive that spike: one element in eight may
    differ. A sum of which nothing would be left, or of a network, where a spike inside may have
    moved unseen, is compared as it is: `MOVED_SPIKE_LIMIT`.
    """
    found, device = [], expected["z"].device
    actual = {name: value.to(device) for name, value in actual.items()}
    is_network = setting.of_neurons() != setting
    z, has_steps = expected["z"], not setting.is_cell and setting.model != "notebook"
    same = torch.ones(z.shape[1:] if has_steps else z.shape, dtype=torch.bool, device=device)
    if setting.has_spikes:
        same = (actual["z"] == z).reshape(-1, *same.shape).all(0)
        counted, tolerance = "neurons", 0.01
        if setting.is_recurrent or is_network:
            same, counted, tolerance = same.all(1, keepdim=True), "batch elements", 1 / 8
        share = 1 - same.float().mean().item()
        if share > (0 if candidate.exact else tolerance):
            found.append(f"z: {share:.2%} of the {counted} spike differently")
    limit = 1e-5 if candidate.exact else 1e-3
    for name, value in actual.items():
        if name == "z" and setting.has_spikes:
            continue
        a, b = value.double(), expected.get(name, torch.zeros_like(value)).double()
        is_sum = name.endswith(("weights", *CONSTANTS))  # over T and B, and more
        per_neuron = is_sum and a.dim() == 1 and not is_network
        keep = same.all(0) if per_neuron else same.all() if is_sum else same
        tolerated = limit
        if not candidate.exact and is_sum and (is_network or not keep.any()):
            keep, tolerated = torch.ones((), device=device), MOVED_SPIKE_LIMIT / 10
        error, size = ((a - b) * keep).abs(), (b * keep).abs()
        if not name.startswith("grad"):
            worst = error.max() / size.max().clamp_min(1)
        elif not is_sum and has_steps and a.dim() >= 3:  # over time, gradients shrink by orders
            worst = (error.flatten(1).amax(1) / size.flatten(1).amax(1).clamp_min(1e-30)).max()
        else:
            worst = error.max() / size.max().clamp_min(1e-30)
        # A half gradient is rounded once; sums over T and B depend on their order.
        factor = 1e3 if value.dtype.itemsize == 2 else 10 if is_sum else 1
        if not worst <= factor * tolerated:
            found.append(f"{name}: relative error {worst:.1e}, limit {factor * tolerated:.0e}")
    return found


def verify(candidates: list[Candidate], problem: Problem, mode: str) -> dict[str, list[str]]:
    """Returns the differences from the reference of each candidate, by name.

    Half inputs are compared with the reference in float32 on the rounded values; those of a network
    with the reference in their own type, because products that are rounded move spikes.
    """
    setting = problem.setting
    single = problem
    if problem.is_half and setting.of_neurons() == setting:
        single = make_problem(replace(setting, dtype="float32"))
    with torch.no_grad():
        single.x.copy_(problem.x)
        single.grad_z.copy_(problem.grad_z)
    expected = REFERENCE.results(single, mode)
    rate = expected["z"].mean().item()
    low, high = (0.03, 0.08) if setting.is_recurrent else (0.01, 0.5)
    is_busy = setting.model in ("lif", "recurrent", "three_layers")
    is_busy = is_busy and setting.input == "busy" and setting.T > 30
    if is_busy:
        print(f"  {rate:.1%} spikes of {expected['z'].numel()}", file=sys.stderr)
        if not low < rate < high:
            raise WrongResultError(f"an input that makes {rate:.1%} spikes shows nothing")
    found = {}
    for c in candidates:
        if c.name in (*YARDSTICKS, REFERENCE.name):
            continue
        able = FORWARD if c.reasons_against(setting, mode) else mode
        try:
            results = c.results(problem, able)
        except Exception as error:
            found[c.name] = [f"{RAISES}{describe(error)}"]
            continue
        found[c.name] = differences(results, expected, c, setting)
        due = {name for name in expected if name.startswith("grad")} if able == BOTH else set()
        found[c.name] += [f"no {name}" for name in sorted(due - results.keys())]
    return found
