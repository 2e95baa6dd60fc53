"""`benchmarks/run.py` writes rows that are complete, and none for a result that is wrong."""

from __future__ import annotations

import csv
import json
import re
import sys
import time
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
if not (BENCHMARKS / "run.py").exists():
    pytest.skip("benchmarks/ is not there", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))
import cases  # noqa: E402
import clock  # noqa: E402
import compare  # noqa: E402
import gpu  # noqa: E402
import graphs  # noqa: E402
import peers  # noqa: E402
import plot  # noqa: E402
import problems  # noqa: E402
import run  # noqa: E402
import sanitize_cases  # noqa: E402
import tune_triton  # noqa: E402
from helpers import running  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # those of the peers are not ours
TINY = ["--quick", "--budget", "0.02", "--shape", "64,3,5"]
TINY_RECURRENT = ["--shape", "64,3,7,5"]


@pytest.fixture(autouse=True)
def _restore(monkeypatch):
    for name in ("NPROC", "JAX_PLATFORMS"):
        monkeypatch.setenv(name, "1" if name == "NPROC" else "cpu")
    monkeypatch.setattr(clock, "TURN_SECONDS", 0.01)
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
        reference = problems.REFERENCE.layer(problem)

        def run_layer():
            z, v, i = reference()
            return change(problem, z), v, i

        return run_layer

    return problems.TorchCandidate("cpu", layer)


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
    problem = problems.Problem(problems.Setting(4, 2, 3))

    def layer(problem):
        x = problem.x
        return lambda: (x * x.view(-1).view_as(x) * problem.constants["v_th"],)

    candidate = problems.TorchCandidate("square", layer)
    assert run.saved_bytes(candidate, problem) == 2 * problem.x.nbytes  # x, and x * x


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_holds_the_output():
    setting = problems.Setting(100, 16, 1024, constants="scalar")
    candidate = run.ALL_CANDIDATES["copy"]
    assert run.peak_memory(candidate, setting, "forward", 1) < 4 * 100 * 16 * 1024
    peak = run.peak_memory(problems.REFERENCE, setting, "forward", 1)
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
    problem = problems.Problem(problems.Setting(T, 4, N, model="recurrent", input_size=input_size))
    assert 0.04 < problem.x.mean() < 0.06
    with torch.no_grad():
        z, *_ = problems.REFERENCE.layer(problem)()
        assert 0.03 < z.mean() < 0.08
        for spikes, weights in zip((problem.x, z), problem.weights.values(), strict=True):
            exact = spikes.double() @ weights.double().T
            assert torch.equal((spikes @ weights.T).double(), exact)


def test_a_moved_spike_takes_its_batch_element_out_of_the_comparison():
    setting = problems.Setting(8, 16, 5, model="recurrent", input_size=7)
    problem = problems.Problem(setting)
    expected = problems.REFERENCE.results(problem, "forward_backward")
    actual = {name: value.clone() for name, value in expected.items()}
    actual["z"][3, 2, 1] = 1 - actual["z"][3, 2, 1]
    actual["grad x"][:, 2] += 1
    actual["grad input_weights"] += 1
    peer = problems.TorchCandidate("peer", problems.REFERENCE.layer, exact=False)
    assert compare.differences(actual, expected, peer, setting) == []
    actual["grad x"][:, 4] += 1
    (found,) = compare.differences(actual, expected, peer, setting)
    assert found.startswith("grad x")
    actual["z"][3] = 1 - actual["z"][3]
    assert (
        "100.00% of the batch elements" in compare.differences(actual, expected, peer, setting)[0]
    )


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


def fake_capture(work, after=None):
    """Runs ``work`` again where `graphs.capture` replays, into the memory of the first result."""
    result = work()

    def tensors(value):
        if isinstance(value, torch.Tensor):
            return [value]
        return [t for part in value or () for t in tensors(part)]

    def replay():
        news = tensors(work())
        with torch.no_grad():
            for old, new in zip(tensors(result), news, strict=True):
                old.copy_(new)

    return graphs.Captured(replay, result, (None, after))


@pytest.mark.parametrize(
    "setting",
    [
        problems.Setting(40, 3, 50),
        problems.Setting(40, 3, 50, constants="one state"),
        problems.Setting(40, 3, 20, model="recurrent", input_size=30),
    ],
)
def test_a_graph_gives_the_results_of_its_candidate(setting, monkeypatch):
    monkeypatch.setattr(graphs, "capture", fake_capture)
    problem = problems.Problem(setting)
    graphed = graphs.Graphed(problems.REFERENCE)
    assert graphed.reasons_against(setting, "forward") == ["CUDA graphs need a GPU"]
    for mode in ("forward", "forward_backward"):
        expected = problems.REFERENCE.results(problem, mode)
        actual = graphed.results(problem, mode)
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[name], expected[name]) for name in expected)
    for mode in ("forward", "backward", "forward_backward"):
        graphed.call(problem, mode).run(None)


