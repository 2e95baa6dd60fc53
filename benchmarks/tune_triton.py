"""Measures plans for the Triton kernels on the GPU at hand: the table in ``plans.json``.

    python benchmarks/tune_triton.py --write --budget 300

Every row of the table has its candidates. Processes compile them all first. Then, row by row, the
results of each are compared with those of the entry "default", and all take turns on the clock,
replayed as CUDA graphs: launches from Python do not count. One that does not compile in time,
raises or differs is left out, and the reason printed. The fastest becomes the row of the entry for
this architecture if it gains more than `MARGIN`. Where the budget is used up before a row begins,
the row is that of "default", or what the entry has if no row of its kernel was reached. Without
``--write`` or ``--out`` the entry is only printed.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from clock import Clock, event_seconds, host_seconds
from compare import describe
from graphs import capture
from problems import ALPHA, DT, Call, Problem, Setting
from torch import Tensor

from fused_lif.backends import triton as backend
from fused_lif.surrogate import SURROGATES
from fused_lif.types import Neuron

if backend.IMPORT_ERROR is None:
    from fused_lif.backends.triton import operators, plan

Plan = tuple[Any, ...] | None  # without its limit; None: a matrix product per step
Entry = dict[str, Any]
Results = dict[str, Tensor]

MARGIN = 0.02  # of the time of the default plan
COMPILE_SHARE = 0.6  # of the budget, at most
ROUNDS, TURN_SECONDS = 5, 0.01  # of each candidate on each load
#: Largest error of a gradient relative to its largest value, in each step, by bytes per element.
GRADIENT_LIMITS = {2: 2e-2, 4: 1e-4, 8: 1e-10}
FORWARD, BACKWARD = "lif_forward", "lif_backward"
RECURRENT_FORWARD, RECURRENT_BACKWARD = "lif_recurrent_forward", "lif_recurrent_backward"
INPUT_SUMS = "lif_input_sums"
KERNELS = (FORWARD, BACKWARD, RECURRENT_FORWARD, RECURRENT_BACKWARD, INPUT_SUMS)
DTYPES = {4: "float32", 2: "bfloat16", 8: "float64"}  # the most important first
#: Limits of the rows in columns per multiprocessor, and where and for how many steps each is
#: measured. Most lengths are no multiple of a chunk, as 1000; some are, as 256.
COLUMNS = ((128, 64, 1000), (512, 256, 1000), (1024, 768, 256), (None, 2048, 256))
#: Limits of the rows in neurons; each is measured with as many.
NEURONS = {RECURRENT_FORWARD: (128, 256, 512, 1024, 2048), RECURRENT_BACKWARD: (64, 128, 256, 512)}
WIDTH = 256  # neurons of a sequence
DRAWN = 8  # batch rows that differ
NO_LIMIT = 2**31


class Load(NamedTuple):
    """A call of an operator to be measured."""

    setting: Setting
    is_training: bool = True


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        kernel: Its name in the table.
        loads: What its candidates are measured on; the ratio of their times counts alike.
        candidates: The plans to be tried besides the default one.
        size: Bytes per element where the table asks for them.
        limit: Up to how many columns per multiprocessor, or neurons, it applies.
    """

    kernel: str
    loads: tuple[Load, ...]
    candidates: tuple[Plan, ...]
    size: int | None = None
    limit: int | None = None

    def __str__(self) -> str:
        words = self.kernel
        if self.size:
            words += f", {self.size} bytes"
        return f"{words}, up to {self.limit}" if self.limit else words


# ---- rows and candidates ----


def _lanes(values: int, warps: int) -> float:
    """Values per thread."""
    return values / (32 * warps)


def _sequence_plans(kernel: str, size: int, columns: int) -> Iterator[Plan]:
    """Plans with programs for all multiprocessors, and 32 to 128 bytes on the way to a thread."""
    for warps in (1, 2, 4, 8):
        for lanes in (1, 2, 4, 8):
            block = 32 * warps * lanes
            if block > max(32, min(columns, 1024)):
                continue
            if kernel == BACKWARD:
                if lanes * size <= 16:
                    yield block, warps, 0
            else:
                for chunk in (4, 8, 16, 32):
                    if 32 <= lanes * chunk * size <= 128:
                        yield block, warps, chunk


