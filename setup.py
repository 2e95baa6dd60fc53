"""Builds the extension ``fused_lif._C``; everything else is in pyproject.toml.

Environment variables:
    FUSED_LIF_EXTENSION: ``0`` installs without the extension (Triton and reference backends only),
        as happens where there is no C++ compiler; ``1`` demands it.
    FUSED_LIF_CUDA: ``1`` demands CUDA kernels, ``0`` leaves them out. By default they are built if
        both nvcc and a torch with CUDA are there; a GPU need not be.
    FUSED_LIF_CUDA_ARCHITECTURES: GPUs to build for, such as ``8.0 9.0+PTX``, or ``native``.
    FUSED_LIF_SANITIZE: ``1`` builds with the address and undefined-behaviour sanitizers.
    FUSED_LIF_TORCH_DIR: Directory of the torch to build against, if it is not found.
    CUDA_HOME, CUDA_PATH: Toolkit with nvcc (CUDA 12 at least), if it is not the one in PATH.
    CXX: C++ compiler (C++20; GCC 11 or clang 16 at least).
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
CXX = os.environ.get("CXX") or "c++"
sys.path.insert(0, str(ROOT / "build_support"))
from cuda_locate import Cuda, choose_cuda, code_flags  # noqa: E402
from torch_locate import find_torch  # noqa: E402

CUDA_FOLDER = ROOT / "csrc/cuda"  # all of it, in a build with CUDA
SOURCES = [
    "csrc/ops.cpp",
    "csrc/module.cpp",
    "csrc/cpu/capability.cpp",
    "csrc/cpu/lif_recurrent.cpp",
    "csrc/cpu/lif_sequence.cpp",
    "csrc/cpu/weight_grad.cpp",
    "csrc/cpu/kernels_baseline.cpp",
    "csrc/cpu/kernels_avx2.cpp",
    "csrc/cpu/kernels_avx512.cpp",
]
# The loops are compiled for several instruction sets, of which the best is chosen at run time.
INSTRUCTION_SETS = {
    "kernels_avx2.cpp": "-mavx2 -mfma",
    "kernels_avx512.cpp": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 "
    "-mprefer-vector-width=512",
}
# No contraction into fused multiply-adds: all backends must compute the same spikes.
CXX_FLAGS = (
    "-std=c++20 -O3 -fPIC -fvisibility=hidden -ffp-contract=off -fno-math-errno -Wall -Wextra "
    "-Wno-psabi -Wno-unknown-pragmas -Wno-restrict -DTORCH_TARGET_VERSION=0x020a000000000000"
)
# Local memory and spills are slow; tests/cuda_binary.py looks for them in the result as well.
CUDA_FLAGS = (
    "-std=c++20 -O3 --fmad=false -Xcompiler=-fPIC,-fvisibility=hidden,-ffp-contract=off "
    "-Xcompiler=-Wall,-Wextra,-Wno-unknown-pragmas -Xptxas=-warn-spills,-warn-lmem-usage "
    "-D__CUDA_NO_HALF_OPERATORS__ -D__CUDA_NO_HALF_CONVERSIONS__ -D__CUDA_NO_HALF2_OPERATORS__ "
    "-D__CUDA_NO_BFLOAT16_CONVERSIONS__"
)
# Outputs start as NaN: one that is not written shows up.
SANITIZER_FLAGS = (
    "-fsanitize=address,undefined -fno-sanitize-recover=undefined -g1 -O1 -DFUSED_LIF_POISON"
)


def _version() -> str:
    namespace: dict[str, str] = {}
    exec((ROOT / "fused_lif/_version.py").read_text(), namespace)
    return namespace["__version__"]


class NinjaBuild(build_ext):
    """Compiles with ninja: in parallel, and only what has changed."""

    def build_extension(self, ext: Extension) -> None:
        """Writes build.ninja and runs it."""
        import pybind11  # a build requirement: not there when only metadata is asked for

        torch = find_torch()
        if torch is None:
            sys.exit("fused_lif needs torch >= 2.10 to build; FUSED_LIF_TORCH_DIR can name it")
        ninja = shutil.which("ninja", path=sysconfig.get_path("scripts")) or shutil.which("ninja")
        if ninja is None:
            sys.exit("fused_lif needs ninja to build without isolation: pip install ninja")

        cuda = choose_cuda(torch)
        sanitize = os.environ.get("FUSED_LIF_SANITIZE") == "1"
        flags = [
            CXX_FLAGS,
            SANITIZER_FLAGS if sanitize else "",
            f"-isystem {shlex.quote(str(torch.directory / 'include'))}",
            f"-isystem {shlex.quote(sysconfig.get_path('include'))}",
            f'-DFUSED_LIF_VERSION=\\"{_version()}\\"',
            f'-DFUSED_LIF_BUILD_TORCH=\\"{torch.version}\\"',
        ]
        link = f"-shared -L{shlex.quote(str(torch.directory / 'lib'))} -ltorch_cpu"
        link += " -undefined dynamic_lookup" if sys.platform == "darwin" else " -Wl,--no-as-needed"
        link += f" {SANITIZER_FLAGS}" if sanitize else ""
        sources = {ROOT / source: "" for source in SOURCES}  # and the flags of that file alone
        if platform.machine().lower() in {"x86_64", "amd64"}:
            sources |= {s: INSTRUCTION_SETS.get(s.name, "") for s in sources}
        if cuda:
            sources = _cuda_sources(cuda) | sources  # the slowest ones first
            # Static: the extension loads where CUDA is not installed, and beside any torch.
            link += "".join(f" -L{shlex.quote(str(path))}" for path in cuda.toolkit.libraries)
            link += " -lcudart_static -lpthread -ldl -lrt"
        # The only file that needs it: its place in an isolated build is another one every time.
        pybind = f"-isystem {shlex.quote(pybind11.get_include())}"
        sources[ROOT / "csrc/module.cpp"] = " ".join([pybind, *_cuda_defines(cuda)])

        build = Path(self.build_temp).resolve()
        if self.editable_mode:  # setuptools wants a temporary folder, where ninja finds nothing.
            # Of torch's headers ninja sees the version, in the flags, and no change.
            build = ROOT / f"build/temp.{self.plat_name}-{sys.implementation.cache_tag}"
        build.mkdir(parents=True, exist_ok=True)
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            f"cxx = {CXX}",
            f"flags = {' '.join(filter(None, flags))}",
            f"link = {link}",
            "rule cpp",
            "  command = $cxx $special $flags -MMD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = compile $in",
            "rule cu",
            f"  command = {_nvcc(cuda) if cuda else 'nvcc'} -MD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = compile $in",
            "rule link",
            "  command = $cxx $in $link -o $out",
            "  description = link $out",
        ]
        objects = []
        for source, special in sources.items():
            objects.append(f"{source.parent.name}/{source.name}.o")
            lines.append(f"build {objects[-1]}: {source.suffix[1:]} {_escape(source)}")
            lines.append(f"  special = {special}")
        lines.append(f"build {_escape(output)}: link {' '.join(objects)}")
        (build / "build.ninja").write_text("\n".join(lines) + "\n")
        subprocess.check_call([ninja, "-C", str(build)])


def _cuda_sources(cuda: Cuda) -> dict[Path, str]:
    include = " ".join(f"-isystem {shlex.quote(str(path))}" for path in cuda.toolkit.includes)
    sources = [*sorted(CUDA_FOLDER.glob("*.cu")), *sorted(CUDA_FOLDER.glob("*.cpp"))]
    return {source: include if source.suffix == ".cpp" else "" for source in sources}


def _cuda_defines(cuda: Cuda | None) -> list[str]:
    if cuda is None:
        return []
    values = {"ARCHITECTURES": " ".join(cuda.architectures), "VERSION": cuda.toolkit.version}
    return [shlex.quote(f'-DFUSED_LIF_CUDA_{name}="{value}"') for name, value in values.items()]


def _nvcc(cuda: Cuda) -> str:
    """The CUDA compiler and its flags. Spare cores compile several architectures at once."""
    files = max(len(list(CUDA_FOLDER.glob("*.cu"))), 1)
    command = [cuda.toolkit.nvcc, *CUDA_FLAGS.split(), *code_flags(cuda.architectures)]
    command.append(f"--threads={-(-(os.cpu_count() or 1) // files)}")
    if int(cuda.toolkit.version.split(".")[0]) >= 13:
        command.append("--compress-mode=size")  # a tenth; some drivers of CUDA 12 cannot read it
    host = shlex.split(os.environ.get("CXX", ""))
    command += [f"-ccbin={host[0]}"] if len(host) == 1 else []
    return shlex.join(command)


def _escape(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _wants_extension() -> bool:
    wanted = os.environ.get("FUSED_LIF_EXTENSION")
    if wanted is None and os.environ.get("FUSED_LIF_CUDA") != "1":
        compiler = shlex.split(CXX)[0]
        if os.name == "nt" or shutil.which(compiler) is None:
            print("fused_lif: no GCC or clang: installing without C++ kernels")
            return False
    return wanted != "0"


setup(
    ext_modules=[Extension("fused_lif._C", SOURCES)] if _wants_extension() else [],
    cmdclass={"build_ext": NinjaBuild},
)
