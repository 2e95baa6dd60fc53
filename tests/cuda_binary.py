"""What nvcc made of the CUDA kernels: ``python tests/cuda_binary.py fused_lif/_C*.so``.

Prints registers, memory and fused multiply-adds of every kernel for every architecture. Fails if a
kernel spills or has other local memory, if it takes more registers than REGISTERS grants, or if a
forward kernel fuses multiply and add. No GPU is needed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

#: Registers that a thread may take, by the name of the kernel. A name may include the first
#: template arguments, as in ``lif_forward_kernel<double``; the longest one counts.
REGISTERS = {
    "constant_grads_kernel": 64,
    "find_infinite_kernel": 40,
    "lif_backward_kernel": 128,
    "lif_cluster_backward_kernel": 128,
    "lif_cluster_forward_kernel": 64,
    "lif_forward_kernel": 128,
    "lif_input_sums_forward_kernel": 64,
    "lif_recurrent_forward_potentials_kernel": 40,
    "lif_recurrent_forward_potentials_kernel<1": 56,  # smooth spikes
    "lif_recurrent_step_backward_kernel": 48,
    "lif_recurrent_step_forward_kernel": 40,
}

#: Warps that a multiprocessor can hold, by architecture.
MAX_WARPS = {"8.0": 64, "9.0": 64, "10.0": 64, "10.3": 64}  # and 48 for all others


@dataclass
class Kernel:
    """One kernel as compiled for one architecture."""

    name: str
    architecture: str
    registers: int = 0
    shared: int = 0  # static shared memory, bytes; from 9.0 on, 1024 of them are CUDA's own
    stack: int = 0  # bytes of local memory
    spills: int = 0  # instructions that load from or store to local memory
    fma: int = 0  # instructions that round a product and a sum only once
    threads: int = 0  # launch bound; 0 if there is none

    def warps(self) -> int:
        """Warps of a multiprocessor for which its 64 Ki registers and its limit suffice."""
        per_warp = -(-max(self.registers, 1) // 8) * 8 * 32
        warps = min(4 * ((64 << 10) // 4 // per_warp), MAX_WARPS.get(self.architecture, 48))
        block = max(-(-self.threads // 32), 1)
        return warps // block * block


def find_tool(name: str) -> str | None:
    """Returns the path of a CUDA tool: beside nvcc, in PATH, or in one of the wheels that have it.

    These are ``nvidia-cuda-cuobjdump`` with ``nvidia-cuda-nvdisasm``, and ``triton``.
    """
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    folders = [Path(home, "bin") for home in homes if home]
    nvcc = shutil.which("nvcc")
    folders += [Path(nvcc).resolve().parent] if nvcc else []
    for entry in map(Path, sys.path):
        folders += [*entry.glob("nvidia/cu*/bin"), entry / "triton/backends/nvidia/bin"]
    path = os.pathsep.join([*map(str, folders), os.environ.get("PATH", "")])
    return shutil.which(name, path=path)


def is_fused(opcode: str, operands: list[str]) -> bool:
    """Whether a multiply-add rounds once what two instructions would round twice.

    Not so if it only loads constants (zero times zero), adds (one times something) or multiplies
    (plus zero): the compiler does that to balance its pipelines.
    """
    a, b, *_, c = [operand.strip(" -|").split(".reuse")[0] for operand in operands[1:]]
    zeros = {"RZ", "URZ"}
    return not (zeros & {a, b, c} or ({"1"} & {a, b} and not opcode.startswith("H")))


_PATTERN = re.compile(
    r"^arch = sm_(?P<arch>\w+)"
    r"|^\.nv\.info\.(?P<info>\w+)"
    r"|^ Function (?P<usage>\w+):"
    r"|^\t\tFunction : (?P<code>\w+)"
    r"|^  REG:(?P<registers>\d+) STACK:(?P<stack>\d+) SHARED:(?P<shared>\d+)"
    r"|^\tAttribute:\t(?P<attribute>\w+)"
    r"|^\tValue:\t(?P<value>0x.*)"
    r"|^ +/\*[0-9a-f]+\*/ +(?:@!?U?P\w+ +)?"
    r"(?:(?P<local>LDL|STL)\b|(?P<fma>U?[DFH]FMA\w*)(?:\.\w+)* +(?P<operands>[^;]*))"
)


def parse(lines: Iterable[str]) -> Iterator[Kernel]:
    """Reads what ``cuobjdump -elf -res-usage -sass`` prints."""
    kernels: dict[str, Kernel] = {}
    architecture = attribute = name = ""
    for match in filter(None, map(_PATTERN.match, lines)):
        kind, found = match.lastgroup, match.groupdict()
        if kind == "arch":
            yield from kernels.values()
            kernels, name = {}, ""
            number = re.fullmatch(r"(\d+)(\d\w?)", found["arch"])
            architecture = f"{number[1]}.{number[2]}" if number else found["arch"]
        elif kind in {"info", "usage", "code"}:
            name = found[kind]
            kernels.setdefault(name, Kernel(name, architecture))
        elif kind == "attribute":
            attribute = found["attribute"]
        elif kind == "value" and attribute == "EIATTR_MAX_THREADS" and name:
            x, y, z = (int(n, 16) for n in found["value"].split())
            kernels[name].threads = x * y * z
        elif kind == "shared":
            for field in ("registers", "stack", "shared"):
                setattr(kernels[name], field, int(found[field]))
        elif kind == "local":
            kernels[name].spills += 1
        elif kind == "operands":
            kernels[name].fma += is_fused(found["fma"], found["operands"].split(", "))
    yield from kernels.values()


def shorten(name: str) -> str:
    """A demangled name without result, namespaces and parameters: ``lif_kernel<float, 2>``."""
    name = name.replace("(anonymous namespace)::", "")
    name = re.sub(r"\([\w:]+\)(?=-?\d)", "", name)  # the type of an enumerator
    name = re.sub(r"(?<=\d)[ul]+\b", "", name.split("(")[0])
    return re.sub(r"\w+::", "", name).removeprefix("void ").replace("__nv_", "").replace("__", "")


def inspect(binary: Path) -> list[Kernel]:
    """Returns all kernels of an object file or a library, with demangled, shortened names."""
    cuobjdump = find_tool("cuobjdump")
    if cuobjdump is None:
        sys.exit(
            "cuobjdump is neither beside nvcc nor in PATH: "
            "pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
        )
    listing = subprocess.run([cuobjdump, "-lelf", binary], capture_output=True, text=True)
    architectures = sorted(set(re.findall(r"sm_\w+(?=\.cubin)", listing.stdout)))

    def dump(architecture: str) -> list[Kernel]:
        command = [cuobjdump, "-arch", architecture, "-elf", "-res-usage", "-sass", binary]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            kernels = list(parse(process.stdout))
        if process.returncode:
            sys.exit(f"cuobjdump failed: {' '.join(map(str, command))}")
        return kernels

    with ThreadPoolExecutor(2) as pool:
        kernels = [kernel for found in pool.map(dump, architectures) for kernel in found]
    names = "\n".join(kernel.name for kernel in kernels)
    demangled = subprocess.run(["c++filt"], input=names, capture_output=True, text=True, check=True)
    for kernel, name in zip(kernels, demangled.stdout.splitlines(), strict=True):
        kernel.name = shorten(name)
    return sorted(kernels, key=lambda k: (k.name, float(re.sub("[a-z]", "", k.architecture))))


def budget_of(name: str, registers: Mapping[str, int]) -> int | None:
    """The entry for a kernel, of which the name may be only the first part."""
    keys = [key for key in registers if name == key or re.match(re.escape(key) + "[<,>]", name)]
    return registers[max(keys, key=len)] if keys else None


def is_forward(name: str) -> bool:
    """Whether a kernel computes spikes: their rounding must be that of all backends.

    Not so smooth spikes, which verify gradients and take functions of CUDA's library. Kernels for
    them have ``Spike::kSmooth`` as first template argument.
    """
    return "forward" in name.split("<")[0] and "_kernel<1, double" not in name


def problems(
    kernels: Sequence[Kernel],
    registers: Mapping[str, int] = REGISTERS,
    must_not_fuse: Callable[[str], bool] = is_forward,
) -> list[str]:
    """Returns a sentence on everything that must not be."""
    found = []
    for kernel in kernels:
        where = f"{kernel.name} for {kernel.architecture}"
        budget = budget_of(kernel.name, registers)
        if kernel.stack or kernel.spills:
            found.append(
                f"{where} has {kernel.stack} bytes of local memory, "
                f"which {kernel.spills} instructions use"
            )
        if kernel.fma and must_not_fuse(kernel.name):
            found.append(f"{where} fuses multiply and add {kernel.fma} times")
        if budget is not None and kernel.registers > budget:
            found.append(f"{where} takes {kernel.registers} registers, more than {budget}")
    names = {kernel.name for kernel in kernels}
    for base in sorted({n.split("<")[0] for n in names if budget_of(n, registers) is None}):
        most = max(k.registers for k in kernels if k.name.split("<")[0] == base)
        found.append(f"{base} has no entry in REGISTERS; it takes {most}")
    for key in registers:
        if not any(budget_of(name, {key: 0}) == 0 for name in names):
            found.append(f"REGISTERS has an entry for {key}, but there is no such kernel")
    architectures = {kernel.architecture for kernel in kernels}
    for name in sorted(names):
        missing = architectures - {k.architecture for k in kernels if k.name == name}
        if missing:
            found.append(f"{name} is missing for {', '.join(sorted(missing))}")
    return found


def table(kernels: Sequence[Kernel]) -> str:
    """All kernels, a line for every architecture; warps are those that the registers allow."""
    width = max((len(kernel.name) for kernel in kernels), default=0)
    titles = ["arch", "registers", "warps/SM", "shared", "stack", "spills", "fma"]
    lines = [f"{'kernel':{width}}  {'  '.join(titles)}"]
    for k in kernels:
        values = [k.architecture, k.registers, k.warps(), k.shared, k.stack, k.spills, k.fma]
        cells = (f"{v:>{len(title)}}" for v, title in zip(values, titles, strict=True))
        lines.append(f"{k.name:{width}}  {'  '.join(cells)}")
    return "\n".join(lines)


def main() -> None:
    kernels = [kernel for path in sys.argv[1:] for kernel in inspect(Path(path))]
    print(table(kernels))
    found = problems(kernels)
    if not kernels:
        found.append("no kernels: built without CUDA?")
    if found:
        sys.exit("\n" + "\n".join(found))
    print(f"{len(kernels)} kernels: no local memory, registers within limits, forward unfused")


if __name__ == "__main__":
    main()
