"""Runs ``examples/parameter_learning.py``, interrupts it, and lets it continue."""

from __future__ import annotations

import gzip
import importlib
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import fused_lif

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
MNIST = ROOT.parent / "shared" / "data" / "mnist"
FIGURES = [
    "odd_firing.png",
    "digits_learning.png",
    "digits_constants.png",
    "digits_raster.png",
    "recurrent_learning.png",
    "recurrent_constants.png",
]
ODD_STEPS, EPOCH = 20, 4  # steps of a run of part (a), batches per epoch of the others, if --quick
DIGITS = 2 * ODD_STEPS  # batches before part (b)
RECURRENT = DIGITS + 2 * EPOCH  # before part (c)

for package in ("matplotlib", "numpy", "sklearn", "tqdm"):
    pytest.importorskip(package, reason=f"the examples need {package}")


@pytest.fixture(scope="module")
def example() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        return importlib.import_module("parameter_learning")


@pytest.fixture(scope="module")
def data_module(example: ModuleType) -> ModuleType:
    return sys.modules["_data"]


def draw_nothing(example: ModuleType, patch: pytest.MonkeyPatch) -> None:
    """Saves the seconds that drawing takes."""
    plots = example.plots
    patch.setattr(plots, "save_figure", lambda figure, path: plots.plt.close(figure))


