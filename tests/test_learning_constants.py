"""Runs ``examples/learning_constants.py``, interrupts it, and recalculates what its tables say."""

from __future__ import annotations

import importlib
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import fused_lif

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
DATA = ROOT.parent / "shared" / "data"
ARGUMENTS = ["--quick", "--seeds", "2"]
RUNS = 2 + 4 * 2 + 4 * 2  # of a quick experiment with two seeds: scale, search, final

for package in ("matplotlib", "scipy", "tqdm"):
    pytest.importorskip(package, reason=f"the examples need {package}")
np = pytest.importorskip("numpy", reason="the examples need numpy")


def load_module(name: str) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        return importlib.import_module(name)


example = load_module("learning_constants")
comparison, data_module, paired, runs_module = (
    load_module(name) for name in ("_comparison", "_temporal_data", "_paired", "_runs")
)
CONDITIONS = list(comparison.CONDITIONS)
TINY = replace(comparison.SETTINGS["intervals"], epochs=2, hidden=12, sequences=40)


def job(condition: str, seed: int = 3, stage: str = "final", **changes: Any) -> Any:
    neuron_lr = 0.01 if condition in comparison.LEARNED else None
    made = comparison.Job("intervals", stage, condition, seed, 8.0, 0.01, neuron_lr)
    return replace(made, **changes)


def classifier(condition: str, seed: int = 3, **changes: Any) -> Any:
    data = comparison.load("intervals", None, 40)
    return comparison.SequenceClassifier(job(condition, seed, **changes), data, TINY)


def read_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]


