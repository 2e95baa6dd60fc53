"""Measures the cases of `cases.py` and appends rows to ``results/<device>.csv``.

    python benchmarks/run.py --case lif_forward --case lif_cell --peers

Every candidate is first compared with the reference: where one of ours differs, no number is
written. Then the candidates take turns on the clock until the budget of the case is used up, so
that a disturbance from outside hits all of them. Ratios are those of medians of one run.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import importlib.metadata
import math
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from cases import CASES, PEAK, SAVED, Case, Row, Shape, Verdict, quick
from clock import event_seconds, host_seconds, measure, quantiles_ms
from compare import RAISES, WrongResultError, describe, verify
from first_call import measure_first_calls
from limits import least_bytes, least_ms
from memory import MALLOC, available_memory, least_memory, peak_memory, saved_bytes
from networks import make_problem
from peers import ALL_CANDIDATES, OPTIONAL, PACKAGES, PEERS
from problems import (
    BACKWARD,
    BOTH,
    FORWARD,
    YARDSTICKS,
    Call,
    Candidate,
    Problem,
    Setting,
    TorchCandidate,
)
from rows import FIELDS, remarks, sizes, slug

import fused_lif

ROOT = Path(__file__).resolve().parent
LEFT_OUT = "left out without --peers"
#: Seconds that must be left to start another case: each measures some turns whatever its budget.
LEAST_SECONDS = 30.0
FIRST_CALLS = "first_call"  # a case of its own, in `first_call.py`
#: Elements of the largest output that is compared: the reference keeps dozens of times as much.
#: Cases that grow beyond it are compared at their smaller sizes.
LARGEST_COMPARED = {"cpu": 2**24, "cuda": 2**26}
GPU_BACKENDS = ("cuda", "triton")  # take the place of "cpu" on a GPU


class Absence(NamedTuple):
    """A candidate that was not measured, and why."""

    case: str
    backend: str
    reason: str


class Runner:
    """Runs cases and appends their rows to a file.

    Attributes:
        absences: What was not measured.
        failures: Where one of ours differed from the reference, or failed.
    """

    def __init__(
        self, out: Path, device: str, threads: int, budget: float, peers: bool, is_quick: bool
    ) -> None:
        self.out, self.device, self.threads, self.budget = out, device, threads, budget
        self.peers, self.is_quick = peers, is_quick
        self.absences: list[Absence] = []
        self.failures: list[str] = []
        self.clock = event_seconds if device == "cuda" else host_seconds
        self.facts = facts(device) | {"threads": threads}

    def run(self, name: str, case: Case) -> list[list[Row]]:
        """Returns the rows of a case, one list for each group that was timed in turns."""
        groups = []
        for shape in case.shapes:
            try:
                block = [replace(s, device=self.device) for s in case.block(*shape)]
                block = [quick(s) for s in block] if self.is_quick else block
                groups += self._run_block(name, case, block)
            except WrongResultError as error:
                self.failures.append(f"{name} {shape}: {error}")
            except (RuntimeError, ValueError) as error:  # the device is out of memory, say
                self.failures.append(f"{name} {shape}: {type(error).__name__}: {error}")
        return groups

    def _leave_out(self, name: str, candidate: Candidate, reason: str) -> None:
        if candidate.name in (*PEERS, *YARDSTICKS):
            self.absences.append(Absence(name, candidate.name, reason))
        else:
            self.failures.append(f"{name}: {candidate.name} {reason}")

    def _run_block(self, name: str, case: Case, block: list[Setting]) -> list[list[Row]]:
        needs_gradient = {BOTH, BACKWARD, SAVED, PEAK} & set(case.modes)
        entries = []
        for setting in block:
            if self.device == "cpu" and least_memory(setting) > available_memory():
                reason = f"{setting.T, setting.B, setting.N} needs more memory than there is"
                self.absences.append(Absence(name, "the setting", reason))
                continue
            problem = make_problem(setting)
            present = (self._present(name, n, case, setting) for n in self._names(case))
            candidates = [c for c in present if c]
            found = {}
            if problem.grad_z.numel() <= LARGEST_COMPARED[self.device]:
                found = verify(candidates, problem, BOTH if needs_gradient else FORWARD)
            for candidate in candidates:
                if not (differs := found.get(candidate.name)):
                    entries.append((candidate, problem))
                elif differs[0].startswith(RAISES):
                    self._leave_out(name, candidate, differs[0])
                elif candidate.name in PEERS:
                    reason = f"differs from the reference: {'; '.join(differs)}"
                    self.absences.append(Absence(name, candidate.name, reason))
                else:
                    raise WrongResultError(
                        f"{candidate.name} differs from the reference: {'; '.join(differs)}"
                    )
        groups = []
        for mode in case.modes:
            able = [
                (c, p)
                for c, p in entries
                if not c.reasons_against(p.setting, _timed(mode)) and _has_memory(c, mode)
            ]
            rows = self._rows(name, case, mode, able) if able else []
            append(self.out, rows)
            groups.append(rows)
        return groups

    def _names(self, case: Case) -> list[str]:
        fused = GPU_BACKENDS if self.device == "cuda" else ("cpu",)
        return [n for name in case.candidates for n in (fused if name == "cpu" else (name,))]

    def _present(self, case_name: str, name: str, case: Case, setting: Setting) -> Candidate | None:
        candidate = ALL_CANDIDATES[name]
        if name in OPTIONAL and not self.peers:
            reasons = [LEFT_OUT]
        else:
            reasons = min(
                (candidate.reasons_against(setting, _timed(m)) for m in case.modes), key=len
            )
        if reasons:
            self.absences.append(Absence(case_name, name, "; ".join(reasons)))
            return None
        return candidate

    def _rows(
        self, name: str, case: Case, mode: str, entries: list[tuple[Candidate, Problem]]
    ) -> list[Row]:
        rows: list[Row] = []
        load = f"{os.getloadavg()[0]:.2f}"
        if mode in (SAVED, PEAK):
            times: list[dict[str, Any]] = [{} for _ in entries]
        else:
            budget = self.budget / (len(case.shapes) * len(case.modes))
            calls, entries = self._calls(name, mode, entries)
            try:
                samples = measure(calls, budget, self.clock)
            finally:
                torch.set_num_threads(self.threads)
            times = [quantiles_ms(s) | {"repeats": len(s)} for s in samples]
        for (candidate, problem), columns in zip(entries, times, strict=True):
            setting = problem.setting
            row = dict.fromkeys(FIELDS, "") | {
                k: v for k, v in asdict(setting).items() if k in FIELDS
            }
            row |= self.facts | columns | {"case": name, "backend": candidate.name, "mode": mode}
            row |= {"load": load, "threads": setting.threads or self.threads}
            if mode == SAVED:
                row["memory_bytes"] = saved_bytes(candidate, problem)
            elif mode == PEAK or (
                case.memory and mode != BACKWARD and candidate.name not in YARDSTICKS
            ):
                row["memory_bytes"] = self._peak(candidate, setting, _timed(mode))
            rows.append(row)
        add_limits(rows, [problem.setting for _, problem in entries])
        return [row for row in rows if row["median_ms"] != "" or row["memory_bytes"] != ""]

    def _calls(
        self, name: str, mode: str, entries: list[tuple[Candidate, Problem]]
    ) -> tuple[list[Call], list[tuple[Candidate, Problem]]]:
        """Returns what to time, and the entries that can be: a yardstick was not tried before."""
        calls, able = [], []
        for candidate, problem in entries:
            try:
                calls.append(_with_threads(candidate.call(problem, mode), problem.setting.threads))
            except Exception as error:
                reason = f"{RAISES}{describe(error)}, in mode {mode}"
                self._leave_out(name, candidate, reason)
            else:
                able.append((candidate, problem))
        return calls, able

    def _peak(self, candidate: Candidate, setting: Setting, mode: str) -> int | str:
        if self.is_quick or candidate.name.endswith("_compiled"):  # compiles in every process
            return ""
        if self.device == "cpu":
            return peak_memory(candidate, setting, mode, self.threads)
        if not isinstance(candidate, TorchCandidate):  # its memory is not that of torch
            return ""
        call = candidate.call(make_problem(setting), mode)
        argument, before = call.before(), torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call.run(argument)
        return torch.cuda.max_memory_allocated() - before


def _with_threads(call: Call, threads: int | None) -> Call:
    """Returns a call that sets torch's number of threads before its clock starts."""
    if threads is None:
        return call

    def before() -> Any:
        torch.set_num_threads(threads)
        return call.before()

    return call._replace(before=before)


