// csrc/cuda/device.h for tensors of the CPU, on which the emulated kernels run.
#include "device.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/stableivalue_conversions.h>

#include <algorithm>
#include <cstring>

#include "../../csrc/shapes.h"
#include "runtime/settings.h"

namespace fused_lif::cuda {

DeviceGuard::DeviceGuard(int) {}
DeviceGuard::~DeviceGuard() = default;

const Device& device_properties(int index) {
  thread_local Device device;
  const auto& emulated = cuda_emulator::settings().device;
  device = {
      index, emulated.capability, emulated.multiprocessors,
      static_cast<int64_t>(emulated.shared_memory)};
  return device;
}

CUstream_st* current_stream(int) { return nullptr; }

Tensor new_empty(const std::vector<int64_t>& sizes, ScalarType dtype, int) {
  Tensor tensor = new_contiguous(sizes, dtype, aoti_torch_device_type_cpu(), 0);
  const size_t bytes = static_cast<size_t>(tensor.numel()) * tensor.element_size();
  if (bytes > 0) std::memset(tensor.data_ptr(), 0xff, bytes);  // NaN: what is not written shows up
  return tensor;
}

void matrix_product(Tensor& to, const Tensor& a, const Tensor& b) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(to.get(), a.get(), b.get()));
}

}  // namespace fused_lif::cuda
