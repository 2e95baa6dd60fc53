"""`benchmarks/run.py` writes rows that are complete, and none for a result that is wrong."""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
if not (BENCHMARKS / "run.py").exists():
    pytest.skip("benchmarks/ is not there", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))
import cases  # noqa: E402
import plot  # noqa: E402
import run  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # those of the peers are not ours
TINY = ["--quick", "--budget", "0.02", "--shape", "64,3,5"]


@pytest.fixture(autouse=True)
def _restore(monkeypatch):
    for name in ("NPROC", "JAX_PLATFORMS"):
        monkeypatch.setenv(name, "1" if name == "NPROC" else "cpu")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def read(path):
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def reference_but(change):
    """Returns the reference under the name "cpu", with its output changed."""

    def layer(problem):
        reference = cases.REFERENCE.layer(problem)

        def run_layer():
            z, v, i = reference()
            return change(problem, z), v, i

        return run_layer

    return cases.TorchCandidate("cpu", layer)


def test_rows_have_all_columns(tmp_path, capsys):
    out = tmp_path / "rows.csv"
    arguments = [*TINY, "--case", "lif_forward_backward", "--out", str(out), "--threads", "1"]
    assert run.main(arguments) == 0
    rows = read(out)
    assert {"copy", "reference"} <= {row["backend"] for row in rows}
    assert {row["mode"] for row in rows} == {"forward_backward", "backward"}
    for row in rows:
        assert tuple(row) == run.FIELDS
        assert all(row[name] for name in run.FIELDS if name != "memory_bytes"), row
        assert float(row["q20_ms"]) <= float(row["median_ms"]) <= float(row["q80_ms"])
        assert (row["T"], row["B"], row["N"], row["threads"]) == ("4", "3", "5", "1")
    assert "jax is absent: left out without --peers" in capsys.readouterr().out
    assert run.main(arguments) == 0  # appends, without a second header
    assert len(read(out)) == 2 * len(rows)


def flip_one_spike(problem, z):
    flip = torch.zeros_like(z)
    flip.view(-1)[7] = 1
    return (z - flip).abs()


def disturb_a_gradient(problem, z):
    v_th = problem.constants["v_th"]
    return z + 1e-2 * (v_th - v_th.detach())


@pytest.mark.parametrize("change", [flip_one_spike, disturb_a_gradient])
def test_a_wrong_result_writes_no_row(change, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(run.ALL_CANDIDATES, "cpu", reference_but(change))
    out = tmp_path / "rows.csv"
    assert run.main([*TINY, "--case", "lif_forward_backward", "--out", str(out)]) == 1
    assert read(out) == []
    assert "cpu differs from the reference" in capsys.readouterr().err


def test_a_right_result_under_the_same_name_writes_rows(tmp_path, monkeypatch):
    monkeypatch.setitem(run.ALL_CANDIDATES, "cpu", reference_but(lambda problem, z: z))
    out = tmp_path / "rows.csv"
    assert run.main([*TINY, "--case", "lif_forward_backward", "--out", str(out)]) == 0
    assert "cpu" in {row["backend"] for row in read(out)}


def test_saved_bytes_counts_each_storage_once():
    problem = cases.Problem(cases.Setting(4, 2, 3))

    def layer(problem):
        x = problem.x
        return lambda: (x * x.view(-1).view_as(x) * problem.constants["v_th"],)

    candidate = cases.TorchCandidate("square", layer)
    assert run.saved_bytes(candidate, problem) == 2 * problem.x.nbytes  # x, and x * x


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_holds_the_output():
    setting = cases.Setting(100, 16, 1024, constants="scalar")
    candidate = run.ALL_CANDIDATES["copy"]
    assert run.peak_memory(candidate, setting, "forward", 1) < 4 * 100 * 16 * 1024
    peak = run.peak_memory(cases.REFERENCE, setting, "forward", 1)
    assert peak > 4 * 100 * 16 * 1024


def test_verdicts():
    assert cases.Verdict("x floor", 1.4, 1.5).passed
    assert not cases.Verdict("x floor", 1.6, 1.5).passed
    assert not cases.Verdict("x cpu", 34.0, 35, at_most=False).passed
    assert "FAIL" in str(cases.Verdict("x cpu", 34.0, 35, at_most=False))


def test_device_slug():
    assert run.slug("Intel(R) Xeon(R) Processor") == "intel-xeon-processor"
    assert run.slug("AMD EPYC 7763 64-Core CPU @ 2.45GHz") == "amd-epyc-7763-64-core"


def test_plot_reads_the_rows(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    out = tmp_path / "rows.csv"
    assert run.main([*TINY, "--case", "lif_forward", "--out", str(out)]) == 0
    capsys.readouterr()
    assert plot.main([str(out)]) == 0
    assert re.search(
        r"\| lif_forward \| 4, 3, 5 \| forward \| reference( \(default malloc\))? \|",
        capsys.readouterr().out,
    )
    assert out.with_suffix(".png").stat().st_size > 1000
