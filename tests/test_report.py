"""`benchmarks/report.py` writes what stands in the rows, and nothing else."""

from __future__ import annotations

import csv
import math
import re

import benchmark_path
import figures
import pytest
import report
import rows
import run

restore = benchmark_path.restore
TINY = ["--quick", "--budget", "0.02", "--shape", "64,3,5", "--shape", "64,3,7,5"]
README = f"# Title\n\nbefore\n\n{report.BEGIN}\nold\n{report.END}\n\nafter\n"
COMMON = {
    "dtype": "float32",
    "constants": "per neuron",
    "input": "busy",
    "threads": "2",
    "load": "0.50",
    "malloc": "kept",
    "commit": "abc",
    "uncommitted": "no",
    "versions": "torch=2.13 jax=none",
    "device": "Some CPU",
    "date": "2026-01-02T00:00:00+00:00",
}


def row(case, backend, mode, shape, ms="", **columns):
    """Returns a row; the quantiles lie 10 % below and 20 % above the median."""
    T, B, N = shape
    times = {"median_ms": ms, "repeats": 7} if ms else {}
    times |= {"q20_ms": 0.9 * ms, "q80_ms": 1.2 * ms} if ms else {}
    named = {"case": case, "backend": backend, "mode": mode, "T": T, "B": B, "N": N}
    written = dict.fromkeys(rows.FIELDS, "") | COMMON | named | times | columns
    return {name: str(value) for name, value in written.items()}


def write(path, lines):
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows.FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return path


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "README.md").write_text(README)
    return tmp_path


def report_of(folder, lines, name="some-cpu"):
    return report.Report(write(folder / "results" / f"{name}.csv", lines))


def main(folder, *options):
    where = ["--results", str(folder / "results"), "--readme", str(folder / "README.md")]
    return report.main([*where, *options])


