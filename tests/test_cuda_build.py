"""The build of the CUDA kernels, and the check of what nvcc made of them. No GPU is needed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import cuda_binary
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "build_support"))
import cuda_locate  # noqa: E402
import torch_locate  # noqa: E402

TOOLKIT = cuda_locate.Toolkit(
    "nvcc", "12.9", [], [], ["7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0"]
)


def write_program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with a torch and nothing else in PATH; returns functions that add to it."""

    class Machine:
        torch = tmp_path / "torch"
        toolkit = tmp_path / "a toolkit"

        def add_torch(self, cuda):
            header = self.torch / "include/torch/csrc/stable/library.h"
            header.parent.mkdir(parents=True, exist_ok=True)
            header.touch()
            lines = [
                "from typing import Optional",
                "__all__ = ['__version__', 'cuda']",
                "__version__ = '2.13.0'",
                f"cuda: Optional[str] = {cuda!r}",
                "hip: Optional[str] = None",
            ]
            (self.torch / "version.py").write_text("\n".join(lines))

        def add_nvcc(self, release="13.0", home=None):
            for file in ("include/cuda_runtime.h", "lib/libcudart_static.a"):
                (self.toolkit / file).parent.mkdir(parents=True, exist_ok=True)
                (self.toolkit / file).touch()
            text = f"""case "$*" in
                --version) echo 'Cuda compilation tools, release {release}, V{release}.88' ;;
                --list-gpu-code) printf 'sm_80\\nsm_90\\nsm_120\\n' ;;
                --dryrun*) echo '#$ TOP={self.toolkit}' >&2 ;;
                *) exit 1 ;;
            esac
            """
            write_program((home or tmp_path) / "bin/nvcc", text)

        def choose(self):
            return cuda_locate.choose_cuda(torch_locate.find_torch())

    for name in ("CUDA_HOME", "CUDA_PATH", "FUSED_LIF_CUDA", "FUSED_LIF_CUDA_ARCHITECTURES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("FUSED_LIF_TORCH_DIR", str(Machine.torch))
    return Machine()


# ---- architectures ----


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "8.0 8.6 9.0 10.0 12.0+PTX"),
        ("8.0;9.0", "8.0 9.0"),
        ("8.0  9.0a;9.0;8.0 12.0+PTX", "8.0 9.0a 9.0 12.0+PTX"),
    ],
)
def test_architectures(text, expected):
    assert cuda_locate.parse_architectures(text, TOOLKIT) == expected.split()


def test_default_architectures_are_those_that_nvcc_knows():
    toolkit = TOOLKIT._replace(architectures=["7.0", "8.0", "8.6", "9.0"])
    assert cuda_locate.parse_architectures("", toolkit) == ["8.0", "8.6", "9.0+PTX"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sm_90", "must be 'native' or a list such as '8.0 9.0\\+PTX', got 'sm_90'"),
        ("8.0,9.0", "must be 'native' or a list"),
        ("native 9.0", "must be 'native' or a list"),
        ("9.0+ptx", "must be 'native' or a list"),
        ("8.0 7.0", "has 7.0, but nvcc 12.9 knows only 7.5 8.0 8.6"),
    ],
)
def test_bad_architectures(text, message):
    with pytest.raises(SystemExit, match=f"^FUSED_LIF_CUDA_ARCHITECTURES {message}"):
        cuda_locate.parse_architectures(text, TOOLKIT)


def test_native_architecture(machine, tmp_path):
    with pytest.raises(SystemExit, match="native needs a GPU, but nvidia-smi found none"):
        cuda_locate.parse_architectures("native", TOOLKIT)
    write_program(tmp_path / "bin/nvidia-smi", "printf '12.0\\n9.0\\n12.0\\n'")
    assert cuda_locate.parse_architectures("native", TOOLKIT) == ["9.0", "12.0"]


def test_flags_of_nvcc():
    assert cuda_locate.code_flags(["8.0", "9.0a", "12.0+PTX"]) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    ]


# ---- whether CUDA is built ----


