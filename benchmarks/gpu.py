"""Builds, tests, sanitizes and measures on a machine with a GPU: ``make gpu``.

    python benchmarks/gpu.py --out DIR --steps build,cuda-tests

Takes the Python that it runs with, as it is: torch with CUDA, nvcc, pytest, pybind11, ninja, and
what else there is of triton, pytest-xdist, hypothesis, norse, spikingjelly and compute-sanitizer.
Every step has a limit of time, and the next one starts whatever became of it; the benchmark gets
what is left of ``--seconds``. The step ``tune`` runs only if it is named: it changes a file of the
source, ``plans.json``, for a person to look at and commit. After every step
``results/<device>-report.md`` is written anew, and copied to DIR with the rows, the table of
``tune``, and the output of all steps. The status is 1 if a step failed. A missed target is no
failure: targets are those of an H200. Where git is not there, ``FUSED_LIF_COMMIT`` says what is
measured: ``<hash>``, or ``<hash>+changes``.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rows import slug

ROOT = Path(__file__).resolve().parent
REPOSITORY = ROOT.parent
WORK = REPOSITORY / "build" / "gpu"  # output of the steps
TABLE = "plans.json"  # what the step "tune" writes, besides the one in the source
TAIL_LINES, TAIL_CHARACTERS, LOG_CHARACTERS = 40, 4000, 2_000_000
#: Seconds that the steps before leave to the benchmark.
RESERVE = 150.0
#: Seconds that a step has for its last words after its time is up.
LAST_WORDS = 8.0
SANITIZERS = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")
PROBE = """
import json, platform
import torch
facts = {"python": platform.python_version(), "torch": torch.__version__}
facts["cuda"] = torch.version.cuda
if torch.cuda.is_available():
    facts["device"] = torch.cuda.get_device_name()
    facts["architecture"] = ".".join(map(str, torch.cuda.get_device_capability()))
