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
TINY_RECURRENT = ["--shape", "64,3,7,5"]


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
    rows, empty = read(out), ("memory_bytes", "input_size")
    assert {"copy", "reference"} <= {row["backend"] for row in rows}
    assert {row["mode"] for row in rows} == {"forward_backward", "backward"}
    for row in rows:
        assert tuple(row) == run.FIELDS
        assert all(row[name] for name in run.FIELDS if name not in empty), row
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


def disturb_a_weight_gradient(problem, z):
    weight = problem.weights["recurrent_weights"][0, 0]
    return z + 1e-2 * (weight - weight.detach())


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("lif_forward_backward", flip_one_spike),
        ("lif_forward_backward", disturb_a_gradient),
        ("recurrent", flip_one_spike),
        ("recurrent", disturb_a_weight_gradient),
    ],
)
def test_a_wrong_result_writes_no_row(case, change, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(run.ALL_CANDIDATES, "cpu", reference_but(change))
    out = tmp_path / "rows.csv"
    assert run.main([*TINY, *TINY_RECURRENT, "--case", case, "--out", str(out)]) == 1
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


def test_recurrent_verdicts():
    T, B, input_size, N = cases.RECURRENT[0]
    sizes = {"case": "recurrent", "T": T, "B": B, "input_size": input_size, "N": N}
    rows = [
        sizes | {"mode": "forward_backward", "backend": backend, "median_ms": ms}
        for backend, ms in (("gemm", 10.0), ("cpu", 11.0), ("module", 12.0), ("norse", 33.0))
    ]
    gemm, cpu, module, norse = (cases.judge_baselines(row, rows) for row in rows)
    assert gemm is None
    assert (cpu.value, cpu.limit, cpu.label, cpu.passed) == (1.1, 1.2, "x gemm", True)
    assert (norse.value, norse.limit, norse.passed) == (3.0, 4, False)
    assert module.limit is None
    kept = 4 * T * B * (input_size + 2 * N)
    row = sizes | {"mode": "saved", "backend": "cpu", "dtype": "float32"}
    assert cases.judge_memory(row | {"memory_bytes": 1.12 * kept}, []).passed
    assert not cases.judge_memory(row | {"memory_bytes": 1.13 * kept}, []).passed


@pytest.mark.parametrize("shape", cases.RECURRENT)
def test_recurrent_problem_is_busy_and_its_sums_are_exact(shape):
    T, _, input_size, N = shape
    problem = cases.Problem(cases.Setting(T, 4, N, model="recurrent", input_size=input_size))
    assert 0.04 < problem.x.mean() < 0.06
    with torch.no_grad():
        z, *_ = cases.REFERENCE.layer(problem)()
        assert 0.03 < z.mean() < 0.08
        for spikes, weights in zip((problem.x, z), problem.weights.values(), strict=True):
            exact = spikes.double() @ weights.double().T
            assert torch.equal((spikes @ weights.T).double(), exact)


def test_a_moved_spike_takes_its_batch_element_out_of_the_comparison():
    setting = cases.Setting(8, 16, 5, model="recurrent", input_size=7)
    problem = cases.Problem(setting)
    expected = cases.REFERENCE.results(problem, "forward_backward")
    actual = {name: value.clone() for name, value in expected.items()}
    actual["z"][3, 2, 1] = 1 - actual["z"][3, 2, 1]
    actual["grad x"][:, 2] += 1
    actual["grad input_weights"] += 1
    peer = cases.TorchCandidate("peer", cases.REFERENCE.layer, exact=False)
    assert run.differences(actual, expected, peer, setting) == []
    actual["grad x"][:, 4] += 1
    (found,) = run.differences(actual, expected, peer, setting)
    assert found.startswith("grad x")
    actual["z"][3] = 1 - actual["z"][3]
    assert "100.00% of the batch elements" in run.differences(actual, expected, peer, setting)[0]


def test_rows_of_a_file_without_a_new_column_stay(tmp_path):
    out, row = tmp_path / "rows.csv", dict.fromkeys(run.FIELDS, "1")
    older = {name: value for name, value in row.items() if name != "input_size"}
    out.write_text(f"{','.join(older)}\n{','.join(older.values())}\n")
    assert plot.last_runs([out]) == [older | {"input_size": ""}]
    run.append(out, [row])
    run.append(out, [row])
    assert read(out) == [row | {"input_size": ""}, row, row]
    assert out.read_text().count("median_ms") == 1


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


def test_plot_shows_the_recurrent_rows(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    out = tmp_path / "rows.csv"
    assert run.main([*TINY, *TINY_RECURRENT, "--case", "recurrent", "--out", str(out)]) == 0
    assert "(4, 3, 5 → 5)" in capsys.readouterr().out
    assert {"gemm", "reference"} <= {row["backend"] for row in read(out)}
    assert plot.main([str(out)]) == 0
    assert "| recurrent | 4, 3, 5 → 5 | forward_backward | gemm" in capsys.readouterr().out
