// Launches: the templates of the toolkit's cuda_runtime.h that a host compiler cannot have.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <tuple>

namespace cuda_emulator {

// Runs `body` once per thread of the grid. Throws std::runtime_error if the kernel is at fault.
cudaError_t
launch(const cudaLaunchConfig_t& config, const void* kernel, const std::function<void()>& body);

}  // namespace cuda_emulator

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(
    const cudaLaunchConfig_t* config,
    void (*kernel)(Parameters...),
    Arguments&&... arguments) {
  const std::tuple<Parameters...> values(static_cast<Parameters>(arguments)...);
  return cuda_emulator::launch(
      *config, reinterpret_cast<const void*>(kernel), [&] { std::apply(kernel, values); });
}

template <typename... Parameters>
cudaError_t
cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute attribute, int value) {
  return ::cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}