print(json.dumps(facts))
"""

Facts = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """A command.

    Attributes:
        name: What stands in ``--steps`` and in the report.
        command: What is run; told how many seconds it has.
        limit: Seconds after which it is killed.
        environment: Variables besides those that are there.
        absent: Why it cannot run; empty if it can.
        takes_the_rest: Whether its limit is what is left.
        only_if_named: Whether ``--steps`` must ask for it.
        refusal: What it says on machines where it cannot run.
    """

    name: str
    command: Callable[[float], Sequence[str]]
    limit: float = 0.0
    environment: dict[str, str] = field(default_factory=dict)
    absent: str = ""
    takes_the_rest: bool = False
    only_if_named: bool = False
    refusal: str = ""


class Outcome(NamedTuple):
    """What became of a step."""

    name: str
    result: str
    is_failure: bool = False
    seconds: float = 0.0
    output: str = ""

    @property
    def last_line(self) -> str:
        """What pytest, compute-sanitizer and ours put their sums into."""
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        return lines[-1][:160] if lines else ""


def probe() -> Facts | str:
    """Returns what torch says about the GPU, or why there is none."""
    command = [sys.executable, "-c", PROBE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"{sys.executable} cannot import torch"
    facts: Facts = json.loads(done.stdout.splitlines()[-1])
    if "device" not in facts:
        return f"torch {facts['torch']} sees none"
    return facts


def _sanitizer() -> str | None:
    path = os.pathsep.join((os.environ.get("PATH", ""), *SANITIZERS))
    return shutil.which("compute-sanitizer", path=path)


def plan(facts: Facts, benchmark_arguments: Sequence[str] = ()) -> list[Step]:
    """Returns the steps, in their order."""
    python, pytest = sys.executable, [sys.executable, "-m", "pytest", "-q", "-rfE"]
    # Of the others test_cuda*.py, none needs a GPU.
    cuda_tests = ("tests/test_cuda_device.py", "tests/test_cuda_plan.py")
    no_pytest = "" if importlib.util.find_spec("pytest") else "pytest is not installed"
    no_triton = "" if importlib.util.find_spec("triton") else "triton is not installed"
    workers = max(1, min(12, (os.cpu_count() or 2) - 2))
    parallel = ["-n", str(workers)] if importlib.util.find_spec("xdist") else []
    sanitizer = _sanitizer()
    no_sanitizer = "" if sanitizer else "compute-sanitizer was not found"

    def fixed(*command: str) -> Callable[[float], Sequence[str]]:
        return lambda seconds: command

    def sanitize(tool: str, backend: str, limit: float, absent: str = "") -> Step:
        # torch asks the driver for more than it can do, and goes on: no errors of calls.
        options = ("--error-exitcode", "9", "--report-api-errors", "no", "--print-limit", "20")
        script = str(ROOT / "sanitize_cases.py")
        of = ("--backend", backend)
        command = fixed(sanitizer or "", "--tool", tool, *options, python, script, *of)
        environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        name = tool if backend == "cuda" else f"{backend}-{tool}"
        absent = no_sanitizer or absent
        return Step(name, command, limit, environment, absent, refusal="Device not supported")

    def tests(*options: str) -> Callable[[float], Sequence[str]]:
        return fixed(*pytest, *parallel, "--ignore-glob=*/test_cuda*.py", *options)

    def tune(seconds: float) -> Sequence[str]:
        # A row that has begun may end.
        budget = f"{max(10.0, seconds - 30):.0f}"
        table = ("--write", "--out", str(WORK / TABLE))
        return (python, str(ROOT / "tune_triton.py"), "--budget", budget, *table)

    def benchmark(seconds: float) -> Sequence[str]:
        # Cases that have begun may end: the last rows are written well before the limit.
        return (
            *(python, str(ROOT / "run.py"), "--device", "cuda", "--budget", "20"),
            *("--seconds", f"{max(10.0, 0.75 * seconds):.0f}", "--threads", str(min(8, workers))),
            *("--report", str(WORK / "ratios.md"), *benchmark_arguments),
        )

    build = {
        "FUSED_LIF_CUDA": "1",
        "FUSED_LIF_CUDA_ARCHITECTURES": os.environ.get(
            "FUSED_LIF_CUDA_ARCHITECTURES", facts["architecture"]
        ),
    }
    # The workers share the processor.
    shared = {"OMP_NUM_THREADS": "2"} if parallel else {}
    return [
        Step("build", fixed(python, "setup.py", "build_ext", "--inplace"), 200, build),
        Step("info", fixed(python, "-m", "fused_lif.info"), 60),
        Step(
            "cuda-tests",
            fixed(*pytest, *cuda_tests),
            120,
            absent=no_pytest,
        ),
        Step("tests", tests("-k", "not emulated and not triton"), 100, shared, no_pytest),
        sanitize("memcheck", "cuda", 60),
        sanitize("racecheck", "cuda", 60),
        # Some 500 kernels to compile, 2 seconds of one core each.
        Step("triton-tests", tests("-k", "triton"), 130, shared, no_pytest or no_triton),
        sanitize("memcheck", "triton", 70, no_triton),
        sanitize("racecheck", "triton", 40, no_triton),
        Step("tune", tune, 330, absent=no_triton, only_if_named=True),
        Step("benchmark", benchmark, takes_the_rest=True),
    ]


def run_step(step: Step, limit: float, log: Path) -> Outcome:
    """Runs a step, and kills it with its children at its limit; all its output goes to ``log``."""
    if step.absent:
        return Outcome(step.name, f"absent: {step.absent}")
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"} | step.environment
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    try:
        with log.open("w") as file:
            process = subprocess.Popen(
                list(step.command(limit)),
                cwd=REPOSITORY,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                preexec_fn=os.setpgrp,  # the group that is ended below
            )
            try:
                status = process.wait(timeout=limit)
                result = "passed" if status == 0 else f"FAILED with status {status}"
            except subprocess.TimeoutExpired:
                status, result = -1, f"TIMED OUT after {limit:.0f} s"
                _interrupt(process)
            finally:
                _end(process)
    except OSError as error:
        status, result = -1, f"FAILED: {error}"
    output = log.read_text(errors="replace")[-LOG_CHARACTERS:] if log.exists() else ""
    if status != 0 and step.refusal and step.refusal in output:
        return Outcome(step.name, f"absent: {step.refusal}", seconds=time.monotonic() - start)
    return Outcome(step.name, result, status != 0, time.monotonic() - start, output)


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    """Lets a step say what it has found so far, as pytest does."""
    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=LAST_WORDS)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills what is left of the process group that a step started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_steps(
    steps: Sequence[Step], seconds: float, each: Callable[[list[Outcome]], None]
) -> list[Outcome]:
    """Runs all steps within ``seconds``; calls ``each`` with the outcomes after each of them."""
    outcomes: list[Outcome] = []
    end = time.monotonic() + seconds
    for k, step in enumerate(steps):
        left = end - time.monotonic()
        if step.takes_the_rest:
            limit = left
        else:
            later = any(s.takes_the_rest for s in steps[k + 1 :])
            limit = min(step.limit, left - (min(RESERVE, seconds / 3) if later else 0))
        print(f"{step.name} (at most {max(limit, 0):.0f} s) ...", flush=True)
        if limit < 1 and not step.absent:
            outcomes.append(Outcome(step.name, "LEFT OUT: there was no time left", True))
        else:
            outcomes.append(run_step(step, limit, WORK / f"{step.name}.log"))
        done = outcomes[-1]
        print(f"    {done.result}, {done.seconds:.0f} s: {done.last_line}", flush=True)
        each(outcomes)
    return outcomes


def _tail(output: str) -> str:
    return "\n".join(output.rstrip().splitlines()[-TAIL_LINES:])[-TAIL_CHARACTERS:]


def report(facts: Facts, outcomes: Sequence[Outcome], ratios: str) -> str:
    """Returns the report in Markdown."""
    failed = [o.name for o in outcomes if o.is_failure]
    absent = [o.name for o in outcomes if o.result.startswith("absent")]
    seconds = sum(o.seconds for o in outcomes)
    summary = f"{len(outcomes) - len(failed) - len(absent)} of {len(outcomes)} steps passed"
    summary += f" in {seconds:.0f} s"
    summary += f"; failed: {', '.join(failed)}" if failed else ""
    summary += f"; not run: {', '.join(absent)}" if absent else ""
    names = ("driver", "cuda", "torch", "python", "commit", "date")
    lines = [
        f"# {facts['device']}",
        "",
        f"{summary}. " + ", ".join(f"{n} {facts[n]}" for n in names if facts.get(n)) + ".",
        "",
        "| step | result | s | last line |",
        "|---|---|---|---|",
    ]
    for o in outcomes:
        cells = (o.name, o.result, f"{o.seconds:.0f}", o.last_line.replace("|", "\\|"))
        lines.append(f"| {' | '.join(cells)} |")
    if ratios:
        lines += ["", "## Benchmark", "", ratios.rstrip()]
    for o in outcomes:
        if o.name == "info" and o.output:
            lines += ["", "## Build", "", "```", _tail(o.output), "```"]
    for o in outcomes:
        if o.is_failure and o.output and o.name != "info":
            lines += ["", f"## {o.name}: last lines", "", "```", _tail(o.output), "```"]
    return "\n".join(lines) + "\n"


def _line_of(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    except OSError:
        return ""
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout else ""


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--steps", metavar="NAME,...", help="only these; default: all but tune")
    add(
        "--case",
        action="append",
        metavar="NAME",
        help="only this case of the benchmark; repeatable",
    )
    add("--seconds", type=float, default=525.0, help="for everything (%(default)s)")
    add("--out", type=Path, metavar="DIR", help="copy report, rows and the steps' output there")
    return parser.parse_args(argv)


def main(
    argv: list[str] | None = None,
    find: Callable[[], Facts | str] = probe,
    make: Callable[[Facts, Sequence[str]], list[Step]] = plan,
    results: Path = ROOT / "results",
) -> int:
    """Runs the command line; returns the exit status."""
    start, options = time.monotonic(), parse(argv)
    facts = find()
    if isinstance(facts, str):
        print(f"make gpu needs a GPU: {facts}", file=sys.stderr)
        return 1
    facts |= {
        "driver": _line_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "commit": _line_of("git", "rev-parse", "--short=12", "HEAD")
        or os.environ.get("FUSED_LIF_COMMIT", ""),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    steps = make(facts, [a for name in options.case or () for a in ("--case", name)])
    if options.steps:
        names = options.steps.split(",")
        if unknown := set(names) - {step.name for step in steps}:
            known = ", ".join(step.name for step in steps)
            print(f"no step {', '.join(sorted(unknown))}; there are {known}", file=sys.stderr)
            return 1
        steps = [step for step in steps if step.name in names]
    else:
        steps = [step for step in steps if not step.only_if_named]
    shutil.rmtree(WORK, ignore_errors=True)
    name = slug(facts["device"])
    path, rows, ratios = results / f"{name}-report.md", results / f"{name}.csv", WORK / "ratios.md"

    def write(outcomes: list[Outcome]) -> None:
        text = ratios.read_text() if ratios.exists() else ""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(report(facts, outcomes, text))
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            for file in (path, rows, WORK / TABLE):
                if file.exists():
                    shutil.copy(file, options.out)
            logs = (f"==== {o.name}: {o.result}, {o.seconds:.0f} s\n{o.output}\n" for o in outcomes)
            (options.out / "gpu.log").write_text("\n".join(logs))

    outcomes = run_steps(steps, options.seconds - (time.monotonic() - start), write)
    print(f"\n{path.read_text()}")
    return 1 if any(o.is_failure for o in outcomes) else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the step, too
    sys.exit(main())
