#include "capability.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace fused_lif::cpu {
namespace {

std::vector<const Kernels*> supported_kernels() {
  std::vector<const Kernels*> kernels = {&kBaselineKernels};
#if defined(__x86_64__)
  // __builtin_cpu_supports also asks whether the operating system saves the registers.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    kernels.push_back(&kAvx2Kernels);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
      kernels.push_back(&kAvx512Kernels);
  }
#endif
  return kernels;
}

const Kernels* find(const std::string& name) {
  std::string known;
  for (const Kernels* k : supported_kernels()) {
    if (name == k->name) return k;
    known += (known.empty() ? "" : ", ") + std::string(k->name);
  }
  throw std::invalid_argument(
      "CPU capability must be one of those that this machine supports (" + known + "), got '" +
      name + "'");
}

const Kernels* initial_kernels() {
  const char* name = std::getenv("FUSED_LIF_CPU_CAPABILITY");
  return name != nullptr && *name != '\0' ? find(name) : supported_kernels().back();
}

std::atomic<const Kernels*>& current() {
  static std::atomic<const Kernels*> kernels{initial_kernels()};
  return kernels;
}

}  // namespace

const Kernels& current_kernels() { return *current().load(std::memory_order_relaxed); }

std::vector<std::string> supported_capabilities() {
  std::vector<std::string> names;
  for (const Kernels* k : supported_kernels()) names.emplace_back(k->name);
  return names;
}

void set_capability(const std::string& name) { current() = find(name); }

}  // namespace fused_lif::cpu
