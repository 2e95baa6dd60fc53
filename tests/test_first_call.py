"""`benchmarks/first_call.py` times what happens once, in processes of its own."""

from __future__ import annotations

import time
from functools import partial

import benchmark_path
import first_call
import peers
import problems
import pytest
import run

restore = benchmark_path.restore
SETTING = problems.Setting(*first_call.SHAPE, threads=1)
OF_THE_RUN = {"memory_bytes", "limit_ms", "of_limit", "input_size"} | run.facts("cpu").keys()


def job(code, *modes):
    modes = modes or (first_call.FIRST_CALL,)
    child = partial(first_call.child_seconds, ["-c", code], len(modes))
    return first_call.Job("some", modes, SETTING, child)


def take_turns(*jobs, turns=1, warm_up=False):
    found = first_call.Measured([], [], [])
    first_call.take_turns(list(jobs), turns, found, warm_up)
    return found


def test_rows_of_imports_and_first_calls(monkeypatch):
    monkeypatch.setattr(first_call, "IMPORTS", {"fused_lif": "fused_lif", "absent_package": "?"})
    monkeypatch.setattr(first_call, "EAGER", ("absent_package",))
    monkeypatch.setattr(first_call, "COMPILED", ())
    found = first_call.measure_first_calls("cpu", threads=1, processes=1)
    assert [(row["backend"], row["mode"]) for row in found.rows] == [
        ("fused_lif", "import"),
        ("cpu", "first_call"),
    ]
    for row in found.rows:
        assert row.keys() | OF_THE_RUN == set(run.FIELDS)
        assert row["case"] == "first_call"
        assert 0 < row["q20_ms"] <= row["median_ms"] <= row["q80_ms"] < 1e5
        assert (row["T"], row["B"], row["N"], row["repeats"]) == (*first_call.SHAPE, 1)
        assert (row["constants"], row["threads"]) == ("per neuron", 1)
    assert found.absences == 2 * [("absent_package", "absent_package is not installed")]
    assert found.failures == []


def test_all_candidates_are_known():
    names = {*first_call.EAGER, *first_call.COMPILED, *sum(first_call.FUSED.values(), ())}
    assert names <= first_call.CANDIDATES.keys() | peers.PEERS.keys()
    assert {*first_call.CACHING} <= names


@pytest.mark.parametrize(
    ("accepts", "constants"),
    [
        (("per neuron", "two states"), "per neuron"),
        (("two states", "one state"), "two states"),
        (("one state",), "one state"),
    ],
)
def test_constants_are_those_that_the_candidate_takes(accepts, constants, monkeypatch):
    def reasons(setting):
        return [] if setting.constants in accepts else [f"not with {setting.constants}"]

    candidate = problems.TorchCandidate("cpu", problems.functional_layer("cpu"), reasons)
    monkeypatch.setitem(first_call.CANDIDATES, "cpu", candidate)
    setting, reason = first_call._accepted("cpu", SETTING)
    assert (setting.constants, reason) == (constants, "")


def test_a_candidate_that_takes_no_constants_is_absent():
    _, reason = first_call._accepted("cuda", SETTING)
    assert reason


def test_the_first_call_is_timed_and_not_one_after_it():
    calls = []

    def layer(problem):
        def run_layer(x):
            time.sleep(0 if calls else 0.05)
            calls.append(x)
            return (x * 2,)

        return run_layer

    problem = problems.Problem
    assert first_call.first_call(problems.TorchCandidate("sleeps", layer), SETTING) >= 0.05
    assert len(calls) == 1
    assert calls[0].grad.equal(2 * problem(SETTING).grad_z)  # and backward


def test_the_median_is_that_of_all_processes_but_the_first(tmp_path):
    count = f"open({str(tmp_path / 'count')!r}, 'a+')"
    code = f"f = {count}; f.write('x'); f.seek(0); print([9, 1, 2, 6][len(f.read()) - 1])"
    (row,) = take_turns(job(code), turns=3, warm_up=True).rows
    assert (row["median_ms"], row["repeats"]) == (2000, 3)


