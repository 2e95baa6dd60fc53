"""Does runs in several processes and keeps what came out in a file, so that none is done twice."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from _comparison import Job, Settings, train
from _training import differences


class RunFile:
    """A file of JSON lines: first what all runs have in common, then one line for each run.

    Args:
        path: The file.
        common: What the results depend on; a file made with something else is refused.
        resume: Go on with the file, if there is one.

    Raises:
        ValueError: If there is a file and `resume` is false, or if it cannot be continued.
    """

    def __init__(self, path: Path, common: dict[str, Any], resume: bool) -> None:
        self.path = path
        self.runs: dict[Job, dict[str, Any]] = {}
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._append(common, "x")
        elif resume:
            self._read(json.loads(json.dumps(common)))
        else:
            raise ValueError(f"{path} exists: continue it with --resume, or choose another --out")

    def _read(self, common: dict[str, Any]) -> None:
        whole, _, unfinished = self.path.read_text(encoding="utf-8").rpartition("\n")
        try:
            there, *runs = [json.loads(line) for line in whole.splitlines()]
            self.runs = {job_of(run): run for run in runs}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.path} is not a file of runs of this example") from error
        different = differences(there, common)
        if different:
            raise ValueError(
                f"cannot resume {self.path}, which was made with {', '.join(different)}: "
                "repeat its settings, or choose another --out"
            )
        if unfinished:  # a line that an interruption cut off
            with self.path.open("r+b") as file:
                file.truncate(len(whole.encode()) + 1)

    def add(self, run: dict[str, Any]) -> None:
        """Writes a run; from then on it is safe."""
        self._append(run, "a")
        self.runs[job_of(run)] = run

    def _append(self, line: dict[str, Any], mode: str) -> None:
        with self.path.open(mode, encoding="utf-8") as file:
            file.write(json.dumps(line, separators=(",", ":")) + "\n")
            file.flush()
            os.fsync(file.fileno())


def job_of(run: dict[str, Any]) -> Job:
    """Returns which run this is."""
    return Job(**{field.name: run[field.name] for field in fields(Job)})


class Workers:
    """Processes that train; with one, it is this process itself.

    Args:
        number: How many runs are done at the same time.
        threads: Of each.
    """

    def __init__(self, number: int, threads: int) -> None:
        self.executor = None
        self.threads_before = torch.get_num_threads()
        if number > 1:
            spawn = multiprocessing.get_context("spawn")  # threads of torch do not survive a fork
            self.executor = ProcessPoolExecutor(number, spawn, _start_worker, (threads,))
        else:
            torch.set_num_threads(threads)

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        if self.executor:
            self.executor.shutdown(cancel_futures=True)
        torch.set_num_threads(self.threads_before)

    def train(
        self, jobs: Sequence[Job], settings: dict[str, Settings], data: Path | None
    ) -> Iterator[dict[str, Any]]:
        """Does runs and returns each as soon as it is finished."""
        if not self.executor:
            for job in jobs:
                yield train(job, settings[job.task], data)
            return
        futures: list[Future[dict[str, Any]]] = [
            self.executor.submit(train, job, settings[job.task], data) for job in jobs
        ]
        for future in as_completed(futures):
            yield future.result()


def _start_worker(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends at Ctrl-C without a traceback
    torch.set_num_threads(threads)