def add_limits(rows: list[Row], settings: list[Setting]) -> None:
    """Fills in the limit of each row from those of "copy" and "matmul" of the same setting."""
    measured = {
        (row["backend"], setting): row["median_ms"]
        for row, setting in zip(rows, settings, strict=True)
        if row["backend"] in ("copy", "matmul")
    }
    for row, setting in zip(rows, settings, strict=True):
        copy, matmul = (measured.get((name, setting)) for name in ("copy", "matmul"))
        if row["median_ms"] == "":
            if row["memory_bytes"]:
                row["of_limit"] = _rounded(least_bytes(setting, row["mode"]) / row["memory_bytes"])
        elif copy and row["backend"] not in YARDSTICKS:
            limit = least_ms(setting, row["mode"], copy, matmul)
            if limit is not None:
                row["limit_ms"] = _rounded(limit)
                row["of_limit"] = _rounded(limit / row["median_ms"])


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _has_memory(candidate: Candidate, mode: str) -> bool:
    """Whether a mode that counts bytes can see those of a candidate."""
    if mode == SAVED:  # by torch's autograd
        return isinstance(candidate, TorchCandidate)
    return mode != PEAK or candidate.name not in YARDSTICKS


def _timed(mode: str) -> str:
    """Returns the mode in which a call is made for ``mode``."""
    return {SAVED: FORWARD, PEAK: BOTH}.get(mode, mode)


