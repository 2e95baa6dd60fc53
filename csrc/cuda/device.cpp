#include "device.h"

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <mutex>

#include "../shapes.h"

namespace fused_lif::cuda {
namespace {

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) fail("CUDA cannot ", what, ": ", cudaGetErrorString(error));
}

// A function of torch's CUDA library. It is looked up when it is first needed: the extension also
// loads where torch has no CUDA.
template <typename Function>
Function* find(const char* name) {
  static void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  void* const symbol = library == nullptr ? nullptr : dlsym(library, name);
  if (symbol == nullptr) fail("this torch has no CUDA support (", name, " is missing)");
  return reinterpret_cast<Function*>(symbol);
}

}  // namespace

DeviceGuard::DeviceGuard(int index) {
  auto guard = std::make_unique<torch::stable::accelerator::DeviceGuard>(index);
  check(cudaSetDevice(index), "use the device of x");  // torch has its own copy of the runtime
  guard_ = guard.release();
}

DeviceGuard::~DeviceGuard() {
  delete static_cast<torch::stable::accelerator::DeviceGuard*>(guard_);
}

const Device& device_properties(int index) {
  static std::mutex mutex;
  static std::deque<Device> devices;  // references stay valid
  const std::lock_guard lock(mutex);
  while (static_cast<int>(devices.size()) <= index) {
    const int device = static_cast<int>(devices.size());
    const auto ask = [device](cudaDeviceAttr attribute) {
      int value = 0;
      check(cudaDeviceGetAttribute(&value, attribute, device), "describe a device");
      return value;
    };
    // Kernels that were compiled for an older device can do what that one could.
    cudaFuncAttributes compiled{};
    check(cudaFuncGetAttributes(&compiled, cluster_kernel()), "find a kernel for a device");
    const int capability =
        10 * ask(cudaDevAttrComputeCapabilityMajor) + ask(cudaDevAttrComputeCapabilityMinor);
    devices.push_back(
        {device, std::min(capability, compiled.ptxVersion), ask(cudaDevAttrMultiProcessorCount),
         ask(cudaDevAttrMaxSharedMemoryPerBlockOptin)});
  }
  return devices[index];
}

Stream current_stream(int index) {
  static auto* const get =
      find<AOTITorchError(int32_t, void**)>("aoti_torch_get_current_cuda_stream");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(get(index, &stream));
  return static_cast<Stream>(stream);
}

Tensor new_empty(const std::vector<int64_t>& sizes, ScalarType dtype, int index) {
  return new_contiguous(sizes, dtype, aoti_torch_device_type_cuda(), index);
}

void matrix_product(Tensor& to, const Tensor& a, const Tensor& b) {
  static auto* const mm =
      find<AOTITorchError(AtenTensorHandle, AtenTensorHandle, AtenTensorHandle)>(
          "aoti_torch_cuda_mm_out");
  TORCH_ERROR_CODE_CHECK(mm(to.get(), a.get(), b.get()));
}

}  // namespace fused_lif::cuda
