"""The clock: candidates take turns on it, by the time of the host or by CUDA events."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import torch
from problems import Call

TURN_SECONDS = 0.2  # short calls are repeated for so long in one turn, after one that warms up
MIN_TURNS, MIN_TURNS_SLOW, SLOW_SECONDS = 3, 2, 1.0
MAX_BATCHES = 20  # of a turn on a GPU


def host_seconds(call: Call, count: int) -> list[float]:
    """Returns the seconds of every repetition by the host's clock.

    The result of a repetition is dropped off the clock, before the next starts.
    """
    samples = []
    for _ in range(count):
        argument = call.before()
        start = time.perf_counter()
        result = call.run(argument)
        samples.append(time.perf_counter() - start)
        del argument, result
    return samples


def event_seconds(call: Call, count: int) -> list[float]:
    """Returns the seconds per repetition by CUDA events, of each batch of repetitions.

    Within a batch, the host queues one repetition after the other and never waits: what is slower
    counts, the launches from Python or the kernels. A batch is one repetition if its preparation
    runs kernels, and those keep the GPU busy while the host launches what is timed.
    """
    size = 1 if call.computes_before else -(-count // MAX_BATCHES)
    events = []
    torch.cuda.synchronize()
    for _ in range(max(1, min(count // size, MAX_BATCHES))):
        argument = call.before()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call.run(argument)
        for _ in range(size - 1):
            call.run(call.before())
        end.record()
        events.append((start, end))
        del argument
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 / size for start, end in events]


Clock = Callable[[Call, int], list[float]]


def measure(calls: list[Call], budget: float, clock: Clock) -> list[list[float]]:
    """Returns the seconds of every repetition of each call.

    The call that has had the least time so far goes next, until ``budget`` seconds are used up and
    each has had its minimum of turns.
    """
    samples: list[list[float]] = [[] for _ in calls]
    gc.collect()
    gc.disable()
    try:
        repeats, turns_due = [], []
        for call in calls:  # warm up
            start, seconds = time.perf_counter(), min(clock(call, 1))
            while seconds < SLOW_SECONDS and time.perf_counter() - start < 0.1:
                seconds = min(clock(call, 1))
            repeats.append(max(1, min(1000, int(TURN_SECONDS / max(seconds, 1e-9)))))
            turns_due.append(MIN_TURNS_SLOW if seconds > SLOW_SECONDS else MIN_TURNS)
        spent, turns = [0.0] * len(calls), [0] * len(calls)
        while sum(spent) < budget or any(n < due for n, due in zip(turns, turns_due, strict=True)):
            late = [k for k in range(len(calls)) if turns[k] < turns_due[k]]
            pool = late if sum(spent) >= budget else range(len(calls))
            k = min(pool, key=spent.__getitem__)
            start = time.perf_counter()
            if repeats[k] > 1:
                clock(calls[k], 1)  # brings its data back into the caches
            samples[k] += clock(calls[k], repeats[k])
            spent[k] += time.perf_counter() - start
            turns[k] += 1
    finally:
        gc.enable()
    return samples


def quantiles_ms(samples: list[float]) -> dict[str, float]:
    """Returns the columns of the time, in milliseconds."""
    q = torch.tensor(samples, dtype=torch.float64).quantile(torch.tensor([0.2, 0.5, 0.8]).double())
    q20, median, q80 = (float(f"{1e3 * value:.5g}") for value in q)
    return {"median_ms": median, "q20_ms": q20, "q80_ms": q80}
