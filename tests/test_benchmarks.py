"""`benchmarks/run.py` writes rows that are complete, and none for a result that is wrong."""

from __future__ import annotations

import csv
import sys
import time

import benchmark_path
import cases
import clock
import compare
import graphs
import networks
import problems
import pytest
import run
import sanitize_cases
import torch

pytestmark = pytest.mark.filterwarnings("default")  # those of the peers are not ours
restore, interpreter = benchmark_path.restore, benchmark_path.interpreter
TINY = ["--quick", "--budget", "0.02", "--shape", "64,3,5"]
TINY_RECURRENT = ["--shape", "64,3,7,5"]


def read(path):
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def reference_but(change):
    """Returns the reference under the name "cpu", with its output changed."""

    def layer(problem):
        reference = problems.REFERENCE.layer(problem)

        def run_layer(x):
            z, v, i = reference(x)
            return change(problem, z), v, i

        return run_layer

    return problems.TorchCandidate("cpu", layer)


def test_rows_have_all_columns(tmp_path, capsys):
    out = tmp_path / "rows.csv"
    arguments = [*TINY, "--case", "lif_forward_backward", "--out", str(out), "--threads", "1"]
    assert run.main(arguments) == 0
    rows, empty = read(out), ("memory_bytes", "input_size", "limit_ms", "of_limit")
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
        return lambda x: (x * x.view(-1).view_as(x) * problem.constants["v_th"],)

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
    assert cases.Verdict("x limit", 1.4, 1.5).passed
    assert not cases.Verdict("x limit", 1.6, 1.5).passed
    assert not cases.Verdict("x cpu", 34.0, 35, at_most=False).passed
    assert "FAIL" in str(cases.Verdict("x cpu", 34.0, 35, at_most=False))


def test_recurrent_verdicts():
    T, B, input_size, N = cases.RECURRENT[0]
    sizes = {"case": "recurrent", "T": T, "B": B, "input_size": input_size, "N": N}
    sizes |= {"dtype": "float32", "constants": "per neuron", "input": "busy", "threads": 2}
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
        z, *_ = problems.REFERENCE.layer(problem)(problem.x)
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
    actual["grad input_weights"] *= 1.01
    peer = problems.TorchCandidate("peer", problems.REFERENCE.layer, exact=False)
    assert compare.differences(actual, expected, peer, setting) == []
    actual["grad x"][:, 4] += 1
    (found,) = compare.differences(actual, expected, peer, setting)
    assert found.startswith("grad x")
    actual["grad x"][:, 4] -= 1
    actual["grad input_weights"] *= 1.05
    (found,) = compare.differences(actual, expected, peer, setting)
    assert found.startswith("grad input_weights")
    actual["z"][3] = 1 - actual["z"][3]
    assert (
        "100.00% of the batch elements" in compare.differences(actual, expected, peer, setting)[0]
    )


def test_rows_of_a_file_without_a_new_column_stay(tmp_path):
    out, row = tmp_path / "rows.csv", dict.fromkeys(run.FIELDS, "1")
    older = {name: value for name, value in row.items() if name != "input_size"}
    out.write_text(f"{','.join(older)}\n{','.join(older.values())}\n")
    run.append(out, [row])
    run.append(out, [row])
    assert read(out) == [row | {"input_size": ""}, row, row]
    assert out.read_text().count("median_ms") == 1


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
        problems.Setting(40, 3, 20, model="three_layers", input_size=30),
    ],
)
def test_a_graph_gives_the_results_of_its_candidate(setting, monkeypatch):
    monkeypatch.setattr(graphs, "capture", fake_capture)
    problem = networks.make_problem(setting)
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
    setting = problems.Setting(1000, 32, 256, device="cuda")
    rows = [
        vars(setting) | {"case": case, "mode": mode, "backend": b, "median_ms": ms, "of_limit": ""}
        for b, ms in milliseconds.items()
    ]
    run.add_limits(rows, [setting] * len(rows))
    return rows


def test_gpu_verdicts():
    rows = gpu_rows("gpu_sequence", "forward_backward", copy=1.0, cuda=3.0, cuda_graph=3.2)
    half = [row | {"dtype": "bfloat16", "median_ms": 0.5 * row["median_ms"]} for row in rows]
    copy, cuda, graph, *_ = (cases.judge_gpu(row, rows + half) for row in rows)
    assert copy is None
    assert (cuda.label, cuda.limit, cuda.passed) == ("of the limit", 0.8, True)
    assert cuda.value == pytest.approx(2.5 / 3, rel=1e-3)  # 20 bytes per neuron-step, 8 of the copy
    assert not graph.passed
    assert cases.judge_gpu(half[1], rows + half).value == pytest.approx(2.5 / 3, rel=1e-3)

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
    assert (triton.label, triton.value, triton.limit) == ("ns per step", 1250, None)
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
    assert {case for case, _, _ in cases.GPU_TARGETS} <= set(on_gpu)
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
        return lambda problem: lambda x: (x * (1 + next(done)),)

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