def cells(text, *begin):
    """Returns the cells of the only line of a table that begins so."""
    (line,) = [q for q in text.splitlines() if q.startswith(f"| {' | '.join(begin)} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][len(begin) :]


def section(text, title):
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


SHAPE = (100, 64, 512)
LAYERS = [
    row("lif_forward", "copy", "forward", SHAPE, 0.5),
    row("lif_forward", "cpu", "forward", SHAPE, 2.0, of_limit=0.25, memory_bytes=3_000_000),
    row("lif_forward", "norse", "forward", SHAPE, 90.0, memory_bytes=60_000_000),
    row("lif_forward", "jax", "forward", SHAPE, 6.1),
    row("lif_forward_backward", "cpu", "forward_backward", SHAPE, 4.0, of_limit=0.5),
    row("lif_forward_backward", "norse", "forward_backward", SHAPE, 1000.0),
]


def sweep_rows():
    lines = []
    for T in (100, 200, 400, 800, 1600):
        shape = (T, 32, 256)
        columns = {"memory_bytes": 1000 * T, "of_limit": 0.5}
        lines.append(row("against_t", "cpu", "forward", shape, 0.01 * T, **columns))
        lines.append(row("against_t", "norse", "forward", shape, 1e-4 * T**2))
        lines.append(row("grow_t", "cpu", "forward", shape, 0.01 * T, memory_bytes=1000 * T))
    return lines


def test_device_slug():
    assert rows.slug("Intel(R) Xeon(R) Processor") == "intel-xeon-processor"
    assert rows.slug("AMD EPYC 7763 64-Core CPU @ 2.45GHz") == "amd-epyc-7763-64-core"


def test_rows_of_a_file_without_a_new_column_stay(tmp_path):
    out, written = tmp_path / "rows.csv", dict.fromkeys(rows.FIELDS, "1")
    older = {name: value for name, value in written.items() if name != "of_limit"}
    out.write_text(f"{','.join(older)}\n{','.join(older.values())}\n")
    assert rows.last_runs([out]) == [written | {"of_limit": ""}]


def test_digits():
    shown = {0.19614: "0.196", 0.2: "0.200", 9.996: "10.0", 99.96: "100", 1234.5: "1234"}
    assert {value: rows.digits(value) for value in shown} == shown
    shown = {3.04: "3.0", 9.96: "10", 44.6: "45", 99.6: "100", 574.2: "574", None: ""}
    assert {value: rows.digits(value, 2) for value in shown} == shown


def test_only_the_last_run_of_a_case_counts(folder):
    before = [q | {"date": "2026-01-01T00:00:00+00:00", "median_ms": "7"} for q in LAYERS[:4]]
    other = row("lif_cell", "cpu", "forward", (1, 2, 3), 1.0, date="2025-01-01T00:00:00+00:00")
    text = report_of(folder, [*before, *LAYERS, other]).text()
    assert text == report_of(folder, [*LAYERS, other]).text()
    assert "lif_cell" in text
    assert "2025-01-01 to 2026-01-02" in text


def test_ratios_are_those_of_medians(folder):
    kept = [row("saved_memory", "cpu", "saved", SHAPE, memory_bytes=1_000_000)]
    kept.append(row("saved_memory", "norse", "saved", SHAPE, memory_bytes=6_000_000))
    text = report_of(folder, [*LAYERS, *kept]).text()
    summary = section(text, "Speed-up")
    assert "| of limit | norse | jax |" in summary
    forward = cells(summary, "lif_forward", "100, 64, 512", "forward")
    assert forward == ["cpu", "2.00", "0.25", "45x", "3.0x"]
    both = cells(summary, "lif_forward_backward", "100, 64, 512", "forward + backward")
    assert both == ["cpu", "4.00", "0.50", "250x", ""]
    full = section(text, "All rows")
    norse = cells(full, "lif_forward", "100, 64, 512", "forward", "norse")
    assert norse == ["90 (81, 108)", "30%", "7", "60.0", "", "45x"]
    assert cells(full, "lif_forward", "100, 64, 512", "forward", "copy")[-1] == ""
    memory = section(text, "Memory in MB")
    assert cells(memory, "lif_forward", "100, 64, 512", "forward, peak") == ["3.0", "60.0"]
    assert cells(memory, "saved_memory", "100, 64, 512", "saved") == ["1.0", "6.0"]
    assert cells(full, "saved_memory", "100, 64, 512", "saved", "norse")[-1] == "6.0x"


def test_the_head_names_versions_commits_and_threads(folder):
    changed = row("lif_cell", "cpu", "forward", (1, 2, 3), 1.0, commit="def", uncommitted="yes")
    text = report_of(folder, [*LAYERS, changed | {"load": "1.25", "versions": "torch=2.12"}]).text()
    head = text.split("\n## ")[0]
    assert head.startswith("# Some CPU\n")
    assert "- Threads: 2\n- Commits: abc, def with changes\n- Dates: 2026-01-02\n" in head
    assert "0.50 to 1.25\n- Versions: torch 2.12, torch 2.13\n" in head


def test_other_threads_and_malloc_are_no_part_of_a_ratio(folder):
    faulted = row("lif_forward", "norse", "forward", SHAPE, 10.0, malloc="default")
    single = row("lif_forward", "norse", "forward", SHAPE, 20.0, threads="1")
    text = report_of(folder, [*LAYERS, faulted, single]).text()
    assert cells(section(text, "Speed-up"), "lif_forward", "100, 64, 512", "forward")[3] == "45x"
    full = section(text, "All rows")
    for case in ("lif_forward (default malloc)", "lif_forward (threads: 1)"):
        assert cells(full, case, "100, 64, 512", "forward", "norse")[-1] == ""


def test_a_graph_is_compared_with_a_graph(folder):
    times = {"cuda": 4.0, "cuda_graph": 2.0, "norse": 100.0, "mm_graph": 10.0, "triton": 6.0}
    lines = [row("gpu_recurrent", b, "forward", SHAPE, ms) for b, ms in times.items()]
    found = report_of(folder, lines)
    assert found.figures.keys() == {"speedup"}
    text = found.text()
    launched, replayed = (q.split(" | ") for q in section(text, "Speed-up").splitlines()[3:5])
    assert launched[3:] == ["cuda", "4.00", "", "25x", " |"]
    assert replayed[3:] == ["cuda_graph", "2.00", "", "", "5.0x |"]
    full = section(text, "All rows")
    assert cells(full, "gpu_recurrent", "100, 64, 512", "forward", "triton")[-1] == "1.5x"


def test_measured_limits(folder):
    lines = [
        row("a", "copy", "forward", (32, 256, 1024), 1.2),
        row("b", "copy", "forward", (32, 256, 1024), 1.0),
        row("b", "copy", "forward", (32, 256, 1024), 0.5, dtype="bfloat16"),
        row("b", "copy", "forward", (1, 1, 100), 0.01),  # of 2^20 bytes
        row("b", "matmul", "forward", (1, 1, 100), 16.0),
    ]
    found = section(report_of(folder, lines).text(), "Measured limits")
    large = 2 * 4 * 32 * 256 * 1024 / 1e9
    assert cells(found, "copy of 33.6 MB")[0] == f"{large / 1.2e-3:.1f} to {large / 1e-3:.1f}"
    assert cells(found, "copy of 16.8 MB")[0] == f"{large / 2 / 0.5e-3:.1f}"
    assert cells(found, "copy of 1.05 MB")[0] == f"{2 * 2**20 / 1e9 / 1e-5:.0f}"
    assert cells(found, "float32 product of 1024²")[0] == f"{2 * 1024**3 / 1e9 / 16e-3:.0f}"


def test_exponents():
    law = [(float(T), 3e-3 * T**1.5) for T in (10, 100, 1000, 10000)]
    assert report.fit([(1.0, 99.0), *law], 5) == "1.50 (10 to 10000, deviation 0%)"
    assert report.fit(law, 1000) is None
    two = [(100.0, 1.0), (1000.0, 100.0), (10000.0, 100.0)]  # 2, then 0
    assert report.fit(two, 0).startswith("1.00 (100 to 10000, deviation ")
    # Residuals of a straight line through 0, 2, 2 decades: -1/3, 2/3, -1/3.
    assert report.fit(two, 0).endswith(f"{10 ** (2 / 3) - 1:.0%})")


def test_sweeps_have_exponents_of_large_problems(folder):
    text = section(report_of(folder, sweep_rows()).text(), "Growth")
    ours = cells(text, "against_t", "T", "B = 32, N = 256", "cpu", "forward")
    assert ours == ["1.00 (200 to 1600, deviation 0%)"] * 2  # 100 steps are below 1e6
    norse = cells(text, "against_t", "T", "B = 32, N = 256", "norse", "forward")
    assert norse == ["2.00 (200 to 1600, deviation 0%)", ""]
    assert cells(text, "grow_t", "T", "B = 32, N = 256", "cpu", "forward") == ours


def test_a_sweep_is_a_case_in_which_one_size_grows():
    def found(shapes):
        lines = [row("case", "cpu", "forward", shape, 1.0) for shape in shapes]
        return [(s.case, s.axis, s.fixed) for s in rows.sweeps(lines)]

    batches = [(8, B, 16) for B in (64, 1, 4, 16)]
    assert found(batches) == [("case", "B", "T = 8, N = 16")]
    assert found(batches[:3]) == []
    assert found([(8, B, 16) for B in (1, 2, 4, 7)]) == []
    assert found([*batches, (9, 1, 16)]) == []


def test_threads_and_first_calls_have_tables(folder):
    lines = [row("threads", "cpu", "forward", SHAPE, ms, threads=n) for n, ms in ((1, 9), (2, 6))]
    # Of another run, or with one number of threads only.
    lines += [row("threads", "cpu", "forward", SHAPE, 1, threads=4, date="2026-01-01")]
    lines += [row("first_call", "jax", "import", SHAPE, 400, load=""), LAYERS[1]]
    lines += [row("first_call", "cpu", "build", SHAPE, 90_000, q20_ms="", q80_ms="")]
    lines += [
        row("first_call", "cpu", "first_call", SHAPE, 2),
        row("threads", "norse", "forward", SHAPE, 7),
    ]
    text = report_of(folder, lines).text()
    gain = cells(section(text, "Threads"), "100, 64, 512", "forward", "cpu")
    assert gain == ["1: 9.00", "2: 6.00", "1.5x"]
    calls = section(text, "First calls")
    assert "| seconds | import | build | first call |" in calls
    assert cells(calls, "jax") == ["0.400 (0.360, 0.480)", "", ""]
    assert cells(calls, "cpu") == ["", "90.0", "0.00200 (0.00180, 0.00240)"]
    assert "norse" not in section(text, "Threads")
    assert "## Speed-up" not in text


def drawn(lines, name):
    """Returns the figure, and what its lines and dots show, by label: x and y of each."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    figure = figures.figures(lines)[name]()
    found = {}
    for axes in figure.axes:
        for line in axes.lines:
            found.setdefault(line.get_label(), []).extend(zip(*line.get_data(), strict=True))
        for dots in axes.collections:
            found.setdefault(dots.get_label(), []).extend(map(tuple, dots.get_offsets().data))
    return figure, found


def test_figures_show_the_rows():
    single = [q | {"threads": "1", "median_ms": "3"} for q in LAYERS]
    lines = [*LAYERS, *reversed(sweep_rows()), *single]
    _, dots = drawn(lines, "speedup")
    assert dots["norse"] == [(250.0, 0.0), (45.0, 0.0)]
    assert dots["jax"] == [(pytest.approx(6.1 / 2), 0.0)]
    figure, curves = drawn(lines, "time")
    steps = (100, 200, 400, 800, 1600)
    assert curves["norse"] == [(T, pytest.approx(1e-4 * T**2)) for T in steps]
    assert curves["cpu"] == [(T, pytest.approx(0.01 * T)) for T in steps]
    assert figure.axes[0].get_xlabel() == "T  (B = 32, N = 256)"
    slope = [
        math.log2(b[1] / a[1])
        for a, b in zip(curves["slope 1"], curves["slope 1"][1:], strict=False)
    ]
    assert slope == pytest.approx([1, 1, 1, 1])
    assert figure.get_suptitle() == "Time: Some CPU, threads: 2"
    _, memory = drawn(lines, "memory")
    assert memory["cpu"] == [(T, pytest.approx(1e-3 * T)) for T in steps]
    _, shares = drawn(lines, "limit-growth")
    assert shares["cpu, forward"] == [(T, 0.5) for T in steps]
    larger = row("lif_forward", "cpu", "forward", (256, 16, 2048), 3.0, of_limit=0.75)
    figure, _ = drawn([*lines, larger], "limit")
    assert [bar.get_width() for axes in figure.axes for bar in axes.patches] == [0.5, 0.75, 0.25]


def test_a_figure_is_named_where_it_is_drawn(folder):
    names = {
        "speedup": LAYERS,
        "cases": [q | {"case": "lif_cell"} for q in LAYERS],
        "time": sweep_rows(),
        "memory": sweep_rows(),
        "growth": sweep_rows(),
        "limit": LAYERS,
        "limit-growth": sweep_rows(),
    }
    assert names.keys() == report.ABOUT.keys()
    for name, lines in names.items():
        found = report_of(folder, lines)
        assert name in found.figures
        assert f"](some-cpu-{name}.png)" in found.text()
        assert f"-{name}.png" not in report_of(folder, [LAYERS[0]]).text()


def test_a_library_has_one_colour_and_marker():
    backends = {*figures.COLOURS, "unknown"}
    assert figures.order(backends)[-1] == "unknown"
    peers = [name for name in figures.COLOURS if name not in (*rows.OURS, "fused_lif")]
    assert len({figures._colour(name) for name in peers}) == len(peers)
    assert not {figures._colour(n) for n in rows.OURS} & {figures._colour(n) for n in peers}
    assert figures._colour("unknown") in figures.OTHERS


def test_the_readme_shows_the_layers(folder):
    others = [q | {"dtype": "bfloat16", "median_ms": "9"} for q in LAYERS]
    others += [q | {"malloc": "default", "median_ms": "8"} for q in LAYERS]
    others.append(row("lif_two_states", "cpu", "forward", SHAPE, 1.0, uncommitted="yes"))
    others.append(row("lif_forward", "reference", "forward", SHAPE, 99.0))
    text = report_of(folder, [*LAYERS, *others]).readme("benchmarks/results")
    assert "| layer | T, B, N | ours, ms | of limit | norse | jax |" in text
    shown = cells(text, "LIF", "100, 64, 512")
    assert shown == ["2.00 / 4.00", "0.25 / 0.50", "45x / 250x", "3.0x / -"]
    assert text.startswith("Some CPU, threads: 2, commit abc, abc with changes;")
    assert "](benchmarks/results/some-cpu.csv)" in text
    assert "](benchmarks/results/some-cpu-speedup.png)" in text


def test_only_what_is_between_the_markers_changes():
    once = report.insert(README, "new\ntext")
    assert once == README.replace("old", "\nnew\ntext\n")
    assert report.insert(once, "new\ntext") == once
    for text in (README.replace(report.END, ""), README + README, f"{report.END}\n{report.BEGIN}"):
        with pytest.raises(ValueError, match="the README must have the lines"):
            report.insert(text, "new")


def test_check_sees_what_differs(folder, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    table = write(folder / "results" / "some-cpu.csv", LAYERS)
    gpu = LAYERS[1] | {"backend": "cuda", "device": "A GPU"}
    write(folder / "results" / "a-gpu.csv", [gpu])
    readme, text = folder / "README.md", folder / "results" / "some-cpu.md"
    assert main(folder, "--check") == 1
    assert "README.md must be what the rows give" in capsys.readouterr().err
    assert readme.read_text() == README
    assert main(folder) == 0
    assert main(folder, "--check") == 0
    assert "Some CPU, threads" in readme.read_text()
    assert (folder / "results" / "a-gpu.md").read_text().startswith("# A GPU")
    for path in (readme, text):
        right = path.read_text()
        path.write_text(right.replace("45x", "46x"))
        assert main(folder, "--check") == 1
        assert f"{path.name} must be what the rows give" in capsys.readouterr().err
        path.write_text(right)
    write(table, [*LAYERS[:-1], LAYERS[-1] | {"median_ms": "1001"}])
    assert main(folder, "--check") == 1
    assert "some-cpu.md must" in capsys.readouterr().err
    readme.write_text("no markers")
    assert main(folder, "--check") == 1
    assert "the README must have the lines" in capsys.readouterr().err


def test_there_must_be_rows(folder, capsys):
    assert main(folder) == 1
    assert "results/ has no rows yet" in capsys.readouterr().err
    write(folder / "results" / "some-cpu.csv", [])
    assert main(folder) == 1
    assert "some-cpu.csv must have rows to report, but has none" in capsys.readouterr().err


@pytest.mark.filterwarnings("default")  # those of the peers are not ours
@pytest.mark.parametrize(
    ("case", "line"),
    [
        ("lif_forward", r"\| lif_forward \| 4, 3, 5 \| forward \| reference \|"),
        ("recurrent", r"\| recurrent \| 4, 3, 5 → 5 \| forward \+ backward \| gemm \|"),
    ],
)
def test_the_rows_of_a_run_are_reported(case, line, folder):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    out = folder / "results" / "rows.csv"
    assert run.main([*TINY, "--case", case, "--out", str(out)]) == 0
    assert main(folder) == 0
    assert re.search(line, (folder / "results" / "rows.md").read_text())
    assert (folder / "results" / "rows-speedup.png").stat().st_size > 1000


def test_the_texts_of_this_repository_are_what_its_rows_give(capsys):
    assert report.main(["--check"]) == 0, capsys.readouterr().err