def _recurrent_plans(kernel: str, neurons: int) -> Iterator[Plan]:
    for warps in (1, 2, 4, 8, 16):
        if kernel == RECURRENT_FORWARD:
            if 1 <= _lanes(neurons, warps) <= 8:
                yield from ((warps, unroll, False) for unroll in (4, 8, 16))
            continue
        if 4 <= _lanes(neurons * neurons, warps) <= 64:
            yield warps, neurons, True
        for unroll in (16, 32, 64):
            if unroll <= neurons and 4 <= _lanes(unroll * neurons, warps) <= 32:
                yield warps, unroll, False
    yield None


def _input_sums_plans() -> Iterator[Plan]:
    for rows in (8, 16, 32, 64):
        for block in (32, 64, 128):
            for warps in (2, 4, 8):
                if 4 <= _lanes(rows * block, warps) <= 32:
                    yield rows, block, warps


def _sequence_row(kernel: str, size: int, k: int, multiprocessors: int) -> Row:
    limit, columns, T = COLUMNS[k]
    B = max(1, columns * multiprocessors // WIDTH)
    setting = Setting(T, B, WIDTH, dtype=DTYPES[size])
    modes = (True, False) if kernel == FORWARD else (True,)
    loads = tuple(Load(setting, is_training) for is_training in modes)
    return Row(kernel, loads, tuple(_sequence_plans(kernel, size, columns)), size, limit)


def _recurrent_row(kernel: str, neurons: int) -> Row:
    loads = tuple(
        Load(Setting(100, B, neurons, model="recurrent", input_size=64)) for B in (32, 512)
    )
    return Row(kernel, loads, tuple(_recurrent_plans(kernel, neurons)), limit=neurons)


def _input_sums_row() -> Row:
    loads = tuple(
        Load(Setting(100, B, N, model="recurrent", input_size=features))
        for B, features, N in ((256, 784, 100), (320, 200, 512))
    )
    return Row(INPUT_SUMS, loads, tuple(_input_sums_plans()))


def rows_of(multiprocessors: int) -> list[Row]:
    """Returns the rows of a table, the most important ones first."""
    rows = []
    for size in DTYPES:
        for kernel in (FORWARD, BACKWARD):
            rows += [_sequence_row(kernel, size, k, multiprocessors) for k in range(len(COLUMNS))]
        if size == 4:
            rows += [_recurrent_row(kernel, n) for kernel, of in NEURONS.items() for n in of]
            rows.append(_input_sums_row())
    return rows


def _tiny(row: Row, candidates: int) -> Row:
    """The same with few candidates on loads that only show that it runs."""

    def tiny(s: Setting) -> Setting:
        return replace(s, T=6, B=2, N=6, input_size=s.input_size and 3)

    loads = tuple(load._replace(setting=tiny(load.setting)) for load in row.loads)
    return replace(row, loads=loads, candidates=row.candidates[-candidates:])


# ---- the table ----


@contextlib.contextmanager
def using(architecture: str, entry: Entry) -> Iterator[None]:
    """Within the block the kernels take the plans of an entry."""

    def exchange(entry: Entry | None) -> Entry | None:
        before: Entry | None = plan.table().pop(architecture, None)
        if entry is not None:
            plan.table()[architecture] = entry
        plan.sequence_plan.cache_clear()
        plan.recurrent_plan.cache_clear()
        return before

    before = exchange(entry)
    try:
        yield
    finally:
        exchange(before)


def entry_of(row: Row, p: Plan) -> Entry:
    """Returns the default entry with one plan in all rows like this one."""
    entry: Entry = copy.deepcopy(plan.table()["default"])
    if row.kernel == INPUT_SUMS:
        assert p is not None
        entry[row.kernel] = list(p)
    elif row.size:
        assert p is not None
        entry[row.kernel][str(row.size)] = [[None, *p]]
    else:
        entry[row.kernel] = [] if p is None else [[NO_LIMIT, *p]]
    return entry


def default_plan(row: Row, device: plan.Device) -> Plan:
    """Returns what the entry "default" has for a row."""
    with using(device.architecture, plan.table()["default"]):
        setting = row.loads[0].setting
        if row.kernel == INPUT_SUMS:
            return tuple(plan.input_sums_plan(device))
        if row.size:
            columns = setting.B * setting.N
            return tuple(plan.sequence_plan(device, row.kernel, columns, row.size))
        found = plan.recurrent_plan(device, row.kernel, setting.N)
        return None if found is None else tuple(found)


def assemble(architecture: str, plans: dict[Row, Plan]) -> Entry:
    """Returns an entry with the plans of some kernels; what it has of others stays.

    A row whose successor has the same plan is left to that one.
    """
    table = plan.table()
    entry: Entry = copy.deepcopy(table.get(architecture, table["default"]))
    lists: dict[tuple[str, int | None], list[list[Any]]] = {}
    for row, p in plans.items():
        if row.kernel == INPUT_SUMS:
            entry[row.kernel] = list(p or ())
            continue
        found = lists.setdefault((row.kernel, row.size), [])
        if p is not None:
            if found and found[-1][1:] == list(p):
                found.pop()
            found.append([row.limit, *p])
    for (kernel, size), found in lists.items():
        if size:
            entry[kernel][str(size)] = found
        else:
            entry[kernel] = found
    return entry


def text_of(table: dict[str, Any], indent: str = "") -> str:
    """Returns a table as it is stored: dictionaries in lines of their own, lists in one."""
    lines = [
        f'{indent}  "{name}": '
        + (text_of(value, indent + "  ") if isinstance(value, dict) else json.dumps(value))
        for name, value in table.items()
    ]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


# ---- what is measured ----

Work = Callable[[], Results]


class _Tensors:
    """The tensors of a load; batch rows repeat after `DRAWN`, which draws large ones quickly."""

    def __init__(self, setting: Setting) -> None:
        problem = Problem(replace(setting, B=min(setting.B, DRAWN)))
        rows = torch.arange(setting.B, device=setting.device) % DRAWN
        sequences, states = (problem.x, problem.grad_z), (problem.z, problem.v, problem.i)
        self.x, self.grad_z = (t.detach().index_select(1, rows) for t in sequences)
        self.z, self.v, self.i = (t.index_select(0, rows) for t in states)
        self.constants = [c.detach() for c in problem.constants.values()]
        self.alpha = torch.tensor(ALPHA, device=setting.device)
        self.weights = [w.detach() for w in problem.weights.values()]


def work_of(kernel: str, load: Load, device: plan.Device) -> Work:
    """Returns a call of an operator; results whose name begins with "grad" may differ in rounding.

    What a backward needs is computed with the plans in use now.
    """
    s = _Tensors(load.setting)
    interval = plan.checkpoint_interval(device, s.v.dtype) if load.is_training else 0
    o, neuron, method = backend.OPERATORS, int(Neuron.LIF), SURROGATES["super"].id
    if kernel == INPUT_SUMS:
        T, B, N = s.grad_z.shape
        x, weights = s.v.new_empty(T, B, N), s.weights[0].t().contiguous()

        def input_sums() -> Results:
            operators._input_sums(s.x, weights, x)
            return {"x": x}

        return input_sums
    if load.setting.is_recurrent:
        tensors = (s.x, s.z, s.v, s.i, *s.weights, *s.constants, None)
        options = (DT, False, False, interval, method, False, True)

        def forward() -> Results:
            return _named("z v i i_jump states", o.lif_recurrent_forward(*tensors, *options))

        if kernel == RECURRENT_FORWARD:
            return forward
        kept = forward()
        state = (kept["i_jump"], kept["states"], s.v, s.i)
        saved = (*state, s.weights[1], *s.constants, s.alpha, DT)
        gradients, operator = "x z v i", o.lif_recurrent_backward
        rest: tuple[Any, ...] = (False, interval, method, False, False, 255)
    else:

        def forward() -> Results:
            options = (None, DT, neuron, False, interval, method, False)
            return _named("z v i states", o.lif_forward(s.x, s.v, s.i, *s.constants, *options))

        if kernel == FORWARD:
            return forward
        saved = (s.x, forward()["states"], s.v, s.i, *s.constants, s.alpha, DT)
        gradients, operator = "x v i", o.lif_backward
        rest = (neuron, False, interval, method, False, False, 255)

    def backward() -> Results:
        grads = operator(s.grad_z, None, None, None, *saved, *rest)
        names = [*gradients.split(), "tau_syn_inv", "tau_mem_inv", "v_leak", "v_th", "v_reset"]
        return _named(" ".join(f"grad_{name}" for name in names), grads)

    return backward


def _named(names: str, values: tuple[Tensor, ...]) -> Results:
    return dict(zip(names.split(), values, strict=False))


def differences(actual: Results, expected: Results) -> list[str]:
    """Returns how results differ: gradients by more than rounding, others in any bit."""
    found = []
    for name, b in expected.items():
        a = actual[name]
        if not name.startswith("grad"):
            if not torch.equal(a, b):
                found.append(f"{name} differs in {(a != b).sum()} of {b.numel()} values")
            continue
        by_step = (len(b), -1) if b.dim() == 3 else (1, -1)
        error, size = ((t.double().abs().view(by_step).amax(1)) for t in (a - b, b))
        worst = (error / size.clamp_min(1e-30)).max().item()
        if not worst <= GRADIENT_LIMITS[b.element_size()]:
            found.append(f"{name}: relative error {worst:.1e}")
    return found


# ---- compiling, comparing, timing ----


def _on(row: Row, device: str) -> Row:
    loads = (load._replace(setting=replace(load.setting, device=device)) for load in row.loads)
    return replace(row, loads=tuple(loads))


def _short(load: Load) -> Load:
    """A load that needs the same kernels and takes no time."""
    s = load.setting
    T = 64 + s.T % 32 if s.T > 64 else s.T
    return load._replace(setting=replace(s, T=T, B=s.B if s.is_recurrent else min(s.B, 2)))


def try_plan(row: Row, p: Plan, device: plan.Device) -> str:
    """Runs short loads with a plan, which compiles its kernels; returns why that failed."""
    try:
        with using(device.architecture, entry_of(row, p)):
            for load in row.loads:
                work_of(row.kernel, _short(load), device)()
            if row.loads[0].setting.device == "cuda":
                torch.cuda.synchronize()
    except Exception as error:
        return describe(error)
    return ""


@dataclass
class Outcome:
    """What was found for a row.

    Attributes:
        plan: What belongs into the table.
        default: What the entry "default" has.
        ratio: Time over that of the default plan; ``None`` if it was not measured.
        left_out: Candidates that could not take part, and why.
    """

    plan: Plan
    default: Plan
    ratio: float | None = None
    milliseconds: dict[Plan, list[float]] = field(default_factory=dict)
    left_out: dict[Plan, str] = field(default_factory=dict)


class Tuner:
    """Measures rows on one device.

    Attributes:
        clock: Returns the seconds of repetitions of a call.
    """

    def __init__(self, device: str, budget: float, jobs: int) -> None:
        self.device, self.budget, self.jobs = device, budget, jobs
        self.index = None if device == "cpu" else torch.cuda.current_device()
        self.plan_device = plan.device_of(self.index)
        self.clock: Clock = event_seconds if device == "cuda" else host_seconds
        self.start = time.monotonic()

    def left(self, share: float = 1.0) -> float:
        """Returns the seconds that are left of a share of the budget."""
        return share * self.budget - (time.monotonic() - self.start)

    def run(self, rows: list[Row]) -> dict[Row, Outcome]:
        """Measures all rows that the budget reaches."""
        outcomes, failed = {}, self._compile(rows)
        for row in rows:
            default = default_plan(row, self.plan_device)
            outcomes[row] = Outcome(default, default)
            left_out = {p: r for p in row.candidates if (r := failed.get((row, p), ""))}
            if self.left() > 0:
                try:
                    self._measure(row, outcomes[row], left_out)
                except Exception as error:  # of the default plan, or out of memory
                    outcomes[row] = Outcome(default, default, left_out={default: describe(error)})
            print_outcome(row, outcomes[row])
        return outcomes

    def _compile(self, rows: list[Row]) -> dict[tuple[Row, Plan], str]:
        """Lets processes compile all candidates; returns why those that failed did."""
        if not self.jobs:
            return {}
        failed, answers, limit = {}, {}, COMPILE_SHARE * self.budget
        with multiprocessing.get_context("spawn").Pool(self.jobs) as pool:
            units: dict[Any, Any] = {}  # rows of several numbers of columns share kernels
            for row in rows:
                for p in (default_plan(row, self.plan_device), *row.candidates):
                    unit = (row.kernel, p, tuple(_short(load) for load in row.loads))
                    if unit not in units:
                        units[unit] = pool.apply_async(try_plan, (row, p, self.plan_device))
                    answers[row, p] = units[unit]
            for key, answer in answers.items():
                try:
                    reason = answer.get(max(0.0, self.left(COMPILE_SHARE)))
                except multiprocessing.TimeoutError:
                    reason = f"was not compiled within {limit:.0f} s"
                if reason:
                    failed[key] = reason
        seconds = time.monotonic() - self.start
        print(f"{len(units)} compiled in {seconds:.0f} s", file=sys.stderr, flush=True)
        return failed

    def _call(self, row: Row, p: Plan, work: Work) -> Call:
        """Returns what to time: the replay of a graph, or the work itself on the CPU."""
        entry = entry_of(row, p)
        if self.device == "cuda":
            with using(self.plan_device.architecture, entry):
                captured = capture(work)
            return Call(lambda _: captured.replay())

        def run(_: None) -> None:
            with using(self.plan_device.architecture, entry):
                work()

        return Call(run)

    def _measure(self, row: Row, outcome: Outcome, failed: dict[Plan, str]) -> None:
        default, left_out = outcome.default, outcome.left_out
        left_out |= {p: reason for p, reason in failed.items() if p != default}
        plans = [p for p in dict.fromkeys((default, *row.candidates)) if p not in left_out]
        seconds: dict[Plan, list[float]] = {p: [] for p in plans}
        for load in row.loads:
            calls = self._calls(row, load, [p for p in plans if p not in left_out], left_out)
            for p, s in zip(calls, self._medians(list(calls.values())), strict=True):
                seconds[p].append(s)
        seconds = {p: s for p, s in seconds.items() if p not in left_out}
        base = seconds[default]
        ratios = {
            p: math.prod(a / b for a, b in zip(s, base, strict=True)) ** (1 / len(s))
            for p, s in seconds.items()
        }
        outcome.milliseconds = {p: [1e3 * t for t in s] for p, s in seconds.items()}
        for p in sorted(ratios, key=ratios.__getitem__):
            if ratios[p] > 1 - MARGIN:
                p = default
            if p == default or row.size or not (reason := self._fails_in_float64(row, p)):
                outcome.plan, outcome.ratio = p, ratios[p]
                return
            left_out[p] = reason

    def _calls(
        self, row: Row, load: Load, plans: list[Plan], left_out: dict[Plan, str]
    ) -> dict[Plan, Call]:
        """Returns what to time, of those that compute what the default plan does."""
        with using(self.plan_device.architecture, plan.table()["default"]):
            work = work_of(row.kernel, load, self.plan_device)
            expected = {name: t.clone() for name, t in work().items()}
        calls = {}
        for p in plans:
            try:
                with using(self.plan_device.architecture, entry_of(row, p)):
                    found = differences(work(), expected)
                if not found:
                    calls[p] = self._call(row, p, work)
                    continue
                reason = "; ".join(found)
            except Exception as error:
                reason = describe(error)
            left_out[p] = reason
        if plans[0] not in calls:
            raise RuntimeError(f"the default plan fails: {left_out[plans[0]]}")
        return calls

    def _medians(self, calls: list[Call]) -> list[float]:
        """Returns the median time of each call; they take turns."""
        samples: list[list[float]] = [[] for _ in calls]
        for k in range(ROUNDS + 1):
            for call, of in zip(calls, samples, strict=True):
                first = min(self.clock(call, 1))  # brings its data back into the caches
                if k:  # the round before warmed up
                    count = max(1, min(400, int(TURN_SECONDS / max(min([first, *of]), 1e-9))))
                    of += self.clock(call, count)
        return [statistics.median(of) for of in samples]

    def _fails_in_float64(self, row: Row, p: Plan) -> str:
        """The table has one plan for both types; values of this one take twice the memory."""
        if p is None:
            return ""
        loads = (
            load._replace(setting=replace(load.setting, dtype="float64")) for load in row.loads
        )
        return try_plan(replace(row, loads=tuple(loads)), p, self.plan_device)


def settle(outcomes: dict[Row, Outcome]) -> dict[Row, Plan]:
    """Returns the plans of all kernels of which a row was measured.

    The table has a matrix product per step only for layers larger than all others: where a product
    wins below a kernel, the fastest kernel stays.
    """
    measured = {(row.kernel, row.size) for row, o in outcomes.items() if o.ratio is not None}
    plans = {r: o.plan for r, o in outcomes.items() if (r.kernel, r.size) in measured}
    for row in plans:
        larger = [r for r in plans if r.kernel == row.kernel and (r.limit or 0) > (row.limit or 0)]
        if row.kernel in NEURONS and plans[row] is None and any(plans[r] for r in larger):
            times = outcomes[row].milliseconds
            kernels = [p for p in times if p is not None]
            plans[row] = min(kernels, key=lambda p: math.prod(times[p]), default=None)
    return plans


def _words(p: Plan) -> str:
    return "matrix products" if p is None else json.dumps(p)


def print_outcome(row: Row, outcome: Outcome) -> None:
    """Prints what was found for a row."""
    times = outcome.milliseconds
    if outcome.ratio is None:
        print(f"{row}: {_words(outcome.default)} was not compared with others")
    else:
        ms = ", ".join(f"{t:.4g}" for t in times[outcome.plan])
        print(
            f"{row}: {_words(outcome.plan)}, {ms} ms, {outcome.ratio:.3f} x "
            f"{_words(outcome.default)}, best of {len(times)}"
        )
        for p in sorted(times, key=lambda p: math.prod(times[p]))[:3]:
            print(f"    {_words(p)}: {', '.join(f'{t:.4g}' for t in times[p])} ms")
    reasons: dict[str, list[Plan]] = {}
    for p, reason in outcome.left_out.items():
        reasons.setdefault(reason, []).append(p)
    for reason, of in reasons.items():
        print(f"    left out: {', '.join(map(_words, of))}: {reason}")
    sys.stdout.flush()


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--write", action="store_true", help="put the entry into the table of the package")
    add("--out", type=Path, metavar="FILE", help="write the table with the entry there")
    add("--budget", type=float, default=300.0, help="seconds for everything (%(default)s)")
    add("--kernel", action="append", choices=KERNELS, help="only this one; repeatable")
    add("--jobs", type=int, help="processes that compile; default: most of the processors")
    add("--quick", action="store_true", help="tiny loads, few candidates: only shows that it runs")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    options = parse(argv)
    if options.quick and options.write:
        raise SystemExit("--quick takes --out, not --write: its numbers mean nothing")
    if reasons := backend.TRITON.unavailable():
        print(f"nothing to tune: {'; '.join(reasons)}", file=sys.stderr)
        return 1
    if backend.IS_INTERPRETED and not options.quick:
        raise SystemExit("TRITON_INTERPRET=1 is only for --quick")
    device = "cpu" if backend.IS_INTERPRETED else "cuda"
    jobs = options.jobs
    if jobs is None:
        jobs = 0 if options.quick else max(1, min(14, (os.cpu_count() or 2) - 2))
    tuner = Tuner(device, options.budget, jobs)
    rows = [_on(row, device) for row in rows_of(tuner.plan_device.multiprocessors)]
    if options.quick:
        rows = [_tiny(row, candidates=2) for row in rows]
    chosen = [row for row in rows if row.kernel in (options.kernel or KERNELS)]
    outcomes = tuner.run(chosen)
    architecture = tuner.plan_device.architecture
    entry = assemble(architecture, settle(outcomes))
    measured = [o for o in outcomes.values() if o.ratio is not None]
    seconds = time.monotonic() - tuner.start
    table = plan.table() | {architecture: entry}
    for path in filter(None, (options.out, plan.TABLE_PATH if options.write else None)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text_of(table) + "\n")
        print(f"wrote {path.name}")
    print(text_of({architecture: entry}))
    print(f"{len(measured)} of {len(chosen)} rows of {architecture} measured in {seconds:.0f} s")
    return 0 if measured else 1


if __name__ == "__main__":
    sys.exit(main())
