"""When the backend ``triton`` is chosen, why it cannot run, and what is missing."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import threading
import warnings
from types import SimpleNamespace

import pytest
import torch
from helpers import assert_same_bits, random_case, running
from test_cuda_fake import problem_on
from torch._subclasses import FakeTensorMode
from triton_cases import TRITON_DEVICE, assert_same

import fused_lif
from fused_lif import LI, LIF, backends
from fused_lif.backends import BACKENDS, select_backend, triton
from fused_lif.info import info
from fused_lif.types import LIFProblem, Neuron

TRITON = triton.TRITON


def run_python(code, *, interpret):
    """Runs a program without, or with, interpreted kernels; returns what it printed."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


# ---- choice ----


def test_order():
    assert list(BACKENDS) == ["cuda", "cpu", "triton", "reference"]
    assert BACKENDS["triton"] is TRITON


@pytest.fixture
def machine(monkeypatch):
    """A machine with a GPU of some compute capability, whose kernels are not interpreted."""

    def set_machine(capability=(9, 0), *, cuda=None, version=triton.VERSION, hip=None, driver=None):
        target = driver or (lambda: None)
        runtime = SimpleNamespace(
            driver=SimpleNamespace(active=SimpleNamespace(get_current_target=target))
        )
        monkeypatch.setattr(triton, "IS_INTERPRETED", False)
        monkeypatch.setattr(triton, "VERSION", version)
        monkeypatch.setattr(triton, "triton", SimpleNamespace(runtime=runtime))
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
        monkeypatch.setenv("CC", "cc")
        reasons = [] if cuda is None else [cuda]
        missing = BACKENDS["cuda"]._replace(
            unavailable=lambda: reasons,
            reasons_against=lambda p: (
                reasons if p.x.is_cuda else [f"the input is on {p.x.device.type}"]
            ),
        )
        monkeypatch.setitem(BACKENDS, "cuda", missing)
        triton._reasons_against_device.cache_clear()

    yield set_machine
    triton._reasons_against_device.cache_clear()


def assert_slow(problem, reasons):
    """The reference is chosen, with a warning that says why."""
    backends._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match=re.escape(reasons)):
        assert select_backend(problem) is BACKENDS["reference"]


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_cuda_then_triton_then_the_reference(dtype, recurrent, machine):
    """Without the warning of the slow reference, where Triton takes the place of CUDA."""
    problem = problem_on("cuda", recurrent=recurrent, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        machine()
        assert select_backend(problem) is BACKENDS["cuda"]
        assert select_backend(problem, "triton") is TRITON
        machine(cuda="the extension was built without CUDA")
        assert select_backend(problem) is TRITON
    machine(capability=(7, 5), cuda="the extension was built without CUDA")
    assert_slow(problem, "Triton needs compute capability 8.0")


def test_the_cpu_is_not_triton(machine):
    machine()
    assert TRITON.reasons_against(problem_on("cpu")) == ["the input is on cpu"]
    assert TRITON.reasons_against(problem_on("meta")) == ["the input is on meta"]


@pytest.mark.parametrize(
    ("capability", "reasons"),
    [
        ((7, 5), ["Triton needs compute capability 8.0"]),
        ((7, 0), ["Triton needs compute capability 8.0"]),
        ((8, 0), []),
        ((8, 9), []),
        ((12, 1), []),
    ],
    ids=str,
)
def test_compute_capability(capability, reasons, machine):
    machine(capability)
    assert TRITON.reasons_against(problem_on("cuda")) == reasons
    machine(capability, hip="6.4")  # where it means something else
    assert TRITON.reasons_against(problem_on("cuda")) == []


@pytest.mark.parametrize(
    ("version", "capability", "rounds_wrongly"),
    [
        ("3.6.0", (9, 0), False),
        ("3.6.0", (10, 0), True),
        ("3.6.1+git", (12, 0), True),
        ("3.7.0", (10, 0), False),
        ("3.10.0", (12, 0), False),
    ],
    ids=str,
)
def test_triton_that_rounds_wrongly(version, capability, rounds_wrongly, machine):
    machine(capability, cuda="the extension was built without CUDA", version=version)
    reason = f"Triton {version} rounds wrongly on compute capability 10.0 and later; 3.7 does not"
    assert TRITON.reasons_against(problem_on("cuda")) == [reason] * rounds_wrongly
    if rounds_wrongly:
        assert_slow(problem_on("cuda"), reason)
    else:
        assert select_backend(problem_on("cuda")) is TRITON


@pytest.mark.parametrize(("version", "needs_it"), [("3.8.1", True), ("3.9.0", False)])
def test_without_a_c_compiler(version, needs_it, machine, monkeypatch):
    machine(version=version)
    monkeypatch.delenv("CC")
    monkeypatch.setattr("shutil.which", lambda name: None)
    reasons = TRITON.reasons_against(problem_on("cuda"))
    assert reasons == ["Triton needs gcc or clang, or CC to name another C compiler"] * needs_it


def test_driver_that_fails(machine):
    """Asked once."""
    asked = []

    def fail():
        asked.append(True)
        raise OSError("no libcuda.so")

    machine(cuda="the extension was built without CUDA", driver=fail)
    reason = "Triton cannot use the GPU (no libcuda.so)"
    for _ in range(2):
        assert TRITON.reasons_against(problem_on("cuda")) == [reason]
    assert asked == [True]
    assert_slow(problem_on("cuda"), reason)


def test_interpreter_and_gpu(machine, monkeypatch):
    machine()
    monkeypatch.setattr(triton, "IS_INTERPRETED", True)
    reasons = ["TRITON_INTERPRET=1 is set, and the input is not on the CPU"]
    assert TRITON.reasons_against(problem_on("cuda")) == reasons
    assert TRITON.reasons_against(problem_on("cpu")) == []
    assert TRITON.reasons_against(problem_on("meta")) == ["the input is on meta"]
    with pytest.raises(RuntimeError, match="cannot run this input: TRITON_INTERPRET=1 is set"):
        select_backend(problem_on("cuda"), "triton")


def test_no_gpu(monkeypatch):
    monkeypatch.setattr(triton, "IS_INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert TRITON.unavailable() == ["torch finds no GPU"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ModuleNotFoundError(name="triton"), "triton is not installed (pip install triton)"),
        (ImportError("no libstdc++"), "triton could not be imported (no libstdc++)"),
        (
            ModuleNotFoundError("No module named 'x'", name="x"),
            "triton could not be imported (No module named 'x')",
        ),
    ],
    ids=str,
)
def test_import_error(error, reason, machine, monkeypatch):
    machine()
    monkeypatch.setattr(triton, "IMPORT_ERROR", error)
    assert TRITON.unavailable() == [reason]
    assert TRITON.reasons_against(problem_on("cuda")) == [reason]