def test_a_graph_that_leaves_an_output_out_is_seen(monkeypatch):
    monkeypatch.setattr(graphs, "capture", lambda work: graphs.Captured(lambda: None, work()))
    problem = problems.Problem(problems.Setting(4, 3, 5))
    graphed = graphs.Graphed(problems.REFERENCE)
    found = compare.differences(
        graphed.results(problem, "forward"),
        problems.REFERENCE.results(problem, "forward"),
        graphed,
        problem.setting,
    )
    assert "100.00% of the neurons" in found[0]


def test_the_yardstick_of_recurrent_layers_computes_the_same(monkeypatch):
    monkeypatch.setattr(graphs, "capture", fake_capture)
    problem = problems.Problem(problems.Setting(40, 3, 50, model="recurrent", input_size=30))
    expected = problems.REFERENCE.results(problem, "forward_backward")
    assert 0.03 < expected["z"].mean() < 0.08
    layer = graphs.MatrixLayer(problem, lambda function: function)
    with torch.no_grad():
        layer.forward()
        layer.backward()
    actual = dict(zip("zvi", layer.outputs)) | {f"grad {n}": g for n, g in layer.gradients.items()}
    assert actual.keys() == expected.keys()
    assert compare.differences(actual, expected, problems.REFERENCE, problem.setting) == []
    for mode in ("forward", "backward", "forward_backward"):
        graphs.GRAPHS["mm_graph"].call(problem, mode).run(None)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_spikingjelly_computes_ours_with_one_state(dtype):
    pytest.importorskip("spikingjelly", reason="spikingjelly is not installed")
    setting = problems.Setting(100, 3, 50, constants="one state", dtype=dtype)
    peer = peers.PEERS["spikingjelly"]
    assert peer.reasons_against(setting, "forward_backward") == []
    assert compare.verify([peer], problems.Problem(setting), "forward_backward") == {peer.name: []}


def test_one_state_is_busy_and_its_current_is_the_input():
    problem = problems.Problem(problems.Setting(100, 3, 50, constants="one state"))
    results = problems.REFERENCE.results(problem, "forward_backward")
    assert 0.05 < results["z"].mean() < 0.2
    assert results["i"].count_nonzero() == 0


