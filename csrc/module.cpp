// The pybind11 module `_C`: importing it registers the operators; its functions tell what was
// built.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "cpu/capability.h"
#include "cuda/plan.h"

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

  // How CUDA would run a call: pure functions of sizes, for tests without a GPU.
  m.def(
      "cuda_sequence_plan",
      [](bool is_backward, int64_t columns, int64_t element_bytes, int64_t neuron, bool soft_reset,
         int multiprocessors, int64_t alignment) {
        const auto plan = fused_lif::cuda::plan_sequence(
            is_backward, columns, element_bytes, static_cast<fused_lif::Neuron>(neuron),
            soft_reset ? fused_lif::Reset::kSoft : fused_lif::Reset::kHard,
            {0, 90, multiprocessors, 0},
            [&](int64_t width) { return alignment % (width * element_bytes) == 0; });
        return std::pair(plan.columns, plan.threads);
      },
      py::arg("is_backward"), py::arg("columns"), py::arg("element_bytes"), py::arg("neuron"),
      py::arg("soft_reset"), py::arg("multiprocessors"), py::arg("alignment") = 256,
      "Columns per thread and threads per block for tensors aligned to so many bytes.");
  m.def(
      "cuda_cluster_rows",
      [](int64_t T, int64_t B, int64_t H, bool is_double, int64_t segment, int capability,
         int multiprocessors, int64_t shared_memory) {
        return fused_lif::cuda::cluster_rows(
            T, B, H, is_double, segment, {0, capability, multiprocessors, shared_memory});
      },
      py::arg("T"), py::arg("B"), py::arg("H"), py::arg("is_double"), py::arg("segment"),
      py::arg("capability"), py::arg("multiprocessors"), py::arg("shared_memory"),
      "Batch rows per cluster of a recurrent layer; 0 where matrix products are used.");
}