def test_jobs_take_turns(tmp_path):
    log = tmp_path / "log"
    codes = [f"open({str(log)!r}, 'a').write('{name}'); print(1)" for name in "ab"]
    take_turns(*map(job, codes), turns=3)
    assert log.read_text() == "ababab"


@pytest.mark.parametrize("cache", first_call.CACHES)
def test_caches_are_empty_once_per_turn(cache):
    code = f"import os; p = os.environ['{cache}']; print(2 - os.path.exists(p))"
    code += "; os.makedirs(p, exist_ok=True)"
    found = take_turns(job(code, first_call.FIRST_CALL, first_call.CACHED), turns=2)
    assert [(row["mode"], row["q20_ms"], row["q80_ms"]) for row in found.rows] == [
        ("first_call", 2000, 2000),
        ("first_call_cached", 1000, 1000),
    ]


def test_a_process_that_fails_has_no_row(monkeypatch):
    monkeypatch.setattr(first_call, "CHILD_LIMIT", 1.0)
    found = take_turns(
        job("print(1); raise ValueError('it broke')"),
        job("import sys; sys.exit(3)"),
        job("import time; time.sleep(60)"),
        job("print('a library says something'); print(0.5)"),
        turns=2,
    )
    assert [row["median_ms"] for row in found.rows] == [500]
    assert found.failures == [
        ("some", "first_call: ValueError: it broke"),
        ("some", "first_call: status 3"),
        ("some", "first_call: took more than 1 s"),
    ]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project whose build writes what it is asked for into the file "log"."""
    (tmp_path / "setup.py").write_text(
        "import os, sys, time\n"
        "names = 'FUSED_LIF_EXTENSION', 'FUSED_LIF_CUDA', 'FUSED_LIF_CUDA_ARCHITECTURES'\n"
        "print([os.environ[name] for name in names], *sys.argv[1:], file=open('log', 'a'))\n"
        "time.sleep(0.05)\n"
    )
    for name in ("IMPORTS", "EAGER", "COMPILED"):
        monkeypatch.setattr(first_call, name, {} if name == "IMPORTS" else ())
    monkeypatch.setattr(first_call, "FUSED", {"cpu": ()})
    monkeypatch.setattr(first_call, "REPOSITORY", tmp_path)
    monkeypatch.setenv("FUSED_LIF_CUDA_ARCHITECTURES", "9.0")
    return tmp_path


@pytest.mark.parametrize("nvcc", ["nvcc", None])
def test_builds(nvcc, project, monkeypatch):
    monkeypatch.setattr(first_call, "find_toolkit", lambda: nvcc)
    found = first_call.measure_first_calls("cpu", threads=1, processes=5, build=True)
    names = ["cpu", "cuda"] if nvcc else ["cpu"]
    assert [(row["backend"], row["mode"], row["repeats"]) for row in found.rows] == [
        (name, "build", 1) for name in names
    ]
    assert all(row["median_ms"] >= 50 for row in found.rows)
    assert found.absences == ([] if nvcc else [("cuda", "is not built: there is no nvcc")])
    lines = (project / "log").read_text().splitlines()
    for line, cuda in zip(lines, "01"[: len(names)], strict=True):
        assert line.startswith(f"['1', '{cuda}', ''] -q build --build-lib /")
        folder = line.split()[-1]
        assert not (project / folder).exists()


def test_no_build_unless_asked_for(project):
    assert first_call.measure_first_calls("cpu", threads=1) == ([], [], [])
    assert not (project / "log").exists()


def test_a_build_that_fails_is_reported_with_its_last_line(project):
    (project / "setup.py").write_text("print('compile'); raise SystemExit('no compiler')")
    found = first_call.measure_first_calls("cpu", threads=1, build=True)
    assert found.rows == []
    assert found.failures[0] == ("cpu", "build: no compiler")


def test_command_line(capsys):
    setting = '{"T": 2, "B": 1, "N": 3, "threads": 1}'
    first_call.main(["reference", setting])
    assert float(capsys.readouterr().out) > 0
    with pytest.raises(SystemExit):
        first_call.main(["unknown", setting])
    assert "invalid choice: 'unknown'" in capsys.readouterr().err
