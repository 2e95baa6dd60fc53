// What the operators need of a CUDA device and of torch's CUDA library: memory, streams, matrix
// products. tests/cuda_emulator has a second implementation, on the CPU.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <vector>

#include "plan.h"

namespace fused_lif::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Makes a device current as long as it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int index);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  void* guard_ = nullptr;
};

// Properties of a device; asked for once.
const Device& device_properties(int index);

// torch's current stream of a device.
Stream current_stream(int index);

// A contiguous tensor on the device, not initialised.
Tensor new_empty(const std::vector<int64_t>& sizes, ScalarType dtype, int index);

// to = a b for matrices; with torch's own product. Neither autograd nor autocast sees it.
void matrix_product(Tensor& to, const Tensor& a, const Tensor& b);

}  // namespace fused_lif::cuda