class Event:
    """A CUDA event whose time is that of the host."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.time = time.perf_counter()

    def elapsed_time(self, end):
        return 1e3 * (end.time - self.time)


def test_event_seconds(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    ran = []
    call = problems.Call(lambda _: time.sleep(1e-3), lambda: ran.append(None))
    (seconds,) = clock.event_seconds(call, 1)
    assert seconds >= 1e-3
    assert len(clock.event_seconds(call, 100)) == clock.MAX_BATCHES
    assert len(ran) == 101
    samples = clock.event_seconds(call._replace(computes_before=True), 30)
    assert len(samples) == clock.MAX_BATCHES
    assert all(1e-3 <= seconds < 0.1 for seconds in samples)


def gpu_rows(case, mode, **milliseconds):
    sizes = {"case": case, "mode": mode, "T": 1000, "dtype": "float32"}
    return [sizes | {"backend": b, "median_ms": ms} for b, ms in milliseconds.items()]


def test_gpu_verdicts():
    rows = gpu_rows("gpu_sequence", "forward_backward", copy=1.0, cuda=3.0, cuda_graph=3.2)
    half = [row | {"dtype": "bfloat16", "median_ms": 0.5 * row["median_ms"]} for row in rows]
    copy, cuda, graph, *_ = (cases.judge_gpu(row, rows + half) for row in rows)
    assert copy is None
    assert (cuda.label, cuda.limit, cuda.passed) == ("of copy bandwidth", 0.8, True)
    assert cuda.value == pytest.approx(2.5 / 3)  # 20 bytes per neuron-step, 8 of the copy
    assert not graph.passed
    assert cases.judge_gpu(half[1], rows + half).value == pytest.approx(2.5 / 3)

    rows = gpu_rows("gpu_small", "forward", cuda=0.06, cuda_graph=0.038, norse=5.9)
    cuda, graph, norse = (cases.judge_gpu(row, rows) for row in rows)
    assert (cuda.value, cuda.limit) == (60, None)
    assert (graph.value, graph.limit, graph.label) == (38, 40, "ns per step")
    assert (norse.label, norse.limit, norse.passed) == ("x cuda", 100, False)

    rows = gpu_rows("gpu_recurrent", "backward", cuda=9.9, cuda_graph=2.4, mm_fused_graph=10.0)
    _, graph, matrices = (cases.judge_gpu(row, rows) for row in rows)
    assert (graph.value, graph.passed) == (2400, True)
    assert (matrices.label, matrices.passed) == ("x cuda_graph", True)
    assert cases.judge_gpu(rows[2], rows[:1] + rows[2:]) is None  # ours is missing: no ratio


def test_gpu_verdicts_of_triton():
    rows = gpu_rows(
        "gpu_sequence", "forward", copy=1.0, cuda=1.1, cuda_graph=1.0, triton=1.3, triton_graph=1.2
    )
    *_, triton, graph = (cases.judge_gpu(row, rows) for row in rows)
    assert (triton.label, triton.limit, triton.at_most) == ("x cuda", None, True)
    assert (graph.label, graph.value, graph.limit) == ("x cuda_graph", 1.2, 1.1)
    assert not graph.passed

    rows = gpu_rows("gpu_spikingjelly", "forward_backward", cuda=2.0, spikingjelly=3.0, triton=2.4)
    _, jelly, triton = (cases.judge_gpu(row, rows) for row in rows)
    assert (jelly.label, jelly.value, jelly.limit) == ("x cuda", 1.5, 1.5)
    assert (triton.label, triton.limit, triton.passed) == ("x spikingjelly", 1.0, True)
    assert cases.judge_gpu(rows[2], rows[:1] + rows[2:]).label == "x cuda"

    rows = gpu_rows("gpu_small", "forward", copy=1.0, triton=1.25, norse=5.0)
    _, triton, norse = (cases.judge_gpu(row, rows) for row in rows)  # CUDA was not built
    assert (triton.label, triton.value, triton.limit) == ("of copy bandwidth", 0.8, None)
    assert (norse.label, norse.value, norse.limit) == ("x triton", 4.0, None)


def as_cuda(name, layer=None):
    return problems.TorchCandidate(name, layer or problems.functional_layer("reference"))


@pytest.fixture
def no_triton(monkeypatch):
    absent = problems.TorchCandidate("triton", lambda problem: None, lambda setting: ["is absent"])
    monkeypatch.setitem(run.ALL_CANDIDATES, "triton", absent)


@pytest.mark.usefixtures("no_triton")
def test_gpu_case_with_candidates_of_the_cpu(tmp_path, monkeypatch, capsys):
    def fails(problem):
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(run.ALL_CANDIDATES, "cuda", as_cuda("cuda"))
    monkeypatch.setitem(run.ALL_CANDIDATES, "cuda_graph", as_cuda("cuda_graph", fails))
    out, report = tmp_path / "rows.csv", tmp_path / "report.md"
    arguments = [*TINY, "--out", str(out), "--report", str(report)]
    assert run.main([*arguments, "--case", "gpu_sequence"]) == 1
    rows = read(out)
    assert {(row["backend"], row["dtype"]) for row in rows} == {
        (backend, dtype) for backend in ("copy", "cuda") for dtype in ("float32", "bfloat16")
    }
    text = report.read_text()
    assert "| gpu_sequence | 4, 3, 5 | forward | cuda bfloat16 |" in text
    assert "FAILED: gpu_sequence: cuda_graph raises RuntimeError: no such kernel" in text
    assert "cuda_graph raises" in capsys.readouterr().err


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("case", ["gpu_small", "gpu_recurrent"])
def test_triton_runs_where_cuda_was_not_built(case, tmp_path, capsys):
    out = tmp_path / "rows.csv"
    arguments = [*TINY, *TINY_RECURRENT, "--case", case, "--out", str(out)]
    assert run.main(arguments) == 0
    rows = [row for row in read(out) if row["backend"] == "triton"]
    assert [row["mode"] for row in rows] == list(cases.CASES[case].modes)
    text = capsys.readouterr().out
    assert f"{case}: cuda is absent: " in text
    assert f"{case}: triton_graph is absent: CUDA graphs need a GPU" in text


def test_a_kernel_that_does_not_compile_is_a_failure(tmp_path, monkeypatch, capsys):
    class CompilationError(Exception):
        pass

    def layer(backend):
        def fails(problem):
            try:
                raise AssertionError("changed type\nof a variable")
            except AssertionError as error:
                raise CompilationError("def kernel(...):\n ...") from error

        return fails

    monkeypatch.setattr(problems, "functional_layer", layer)
    reasons = problems._reasons_against_backend("triton")
    candidate = problems.TorchCandidate("triton", layer("triton"), reasons)
    monkeypatch.setitem(run.ALL_CANDIDATES, "triton", candidate)
    out = tmp_path / "rows.csv"
    assert run.main([*TINY, "--case", "gpu_small", "--out", str(out)]) == 1
    assert "triton raises AssertionError: changed type of a variable" in capsys.readouterr().err


@pytest.mark.usefixtures("no_triton")
def test_a_yardstick_that_fails_is_absent(tmp_path, monkeypatch, capsys):
    def fails(problem, mode):
        raise RuntimeError("cannot compile")

    monkeypatch.setitem(run.ALL_CANDIDATES, "copy", problems.Yardstick("copy", fails))
    monkeypatch.setitem(run.ALL_CANDIDATES, "cuda", as_cuda("cuda"))
    out = tmp_path / "rows.csv"
    assert run.main([*TINY, "--case", "gpu_sequence", "--out", str(out)]) == 0
    assert {row["backend"] for row in read(out)} == {"cuda"}
    assert (
        "copy is absent: raises RuntimeError: cannot compile, in mode forward"
        in capsys.readouterr().out
    )


def test_no_case_starts_when_the_time_is_over(tmp_path, capsys):
    out = tmp_path / "rows.csv"
    arguments = [*TINY, "--seconds", "1e-9", "--case", "lif_forward", "--out", str(out)]
    assert run.main(arguments) == 0
    assert read(out) == []
    assert "lif_forward: the case is absent: there was no time left" in capsys.readouterr().out


def test_default_cases_are_those_of_the_device():
    on_gpu = [name for name, case in cases.CASES.items() if case.device == "cuda"]
    assert on_gpu[0] == "gpu_sequence"
    assert {case for case, _, _ in cases.GPU_TARGETS} == set(on_gpu)
    assert all(name in run.ALL_CANDIDATES for name in cases.CASES["gpu_recurrent"].candidates)
    assert all(b in cases.CASES[case].candidates for case, b, _ in cases.GPU_TARGETS)
    assert all(mode in cases.CASES[case].modes for case, _, mode in cases.GPU_TARGETS)
    for case, backend, rival in cases.TRITON_TARGETS:
        assert {backend, rival} <= set(cases.CASES[case].candidates)
        assert rival in cases.TRITON_RIVALS[backend]


def test_a_copy_without_git_is_told_its_commit(monkeypatch):
    monkeypatch.setattr(run, "_git", lambda *_: "unknown")
    monkeypatch.delenv("FUSED_LIF_COMMIT", raising=False)
    assert run._commit() == ("unknown", "unknown")
    monkeypatch.setenv("FUSED_LIF_COMMIT", "0123456789ab")
    assert run._commit() == ("0123456789ab", "no")
    monkeypatch.setenv("FUSED_LIF_COMMIT", "0123456789ab+changes")
    assert run._commit() == ("0123456789ab", "yes")


def test_sanitize_cases(monkeypatch, capsys):
    settings = list(sanitize_cases.settings())
    assert {s.model for s in settings} == {"lif", "li", "encoder", "recurrent"}
    monkeypatch.setattr(sanitize_cases, "settings", lambda: settings[::7])
    assert sanitize_cases.main(["--device", "cpu"]) == 0
    monkeypatch.setattr(sanitize_cases, "settings", lambda: settings[:1])
    done = iter(range(2))

    def layer(backend):  # differs from call to call
        return lambda problem: lambda: (problem.x * (1 + next(done)),)

    monkeypatch.setattr(sanitize_cases, "functional_layer", layer)
    assert sanitize_cases.main(["--device", "cpu"]) == 1
    assert "z differs in" in capsys.readouterr().out
    assert sanitize_cases.main(["--device", "cpu"]) == 1
    assert "StopIteration" in capsys.readouterr().out


@pytest.mark.usefixtures("interpreter")
def test_sanitize_cases_of_triton(monkeypatch, capsys):
    settings = list(sanitize_cases.triton_settings())
    assert {s.model for s in settings} == {"lif", "li", "encoder", "recurrent"}
    monkeypatch.setattr(sanitize_cases, "triton_settings", lambda: settings[:2] + settings[3:5])
    assert sanitize_cases.main(["--device", "cpu", "--backend", "triton"]) == 0
    assert "4 of 4 layers" in capsys.readouterr().out


# ---- tune_triton.py ----

NO_TRITON = "; ".join(tune_triton.backend.TRITON.unavailable())
needs_triton = pytest.mark.skipif(bool(NO_TRITON), reason=NO_TRITON)


@pytest.fixture
def interpreter():
    if NO_TRITON or not tune_triton.backend.IS_INTERPRETED:
        pytest.skip(NO_TRITON or "Triton does not interpret its kernels here")
    with running("triton"):
        yield


@pytest.fixture
def plans(monkeypatch):
    """The module plan.py, whose table is read anew in the test and after it."""
    if NO_TRITON:
        pytest.skip(NO_TRITON)
    plan = tune_triton.plan

    def forget():
        for function in (plan.table, plan.sequence_plan, plan.recurrent_plan):
            function.cache_clear()

    forget()
    yield plan
    monkeypatch.undo()
    forget()


def some_rows(*kernels, size=4):
    rows = [tune_triton._on(row, "cpu") for row in tune_triton.rows_of(1)]
    return [row for row in rows if row.kernel in kernels and row.size in (None, size)]


@pytest.mark.usefixtures("interpreter")
def test_tune_writes_what_plan_reads(plans, tmp_path, monkeypatch, capsys):
    kinds = {  # the last of each
        row.kernel: tune_triton.replace(row, loads=row.loads[:1])
        for row in some_rows(*tune_triton.KERNELS, size=2)
    }
    monkeypatch.setattr(tune_triton, "rows_of", lambda multiprocessors: list(kinds.values()))
    monkeypatch.setattr(tune_triton, "ROUNDS", 1)
    monkeypatch.setattr(tune_triton, "MARGIN", -9.0)  # any other plan wins
    before, out = plans.TABLE_PATH.read_text(), tmp_path / "plans.json"
    assert tune_triton.main(["--quick", "--out", str(out)]) == 0
    assert "5 of 5 rows of interpreter measured" in capsys.readouterr().out
    assert plans.TABLE_PATH.read_text() == before
    monkeypatch.setattr(plans, "TABLE_PATH", out)
    plans.table.cache_clear()
    device = plans.device_of(None)
    for kernel, row in kinds.items():
        tiny = tune_triton._tiny(row, 2)
        tried = {*tiny.candidates, tune_triton.default_plan(tiny, device)}
        if row.size:
            for columns in (1, 10**9):
                assert plans.sequence_plan(device, kernel, columns, 2) in tried
        elif row.limit:
            limits = [limit for limit, *_ in plans.table()["interpreter"][kernel]]
            assert limits in ([], [row.limit])
            assert plans.recurrent_plan(device, kernel, row.limit) in tried
        else:
            assert plans.input_sums_plan(device) in tried
    table = json.loads(before)
    assert plans.table()["default"] == table["default"]
    assert (
        plans.table()["interpreter"]["lif_forward"]["4"] == table["interpreter"]["lif_forward"]["4"]
    )


def test_tune_chooses_the_fastest_that_computes_the_same(plans, tmp_path, monkeypatch, capsys):
    row = some_rows("lif_forward")[-1]
    default, slow, wrong, broken, slightly, best = (
        *(tune_triton.default_plan(row, plans.device_of(None)), (64, 1, 16), (96, 1, 16)),
        *((128, 1, 16), (160, 1, 16), (192, 1, 16)),
    )
    seconds = {default: 1.0, slow: 2.0, wrong: 0.1, broken: 0.1, slightly: 0.99, best: 0.5}
    used = []

    def plan_in_use():
        return tuple(plans.sequence_plan(plans.device_of(None), "lif_forward", 1, 4))

    def work_of(kernel, load, device):
        def work():
            used.append(plan_in_use())
            if used[-1] == broken:
                raise RuntimeError("out of resources")
            return {"z": torch.tensor([0.0, float(used[-1] == wrong)]), "grad_x": torch.ones(2)}

        return work

    def clock(call, count):
        call.run(None)
        return [seconds[used[-1]]]

    monkeypatch.setattr(tune_triton, "work_of", work_of)
    tuner = tune_triton.Tuner("cpu", 10.0, 0)
    tuner.clock = clock
    candidates = (slow, wrong, broken, slightly, best)
    row = tune_triton.replace(row, candidates=candidates)
    outcome = tuner.run([row])[row]
    assert (outcome.plan, outcome.ratio, outcome.default) == (best, 0.5, default)
    assert outcome.left_out == {
        wrong: "z differs in 1 of 2 values",
        broken: "RuntimeError: out of resources",
    }
    text = capsys.readouterr().out
    assert "left out: [128, 1, 16]: RuntimeError: out of resources" in text
    entry = tune_triton.assemble("interpreter", tune_triton.settle({row: outcome}))
    assert entry["lif_forward"]["4"] == [[None, *best]]
    assert plan_in_use() == tuple(plans.table()["interpreter"]["lif_forward"]["4"][0][1:])

    row = tune_triton.replace(row, candidates=(slow, slightly))
    assert tuner.run([row])[row].plan == default  # the gain is too small

    row = tune_triton.replace(row, candidates=(best,))
    monkeypatch.setattr(tuner, "clock", lambda call, count: 1 / 0)
    outcome = tuner.run([row])[row]
    assert (outcome.plan, outcome.ratio) == (default, None)
    assert "ZeroDivisionError" in outcome.left_out[default]
    tuner.budget = 0.0
    assert tuner.run([row])[row].ratio is None
    assert tune_triton.settle(tuner.run([row])) == {}  # leaves the table as it is


def test_tune_captures_with_the_plan_of_the_candidate(plans, monkeypatch):
    def capture(work):
        found = plans.sequence_plan(plans.device_of(None), "lif_forward", 1, 4)
        return graphs.Captured(lambda: replayed.append(found), None)

    replayed = []
    monkeypatch.setattr(tune_triton, "capture", capture)
    tuner = tune_triton.Tuner("cpu", 10.0, 0)
    tuner.device = "cuda"
    call = tuner._call(some_rows("lif_forward")[0], (64, 1, 16), lambda: {})
    call.run(None)
    assert replayed == [(64, 1, 16)]


def test_tune_compiles_in_other_processes(plans, monkeypatch):
    class Pool:
        def __init__(self, jobs):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def apply_async(self, function, arguments):
            assert function is tune_triton.try_plan
            tried.append(arguments[:2])
            return Answer(arguments[1])

    class Answer:
        def __init__(self, p):
            self.p = p

        def get(self, seconds):
            if self.p[1] == 8:
                raise tune_triton.multiprocessing.TimeoutError
            return "OutOfResources: registers" if self.p[1] == 4 else ""

    tried = []
    context = type("Context", (), {"Pool": Pool})
    monkeypatch.setattr(tune_triton.multiprocessing, "get_context", lambda kind: context)
    rows = some_rows("lif_backward")
    failed = tune_triton.Tuner("cpu", 10.0, 2)._compile(rows)
    assert len(tried) == len(set(tried)) < sum(len(row.candidates) + 1 for row in rows)
    assert {p[1]: reason for (_, p), reason in failed.items()} == {
        4: "OutOfResources: registers",
        8: "was not compiled within 6 s",
    }
    assert all((row, p) in failed for row in rows for p in row.candidates if p[1] == 4)


def test_tuned_tables(plans):
    assert tune_triton.text_of(plans.table()) + "\n" == plans.TABLE_PATH.read_text()
    kernel = "lif_recurrent_forward"
    rows = some_rows(kernel)
    a, b, outcome = (1, 8, False), (2, 8, False), tune_triton.Outcome
    chosen = [a, a, None, b, None]  # by limit
    times = {None: [1.0], a: [2.0], b: [3.0]}
    outcomes = {r: outcome(p, a, 0.9, times) for r, p in zip(rows, chosen, strict=True)}
    entry = tune_triton.assemble("cuda:9.0", tune_triton.settle(outcomes))
    assert entry[kernel] == [[512, *a], [1024, *b]]
    assert entry["lif_forward"] == plans.table()["default"]["lif_forward"]
    with tune_triton.using("cuda:9.0", entry):
        device = plans.Device("cuda:9.0", 132)
        assert plans.recurrent_plan(device, kernel, 512) == a
        assert plans.recurrent_plan(device, kernel, 1025) is None
    assert "cuda:9.0" not in plans.table()
    assert plans.recurrent_plan(device, kernel, 512) == tune_triton.default_plan(rows[2], device)
    rows = some_rows("lif_forward")
    p = [(32, 1, 8), (32, 1, 8), (64, 1, 8), (64, 1, 8)]
    entry = tune_triton.assemble("cuda:9.0", dict(zip(rows, p, strict=True)))
    assert entry["lif_forward"]["4"] == [[512, 32, 1, 8], [None, 64, 1, 8]]


@needs_triton
def test_tune_rows():
    rows = tune_triton.rows_of(132)
    assert {(row.kernel, row.size) for row in rows if row.size} == {
        (kernel, size) for kernel in ("lif_forward", "lif_backward") for size in (2, 4, 8)
    }
    for row in rows:
        assert row.candidates, row
        assert len(set(row.candidates)) == len(row.candidates)
        for load in row.loads:
            long, short = load.setting, tune_triton._short(load).setting
            assert short.T <= 96
            assert all(long.T % n == short.T % n for n in (4, 8, 16, 32))
    small, *_, large = (row for row in rows if (row.kernel, row.size) == ("lif_forward", 4))
    assert small.loads[0].setting.B * small.loads[0].setting.N <= 128 * 132
    assert large.loads[0].setting.B * large.loads[0].setting.N > 1024 * 132
    assert max(block for block, *_ in small.candidates) < max(
        block for block, *_ in large.candidates
    )


def test_tune_differences():
    z, grad = torch.tensor([0.0, 1.0]), torch.tensor([[[1.0, 2.0]], [[1e-6, 2e-6]]])
    expected = {"z": z, "grad_x": grad}
    assert tune_triton.differences({"z": z, "grad_x": grad * (1 + 1e-5)}, expected) == []
    assert tune_triton.differences({"z": z, "grad_x": grad + 1e-9}, expected) == [
        "grad_x: relative error 5.0e-04"  # of the second step
    ]
    assert tune_triton.differences({"z": z + 1e-7, "grad_x": grad}, expected) != []
    assert tune_triton.differences({"z": z, "grad_x": grad * torch.nan}, expected) != []


def test_tune_refuses(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="mean nothing"):
        tune_triton.main(["--quick", "--write"])
    if tune_triton.backend.IS_INTERPRETED:
        with pytest.raises(SystemExit, match="only for --quick"):
            tune_triton.main(["--write"])
    nothing = tune_triton.backend.TRITON._replace(unavailable=lambda: ["torch finds no GPU"])
    monkeypatch.setattr(tune_triton.backend, "TRITON", nothing)
    assert tune_triton.main([]) == 1
    assert capsys.readouterr().err == "nothing to tune: torch finds no GPU\n"


# ---- gpu.py ----

FACTS = {"device": "NVIDIA H200", "architecture": "9.0", "torch": "2.11.0", "cuda": "13.0"}


def step(name, code, limit=60.0, **options):
    return gpu.Step(name, lambda seconds: [sys.executable, "-c", code], limit, **options)


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "WORK", tmp_path / "work")
    monkeypatch.setattr(gpu, "RESERVE", 1.0)
    return tmp_path / "work"


def run_gpu(tmp_path, steps, *arguments):
    def make(facts, benchmark_arguments):
        return steps

    results = tmp_path / "results"
    status = gpu.main([*arguments], lambda: dict(FACTS), make, results)
    path = results / "nvidia-h200-report.md"
    return status, path.read_text() if path.exists() else ""


def test_gpu_report(tmp_path, work, capsys):
    write = f"from pathlib import Path; Path({str(work / 'ratios.md')!r}).write_text('| ratios |')"
    steps = [
        step("info", "print('cuda: ready')"),
        step("cuda-tests", "print('3 failed | 4 passed'); raise SystemExit(3)"),
        step("memcheck", "", absent="compute-sanitizer was not found"),
        step("benchmark", write, takes_the_rest=True),
    ]
    status, text = run_gpu(tmp_path, steps, "--out", str(tmp_path / "out"))
    assert status == 1
    assert text.startswith("# NVIDIA H200\n\n2 of 4 steps passed in ")
    assert "; failed: cuda-tests; not run: memcheck." in text
    assert "| cuda-tests | FAILED with status 3 | 0 | 3 failed \\| 4 passed |" in text
    assert "| memcheck | absent: compute-sanitizer was not found | 0 |  |" in text
    assert "## Benchmark\n\n| ratios |\n" in text
    assert "## cuda-tests: last lines\n\n```\n3 failed | 4 passed\n```" in text
    assert "torch 2.11.0" in text
    assert text in capsys.readouterr().out
    assert (tmp_path / "out" / "nvidia-h200-report.md").read_text() == text
    assert "==== cuda-tests: FAILED with status 3" in (tmp_path / "out" / "gpu.log").read_text()


def test_gpu_passes_if_all_steps_do(tmp_path, work):
    steps = [step("build", "print('built')"), step("tests", "raise SystemExit(1)")]
    status, text = run_gpu(tmp_path, steps, "--steps", "build")
    assert status == 0
    assert "1 of 1 steps passed" in text
    assert "tests" not in text


def test_gpu_step_that_runs_only_if_it_is_named(tmp_path, work):
    write = f"import pathlib; pathlib.Path({str(work / 'plans.json')!r}).write_text('{{}}')"
    steps = [step("build", ""), step("tune", write, only_if_named=True)]
    assert "1 of 1 steps" in run_gpu(tmp_path, steps)[1]
    out = tmp_path / "out"
    assert run_gpu(tmp_path, steps, "--steps", "tune", "--out", str(out))[0] == 0
    assert (out / "plans.json").read_text() == "{}"


def test_gpu_step_that_takes_too_long_is_ended_with_its_children(tmp_path, work):
    child = tmp_path / "child"
    code = (
        "import subprocess, sys, time\n"
        "print('begins', flush=True)\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(child)!r}, 'w').write(str(p.pid))\n"
        "time.sleep(60)\n"
    )
    outcome = gpu.run_step(step("tests", code), 2.0, work / "tests.log")
    assert outcome.result == "TIMED OUT after 2 s"
    assert outcome.is_failure
    assert "begins" in outcome.output
    for _ in range(100):  # a child of nobody stays in the table until it is waited for
        status = Path(f"/proc/{child.read_text()}/status")
        if not status.exists() or "State:\tZ" in status.read_text():
            break
        time.sleep(0.05)
    else:
        pytest.fail("the child lives on")


def test_gpu_steps_share_the_time(work):
    told = []

    def command(name):
        return lambda seconds: told.append((name, seconds)) or [sys.executable, "-c", ""]

    steps = [
        gpu.Step("build", command("build"), 200),
        gpu.Step("tests", command("tests"), 5),
        gpu.Step("benchmark", command("benchmark"), takes_the_rest=True),
    ]
    gpu.run_steps(steps, 100, lambda outcomes: None)
    (_, build), (_, tests), (_, benchmark) = told
    assert 90 < build < 99  # leaves the reserve to the benchmark
    assert tests == 5
    assert 80 < benchmark < 100
    outcomes = gpu.run_steps(steps, 0.5, lambda outcomes: None)
    assert [o.result for o in outcomes] == ["LEFT OUT: there was no time left"] * 3
    assert all(o.is_failure for o in outcomes)


def test_gpu_command_that_is_not_there_fails(work):
    lost = gpu.Step("build", lambda seconds: ["/nowhere/at/all"], 5)
    outcome = gpu.run_step(lost, 5, work / "build.log")
    assert outcome.is_failure
    assert "nowhere" in outcome.result


def test_gpu_plan(monkeypatch):
    monkeypatch.setattr(gpu, "_sanitizer", lambda: None)
    monkeypatch.delenv("FUSED_LIF_CUDA_ARCHITECTURES", raising=False)
    steps = {step.name: step for step in gpu.plan(FACTS, ["--case", "gpu_small"])}
    assert list(steps)[:3] == ["build", "info", "cuda-tests"]
    assert list(steps)[-1] == "benchmark"
    assert [name for name, step in steps.items() if step.only_if_named] == ["tune"]
    assert steps["build"].environment["FUSED_LIF_CUDA_ARCHITECTURES"] == "9.0"
    assert steps["memcheck"].absent == "compute-sanitizer was not found"
    command = steps["benchmark"].command(100)
    assert command[-2:] == ("--case", "gpu_small")
    assert run.parse(list(command[2:])).seconds == 75
    monkeypatch.setattr(gpu, "_sanitizer", lambda: "/bin/compute-sanitizer")
    steps = {step.name: step for step in gpu.plan(FACTS)}
    assert steps["racecheck"].command(60)[:3] == ("/bin/compute-sanitizer", "--tool", "racecheck")
    assert not steps["racecheck"].absent
    assert steps["triton-memcheck"].command(60)[-2:] == ("--backend", "triton")
    command = steps["tune"].command(330)
    assert tune_triton.parse(list(command[2:])).budget == 300
    assert tune_triton.parse(list(command[2:])).write
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    absent = {step.name for step in gpu.plan(FACTS) if step.absent == "triton is not installed"}
    assert absent == {"triton-memcheck", "triton-racecheck", "tune"}


def test_gpu_without_one_says_so(capsys):
    assert gpu.main([], lambda: "torch 2.13.0+cpu sees none") == 1
    assert capsys.readouterr().err == "make gpu needs a GPU: torch 2.13.0+cpu sees none\n"


def test_gpu_unknown_step(tmp_path, work, capsys):
    status, _ = run_gpu(tmp_path, [step("build", "")], "--steps", "bild")
    assert status == 1
    assert "no step bild; there are build" in capsys.readouterr().err