@pytest.mark.parametrize("nvcc", [True, False])
@pytest.mark.parametrize("torch_cuda", ["13.0", None])
@pytest.mark.parametrize("choice", [None, "", "0", "1"])
def test_choice(choice, torch_cuda, nvcc, machine, monkeypatch, capsys):
    machine.add_torch(torch_cuda)
    if nvcc:
        machine.add_nvcc()
    if choice is not None:
        monkeypatch.setenv("FUSED_LIF_CUDA", choice)
    if choice == "1" and not nvcc:
        with pytest.raises(SystemExit, match=r"^FUSED_LIF_CUDA=1 cannot be done: nvcc is neither"):
            machine.choose()
        return
    cuda = machine.choose()
    assert bool(cuda) == (choice == "1" or (choice != "0" and bool(torch_cuda) and nvcc))
    silent = bool(cuda) or choice == "0" or torch_cuda is None
    assert ("no CUDA kernels" in capsys.readouterr().out) == (not silent)


def test_other_choices_are_refused(machine, monkeypatch):
    machine.add_torch("13.0")
    monkeypatch.setenv("FUSED_LIF_CUDA", "yes")
    with pytest.raises(SystemExit, match=r"^FUSED_LIF_CUDA must be 0 or 1, got 'yes'"):
        machine.choose()


def test_old_nvcc(machine, monkeypatch, capsys):
    machine.add_torch("12.6")
    machine.add_nvcc("11.8")
    assert machine.choose() is None
    assert "CUDA must be 12.0 at least" in capsys.readouterr().out
    monkeypatch.setenv("FUSED_LIF_CUDA", "1")
    with pytest.raises(SystemExit, match=r"CUDA must be 12\.0 at least, but .*nvcc is 11\.8"):
        machine.choose()


@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH"])
def test_toolkit_of_the_environment_precedes_path(variable, machine, tmp_path, monkeypatch):
    machine.add_torch("13.0")
    machine.add_nvcc("12.0")
    home = tmp_path / "home"
    machine.add_nvcc("13.0", home)
    monkeypatch.setenv(variable, str(home))
    cuda = machine.choose()
    assert cuda.toolkit.nvcc == str(home / "bin/nvcc")
    assert cuda.toolkit.version == "13.0"
    assert cuda.toolkit.includes == [machine.toolkit / "include"]
    assert cuda.toolkit.libraries == [machine.toolkit / "lib"]
    assert cuda.architectures == ["8.0", "9.0", "12.0+PTX"]


@pytest.mark.parametrize("choice", ["0", "1"])
def test_what_setup_hands_to_ninja(choice, machine, tmp_path, monkeypatch):
    machine.add_torch(None)
    machine.add_nvcc()
    monkeypatch.setenv("FUSED_LIF_CUDA", choice)
    monkeypatch.setenv("FUSED_LIF_EXTENSION", "1")  # the compiler is not among the programs
    folders = ["--build-lib", tmp_path / "lib", "--build-temp", tmp_path / "objects"]
    command = [sys.executable, "setup.py", "-q", "build_ext", *folders]
    subprocess.run(command, cwd=ROOT, check=False, capture_output=True)  # ninja finds no compiler
    text = (tmp_path / "objects/build.ninja").read_text()
    assert "cpu/lif_sequence.cpp.o: cpp " in text
    kernels = sorted((ROOT / "csrc/cuda").glob("*.cu"))
    assert kernels
    for source in kernels:
        assert (f"build cuda/{source.name}.o: cu " in text) == (choice == "1")
    parts = [
        "--fmad=false",
        "-lcudart_static",
        f"-L'{machine.toolkit / 'lib'}'",
        f"-isystem '{machine.toolkit / 'include'}'",
        """'-DFUSED_LIF_CUDA_ARCHITECTURES="8.0 9.0 12.0+PTX"'""",
        """'-DFUSED_LIF_CUDA_VERSION="13.0"'""",
    ]
    for part in parts:
        assert (part in text) == (choice == "1"), part
    assert "fast-math" not in text
    assert "fast_math" not in text


@pytest.mark.parametrize("choice", [None, "0"])
def test_no_extension_without_a_compiler_or_on_request(choice, machine, tmp_path, monkeypatch):
    monkeypatch.delenv("FUSED_LIF_EXTENSION", raising=False)
    if choice:
        write_program(tmp_path / "bin/c++", "exit 0")
        monkeypatch.setenv("FUSED_LIF_EXTENSION", choice)
    folders = ["--build-lib", tmp_path / "lib", "--build-temp", tmp_path / "objects"]
    command = [sys.executable, "setup.py", "-q", "build_ext", *folders]
    result = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert ("no GCC or clang" in result.stdout) == (choice is None)
    assert not (tmp_path / "objects").exists()