def without_times(lines: list[dict[str, Any]]) -> list[str]:
    """Removes the seconds, and the order, in which processes finish by chance."""
    return sorted(
        json.dumps({k: v for k, v in line.items() if "seconds" not in k}) for line in lines
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a quick experiment."""
    out = tmp_path_factory.mktemp("finished") / "out"
    threads = torch.get_num_threads()
    assert example.main([*ARGUMENTS, "--jobs", "1", "--out", str(out)]) == 0
    assert torch.get_num_threads() == threads  # other tests need the bits of their number
    return out


@pytest.fixture
def unfinished(finished: Path, tmp_path: Path) -> Path:
    """A copy of that folder as it is after an interruption: the last line is cut off."""
    out = tmp_path / "unfinished"
    out.mkdir()
    lines = (finished / "runs.jsonl").read_text().splitlines(keepends=True)
    (out / "runs.jsonl").write_text("".join(lines[:7]) + lines[7][:30])
    return out


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example.plots, "save_figure", lambda figure, path: None)


def test_experiment_leaves_runs_tables_and_figures(finished):
    assert {path.name for path in finished.iterdir()} == {
        "runs.jsonl",
        "tables.md",
        "learning.png",
        "time_constants.png",
    }
    first, *runs = read_lines(finished)
    assert first["quick"] is True
    assert first["intervals"]["epochs"] == 2
    assert len(runs) == RUNS
    final = [run for run in runs if run["stage"] == "final"]
    assert [run["seed"] for run in final] == 4 * [0, 1]
    for run in final:
        assert len(run["accuracy"]) == len(run["loss"]) == 2
        assert all(0 <= accuracy <= 1 for accuracy in run["accuracy"])
        size = 20 if run["condition"] in comparison.DRAWN else 1
        assert len(run["tau_mem"]) == len(run["tau_syn"]) == size
    tables = (finished / "tables.md").read_text(encoding="utf-8")
    assert tables.count("| Intervals |") == 4 + 4


def test_table_shows_the_last_accuracies(finished):
    tables = (finished / "tables.md").read_text(encoding="utf-8")
    for condition, label in comparison.CONDITIONS.items():
        last = [
            100 * run["accuracy"][-1]
            for run in read_lines(finished)[1:]
            if (run["stage"], run["condition"]) == ("final", condition)
        ]
        (row,) = (line for line in tables.splitlines() if label in line)
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[2] == f"{sum(last) / 2:.2f}"
        assert cells[3] == f"{abs(last[0] - last[1]) / math.sqrt(2):.2f}"
        assert cells[4] == f"{min(last):.2f} to {max(last):.2f}"


def test_two_processes_started_from_the_shell_do_the_same_runs(finished, tmp_path):
    package = str(Path(fused_lif.__file__).parents[1])
    arguments = [*ARGUMENTS, "--jobs", "2", "--out", "results"]
    process = subprocess.run(
        [sys.executable, str(EXAMPLES / "learning_constants.py"), *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": package, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    assert "| Intervals | (iv) learned per neuron" in process.stdout
    assert without_times(read_lines(tmp_path / "results")) == without_times(read_lines(finished))


def test_resume_does_only_what_is_missing(finished, unfinished, monkeypatch, no_figures):
    trained = []

    def train(job: Any, *arguments: Any) -> dict[str, Any]:
        trained.append(job)
        return comparison.train(job, *arguments)

    monkeypatch.setattr(runs_module, "train", train)
    arguments = [*ARGUMENTS, "--jobs", "1", "--out", str(unfinished), "--resume"]
    assert example.main(arguments) == 0
    assert len(trained) == RUNS - 6
    assert without_times(read_lines(unfinished)) == without_times(read_lines(finished))
    assert (unfinished / "tables.md").is_file()


def test_tables_are_redrawn_without_training(finished, monkeypatch, no_figures):
    before = (finished / "tables.md").read_text(encoding="utf-8")
    monkeypatch.setattr(runs_module, "train", None)
    (finished / "tables.md").unlink()
    assert example.main([*ARGUMENTS, "--jobs", "1", "--out", str(finished), "--resume"]) == 0
    assert (finished / "tables.md").read_text(encoding="utf-8") == before


def test_ctrl_c_keeps_finished_runs_and_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    trained = []

    def train(job: Any, *arguments: Any) -> dict[str, Any]:
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(job)
        return comparison.train(job, *arguments)

    monkeypatch.setattr(runs_module, "train", train)
    assert example.main([*ARGUMENTS, "--jobs", "1", "--out", str(tmp_path)]) == 130
    assert len(read_lines(tmp_path)) == 1 + 3
    assert "--resume" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([], "exists: continue it with --resume, or choose another --out"),
        (["--resume", "--epochs", "3"], "which was made with braille"),
        (["--resume", "--data", "nowhere"], "nowhere has none of the folders braille"),
    ],
)
def test_what_cannot_be_continued_is_refused(changes, message, unfinished, capsys):
    before = (unfinished / "runs.jsonl").read_bytes()
    arguments = [*ARGUMENTS, "--jobs", "1", "--out", str(unfinished), *changes]
    assert example.main(arguments) == 1
    assert message in capsys.readouterr().err
    assert (unfinished / "runs.jsonl").read_bytes() == before


def test_data_that_are_not_given_are_asked_for(tmp_path, capsys):
    assert example.main(["--tasks", "braille", "--jobs", "1", "--out", str(tmp_path)]) == 1
    assert "the task braille needs --data" in capsys.readouterr().err


def test_other_files_are_refused(tmp_path, capsys):
    (tmp_path / "runs.jsonl").write_text("task,seed\nbraille,1\n")
    assert example.main([*ARGUMENTS, "--out", str(tmp_path), "--resume"]) == 1
    assert "is not a file of runs of this example" in capsys.readouterr().err


def test_difference_is_that_calculated_by_hand():
    result = paired.compare([3.0, 5.0, 4.0, 8.0], [1.0, 4.0, 4.0, 5.0])  # 2, 1, 0 and 3
    assert result.mean == 1.5
    assert (result.larger, result.pairs) == (3, 4)
    error = math.sqrt(5 / 3) / 2
    half = 3.182446305 * error  # 97.5 % quantile of Student's t, three degrees of freedom
    assert result.low == pytest.approx(1.5 - half, abs=1e-7)
    assert result.high == pytest.approx(1.5 + half, abs=1e-7)
    t = 1.5 / error / math.sqrt(3)
    p = 1 - 2 / math.pi * (math.atan(t) + t / (1 + t**2))  # exact for three degrees
    assert result.p == pytest.approx(p, rel=1e-9)


def test_difference_depends_on_the_pairs():
    first, second = [1.0, 2.0, 3.0, 4.0], [1.1, 2.2, 3.1, 4.2]
    assert paired.compare(second, first).p < 0.02
    assert paired.compare(second[::-1], first).p > 0.5


def test_difference_of_special_samples():
    equal = paired.compare([0.5, 0.75], [0.5, 0.75])
    assert (equal.mean, equal.low, equal.high, equal.p, equal.larger) == (0, 0, 0, 1, 0)
    shifted = paired.compare([1.5, 1.75], [0.5, 0.75])
    assert (shifted.mean, shifted.low, shifted.high, shifted.p) == (1, 1, 1, 0)
    single = paired.compare([2.0], [1.0])
    assert single.mean == 1
    assert math.isnan(single.p)
    assert math.isnan(single.low)
    for first, second in (([], []), ([1.0], [1.0, 2.0])):
        with pytest.raises(ValueError, match="must be pairs"):
            paired.compare(first, second)


def test_holm_corrects_as_by_hand():
    assert paired.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert paired.holm([0.5, 0.6]) == [1.0, 1.0]
    corrected = paired.holm([0.01, math.nan])
    assert corrected[0] == 0.02
    assert math.isnan(corrected[1])


def test_best_settings_have_the_highest_mean_over_seeds():
    def run(lr: float, seed: int, accuracy: float) -> dict[str, Any]:
        return vars(job("fixed", seed, "search", lr=lr)) | {"accuracy": [0.99, accuracy]}

    runs = [run(0.1, 1, 0.9), run(0.1, 2, 0.5), run(0.2, 1, 0.7), run(0.2, 2, 0.8)]
    assert example.best(runs).lr == 0.2
    assert example.best(runs[:2]).lr == 0.1


@pytest.mark.parametrize("grid", [example.FULL, example.QUICK])
def test_all_conditions_search_as_much_with_other_seeds(grid):
    searches = {c: grid.search_jobs("mnist", c, 5.0) for c in CONDITIONS}
    assert len({len(jobs) for jobs in searches.values()}) == 1
    assert len({frozenset(j.lr for j in jobs) for jobs in searches.values()}) == 1
    everything = [*grid.scale_jobs("mnist"), *(j for jobs in searches.values() for j in jobs)]
    assert len(set(everything)) == len(everything)
    assert min(j.seed for j in everything) > 1000
    assert {j.stage for j in everything} == {"scale", "search"}


def test_weights_are_the_same_in_all_conditions():
    weights = {}
    for condition in CONDITIONS:
        model = classifier(condition)
        weights[condition] = [
            model.hidden.input_weights,
            model.hidden.recurrent_weights,
            model.linear.weight,
            model.linear.bias,
            *(constant for constant in model.readout.p if isinstance(constant, torch.Tensor)),
        ]
    for condition in CONDITIONS[1:]:
        for actual, expected in zip(weights[condition], weights["fixed"]):
            assert torch.equal(actual, expected)
    other = classifier("fixed", seed=4)
    assert not torch.equal(other.hidden.input_weights, weights["fixed"][0])


def test_time_constants_start_the_same_in_pairs_of_conditions():
    first = {c: comparison.first_time_constants(job(c), 0.001, 4000) for c in CONDITIONS}
    for name, mean in (("tau_mem", 0.008), ("tau_syn", 0.004)):
        assert first["fixed"][name].item() == pytest.approx(mean)
        assert torch.equal(first["learned"][name], first["fixed"][name])
        drawn = first["drawn"][name]
        assert torch.equal(first["learned_each"][name], drawn)
        assert drawn.mean().item() == pytest.approx(mean, rel=0.05)
        assert drawn.std().item() == pytest.approx(mean / math.sqrt(3), rel=0.1)
        assert drawn.min() >= 0.00105
    other = comparison.first_time_constants(job("drawn", 4), 0.001, 4000)
    assert not torch.equal(other["tau_mem"], first["drawn"]["tau_mem"])


@pytest.mark.parametrize("condition", CONDITIONS)
def test_network_has_those_time_constants(condition):
    actual = classifier(condition).time_constants()
    expected = comparison.first_time_constants(job(condition), 0.001, TINY.hidden)
    for name, values in expected.items():
        torch.testing.assert_close(torch.tensor(actual[name]), values.view(-1), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_only_learned_time_constants_change(condition):
    model = classifier(condition)
    before, weights = model.time_constants(), model.hidden.input_weights.detach().clone()
    optimizer = comparison.make_optimizer(model, job(condition))
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == ([0.01, 0.01] if condition in comparison.LEARNED else [0.01])
    data = comparison.load("intervals", None, 40)
    scores, spikes = model(data.batch(data.train)[0])
    assert 0.01 < spikes.mean() < 0.5
    torch.nn.functional.cross_entropy(scores, data.labels[data.train]).backward()
    optimizer.step()
    assert not torch.equal(model.hidden.input_weights, weights)
    for name, values in model.time_constants().items():
        changed = [a != b for a, b in zip(values, before[name])]
        assert all(changed) if condition in comparison.LEARNED else not any(changed)


def test_voltages_without_spikes_have_the_size_of_the_threshold():
    model = classifier("drawn")
    data = comparison.load("intervals", None, 40)
    p = fused_lif.LIParameters(tau_syn_inv=1000 / 4.0, tau_mem_inv=1000 / 8.0)
    current = data.batch(data.train)[0] @ model.hidden.input_weights.T
    voltages, _ = fused_lif.LI(p, dt=0.001)(current)
    assert voltages.std().item() == pytest.approx(1.0, rel=0.1)


def record_batches(monkeypatch: pytest.MonkeyPatch, condition: str, stage: str) -> list[list[int]]:
    seen = []
    original = data_module.Sequences.batch

    def batch(self: Any, indices: torch.Tensor) -> Any:
        seen.append(indices.tolist())
        return original(self, indices)

    monkeypatch.setattr(data_module.Sequences, "batch", batch)
    comparison.train(job(condition, stage=stage), TINY, None)
    monkeypatch.undo()
    return seen


def test_batches_are_the_same_in_all_conditions(monkeypatch):
    seen = [record_batches(monkeypatch, condition, "final") for condition in CONDITIONS]
    assert all(batches == seen[0] for batches in seen)
    epochs = seen[0][1:]  # the first sets the size of the weights
    assert epochs[: len(epochs) // 2] != epochs[len(epochs) // 2 :]


def test_search_never_sees_the_test_set(monkeypatch):
    data = comparison.load("intervals", None, 40)
    train, validation, test = (
        set(indices.tolist()) for indices in (data.train, data.validation, data.test)
    )
    search = record_batches(monkeypatch, "learned_each", "search")
    assert set().union(*search) == train | validation
    assert set().union(*search[:-1]) == train
    final = record_batches(monkeypatch, "learned_each", "final")
    assert set().union(*final) == train | validation | test
    assert set(final[-1]) == test
    assert all(set(batch) <= train | validation or set(batch) == test for batch in final)


def assert_split(data: Any, sequences: int) -> None:
    """The three sets share nothing, leave nothing out, and all of them have all classes."""
    together = torch.cat([data.train, data.validation, data.test])
    assert torch.equal(together.sort().values, torch.arange(sequences))
    for indices in (data.train, data.validation, data.test):
        assert data.labels[indices].unique().tolist() == list(range(data.classes))


def test_intervals_are_told_by_time_alone():
    data = data_module.make_intervals()
    assert_split(data, 1500)
    assert data.inputs.shape == (50, 1500, 16)
    pulses = data.inputs.view(50, 1500, 2, 8).sum(3)
    first, second = pulses.argmax(0).unbind(1)
    for label, interval in enumerate([2, 4, 8, 16, 32]):
        of_class = data.labels == label
        assert (second - first)[of_class].median() == interval
        assert pulses.sum((0, 2))[of_class].mean().item() == pytest.approx(16.6, rel=0.05)
    again = data_module.make_intervals()
    assert torch.equal(again.inputs, data.inputs)
    assert not torch.equal(data_module.make_intervals(seed=1).inputs, data.inputs)


def test_braille_events_fall_into_their_bins(tmp_path):
    labels = np.repeat(np.arange(2), 90)
    trials = len(labels)
    times = np.tile(np.array([0.004, 0.0251, 0.0252, 1.3], np.float32), trials)
    channels = np.tile(np.array([0, 23, 23, 7], np.uint8), trials)
    np.savez(
        tmp_path / "braille_th10_events.npz",
        offsets=4 * np.arange(trials + 1),
        t=times,
        channel=channels,
        label=labels.astype(np.uint8),
    )
    data = data_module.load_braille(tmp_path)
    assert data.inputs.shape == (52, trials, 24)
    assert data.dt == 0.025
    assert data.inputs.sum() == 4 * trials
    assert (data.inputs[0, :, 0] == 1).all()
    assert (data.inputs[1, :, 23] == 2).all()
    assert (data.inputs[51, :, 7] == 1).all()
    assert_split(data, trials)
    assert data.test.tolist() == [*range(50, 90), *range(140, 180)]
    assert data.validation.tolist() == [*range(10, 50), *range(100, 140)]


def test_delta_code_follows_the_signal():
    signal = np.array([[0.0], [0.9], [2.1], [2.0], [-0.5]])
    spikes = data_module.delta_code(signal)
    assert spikes[:, 0].tolist() == [0, 0, 2, 0, 0]
    assert spikes[:, 1].tolist() == [0, 0, 0, 0, 2]


def test_tone_is_loudest_in_its_mel_band(tmp_path):
    rate = data_module.SPEECH_RATE
    tone = np.sin(2 * np.pi * 1000 * np.arange(rate // 2) / rate)
    energy = data_module.log_mel(tone, data_module.mel_bank())
    assert energy.shape == (1 + (rate // 2 - 256) // 80, 40)
    mel = [2595 * math.log10(1 + hertz / 700) for hertz in (50, 1000, rate / 2)]
    band = (mel[1] - mel[0]) / (mel[2] - mel[0]) * 41 - 1
    assert energy.mean(0).argmax() == pytest.approx(band, abs=0.51)
    # A recording that begins with silence: its spikes rise when the tone does, in that band.
    audio = np.concatenate([np.zeros(rate // 10), 8000 * tone]).astype(np.int16)
    np.savez(
        tmp_path / "fsdd.npz",
        audio=np.tile(audio, 15),
        offsets=len(audio) * np.arange(16),
        label=np.zeros(15, np.uint8),
        index=np.arange(15, dtype=np.uint8),
    )
    data = data_module.load_speech(tmp_path)
    assert data.inputs.shape == (80, 15, 80)
    assert_split(data, 15)
    assert data.test.tolist() == [0, 1, 2, 3, 4]
    assert data.validation.tolist() == list(range(5, 14))
    spikes = data.inputs[:, 0]
    assert spikes[:7].sum() == 0
    assert spikes[7:12, :40].sum(0).argmax() == round(band)
    assert spikes[60:].sum() == 0


def write_idx(path: Path, values: np.ndarray) -> None:
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(bytes([0, 0, 8, values.ndim]) + sizes + values.astype(np.uint8).tobytes())


def test_rows_come_one_after_the_other(tmp_path):
    images = np.arange(20 * 25).reshape(20, 5, 5) % 256
    for name in ("train", "t10k"):
        write_idx(tmp_path / f"{name}-images-idx3-ubyte", images)
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte", np.arange(20) % 2)
    data = data_module.load_rows(tmp_path, images=10)
    assert data.inputs.shape == (5, 30, 5)
    expected = torch.from_numpy(images[3, 1] / 255).float()
    torch.testing.assert_close(data.inputs[1, 3], expected)
    torch.testing.assert_close(data.inputs[1, 13], expected)  # the fourth to test with
    assert_split(data, 30)
    assert data.validation.tolist() == [8, 9]
    assert data.test.tolist() == list(range(10, 30))


@pytest.mark.parametrize("task", ["braille", "fsdd", "mnist"])
def test_missing_files_are_named(task, tmp_path):
    with pytest.raises(ValueError, match="does not hold"):
        data_module.load_task(task, tmp_path)


@pytest.mark.parametrize(
    ("task", "shape", "classes", "test"),
    [
        ("braille", (52, 5400, 24), 27, 1080),
        ("fsdd", (80, 3000, 80), 10, 300),
        ("mnist", (28, 30000, 28), 10, 10000),
    ],
)
def test_real_data(task, shape, classes, test):
    if not (DATA / task).is_dir():
        pytest.skip(f"{task} is not in ../shared/data")
    data = data_module.load_task(task, DATA)
    assert data.inputs.shape == shape
    assert data.classes == classes
    assert len(data.test) == test
    assert data.dt == data_module.TASKS[task].dt
    assert_split(data, shape[1])
    if task != "mnist":
        counts = data.labels.bincount()
        assert (counts == counts[0]).all()
        assert (data.labels[data.test].bincount() == test // classes).all()
    if task == "braille":
        assert data.inputs.sum() == 221107


def test_tables_of_the_readme_are_those_of_the_committed_runs(tmp_path, monkeypatch, no_figures):
    results = EXAMPLES / "learning_constants_results"
    shutil.copy(results / "runs.jsonl", tmp_path)
    monkeypatch.setattr(runs_module, "train", None)
    tasks = ["--tasks", "braille", "fsdd", "mnist"]
    assert example.main([*tasks, "--jobs", "1", "--out", str(tmp_path), "--resume"]) == 0
    tables = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert tables == (results / "tables.md").read_text(encoding="utf-8")
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    rows = [line for line in tables.splitlines() if line.startswith("|")]
    assert len(rows) == 2 * (2 + 12)
    assert all(row in readme for row in rows)
