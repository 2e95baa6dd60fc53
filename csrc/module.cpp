// The pybind11 module `_C`: importing it registers the operators; its functions tell what was
// built.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "cpu/capability.h"

#ifndef FUSED_LIF_CUDA_ARCHITECTURES
#define FUSED_LIF_CUDA_ARCHITECTURES ""
#define FUSED_LIF_CUDA_VERSION ""
#endif

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Operators of fused_lif, and what they were built for.";
  m.def(
      "build_info",
      [] {
        py::dict info;
        info["version"] = FUSED_LIF_VERSION;
        info["torch"] = FUSED_LIF_BUILD_TORCH;
#if defined(__clang__)
        info["compiler"] = std::string("clang ") + __clang_version__;
#else
        info["compiler"] = std::string("gcc ") + __VERSION__;
#endif
        info["cuda"] = FUSED_LIF_CUDA_VERSION;
        info["cuda_architectures"] = FUSED_LIF_CUDA_ARCHITECTURES;
        return info;
      },
      "Version of the package, of the torch, the compiler and the CUDA it was built with; CUDA "
      "architectures. Without CUDA these two are empty.");
  m.def(
      "cpu_capability", [] { return std::string(fused_lif::cpu::current_kernels().name); },
      "Instruction set of the CPU kernels in use.");
  m.def(
      "supported_cpu_capabilities", &fused_lif::cpu::supported_capabilities,
      "Instruction sets that this machine can run, the slowest first.");
  m.def(
      "set_cpu_capability", &fused_lif::cpu::set_capability, py::arg("name"),
      "Switches the CPU kernels, for tests and benchmarks. Raises ValueError if unsupported.");
}