def test_exact_sums_of_mixed_types(machine):
    machine(cuda="the extension was built without CUDA")
    problem = problem_on("cuda", recurrent=True, exact=True, dtype=torch.bfloat16)
    reason = "exact=True needs input and weights in float32, or all in float64"
    assert TRITON.reasons_against(problem) == [reason]
    assert select_backend(problem) is BACKENDS["reference"]


# ---- what no kernel can do ----


def test_vmap_and_forward_mode_give_reasons():
    with running("triton"):
        layer = LIF(backend="triton").to(TRITON_DEVICE)
        x = torch.rand(2, 3, 4, device=TRITON_DEVICE)
        with pytest.raises(RuntimeError, match=r"cannot be transformed by torch\.func"):
            torch.func.vmap(lambda x: layer(x)[0])(x)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
            with pytest.raises(RuntimeError, match="no forward-mode derivative"):
                LI(backend="triton").to(TRITON_DEVICE)(dual)


def test_no_second_derivative():
    case = random_case((2, 3))
    with running("triton"):
        out, *_ = case.run("triton")
        (grad,) = torch.autograd.grad(out.sum(), case.x, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            grad.sum().backward()


def test_other_threads():
    """They run the same kernels, and do not see the backend of a ``with`` block."""
    case = random_case((3, 5))
    results = []

    def work():
        results.append(fused_lif.backends._requested.names[-1])
        results.append(case.run("triton"))

    with running("triton"):
        expected = case.run("triton")
        with fused_lif.backend("triton"):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
    assert results[0] is None
    assert_same(results[1], expected)


def test_block_uses_triton(monkeypatch):
    calls = []
    spy = TRITON._replace(run=lambda problem: calls.append(problem) or TRITON.run(problem))
    monkeypatch.setitem(BACKENDS, "triton", spy)
    x = torch.rand(3, 5)
    with running("triton"):
        with fused_lif.backend("triton"):
            out, _ = LIF().to(TRITON_DEVICE)(x.to(TRITON_DEVICE))
        assert len(calls) == 1
        assert_same_bits(out.cpu(), LIF(backend="reference")(x)[0])


@pytest.mark.skipif(not triton.IS_INTERPRETED, reason="kernels run on a GPU")
@pytest.mark.filterwarnings("ignore:fused_lif runs on its slow reference")
def test_interpreted_kernels_are_not_chosen(monkeypatch):
    for name in ("cuda", "cpu"):
        missing = BACKENDS[name]._replace(reasons_against=lambda problem: ["missing"])
        monkeypatch.setitem(BACKENDS, name, missing)
    assert select_backend(problem_on("cpu")) is BACKENDS["reference"]
    assert select_backend(problem_on("cpu"), "triton") is TRITON


# ---- fake tensors ----


def on_gpu(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="cuda")


@pytest.mark.parametrize("record_states", [False, True])
@pytest.mark.parametrize("neuron", Neuron)
def test_fake_tensors_on_a_gpu(neuron, record_states, machine, monkeypatch):
    """A problem goes all the way through the backend."""
    machine(cuda="the extension was built without CUDA")
    monkeypatch.setattr(triton, "_checkpoint_interval", lambda device, dtype: 16)
    with FakeTensorMode(), torch.no_grad():
        v, c = on_gpu(3, 5), on_gpu(5)
        synapse, threshold = neuron != Neuron.CURRENT_ENCODER, neuron != Neuron.LI
        problem = LIFProblem(
            *(on_gpu(40, 3, 5, dtype=torch.bfloat16), v, v if synapse else None),
            *(c if synapse else None, c, c, *[c if threshold else None] * 3),
            *(0.001, neuron, "super", False, False, record_states, False, None),
        )
        result = select_backend(problem).run(problem)
    assert result.out.shape == (40, 3, 5)
    assert result.out.dtype == torch.bfloat16
    assert result.v.shape == (3, 5)
    assert all(t.device.type == "cuda" for t in (result.out, result.v))
    assert (result.i is not None) == synapse
    if record_states:
        assert result.states.shape == (2 if synapse else 1, 40, 3, 5)
    else:
        assert result.states is None


# ---- what is missing ----


def test_cpu_tensors_without_the_interpreter():
    out = run_python(
        """
import torch, fused_lif, fused_lif.info
try:
    fused_lif.LIF(backend="triton")(torch.ones(3, 2))
except RuntimeError as error:
    print(error)
print(fused_lif.info.info())
""",
        interpret=False,
    )
    first, *report = out.splitlines()
    assert first == "backend 'triton' cannot run this input: the input is on cpu"
    assert "    triton: cannot run: torch finds no GPU" in report


def test_without_triton():
    """The package imports and runs without a warning; the reason says how to install it."""
    out = run_python(
        """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "triton":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
import torch, fused_lif
from fused_lif.backends import BACKENDS
if not BACKENDS["cpu"].unavailable():  # the extension is built
    fused_lif.LIF()(torch.ones(3, 2))
from torch._subclasses import FakeTensorMode
with FakeTensorMode():
    x = torch.ones(3, 2, device="cuda")
    v = torch.ones(2, device="cuda")
    try:
        p = fused_lif.LIFParameters(200.0, 100.0, 0.0, 1.0, 0.0, alpha=100.0)
        state = fused_lif.LIFFeedForwardState(v, v)
        fused_lif.lif_feed_forward_integral(x, state, p, backend="triton")
    except RuntimeError as error:
        print(error)
import fused_lif.info
print(fused_lif.info.info())
assert not hasattr(torch.ops.fused_lif, "lif_forward_triton")
""",
        interpret=False,
    )
    reason = "triton is not installed (pip install triton)"
    first, *report = out.splitlines()
    assert first == f"backend 'triton' cannot run this input: {reason}"
    assert [line for line in report if "triton" in line] == [f"    triton: cannot run: {reason}"]


@pytest.mark.skipif(not triton.IS_INTERPRETED, reason="kernels run on a GPU")
def test_without_the_extension():
    """All four operators run without it."""
    out = run_python(
        """
import sys, torch
sys.modules["fused_lif._C"] = None  # makes the import fail
import fused_lif
torch.manual_seed(0)
results = []
for backend in ("triton", "reference"):
    torch.manual_seed(0)
    x = torch.rand(3, 2, 4, requires_grad=True)
    layers = [
        fused_lif.LIF(backend=backend),
        fused_lif.LIFRecurrent(4, 5, backend=backend),
        fused_lif.LI(backend=backend),
    ]
    outputs = x * 100
    for layer in layers:
        outputs, _ = layer(outputs)
    outputs.sum().backward()
    results.append((outputs.detach(), x.grad))
for a, b in zip(*results):
    assert a.any()
    torch.testing.assert_close(a, b)
import fused_lif.info
print(fused_lif.info.info())
""",
        interpret=True,
    )
    assert "    cpu: cannot run: the C++ extension could not be loaded" in out
    assert "    triton: ready" in out
    assert "interpreted on the CPU (TRITON_INTERPRET=1)" in out


def test_old_triton(monkeypatch):
    """What such a Triton lacks is never asked for."""
    monkeypatch.setattr("triton.__version__", "3.5.1")
    spec = importlib.util.spec_from_file_location("old", triton.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    reason = "triton could not be imported (version 3.5.1 is older than 3.6)"
    assert module.TRITON.unavailable() == [reason]
    assert module.TRITON.reasons_against(problem_on("cuda")) == [reason]
    assert not module.IS_INTERPRETED


def test_report_on_this_machine():
    lines = info().splitlines()
    names = [line.split(":")[0].strip() for line in lines]
    assert names[-4:] == ["cuda", "cpu", "triton", "reference"]
    with running("triton"):
        assert "    triton: ready" in lines
        interpreted = ", interpreted on the CPU (TRITON_INTERPRET=1)"
        assert f"triton: {triton.VERSION}{interpreted if triton.IS_INTERPRETED else ''}" in lines
