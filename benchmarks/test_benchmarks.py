"""The cases of `cases.py` under pytest-benchmark, at small sizes: ``pytest benchmarks``.

For work on one kernel between two commits (``--benchmark-autosave``, ``--benchmark-compare``); the
numbers that count come from `run.py`, which lets the candidates take turns.
"""

from __future__ import annotations

from typing import Any

import pytest
from cases import CASES, PEAK, SAVED
from compare import verify
from problems import BACKWARD, BOTH, FORWARD, YARDSTICKS, Candidate, Problem, Setting
from run import ALL_CANDIDATES

pytestmark = pytest.mark.filterwarnings("default")  # those of other libraries are not ours


def _small(case: str) -> Setting:
    _, _, *features = CASES[case].shapes[0]
    return CASES[case].block(20, 4, *(64 for _ in features))[-1]


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
    problem = Problem(setting)
    found = verify([candidate], problem, BOTH if mode in (BACKWARD, BOTH) else FORWARD)
    assert not found.get(name), found
    call = candidate.call(problem, mode)
    benchmark.group = f"{case} {mode}"
    benchmark.pedantic(
        call.run, setup=lambda: ((call.before(),), {}), rounds=10, warmup_rounds=2, iterations=1
    )