@pytest.fixture
def no_figures(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_nothing(example, monkeypatch)


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Starts the example as a user would."""
    package = str(Path(fused_lif.__file__).parents[1])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([package, os.environ.get("PYTHONPATH", "")]),
        "PYTHONIOENCODING": "utf-8",
    }
    return subprocess.Popen(
        [sys.executable, "-u", str(EXAMPLES / "parameter_learning.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=environment,
        **options,
    )


def load_runs(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["runs"]


def without_times(value: Any) -> Any:
    """Removes the seconds, the only part of a checkpoint that two runs may not share."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k != "seconds"}
    if isinstance(value, list | tuple):
        return [without_times(v) for v in value]
    return value


def assert_same_bits(actual: Any, expected: Any, path: str = "") -> None:
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys(), path
        for key in expected:
            assert_same_bits(actual[key], expected[key], f"{path}/{key}")
    elif isinstance(expected, list):
        assert len(actual) == len(expected), path
        for k, (a, b) in enumerate(zip(actual, expected, strict=True)):
            assert_same_bits(a, b, f"{path}/{k}")
    elif isinstance(expected, torch.Tensor):
        assert actual.dtype == expected.dtype, path
        assert torch.equal(actual, expected), path
    else:
        assert actual == expected, path


def assert_same_runs(actual: Path, expected: Path) -> None:
    assert_same_bits(without_times(load_runs(actual)), without_times(load_runs(expected)))


def write_idx(path: Path, values: torch.Tensor, compress: bool = False) -> None:
    header = struct.pack(f">BBBB{values.dim()}I", 0, 0, 8, values.dim(), *values.shape)
    content = header + bytes(values.flatten().tolist())
    if compress:
        path = path.with_name(path.name + ".gz")
        content = gzip.compress(content)
    path.write_bytes(content)


@pytest.fixture
def tiny_mnist(tmp_path: Path) -> Path:
    """Four files with 40 + 20 random images of 5x5 pixels, two of the files compressed."""
    folder = tmp_path / "tiny_mnist"
    folder.mkdir()
    for name, images, compress in (("train", 40, True), ("t10k", 20, False)):
        pixels = torch.randint(256, (images, 5, 5))
        pixels[0, 0, :2] = torch.tensor([0, 255])
        write_idx(folder / f"{name}-images-idx3-ubyte", pixels, compress)
        write_idx(folder / f"{name}-labels-idx1-ubyte", torch.arange(images) % 10, compress)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(example: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a quick run of all parts."""
    out = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(example, patch)
        assert example.main(["--quick", "--out", str(out)]) == 0
    return out


def test_quick_run_from_the_shell(tmp_path):
    process = start("--quick", "--out", "results", cwd=tmp_path)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert "100%" in err  # the progress bar
    results = tmp_path / "results"
    assert {p.name for p in results.iterdir()} == {*FIGURES, "checkpoint.pt", "summary.txt"}
    for figure in FIGURES:
        content = (results / figure).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 10_000
    summary = (results / "summary.txt").read_text(encoding="utf-8")
    assert summary in out
    for words in ("Odd firing", "test accuracy", "s per epoch", "tau_mem_inv moved", "v_th moved"):
        assert words in summary
    assert "backend" in out


def test_learns_and_moves_the_constants(uninterrupted):
    runs = load_runs(uninterrupted)
    losses = {run: runs[run]["progress"]["losses"] for run in ("odd_fixed", "odd_learnable")}
    assert losses["odd_fixed"][0] == losses["odd_learnable"][0]
    for of_run in losses.values():
        assert len(of_run) == ODD_STEPS
        assert of_run[-1] < 0.9 * of_run[0]
    for run in ("digits", "recurrent"):
        history = runs[run]["progress"]["history"]
        assert history[-1]["loss"] < history[0]["loss"]
    both = ["tau_mem_inv", "v_th"]
    for run, names, number in (
        ("odd_learnable", ["tau_mem_inv"], 2),
        ("digits", both, 2),
        ("recurrent", both, 1),
    ):
        model = runs[run]["parts"]["model"]
        for name in names:
            layers = [values for path, values in model.items() if path.endswith(f".{name}")]
            assert len(layers) == number
            assert all(values.dim() == 1 and values.std() > 0 for values in layers)


@pytest.mark.parametrize(
    "batches",
    [
        pytest.param([7], id="first run"),
        pytest.param([ODD_STEPS], id="last step of the first run"),
        pytest.param([ODD_STEPS + 13], id="second run"),
        pytest.param([DIGITS + 1], id="first epoch"),
        pytest.param([DIGITS + EPOCH], id="end of the first epoch"),
        pytest.param([RECURRENT + 1], id="recurrent"),
        pytest.param([RECURRENT + 2 * EPOCH], id="very last batch"),
        pytest.param([ODD_STEPS - 1, ODD_STEPS + 3, EPOCH + 1, 2 * EPOCH], id="four times"),
    ],
)
def test_resume_gives_the_same_bits(batches, example, uninterrupted, tmp_path, capsys, no_figures):
    arguments = ["--quick", "--out", str(tmp_path)]
    for k, stop_after in enumerate(batches):
        again = ["--resume"] if k else []
        assert example.main([*arguments, *again, "--stop-after", str(stop_after)]) == 130
        assert "--resume" in capsys.readouterr().out
        assert not (tmp_path / "summary.txt").exists()
        torch.manual_seed(123)  # another process has other random numbers
    assert example.main([*arguments, "--resume"]) == 0
    assert_same_runs(tmp_path, uninterrupted)


def test_ctrl_c_keeps_a_usable_checkpoint(example, tmp_path, no_figures):
    arguments = ["--quick", "--part", "digits", "--epochs", "1000"]
    process = start(*arguments, "--out", str(tmp_path / "a"))
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch"):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "--resume" in out

    progress = load_runs(tmp_path / "a")["digits"]["progress"]
    batches = EPOCH * progress["epoch"] + progress["batch"]
    assert 0 < batches < 1000 * EPOCH
    stop = ["--stop-after", str(batches + 2)]
    assert example.main([*arguments, "--out", str(tmp_path / "b"), *stop]) == 130
    resume = ["--resume", "--stop-after", "2"]
    assert example.main([*arguments, "--out", str(tmp_path / "a"), *resume]) == 130
    assert_same_runs(tmp_path / "a", tmp_path / "b")


def test_second_ctrl_c_stops_at_once(example):
    before = signal.getsignal(signal.SIGINT)
    with example.StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lr", "0.5"], "lr 0.002 (now 0.5)"),
        (["--seed", "3"], "seed 0 (now 3)"),
        (["--epochs", "9"], "epochs 2 (now 9)"),
        (["--form", "loop"], "form 'sequence' (now 'loop')"),
        (["--backend", "reference"], "backend None (now 'reference')"),
    ],
)
def test_resume_refuses_other_settings(arguments, words, example, uninterrupted, capsys):
    path = uninterrupted / "checkpoint.pt"
    before = path.read_bytes()
    code = example.main(["--quick", "--out", str(uninterrupted), "--resume", *arguments])
    assert code == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert path.read_bytes() == before


def test_resume_needs_a_checkpoint(example, tmp_path, capsys):
    arguments = ["--quick", "--out", str(tmp_path), "--resume"]
    assert example.main(arguments) == 1
    assert "there is no checkpoint" in capsys.readouterr().err
    (tmp_path / "checkpoint.pt").write_bytes(b"something else")
    assert example.main(arguments) == 1
    assert "is not a checkpoint" in capsys.readouterr().err


def test_failed_write_keeps_the_last_checkpoint(example, tmp_path, monkeypatch):
    layer = torch.nn.Linear(2, 2)
    checkpoint = example.Checkpoint(tmp_path / "checkpoint.pt", {"seed": 0})
    checkpoint.save("run", {"batch": 1}, model=layer)

    def full_disk(content: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="no space left"):
        checkpoint.save("run", {"batch": 2}, model=layer)
    again = example.Checkpoint(tmp_path / "checkpoint.pt", {"seed": 0})
    again.load()
    assert again.restore("run", {}, model=torch.nn.Linear(2, 2)) == {"batch": 1}


def test_optimizer_has_a_learning_rate_per_constant(example):
    model = example.DigitNetwork(pixels=4, time_steps=3)
    optimizer = example.make_optimizer(model, lr=0.1, neuron_lr=0.01)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 1.0, 0.01]
    assert [len(group["params"]) for group in optimizer.param_groups] == [6, 2, 2]
    with torch.no_grad():
        model.lif1.p.tau_mem_inv.fill_(-3.0)
        model.lif2.p.v_th.fill_(99.0)
    optimizer.step()
    assert (model.lif1.p.tau_mem_inv == 10.0).all()
    assert (model.lif2.p.v_th == 5.0).all()


def run_recurrent(example: ModuleType, form: str, library: ModuleType) -> tuple[Any, torch.Tensor]:
    """Returns a network of part (c) with gradients, and its voltages.

    In float64: there, the order of a sum does not move a spike.
    """
    torch.manual_seed(0)
    network = example.RecurrentDigitNetwork(12, 32, form, library).network.double()
    voltages, _ = network((torch.rand(32, 5, 12) < 0.3).double())
    voltages.square().sum().backward()
    return network, voltages


def test_both_forms_are_the_same_network(example):
    loop, expected = run_recurrent(example, "loop", fused_lif)
    sequence, actual = run_recurrent(example, "sequence", fused_lif)
    torch.testing.assert_close(actual, expected)
    pairs = zip(sequence.parameters(), loop.parameters(), strict=True)
    for actual_p, expected_p in pairs:
        assert expected_p.grad.abs().sum() > 0
        torch.testing.assert_close(actual_p.grad, expected_p.grad)


def test_norse_runs_the_same_network(example):
    norse = pytest.importorskip("norse.torch")
    _, expected = run_recurrent(example, "loop", fused_lif)
    _, actual = run_recurrent(example, "loop", norse)
    torch.testing.assert_close(actual, expected)


def test_compares_with_norse(example, tiny_mnist, tmp_path, capsys):
    pytest.importorskip("norse.torch")
    arguments = ["--quick", "--part", "compare", "--data", str(tiny_mnist), "--out", str(tmp_path)]
    assert example.main([*arguments, "--batch-size", "20"]) == 0
    summary = (tmp_path / "summary.txt").read_text(encoding="utf-8").splitlines()
    assert "(MNIST, 2 batches of 20, 32 steps)" in summary[0]
    names = ["Norse, loop", "fused_lif, loop", "fused_lif, sequence"]
    assert [line.split("  ")[1] for line in summary[1:]] == names
    assert ["times as fast as Norse" in line for line in summary[1:]] == [False, True, True]
    assert not (tmp_path / "checkpoint.pt").exists()


def test_says_so_if_there_is_no_norse(example, tiny_mnist, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "norse", None)  # as if it were not installed
    monkeypatch.setitem(sys.modules, "norse.torch", None)
    arguments = ["--quick", "--part", "compare", "--data", str(tiny_mnist), "--out", str(tmp_path)]
    assert example.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("No comparison with Norse" in line for line in lines) == 1
    summary = (tmp_path / "summary.txt").read_text(encoding="utf-8")
    assert "fused_lif, sequence" in summary
    assert "as fast as" not in summary


def test_candidates_take_turns_on_the_same_batches(example):
    calls = []
    steps = {name: lambda batch, name=name: calls.append((name, int(batch))) for name in "ab"}
    seconds = example.time_in_turns(steps, torch.arange(5), turn=2, warm_up=1)
    timed = [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("b", 2), ("b", 3), ("a", 2), ("a", 3)]
    assert calls == [("a", 0), ("b", 0), *timed, ("a", 4), ("b", 4)]
    assert {name: len(times) for name, times in seconds.items()} == {"a": 5, "b": 5}


def test_normalises_with_the_training_set(data_module):
    images = torch.rand(50, 9)
    labels = torch.zeros(50, dtype=torch.long)
    digits = data_module.Digits("", images, labels, images[:7], labels[:7]).normalised()
    torch.testing.assert_close(digits.train_images.mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(digits.train_images.std(), torch.tensor(1.0))
    assert torch.equal(digits.test_images, digits.train_images[:7])


def test_reads_mnist_files(data_module, tiny_mnist):
    files = data_module.find_mnist(tiny_mnist)
    assert files["train_images"].suffix == ".gz"
    assert files["test_images"].suffix == ""
    digits = data_module.load_mnist(files)
    assert digits.name == "MNIST"
    assert digits.train_images.shape == (40, 25)
    assert digits.test_images.shape == (20, 25)
    assert digits.train_images[0, :2].tolist() == [0.0, 1.0]
    assert digits.train_labels.tolist() == [k % 10 for k in range(40)]


def test_finds_mnist_only_if_complete(data_module, tiny_mnist):
    (tiny_mnist / "t10k-labels-idx1-ubyte").unlink()
    assert data_module.find_mnist(tiny_mnist) is None


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: content[:-3], "must hold 20 values"),
        (lambda content: b"\x00\x00\x0d" + content[3:], "is not an IDX file of bytes"),
        (lambda content: b"", "is not an IDX file of bytes"),
        (lambda content: gzip.compress(content)[:-9], "is not a complete gzip file"),
    ],
    ids=["short", "floats", "empty", "half a gzip"],
)
def test_damaged_files_are_named(damage, words, example, tiny_mnist, tmp_path, capsys):
    path = tiny_mnist / "t10k-labels-idx1-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    arguments = ["--quick", "--part", "digits", "--data", str(tiny_mnist), "--out", str(tmp_path)]
    assert example.main(arguments) == 1
    error = capsys.readouterr().err
    assert words in error
    assert path.name in error


def test_trains_on_mnist_files(example, tiny_mnist, tmp_path, capsys, no_figures):
    arguments = ["--quick", "--part", "digits", "--data", str(tiny_mnist), "--out", str(tmp_path)]
    assert example.main(arguments) == 0
    assert "Digits (MNIST)" in capsys.readouterr().out


def test_says_so_if_there_is_no_mnist(example, tmp_path, capsys, no_figures):
    arguments = ["--quick", "--part", "digits", "--data", str(tmp_path), "--out", str(tmp_path)]
    assert example.main(arguments) == 0
    out = capsys.readouterr().out
    assert "does not hold MNIST" in out
    assert "Digits (scikit-learn digits)" in out


@pytest.mark.skipif(not MNIST.is_dir(), reason="MNIST is not in ../shared/data/mnist")
def test_real_mnist(example, data_module, tmp_path, capsys, no_figures):
    digits = data_module.load_mnist(data_module.find_mnist(MNIST))
    assert digits.train_images.shape == (60_000, 784)
    assert digits.test_images.shape == (10_000, 784)
    assert digits.train_labels.bincount().tolist()[:3] == [5923, 6742, 5958]
    arguments = ["--quick", "--part", "digits", "--data", str(MNIST), "--out", str(tmp_path)]
    assert example.main(arguments) == 0
    assert "Digits (MNIST)" in capsys.readouterr().out