def device_name(device: str) -> str:
    """Returns the model of the processor or of the GPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # there is no git
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def _commit() -> tuple[str, str]:
    """Returns the columns "commit" and "uncommitted".

    A copy without ``.git`` learns them from ``FUSED_LIF_COMMIT``, ``<hash>`` or ``<hash>+changes``.
    """
    changes = _git("status", "--porcelain", "--", ":/", ":(top,exclude)benchmarks/results")
    commit = _git("rev-parse", "--short=12", "HEAD")
    if commit != "unknown":
        return commit, {"": "no", "unknown": "unknown"}.get(changes, "yes")
    commit, plus, _ = os.environ.get("FUSED_LIF_COMMIT", "unknown").partition("+")
    return commit, "unknown" if commit == "unknown" else "yes" if plus else "no"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return fused_lif.__version__ if package == "fused_lif" else "none"


def facts(device: str) -> Row:
    """Returns the columns that are the same in all rows of a run."""
    commit, uncommitted = _commit()
    packages = ["fused_lif", "torch", "triton", *PACKAGES]
    versions = [f"{p}={_version(p)}" for p in packages]
    if device == "cuda":
        versions.append(f"cuda={torch.version.cuda}")
    return {
        "malloc": "kept" if MALLOC.keys() <= os.environ.keys() else "default",
        "commit": commit,
        "uncommitted": uncommitted,
        "versions": " ".join([f"python={platform.python_version()}", *versions]),
        "device": device_name(device),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def append(path: Path, rows: list[Row]) -> None:
    """Appends rows to a CSV file, which begins with the names of the columns.

    Columns that are newer than the file are added to it, empty.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    older, mode = [], "a"
    if path.exists() and path.stat().st_size:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            header = tuple(reader.fieldnames or ())
            if unknown := set(header) - set(FIELDS):
                raise ValueError(f"{path.name} has columns that these rows lack: {sorted(unknown)}")
            if header != FIELDS:
                older, mode = list(reader), "w"
    with path.open(mode, newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerows(older + rows)


def first_calls(runner: Runner, processes: int, build: bool) -> list[Row]:
    """Measures what is paid once, and appends the rows."""
    found = measure_first_calls(runner.device, runner.threads, processes, build)
    rows = [dict.fromkeys(FIELDS, "") | runner.facts | row for row in found.rows]
    append(runner.out, rows)
    runner.absences += [Absence(FIRST_CALLS, *absence) for absence in found.absences]
    for name, reason in found.failures:
        if name in (*PEERS, *PACKAGES):
            runner.absences.append(Absence(FIRST_CALLS, name, reason))
        else:
            runner.failures.append(f"{FIRST_CALLS}: {name} {reason}")
    return rows


def judge(name: str, case: Case, group: list[Row], is_quick: bool) -> list[Verdict | None]:
    """Returns the ratio of each row; only at the shapes of `CASES` with the target."""
    verdicts = [case.judge(row, group) for row in group]
    if set(case.shapes) <= set(CASES[name].shapes) and not is_quick:
        return verdicts
    return [v and v._replace(limit=None) for v in verdicts]


Judged = list[tuple[list[Row], list[Verdict | None]]]


def print_table(judged: Judged, absences: list[Absence]) -> None:
    """Prints all rows with their ratios, then what is absent."""
    line = "{:<21}{:<22}{:<17}{:<19}{:>10} {:<22}{:>6}{:>8}{:>10}  {}"
    names = (
        "case",
        "(T, B, N)",
        "mode",
        "backend",
        "median ms",
        "(20 %, 80 %)",
        "n",
        "MB",
        "of limit",
        "ratio",
    )
    print(line.format(*names))
    for group, verdicts in judged:
        for row, verdict in zip(group, verdicts, strict=True):
            timed, memory = row["median_ms"] != "", row["memory_bytes"]
            cells = (
                row["case"],
                f"({sizes(row)})",
                row["mode"],
                " ".join([row["backend"], *remarks(row)]),
                row["median_ms"],
                f"({row['q20_ms']}, {row['q80_ms']})" if timed else "",
                row["repeats"],
                "" if memory == "" else f"{memory / 1e6:.1f}",
                row["of_limit"],
                verdict or "",
            )
            print(line.format(*map(str, cells)))
    for absence in dict.fromkeys(absences):
        print(f"{absence.case}: {absence.backend} is absent: {absence.reason}")


def markdown(judged: Judged, absences: list[Absence], failures: list[str]) -> str:
    """Returns the ratios of a run as a table in Markdown, then what is absent or failed."""
    lines = [
        "| case | T, B, N | mode | backend | median ms | | target |",
        "|---|---|---|---|---|---|---|",
    ]
    for group, verdicts in judged:
        for row, verdict in zip(group, verdicts, strict=True):
            if verdict is None and row["backend"] not in YARDSTICKS:
                continue
            value, target = "", ""
            if verdict:
                value = f"{verdict.value:.3g} {verdict.label}"
            if verdict and verdict.limit is not None:
                sign, word = "≤" if verdict.at_most else "≥", "met" if verdict.passed else "MISSED"
                target = f"{sign} {verdict.limit:g}: {word}"
            cells = (
                row["case"],
                sizes(row),
                row["mode"],
                " ".join([row["backend"], *remarks(row)]),
                row["median_ms"],
                value,
                target,
            )
            lines.append(f"| {' | '.join(map(str, cells))} |")
    with_limit = [v for _, group in judged for v in group if v and v.limit is not None]
    met = sum(v.passed for v in with_limit)
    lines += ["", f"{met} of {len(with_limit)} targets met.", ""]
    lines += [f"- FAILED: {failure}" for failure in failures]
    lines += [f"- {a.case}: {a.backend} is absent: {a.reason}" for a in dict.fromkeys(absences)]
    return "\n".join(lines) + "\n"


def _shape(text: str) -> Shape:
    return tuple(int(part) for part in text.split(","))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--case",
        action="append",
        choices=(*CASES, FIRST_CALLS),
        metavar="NAME",
        help="repeatable; default: all of the device",
    )
    add(
        "--shape",
        action="append",
        type=_shape,
        metavar="T,B,N",
        help="instead of the shapes of a case that have as many sizes",
    )
    add("--list", action="store_true", help="list the cases and stop")
    add("--budget", type=float, default=15.0, help="seconds per case (%(default)s)")
    add("--seconds", type=float, help="start no case after so many, and shorten the budgets")
    add("--threads", type=int, default=2, help="threads of torch (%(default)s)")
    add("--peers", action="store_true", help=f"measure {', '.join(OPTIONAL)} too")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--out", type=Path, help="default: benchmarks/results/<device>.csv")
    add("--report", type=Path, metavar="FILE", help="write the ratios there, in Markdown")
    add("--quick", action="store_true", help="tiny sizes, no peaks: only shows that it runs")
    add("--check-targets", action="store_true", help="exit with 1 if one is missed or absent")
    add("--build", action="store_true", help="also build the extension, in the case first_call")
    add("--default-malloc", action="store_true", help="do not let glibc keep freed memory")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    options = parse(argv)
    torch.set_num_threads(options.threads)
    os.environ.setdefault("NPROC", str(options.threads))  # the size of jax's pool of threads
    os.environ.setdefault("JAX_PLATFORMS", options.device)
    if options.list:
        for name, case in CASES.items():
            print(f"{name:<22}{case.about}\n{'':<22}{', '.join(case.candidates)} at {case.shapes}")
        print(f"{FIRST_CALLS:<22}import, first call and what it compiles, and build (--build)")
        return 0
    if options.quick and not options.out:
        raise SystemExit("--quick needs --out: its numbers mean nothing")
    out = options.out or ROOT / "results" / f"{slug(device_name(options.device))}.csv"
    budget = min(options.budget, 1.0) if options.quick else options.budget
    runner = Runner(out, options.device, options.threads, budget, options.peers, options.quick)
    append(out, [])  # says early if it cannot
    judged: Judged = []
    names = options.case or [n for n, case in CASES.items() if case.device == options.device]
    if not (options.case or options.seconds):  # it takes minutes
        names.append(FIRST_CALLS)
    start = time.monotonic()
    for k, name in enumerate(names):
        left = (options.seconds or math.inf) - (time.monotonic() - start)
        if left <= (LEAST_SECONDS if k else 0):
            runner.absences.append(Absence(name, "the case", "there was no time left"))
            continue
        print(f"{name} ...", file=sys.stderr)
        if name == FIRST_CALLS:
            rows = first_calls(runner, 1 if options.quick else 3, options.build)
            judged.append((rows, [None] * len(rows)))
            continue
        # Comparing with the reference takes about as long as measuring.
        runner.budget = min(budget, 0.5 * left / (len(names) - k))
        own = CASES[name].shapes
        shapes = tuple(s for s in options.shape or () if len(s) == len(own[0])) or own
        case = replace(CASES[name], shapes=shapes)
        for group in runner.run(name, case):
            judged.append((group, judge(name, case, group, options.quick)))
        if options.report:
            options.report.write_text(markdown(judged, runner.absences, runner.failures))
    print_table(judged, runner.absences)
    verdicts = [v for _, group in judged for v in group if v and v.limit is not None]
    missed = [v for v in verdicts if not v.passed]
    absent = [a for a in runner.absences if a.reason != LEFT_OUT]  # no verdict is no pass
    print(f"{len(verdicts) - len(missed)} of {len(verdicts)} targets met")
    for failure in runner.failures:
        print(f"WRONG RESULT, or none; no row written: {failure}", file=sys.stderr)
    return 1 if runner.failures or (options.check_targets and (missed or absent)) else 0


if __name__ == "__main__":
    if "--default-malloc" not in sys.argv and not MALLOC.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **MALLOC})
    sys.exit(main())
