"""What is paid once: import, first call with what it compiles, build; each in fresh processes.

`run.py` measures it as the case "first_call". Those that are compared take turns, so that a
disturbance from outside hits all of them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from clock import quantiles_ms
from peers import PEERS
from problems import BOTH, CANDIDATES, Candidate, Problem, Setting

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.append(str(REPOSITORY / "build_support"))
from cuda_locate import find_toolkit  # noqa: E402

IMPORT, FIRST_CALL, CACHED, BUILD = "import", "first_call", "first_call_cached", "build"
SHAPE = (32, 8, 100)
COLUMNS = ("T", "B", "N", "dtype", "constants", "input", "threads")
#: What a user of each package imports before the first call.
IMPORTS = {
    "fused_lif": "fused_lif",
    "norse": "norse.torch",
    "snntorch": "snntorch",
    "sinabs": "sinabs.layers",
    "spikingjelly": "spikingjelly.activation_based.functional",
    "jax": "jax",
}
FUSED = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}
EAGER = ("reference", "norse", "snntorch", "sinabs", "spikingjelly", "jax")
COMPILED = ("reference_compiled", "norse_compiled")
#: Those that keep what they compiled, in the folders that these variables of the environment name.
CACHING, CACHES = ("triton", *COMPILED), ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
CHILD_LIMIT, BUILD_LIMIT = 600.0, 3600.0  # seconds
TIMED_IMPORT = """
import importlib, sys, time
import torch
start = time.perf_counter()
importlib.import_module(sys.argv[1])
print(time.perf_counter() - start)
"""


class Measured(NamedTuple):
    """Rows without the columns that are the same in all rows of a run, and what has none.

    ``absences`` and ``failures`` are pairs of a backend, or package, and a reason.
    """

    rows: list[dict[str, Any]]
    absences: list[tuple[str, str]]
    failures: list[tuple[str, str]]


class Job(NamedTuple):
    """What takes turns; ``seconds`` returns a time for each of ``modes``."""

    backend: str
    modes: tuple[str, ...]
    setting: Setting
    seconds: Callable[[], list[float]]


class ChildError(Exception):
    """A process failed; the message is the last line of its errors."""


def measure_first_calls(
    device: str, threads: int, processes: int = 5, build: bool = False
) -> Measured:
    """Measures imports and first calls, each in so many processes, and builds if asked to.

    An import comes after that of torch, and one more process has brought its files into memory. A
    first call comes after the import, and the input is there; what it compiles finds empty caches
    (`FIRST_CALL`), then, in a second process, those of the first (`CACHED`).
    """
    setting = Setting(*SHAPE, device=device, threads=threads)
    found = Measured([], [], [])
    imports, calls, builds = [], [], []
    for package, module in IMPORTS.items():
        if reason := _missing(package):
            found.absences.append((package, reason))
        else:
            child = partial(child_seconds, ["-c", TIMED_IMPORT, module])
            imports.append(Job(package, (IMPORT,), setting, child))
    for name in (*FUSED[device], *EAGER, *COMPILED):
        accepted, reason = _accepted(name, setting)
        if reason:
            found.absences.append((name, reason))
            continue
        modes = (FIRST_CALL, CACHED) if name in CACHING else (FIRST_CALL,)
        child = partial(child_seconds, [__file__, name, json.dumps(asdict(accepted))], len(modes))
        calls.append(Job(name, modes, accepted, child))
    if build:
        builds.append(Job("cpu", (BUILD,), setting, partial(build_seconds, cuda=False)))
        if find_toolkit():
            builds.append(Job("cuda", (BUILD,), setting, partial(build_seconds, cuda=True)))
        else:
            found.absences.append(("cuda", "is not built: there is no nvcc"))
    take_turns(imports, processes, found, warm_up=True)
    take_turns(calls, processes, found)
    take_turns(builds, 1, found)
    return found


def _package(name: str) -> str:
    """Returns the package that the candidate calls, if it is not ours."""
    return name.removesuffix("_compiled")


def _missing(package: str) -> str:
    return f"{package} is not installed" if find_spec(package) is None else ""


def _accepted(name: str, setting: Setting) -> tuple[Setting, str]:
    """Returns the setting with the constants that the candidate takes, or why it takes none."""
    if _package(name) in IMPORTS and (reason := _missing(_package(name))):
        return setting, reason
    candidate = (CANDIDATES | PEERS)[name]
    first = candidate.reasons_against(setting, BOTH)
    for constants in ("per neuron", "two states", "one state"):
        other = replace(setting, constants=constants)
        if not candidate.reasons_against(other, BOTH):
            return other, ""
    return setting, "; ".join(first)


def take_turns(jobs: list[Job], turns: int, found: Measured, warm_up: bool = False) -> None:
    """Adds the rows of the jobs to those found; a job that fails once has none."""
    load = f"{os.getloadavg()[0]:.2f}"
    samples: list[list[list[float]]] = [[] for _ in jobs]
    failed = set()
    for _ in range(turns + warm_up):
        for k, job in enumerate(jobs):
            if k in failed:
                continue
            try:
                samples[k].append(job.seconds())
            except ChildError as error:
                found.failures.append((job.backend, f"{job.modes[0]}: {error}"))
                failed.add(k)
    for k, job in enumerate(jobs):
        if k in failed:
            continue
        for mode, seconds in zip(job.modes, zip(*samples[k][warm_up:], strict=True), strict=True):
            row = {"case": "first_call", "backend": job.backend, "mode": mode, "load": load}
            row |= {name: getattr(job.setting, name) for name in COLUMNS}
            found.rows.append(row | quantiles_ms(list(seconds)) | {"repeats": len(seconds)})


def _run(command: list[str], limit: float, **options: Any) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=limit, **options
        )
    except subprocess.TimeoutExpired:
        raise ChildError(f"took more than {limit:.0f} s") from None
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise ChildError(lines[-1] if lines else f"status {done.returncode}")
    return done.stdout


def child_seconds(arguments: list[str], count: int = 1) -> list[float]:
    """Returns what so many Python processes print last; they share caches, empty at first."""
    with tempfile.TemporaryDirectory() as folder:
        caches = {name: f"{folder}/{name}" for name in CACHES}
        command, environment = [sys.executable, *arguments], os.environ | caches
        outputs = [_run(command, CHILD_LIMIT, env=environment) for _ in range(count)]
    return [float(output.split()[-1]) for output in outputs]


def build_seconds(cuda: bool) -> list[float]:
    """Returns the time to build the extension from source, for all architectures."""
    choice = {"FUSED_LIF_EXTENSION": "1", "FUSED_LIF_CUDA": str(int(cuda))}
    environment = os.environ | choice | {"FUSED_LIF_CUDA_ARCHITECTURES": ""}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "setup.py", "-q", "build", "--build-lib", f"{folder}/lib"]
        command += ["--build-temp", f"{folder}/objects"]
        start = time.perf_counter()
        _run(command, BUILD_LIMIT, env=environment, cwd=REPOSITORY)
        return [time.perf_counter() - start]


def first_call(candidate: Candidate, setting: Setting) -> float:
    """Returns the seconds of a forward and backward pass, with all that goes before the first.

    What torch itself imports for a backward from a given gradient, in 0.2 s, is there already.
    """
    problem, one = Problem(setting), torch.ones(1, requires_grad=True)
    torch.autograd.backward([2 * one], [torch.ones(1)])
    wait = torch.cuda.synchronize if setting.device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    call = candidate.call(problem, BOTH)
    call.run(call.before())
    wait()
    return time.perf_counter() - start


def main(argv: list[str] | None = None) -> None:
    """Prints the seconds of the first call of a candidate; runs in a process of its own."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("name", choices=CANDIDATES | PEERS)
    parser.add_argument("setting", type=lambda text: Setting(**json.loads(text)))
    options = parser.parse_args(argv)
    if _package(options.name) in IMPORTS:
        importlib.import_module(IMPORTS[_package(options.name)])
    torch.set_num_threads(options.setting.threads)
    print(first_call((CANDIDATES | PEERS)[options.name], options.setting))


if __name__ == "__main__":
    main()
