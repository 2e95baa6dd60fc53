"""The comparison with the reference, before the clock starts."""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
from problems import BOTH, FORWARD, REFERENCE, YARDSTICKS, Candidate, Problem, Setting
from torch import Tensor

Results = dict[str, Tensor]


class WrongResultError(Exception):
    """One of our candidates differs from the reference."""


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
    all neurons of the batch element receive that spike: one element in eight may differ.
    """
    found, model, device = [], setting.model, expected["z"].device
    actual = {name: value.to(device) for name, value in actual.items()}
    same = torch.ones(actual["z"].shape[-2:], dtype=torch.bool, device=device)
    if model != "li":
        same = (actual["z"] == expected["z"]).reshape(-1, *same.shape).all(0)
        counted, tolerance = "neurons", 0.01
        if setting.is_recurrent:
            same, counted, tolerance = same.all(1, keepdim=True), "batch elements", 1 / 8
        share = 1 - same.float().mean().item()
        if share > (0 if candidate.exact else tolerance):
            found.append(f"z: {share:.2%} of the {counted} spike differently")
    limit = 1e-3 if not candidate.exact else 1e-5
    for name, value in actual.items():
        if name == "z" and model != "li":
            continue
        a, b = value.double(), expected.get(name, torch.zeros_like(value)).double()
        is_weight = name.endswith("weights")
        is_sum = is_weight or a.dim() == 1  # over T and B
        keep = same.all() if is_weight or a.dim() == 0 else same.all(0) if is_sum else same
        error, size = ((a - b) * keep).abs(), (b * keep).abs()
        if not name.startswith("grad"):
            worst = error.max() / size.max().clamp_min(1)
        elif a.dim() == 3:  # step by step: over time, gradients shrink by orders of magnitude
            worst = (error.amax((1, 2)) / size.amax((1, 2)).clamp_min(1e-30)).max()
        else:
            worst = error.max() / size.max().clamp_min(1e-30)
        # A half gradient is rounded once; sums over T and B depend on their order.
        factor = 1e3 if value.dtype.itemsize == 2 else 10 if is_sum else 1
        if not worst <= factor * limit:
            found.append(f"{name}: relative error {worst:.1e}, limit {factor * limit:.0e}")
    return found


def verify(candidates: list[Candidate], problem: Problem, mode: str) -> dict[str, list[str]]:
    """Returns the differences from the reference of each candidate, by name.

    Half inputs are compared with the reference in float32 on the rounded values.
    """
    setting = problem.setting
    single = Problem(replace(setting, dtype="float32")) if problem.is_half else problem
    with torch.no_grad():
        single.x.copy_(problem.x)
        single.grad_z.copy_(problem.grad_z)
    expected = REFERENCE.results(single, mode)
    rate = expected["z"].mean().item()
    low, high = (0.03, 0.08) if setting.is_recurrent else (0.01, 0.5)
    is_busy = setting.model in ("lif", "recurrent") and setting.input == "busy" and setting.T > 30
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
