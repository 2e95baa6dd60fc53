"""`benchmarks/gpu.py` runs its steps within their time, and reports."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import benchmark_path
import gpu
import pytest
import run
import tune_triton

pytestmark = pytest.mark.filterwarnings("default")  # those of the peers are not ours
restore = benchmark_path.restore

FACTS = {"device": "NVIDIA H200", "architecture": "9.0", "torch": "2.11.0", "cuda": "13.0"}


def step(name, code, limit=60.0, **options):
    return gpu.Step(name, lambda seconds: [sys.executable, "-c", code], limit, **options)


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "WORK", tmp_path / "work")
    monkeypatch.setattr(gpu, "RESERVE", 1.0)
    return tmp_path / "work"


def run_gpu(tmp_path, steps, *arguments):
    def make(facts, benchmark_arguments):
        return steps

    results = tmp_path / "results"
    status = gpu.main([*arguments], lambda: dict(FACTS), make, results)
    path = results / "nvidia-h200-report.md"
    return status, path.read_text() if path.exists() else ""


def test_gpu_report(tmp_path, work, capsys):
    write = f"from pathlib import Path; Path({str(work / 'ratios.md')!r}).write_text('| ratios |')"
    steps = [
        step("info", "print('cuda: ready')"),
        step("cuda-tests", "print('3 failed | 4 passed'); raise SystemExit(3)"),
        step("memcheck", "", absent="compute-sanitizer was not found"),
        step("benchmark", write, takes_the_rest=True),
    ]
    status, text = run_gpu(tmp_path, steps, "--out", str(tmp_path / "out"))
    assert status == 1
    assert text.startswith("# NVIDIA H200\n\n2 of 4 steps passed in ")
    assert "; failed: cuda-tests; not run: memcheck." in text
    assert "| cuda-tests | FAILED with status 3 | 0 | 3 failed \\| 4 passed |" in text
    assert "| memcheck | absent: compute-sanitizer was not found | 0 |  |" in text
    assert "## Benchmark\n\n| ratios |\n" in text
    assert "## cuda-tests: last lines\n\n```\n3 failed | 4 passed\n```" in text
    assert "torch 2.11.0" in text
    assert text in capsys.readouterr().out
    assert (tmp_path / "out" / "nvidia-h200-report.md").read_text() == text
    assert "==== cuda-tests: FAILED with status 3" in (tmp_path / "out" / "gpu.log").read_text()


def test_gpu_passes_if_all_steps_do(tmp_path, work):
    steps = [step("build", "print('built')"), step("tests", "raise SystemExit(1)")]
    status, text = run_gpu(tmp_path, steps, "--steps", "build")
    assert status == 0
    assert "1 of 1 steps passed" in text
    assert "tests" not in text


def test_gpu_step_that_runs_only_if_it_is_named(tmp_path, work):
    write = f"import pathlib; pathlib.Path({str(work / 'plans.json')!r}).write_text('{{}}')"
    steps = [step("build", ""), step("tune", write, only_if_named=True)]
    assert "1 of 1 steps" in run_gpu(tmp_path, steps)[1]
    out = tmp_path / "out"
    assert run_gpu(tmp_path, steps, "--steps", "tune", "--out", str(out))[0] == 0
    assert (out / "plans.json").read_text() == "{}"


def test_gpu_step_that_takes_too_long_is_ended_with_its_children(tmp_path, work):
    child = tmp_path / "child"
    code = (
        "import subprocess, sys, time\n"
        "print('begins', flush=True)\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(child)!r}, 'w').write(str(p.pid))\n"
        "time.sleep(60)\n"
    )
    outcome = gpu.run_step(step("tests", code), 2.0, work / "tests.log")
    assert outcome.result == "TIMED OUT after 2 s"
    assert outcome.is_failure
    assert "begins" in outcome.output
    for _ in range(100):  # a child of nobody stays in the table until it is waited for
        status = Path(f"/proc/{child.read_text()}/status")
        if not status.exists() or "State:\tZ" in status.read_text():
            break
        time.sleep(0.05)
    else:
        pytest.fail("the child lives on")


def test_gpu_steps_share_the_time(work):
    told = []

    def command(name):
        return lambda seconds: told.append((name, seconds)) or [sys.executable, "-c", ""]

    steps = [
        gpu.Step("build", command("build"), 200),
        gpu.Step("tests", command("tests"), 5),
        gpu.Step("benchmark", command("benchmark"), takes_the_rest=True),
    ]
    gpu.run_steps(steps, 100, lambda outcomes: None)
    (_, build), (_, tests), (_, benchmark) = told
    assert 90 < build < 99  # leaves the reserve to the benchmark
    assert tests == 5
    assert 80 < benchmark < 100
    outcomes = gpu.run_steps(steps, 0.5, lambda outcomes: None)
    assert [o.result for o in outcomes] == ["LEFT OUT: there was no time left"] * 3
    assert all(o.is_failure for o in outcomes)


def test_gpu_command_that_is_not_there_fails(work):
    lost = gpu.Step("build", lambda seconds: ["/nowhere/at/all"], 5)
    outcome = gpu.run_step(lost, 5, work / "build.log")
    assert outcome.is_failure
    assert "nowhere" in outcome.result


def test_gpu_plan(monkeypatch):
    monkeypatch.setattr(gpu, "_sanitizer", lambda: None)
    monkeypatch.delenv("FUSED_LIF_CUDA_ARCHITECTURES", raising=False)
    steps = {step.name: step for step in gpu.plan(FACTS, ["--case", "gpu_small"])}
    assert list(steps)[:3] == ["build", "info", "cuda-tests"]
    assert list(steps)[-1] == "benchmark"
    assert [name for name, step in steps.items() if step.only_if_named] == ["tune"]
    assert steps["build"].environment["FUSED_LIF_CUDA_ARCHITECTURES"] == "9.0"
    assert steps["memcheck"].absent == "compute-sanitizer was not found"
    command = steps["benchmark"].command(100)
    assert command[-2:] == ("--case", "gpu_small")
    assert run.parse(list(command[2:])).seconds == 75
    monkeypatch.setattr(gpu, "_sanitizer", lambda: "/bin/compute-sanitizer")
    steps = {step.name: step for step in gpu.plan(FACTS)}
    assert steps["racecheck"].command(60)[:3] == ("/bin/compute-sanitizer", "--tool", "racecheck")
    assert not steps["racecheck"].absent
    assert steps["triton-memcheck"].command(60)[-2:] == ("--backend", "triton")
    command = steps["tune"].command(330)
    assert tune_triton.parse(list(command[2:])).budget == 300
    assert tune_triton.parse(list(command[2:])).write
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    absent = {step.name for step in gpu.plan(FACTS) if step.absent == "triton is not installed"}
    assert absent == {"triton-memcheck", "triton-racecheck", "tune"}


def test_gpu_without_one_says_so(capsys):
    assert gpu.main([], lambda: "torch 2.13.0+cpu sees none") == 1
    assert capsys.readouterr().err == "make gpu needs a GPU: torch 2.13.0+cpu sees none\n"


def test_gpu_unknown_step(tmp_path, work, capsys):
    status, _ = run_gpu(tmp_path, [step("build", "")], "--steps", "bild")
    assert status == 1
    assert "no step bild; there are build" in capsys.readouterr().err
