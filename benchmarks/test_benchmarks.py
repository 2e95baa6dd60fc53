"""The cases of `cases.py` under pytest-benchmark, at small sizes: ``pytest benchmarks``.

For work on one kernel between two commits (``--benchmark-autosave``, ``--benchmark-compare``); the
numbers that count come from `run.py`, which lets the candidates take turns.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from cases import CASES, PEAK, SAVED
from compare import verify
from networks import make_problem
from peers import ALL_CANDIDATES
from problems import BACKWARD, BOTH, CHANNELS, FORWARD, YARDSTICKS, Candidate, Setting

pytestmark = pytest.mark.filterwarnings("default")  # those of other libraries are not ours


def _small(case: str) -> Setting:
    setting = CASES[case].block(*CASES[case].shapes[0])[-1]
    N = 4 * CHANNELS if setting.constants == "per channel" else 64
    small = replace(setting, T=min(setting.T, 20), B=4, N=N)
    return replace(small, input_size=64) if setting.input_size else small


@pytest.mark.parametrize(
    ("case", "mode", "name"),
    [
        (case, mode, name)
        for case, c in CASES.items()
        for mode in c.modes
        for name in c.candidates
        if c.device == "cpu" and mode not in (SAVED, PEAK) and name not in YARDSTICKS
    ],
)
def test_case(benchmark: Any, case: str, mode: str, name: str) -> None:
    """Compares with the reference, then times."""
    candidate: Candidate = ALL_CANDIDATES[name]
    setting = _small(case)
    if reasons := candidate.reasons_against(setting, mode):
        pytest.skip(f"{name}: {'; '.join(reasons)}")
    problem = make_problem(setting)
    found = verify([candidate], problem, BOTH if mode in (BACKWARD, BOTH) else FORWARD)
    assert not found.get(name), found
    call = candidate.call(problem, mode)
    benchmark.group = f"{case} {mode}"
    benchmark.pedantic(
        call.run, setup=lambda: ((call.before(),), {}), rounds=10, warmup_rounds=2, iterations=1
    )