# ---- what nvcc made of the kernels ----

SAMPLE = """
Fatbin elf code:
================
arch = sm_90
.nv.info
\tAttribute:\tEIATTR_MAX_THREADS
\tValue:\t0x40 0x1 0x1
.nv.info._Z3k_aPf
\tAttribute:\tEIATTR_MAX_THREADS
\tValue:\t0x100 0x2 0x1
\tAttribute:\tEIATTR_CBANK_PARAM_SIZE
\tValue:\t0x8
Resource usage:
 Common:
  GLOBAL:0
 Function _Z3k_aPf:
  REG:40 STACK:16 SHARED:1024 LOCAL:0 CONSTANT[0]:536 TEXTURE:0 SURFACE:0 SAMPLER:0
\t\tFunction : _Z3k_aPf
\t.headerflags\t@"EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;      /* 0x00000a00ff017b82 */
        /*0010*/                   STL.64 [R1], R4 ;           /* 0x0000000401007387 */
        /*0020*/              @!P0 LDL R2, [R1+0x8] ;          /* 0x0000080001028983 */
        /*0030*/                   LDG.E R2, desc[UR4][R2.64] ; /* 0x0000000402027981 */
        /*0040*/                   FFMA R5, -R12, R4, R5 ;     /* 0x3f8000000c057423 */
        /*0050*/              @P1  DFMA R6, R8.reuse, -R10, |R12| ; /* 0x3f8000000c057423 */
        /*0060*/                   FFMA R5, R12, 1, R5 ;       /* an addition */
        /*0070*/                   FFMA.FTZ R5, R12, R4, -RZ ; /* a product */
        /*0080*/                   HFMA2.MMA R8, -RZ, RZ, 3.7421875, 0 ; /* a constant */
        /*0090*/                   HFMA2.BF16_V2 R8, R7, R6, R5 ; /* 0x437c0000ff087435 */
        /*00a0*/                   IMAD R8, R7, R6, R5 ;       /* 0x437c0000ff087435 */

Fatbin elf code:
================
arch = sm_120a
 Function _Z3k_aPf:
  REG:32 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:536 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


def test_parser():
    hopper, blackwell = cuda_binary.parse(SAMPLE.splitlines())
    expected = cuda_binary.Kernel("_Z3k_aPf", "9.0", 40, 1024, 16, spills=2, fma=3, threads=512)
    assert hopper == expected
    assert blackwell == cuda_binary.Kernel("_Z3k_aPf", "12.0a", 32)


@pytest.mark.parametrize(
    ("name", "short"),
    [
        (
            "void a::(anonymous namespace)::k<float, (a::E)2, true>(float*, long)",
            "k<float, 2, true>",
        ),
        ("void a::k<__nv_bfloat16, 8l, 4u>(a::b::Arguments)", "k<bfloat16, 8, 4>"),
        ("a::k(__half const*, a::F<1>)", "k"),
    ],
)
def test_short_names(name, short):
    assert cuda_binary.shorten(name) == short


@pytest.mark.parametrize(
    ("registers", "threads", "architecture", "warps"),
    [
        (32, 256, "9.0", 64),
        (33, 256, "9.0", 48),  # taken in eights: 40
        (40, 1024, "9.0", 32),  # whole blocks
        (255, 0, "9.0", 8),
        (32, 0, "8.6", 48),
    ],
)
def test_warps(registers, threads, architecture, warps):
    kernel = cuda_binary.Kernel("k", architecture, registers, threads=threads)
    assert kernel.warps() == warps


def test_problems():
    kernel = cuda_binary.Kernel
    kernels = [
        kernel("a_forward<float, 1>", "8.0", 40, fma=2),
        kernel("a_forward<double, 1>", "8.0", 50),
        kernel("a_backward<float, 1>", "8.0", 40, fma=2),
        kernel("a_backward<float, 1>", "9.0", 42, stack=8, spills=3),
        kernel("b_forward_kernel<0, double>", "8.0", 40, fma=2),
        kernel("b_forward_kernel<1, double>", "8.0", 50, fma=2),  # smooth spikes
        kernel("new", "8.0", 10),
    ]
    registers = {"a_forward": 40, "a_forward<double": 49, "a_backward": 42, "old": 1}
    registers |= {"b_forward_kernel": 40, "b_forward_kernel<1": 49}
    assert cuda_binary.problems(kernels, registers) == [
        "a_forward<float, 1> for 8.0 fuses multiply and add 2 times",
        "a_forward<double, 1> for 8.0 takes 50 registers, more than 49",
        "a_backward<float, 1> for 9.0 has 8 bytes of local memory, which 3 instructions use",
        "b_forward_kernel<0, double> for 8.0 fuses multiply and add 2 times",
        "b_forward_kernel<1, double> for 8.0 takes 50 registers, more than 49",
        "new has no entry in REGISTERS; it takes 10",
        "REGISTERS has an entry for old, but there is no such kernel",
        "a_forward<double, 1> is missing for 9.0",
        "a_forward<float, 1> is missing for 9.0",
        "b_forward_kernel<0, double> is missing for 9.0",
        "b_forward_kernel<1, double> is missing for 9.0",
        "new is missing for 9.0",
    ]


KERNELS = """
#define FORWARD extern "C" __global__ void
FORWARD good_forward(float* x, float a) { x[threadIdx.x] = a * x[threadIdx.x] + 1.0f; }
FORWARD fused_forward(float* x, float a) { x[threadIdx.x] = fmaf(a, x[threadIdx.x], 1.0f); }
FORWARD fused_double_forward(double* x) { x[threadIdx.x] = fma(x[1], x[threadIdx.x], 1.0); }
FORWARD local_forward(float* x, int i) {
  float v[64];
  for (int k = 0; k < 64; ++k) v[k * i % 64] = x[k];
  x[i] = v[i] + v[threadIdx.x];
}
FORWARD __launch_bounds__(1024, 2) spilling_forward(float* x) {
  float v[64];
#pragma unroll
  for (int k = 0; k < 64; ++k) v[k] = x[threadIdx.x + k * 1024];
  __syncthreads();
#pragma unroll
  for (int k = 0; k < 64; ++k) x[threadIdx.x * 64 + k] = v[k] * v[63 - k];
}
"""


def test_provoked_problems_are_reported(tmp_path):
    toolkit = cuda_locate.find_toolkit()
    if toolkit is None:
        pytest.skip("needs nvcc")
    if not (cuda_binary.find_tool("cuobjdump") and shutil.which("c++filt")):
        pytest.skip("needs c++filt and cuobjdump: pip install nvidia-cuda-{cuobjdump,nvdisasm}")
    source, binary = tmp_path / "kernels.cu", tmp_path / "kernels.o"
    source.write_text(KERNELS)
    flags = ["--fmad=false", *cuda_locate.code_flags(["9.0"])]
    subprocess.run([toolkit.nvcc, *flags, "-c", source, "-o", binary], check=True)
    kernels = {kernel.name: kernel for kernel in cuda_binary.inspect(binary)}
    assert {kernel.architecture for kernel in kernels.values()} == {"9.0"}
    assert kernels["spilling_forward"].threads == 1024
    assert kernels["spilling_forward"].registers <= 32
    found = "\n".join(cuda_binary.problems([*kernels.values()], dict.fromkeys(kernels, 255)))
    assert "good_forward" not in found
    assert "fused_forward for 9.0 fuses multiply and add 1 times" in found
    assert "fused_double_forward for 9.0 fuses multiply and add 1 times" in found
    for name in ("local_forward", "spilling_forward"):
        assert kernels[name].stack > 0
        assert kernels[name].spills > 0
        assert f"{name} for 9.0 has {kernels[name].stack} bytes of local memory" in found
    script = subprocess.run(
        [sys.executable, cuda_binary.__file__, binary], capture_output=True, text=True
    )
    assert script.returncode == 1
    assert "good_forward has no entry in REGISTERS" in script.stderr
    assert "arch  registers  warps/SM" in script.stdout
