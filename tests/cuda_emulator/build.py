"""Builds the emulated kernels with g++: ``python tests/cuda_emulator/build.py [--sanitize]``.

The library of the operators has all of ``csrc/cuda`` but ``device.cpp``; that of the emulator's
own tests has ``selftest.cu``. Only what has changed is compiled.
"""

from __future__ import annotations

import fcntl
import functools
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

EMULATOR = Path(__file__).parent.resolve()
ROOT = EMULATOR.parents[1]
sys.path.insert(0, str(ROOT / "build_support"))
from cuda_locate import find_toolkit  # noqa: E402
from torch_locate import find_torch  # noqa: E402

#: The namespace of the emulated operators.
LIBRARY = "fused_lif_emulated"
OPERATORS, SELFTEST = f"lib{LIBRARY}.so", "libcuda_emulator_selftest.so"

# -O2 takes half as long again to compile, and runs no faster.
FLAGS = (
    "-std=c++20 -O1 -fPIC -fvisibility=hidden -ffp-contract=off -fno-math-errno "
    "-fno-extern-tls-init -Wall -Wextra -Wno-unknown-pragmas -Wno-psabi -pthread "
    f"-DFUSED_LIF_LIBRARY={LIBRARY} -DFUSED_LIF_CUDA_KEY=CPU "
    "-DTORCH_TARGET_VERSION=0x020a000000000000"
)
SANITIZER_FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -g1"
JOBS = 2


def compiler() -> str:
    return os.environ.get("CXX", "g++")


def _ninja() -> str | None:
    return shutil.which("ninja") or shutil.which("ninja", path=sysconfig.get_path("scripts"))


@functools.cache
def unavailable() -> str | None:
    """Says why nothing can be built; ``None`` if it can."""
    if not sys.platform.startswith("linux"):
        return "the CUDA emulator runs on Linux only"
    if shutil.which(compiler()) is None:
        return f"the CUDA emulator needs {compiler()}"
    if _ninja() is None:
        return "the CUDA emulator needs ninja"
    if find_torch() is None:
        return "the CUDA emulator needs torch >= 2.10"
    toolkit = find_toolkit()
    if toolkit is None or not toolkit.includes:
        return "the CUDA emulator needs headers of the CUDA toolkit: no nvcc in PATH or CUDA_HOME"
    return None


def sources(library: str) -> list[Path]:
    """What a library is made of."""
    runtime = sorted((EMULATOR / "runtime").glob("*.cpp"))
    if library == SELFTEST:
        return [*runtime, EMULATOR / "selftest.cu"]
    kernels = [p for p in sorted((ROOT / "csrc/cuda").glob("*.c*")) if p.suffix in {".cu", ".cpp"}]
    kernels = [path for path in kernels if path.name != "device.cpp"]
    return [*runtime, EMULATOR / "device_emulated.cpp", *kernels]


def _escape(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _write_ninja_file(folder: Path, sanitize: bool) -> None:
    torch, toolkit = find_torch(), find_toolkit()
    assert torch is not None
    assert toolkit is not None
    quote = shlex.quote
    sanitizers = SANITIZER_FLAGS if sanitize else ""
    # Our headers stand before the toolkit's of the same name.
    includes = [f"-I{quote(str(EMULATOR / 'include'))}", f"-I{quote(str(EMULATOR))}"]
    includes += [f"-I{quote(str(ROOT / 'csrc/cuda'))}"]
    includes += [f"-isystem {quote(str(path))}" for path in toolkit.includes]
    includes += [f"-isystem {quote(str(torch.directory / 'include'))}"]
    torch_library = f"-L{quote(str(torch.directory / 'lib'))} -Wl,--no-as-needed -ltorch_cpu"
    lines = [
        f"flags = {FLAGS} {sanitizers} {' '.join(includes)}",
        "rule compile",
        f"  command = {compiler()} $flags -MMD -MF $out.d -x c++ -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = compile $in",
        "rule link",
        f"  command = {compiler()} -shared -pthread {sanitizers} $in $libraries -o $out",
        "  description = link $out",
    ]
    compiled: dict[Path, str] = {}
    for library in (OPERATORS, SELFTEST):
        for source in sources(library):
            if source not in compiled:
                compiled[source] = f"{source.parent.name}/{source.name}.o"
                lines.append(f"build {compiled[source]}: compile {_escape(source)}")
        objects = " ".join(compiled[source] for source in sources(library))
        lines.append(f"build {library}: link {objects}")
        lines.append(f"  libraries = {torch_library if library == OPERATORS else ''}")
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")


def build(library: str = OPERATORS, *, sanitize: bool = False) -> Path:
    """Compiles what has changed and returns the library. One process builds at a time."""
    reason = unavailable()
    if reason is not None:
        raise RuntimeError(reason)
    folder = ROOT / "build/cuda_emulator" / ("sanitized" if sanitize else "plain")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _write_ninja_file(folder, sanitize)
        command = [str(_ninja()), "-C", str(folder), "-j", str(JOBS), "--quiet", library]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"the CUDA emulator could not be built:\n{result.stdout}")
    if "warning:" in result.stdout:
        print(result.stdout, file=sys.stderr)
    return folder / library


if __name__ == "__main__":
    try:
        print(build(sanitize="--sanitize" in sys.argv[1:]))
    except RuntimeError as error:
        sys.exit(str(error))
