"""Does it help to learn the time constants of neurons, or to have different ones?

A recurrent network of LIF neurons learns to classify sequences in which time matters, with

  (i)   fixed time constants, the same for all neurons,
  (ii)  fixed time constants, drawn for each neuron from a gamma distribution of the same mean
        (draws below the length of a step are raised to it),
  (iii) one learned membrane and one learned synaptic time constant for all neurons, from (i) on,
  (iv)  learned time constants of each neuron, from (ii) on.

`--data DIR` has the tasks in its subfolders: `braille` (letters touched by a fingertip, as events),
`fsdd` (spoken digits) and `mnist` (images, row by row); _temporal_data.py says where these data
come from and which licences they have. Without, a small made-up task runs: intervals of time.

How it is kept fair:

- Runs with the same seed start with the same weights and see the same batches in all conditions;
  (ii) and (iv) have the same draws. Differences between conditions are tested in pairs of runs.
- Settings are chosen on a validation set, with seeds that the results do not contain. First (i)
  chooses the mean time constant for all conditions, from four. Then each condition chooses its
  learning rate from the same four with 16 runs: four seeds for each rate if the time constants
  are fixed, two seeds with each of two rates of the time constants if they are learned.
- The final runs learn from training and validation set. What counts is the accuracy on the
  test set after the last epoch; the test set chooses nothing.

All runs of a test share one test set: the intervals and p values are about training again, not
about other test data. Run it with `python examples/learning_constants.py`; README.md beside it has
the results. Ctrl-C loses only the runs that are not finished, `--resume` does the rest.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import _comparison_plots as plots
from _comparison import CONDITIONS, LEARNED, SETTINGS, Job, Settings, first_time_constants
from _paired import compare, format_p, holm, markdown_table
from _runs import RunFile, Workers, job_of
from _temporal_data import TASKS
from tqdm import tqdm


@dataclass(frozen=True)
class Grid:
    """What is tried on the validation set.

    Attributes:
        steps: Mean membrane time constants, in steps.
        lr: Learning rate of the weights while `steps` is chosen.
        lrs: Learning rates of the weights.
        neuron_lrs: Learning rates of learned time constants, parametrized by a bounded logarithm.
        seeds: Where time constants are learned, each is tried with each pair of rates; where they
            are fixed, there are as many more seeds per rate as there are `neuron_lrs`.
    """

    steps: Sequence[float]
    lr: float
    lrs: Sequence[float]
    neuron_lrs: Sequence[float]
    seeds: Sequence[int]

    def scale_jobs(self, task: str) -> list[Job]:
        """Returns the runs of (i) that choose the mean time constant."""
        return [
            Job(task, "scale", "fixed", seed, steps, self.lr)
            for steps in self.steps
            for seed in self.seeds
        ]

    def search_jobs(self, task: str, condition: str, steps: float) -> list[Job]:
        """Returns the runs that choose the learning rates of a condition: always as many."""
        neuron_lrs: Sequence[float | None] = self.neuron_lrs
        seeds = list(self.seeds)
        if condition not in LEARNED:
            neuron_lrs = [None]
            seeds = [
                seed + len(seeds) * k for k in range(len(self.neuron_lrs)) for seed in self.seeds
            ]
        return [
            Job(task, "search", condition, seed, steps, lr, neuron_lr)
            for lr in self.lrs
            for neuron_lr in neuron_lrs
            for seed in seeds
        ]


FULL = Grid(
    steps=(2.5, 5.0, 10.0, 20.0),
    lr=1e-2,
    lrs=(5e-3, 1e-2, 2e-2, 4e-2),
    neuron_lrs=(2e-3, 1e-2),
    seeds=(1001, 1002),
)
QUICK = Grid((5.0, 10.0), 1e-2, (1e-2,), (2e-3, 1e-2), (1001,))
DIFFERENCES = (  # of which mean accuracies are compared
    ("drawn", "fixed"),
    ("learned", "fixed"),
    ("learned_each", "fixed"),
    ("learned_each", "drawn"),
)


def best(runs: Sequence[dict[str, Any]]) -> Job:
    """Returns a run with the settings whose mean accuracy over the seeds is highest.

    Of equal ones it is the first.
    """
    accuracies: dict[Job, list[float]] = {}
    for run in runs:
        accuracies.setdefault(replace(job_of(run), seed=0), []).append(run["accuracy"][-1])
    return max(accuracies, key=lambda job: statistics.fmean(accuracies[job]))


class Experiment:
    """All runs of some tasks.

    Args:
        args: The command line.
        file: Where finished runs are.
        settings: How the runs of each task are done.
        grid: What is tried.
    """

    def __init__(
        self, args: argparse.Namespace, file: RunFile, settings: dict[str, Settings], grid: Grid
    ) -> None:
        self.args, self.file, self.settings, self.grid = args, file, settings, grid
        self.processor_seconds = 0.0  # of all runs that were needed, also earlier ones
        searched = len(CONDITIONS) * len(grid.search_jobs("", "fixed", 1.0))
        each = len(grid.scale_jobs("")) + searched + args.seeds * len(CONDITIONS)
        self.bar = tqdm(total=each * len(args.tasks), unit="run", smoothing=0.02)

    def run(self) -> dict[str, dict[str, list[dict[str, Any]]]]:
        """Does all runs that are not in the file, and returns the final ones."""
        tasks = self.args.tasks
        with Workers(self.args.jobs, self.args.threads) as workers, self.bar:
            jobs = {task: self.grid.scale_jobs(task) for task in tasks}
            self._finish("scale", [job for task in tasks for job in jobs[task]], workers)
            steps = {task: best(self._runs(jobs[task])).steps for task in tasks}
            for task in tasks:
                self.bar.write(f"{task}: mean time constant of the membranes {steps[task]:g} steps")

            searches = {
                (task, condition): self.grid.search_jobs(task, condition, steps[task])
                for task in tasks
                for condition in CONDITIONS
            }
            self._finish("search", [j for jobs in searches.values() for j in jobs], workers)
            finals = {}
            for (task, condition), jobs_of_search in searches.items():
                chosen = best(self._runs(jobs_of_search))
                self.bar.write(f"{task}, {CONDITIONS[condition]}: {describe_rates(chosen)}")
                finals[task, condition] = [
                    replace(chosen, stage="final", seed=seed) for seed in range(self.args.seeds)
                ]
            self._finish("final", [j for jobs in finals.values() for j in jobs], workers)
        return {
            task: {condition: self._runs(finals[task, condition]) for condition in CONDITIONS}
            for task in tasks
        }

    def _runs(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        return [self.file.runs[job] for job in jobs]

    def _finish(self, stage: str, jobs: Sequence[Job], workers: Workers) -> None:
        """Does those runs that are not in the file."""
        self.bar.set_description(stage)
        to_do = [job for job in jobs if job not in self.file.runs]
        done = len(jobs) - len(to_do)
        self.bar.n += done
        self.bar.last_print_n = self.bar.n
        self.bar.initial += done  # they say nothing about the time left
        for run in workers.train(to_do, self.settings, self.args.data):
            self.file.add(run)
            self.bar.set_postfix_str(f"{run['task']} {run['accuracy'][-1]:.1%}", refresh=False)
            self.bar.update()
        self.processor_seconds += sum(run["processor_seconds"] for run in self._runs(jobs))


def describe_rates(job: Job) -> str:
    """Says which learning rates a run has."""
    learned = "" if job.neuron_lr is None else f", of the time constants {job.neuron_lr:g}"
    return f"learning rate {job.lr:g}{learned}"


def accuracy_table(
    finals: dict[str, dict[str, list[dict[str, Any]]]], names: dict[str, str]
) -> str:
    """Returns mean and spread over the seeds, in percent."""
    rows = []
    for task, conditions in finals.items():
        for condition, runs in conditions.items():
            last = [100 * run["accuracy"][-1] for run in runs]
            spread = statistics.stdev(last) if len(last) > 1 else float("nan")
            rates = f"{runs[0]['lr']:g}"
            if runs[0]["neuron_lr"] is not None:
                rates += f"; {runs[0]['neuron_lr']:g}"
            rows.append(
                [
                    names[task],
                    CONDITIONS[condition],
                    f"{statistics.fmean(last):.2f}",
                    f"{spread:.2f}",
                    f"{min(last):.2f} to {max(last):.2f}",
                    rates,
                ]
            )
    head = ["Task", "Time constants", "Mean (%)", "SD", "Range", "Learning rates"]
    return markdown_table(head, rows)


def difference_table(
    finals: dict[str, dict[str, list[dict[str, Any]]]], names: dict[str, str]
) -> str:
    """Returns the differences between conditions, in percentage points."""
    rows, p_values = [], []
    for task, conditions in finals.items():
        for better, base in DIFFERENCES:
            result = compare(
                *([100 * run["accuracy"][-1] for run in conditions[c]] for c in (better, base))
            )
            numerals = [CONDITIONS[c].split()[0] for c in (better, base)]
            p_values.append(result.p)
            rows.append(
                [
                    names[task],
                    " − ".join(numerals),  # noqa: RUF001
                    f"{result.mean:+.2f}",
                    f"{result.low:+.2f} to {result.high:+.2f}",
                    f"{result.larger} of {result.pairs}",
                    format_p(result.p),
                ]
            )
    for row, p in zip(rows, holm(p_values), strict=True):
        row.append(format_p(p))
    head = ["Task", "Difference", "Mean", "95 % interval", "Better seeds", "p", "p (Holm)"]
    return markdown_table(head, rows)


def report(finals: dict[str, dict[str, list[dict[str, Any]]]], experiment: Experiment) -> list[str]:
    """Draws the figures and returns the lines of the tables."""
    args = experiment.args
    names = {task: TASKS[task].name for task in finals}
    first = {}
    for task, conditions in finals.items():
        job = job_of(conditions["fixed"][0])
        hidden = experiment.settings[task].hidden
        values = first_time_constants(job, TASKS[task].dt, hidden)
        first[task] = {name: value.item() for name, value in values.items()}
    plots.plot_learning(finals, names, args.out / "learning.png")
    plots.plot_time_constants(finals, names, first, args.out / "time_constants.png")
    return [
        f"Accuracy on the test set after the last epoch, {args.seeds} seeds:",
        "",
        accuracy_table(finals, names),
        "",
        "Differences in percentage points, paired by seed (t test; Holm: for all in the table):",
        "",
        difference_table(finals, names),
        "",
        f"{experiment.bar.total} runs, {experiment.processor_seconds / 60:.1f} processor minutes.",
    ]


def positive_int(text: str) -> int:
    """Reads a number that must be at least 1."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Does it help to learn time constants?")
    parser.add_argument("--data", type=Path, help="folder with braille, fsdd and mnist in it")
    parser.add_argument(
        "--tasks", nargs="+", choices=list(TASKS), help="default: those that --data has"
    )
    parser.add_argument("--seeds", type=positive_int, default=10, help="final runs per condition")
    parser.add_argument(
        "--epochs",
        type=positive_int,
        help="default: 30 for braille, 20 fsdd, 8 mnist, 10 intervals",
    )
    parser.add_argument("--out", type=Path, default=Path("learning_constants_out"))
    parser.add_argument(
        "--threads", type=positive_int, default=1, help="of each run; more are hardly faster"
    )
    parser.add_argument(
        "--jobs", type=positive_int, help="runs at the same time; default: one per processor"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the runs in --out")
    parser.add_argument("--quick", action="store_true", help="tiny runs, for tests")
    args = parser.parse_args(argv)
    args.jobs = args.jobs or max(1, (os.cpu_count() or 1) // args.threads)
    return args


def run_experiment(args: argparse.Namespace) -> None:
    """Does the runs, draws the figures, and prints and writes the tables.

    Raises:
        ValueError: If data are missing, or the results in `--out` cannot be continued.
    """
    if not args.tasks:
        args.tasks = [task for task in TASKS if args.data and (args.data / task).is_dir()]
        if args.data and not args.tasks:
            raise ValueError(f"{args.data} has none of the folders braille, fsdd and mnist")
        args.tasks = args.tasks or ["intervals"]
    changes: dict[str, Any] = {"epochs": 2, "hidden": 20, "sequences": 60} if args.quick else {}
    if args.epochs:
        changes["epochs"] = args.epochs
    settings = {task: replace(of_task, **changes) for task, of_task in SETTINGS.items()}
    common = {task: asdict(of_task) for task, of_task in settings.items()}
    file = RunFile(args.out / "runs.jsonl", common | {"quick": args.quick}, args.resume)
    experiment = Experiment(args, file, settings, QUICK if args.quick else FULL)
    text = "\n".join(report(experiment.run(), experiment))
    (args.out / "tables.md").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\nFigures, tables and all runs are in {args.out}")


def main(argv: list[str] | None = None) -> int:
    """Runs the example and returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse_arguments(argv)
    resume = shlex.join(["python", sys.argv[0], *(a for a in argv if a != "--resume"), "--resume"])
    try:
        run_experiment(args)
    except KeyboardInterrupt:
        print(f"\nStopped; finished runs are kept. Continue with\n  {resume}")
        return 130
    except (BrokenExecutor, ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
