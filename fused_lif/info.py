"""``python -m fused_lif.info``: versions, backends, and why a backend cannot run."""

from __future__ import annotations

import platform

import torch

from fused_lif._version import __version__
from fused_lif.backends import BACKENDS, native, triton


def info() -> str:
    """Returns a report on versions, on what was built, and on the backends."""
    lines = [
        f"fused_lif {__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads"
    ]
    if native.IMPORT_ERROR is None:
        from fused_lif import _C

        build = _C.build_info()
        lines.append(f"extension: built with {build['compiler']} against torch {build['torch']}")
        lines.append(
            f"    CUDA: {build['cuda']}, architectures {build['cuda_architectures']}"
            if build["cuda"]
            else "    CUDA: not built"
        )
        lines.append(
            f"    CPU capability: {_C.cpu_capability()} "
            f"(this machine supports {', '.join(_C.supported_cpu_capabilities())})"
        )
    else:
        lines.append(f"extension: not loaded ({native.IMPORT_ERROR})")
    if triton.IMPORT_ERROR is None:
        how = ", interpreted on the CPU (TRITON_INTERPRET=1)" if triton.IS_INTERPRETED else ""
        lines.append(f"triton: {triton.VERSION}{how}")
    lines.append("backends, the preferred one first:")
    for backend in BACKENDS.values():
        reasons = backend.unavailable()
        lines.append(
            f"    {backend.name}: {'cannot run: ' + '; '.join(reasons) if reasons else 'ready'}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(info())
