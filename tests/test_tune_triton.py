"""`benchmarks/tune_triton.py` chooses plans, and writes what `plan.py` reads."""

from __future__ import annotations

import json

import benchmark_path
import graphs
import pytest
import torch
import tune_triton

pytestmark = pytest.mark.filterwarnings("default")  # those of the peers are not ours
restore, interpreter = benchmark_path.restore, benchmark_path.interpreter

NO_TRITON = "; ".join(tune_triton.backend.TRITON.unavailable())
needs_triton = pytest.mark.skipif(bool(NO_TRITON), reason=NO_TRITON)


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
