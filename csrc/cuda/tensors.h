// Tensors on a CUDA device: how they are described to the kernels, and how the gradients of
// constants come about.
#pragma once

#include <algorithm>
#include <deque>
#include <vector>

#include "../arguments.h"
#include "device.h"
#include "kernels.h"
#include "plan.h"

namespace fused_lif::cuda {

// One call of an operator: its device, its stream, and the tensors that must live until all kernels
// are launched. (torch's allocator hands memory out again in the order of the stream.)
class Call {
 public:
  Call(const char* op, const Tensor& x)
      : op(op),
        device(device_properties(x.get_device_index())),
        stream(current_stream(device.index)),
        guard_(device.index) {}

  Tensor empty(const std::vector<int64_t>& sizes, ScalarType dtype) const {
    return new_empty(sizes, dtype, device.index);
  }

  // Memory of a tensor, as it lies if it is contiguous; null if there is none.
  const void* data(const std::optional<Tensor>& t) {
    return t ? keep(dense(*t)).data_ptr() : nullptr;
  }

  Sequence sequence(const Tensor& t, const Shape& shape) {
    alive_.emplace_back();
    return describe_sequence(t, shape, alive_.back());
  }

  Tensor& keep(const Tensor& t) { return alive_.emplace_back(t); }

  const char* const op;
  const Device& device;
  const Stream stream;

 private:
  DeviceGuard guard_;
  std::deque<Tensor> alive_;  // references stay valid
};

// Kernels count time steps in 32 bits, and beyond the last one; everything else in 64.
inline void check_steps(const char* op, int64_t T) {
  constexpr int64_t kMostSteps = INT32_MAX - 1024;
  if (T > kMostSteps) fail(op, ": CUDA takes at most ", kMostSteps, " time steps, got ", T);
}

// The constants that are given.
class ConstantSet {
 public:
  ConstantSet(Call& call, const std::vector<int64_t>& step, ConstantTensors tensors) {
    for (int k = 0; k < kNumConstants; ++k) {
      if (!tensors[k]) continue;
      const char* name = kConstantNames[k];
      groups_[k] = groups_of(call.op, name, tensors[k]->sizes(), step);
      if (groups_[k].size() > kMaxGroups)
        fail(
            call.op, ": ", name, " has more than ", kMaxGroups,
            " groups of dimensions between those that it broadcasts over");
      Constant& c = constants_[k];
      c.values = call.data(tensors[k]);
      c.dtype = to_dtype(tensors[k]->scalar_type());
      c.groups = static_cast<int>(groups_[k].size());
      for (int g = 0; g < c.groups; ++g) {
        c.size[g] = groups_[k][g].size;
        c.stride[g] = groups_[k][g].stride;
      }
    }
  }

  void copy_to(Constant (&to)[kNumConstants]) const { std::copy_n(constants_, kNumConstants, to); }

  bool fits(int64_t columns) const {
    for (const Constant& c : constants_)
      if (c.values != nullptr && !fits_columns(c, columns)) return false;
    return true;
  }

  const std::vector<Group>& groups(int k) const { return groups_[k]; }

 private:
  Constant constants_[kNumConstants] = {};
  std::vector<Group> groups_[kNumConstants];
};

// Gradients of the constants: what the kernels sum up per column, and what becomes of it.
class ConstantSums {
 public:
  ConstantSums(Call& call, ConstantTensors constants, Needs needs, int64_t M, ScalarType type)
      : M_(M), is_double_(type == ScalarType::Double) {
    for (int k = 0; k < kNumGrads; ++k) {
      is_needed_[k] = needs.constant(k) && constants[k];
      grads[k] = call.empty(
          is_needed_[k] ? to_vector(constants[k]->sizes()) : std::vector<int64_t>{0},
          is_needed_[k] ? constants[k]->scalar_type() : type);
      sums[k] = is_needed_[k] ? call.keep(call.empty({M}, type)).data_ptr() : nullptr;
    }
  }

  // Launches what turns the sums into `grads`: one kernel, or more where a constant has so many
  // columns that their chunks have to be added up again.
  void finish(Call& call, const ConstantSet& set, double dt) {
    ConstantGrad plans[kNumGrads];
    int count = 0;
    for (int k = 0; k < kNumGrads; ++k) {
      if (!is_needed_[k] || grads[k].numel() == 0) continue;
      if (M_ == 0) {
        torch::stable::zero_(grads[k]);
        continue;
      }
      ConstantGrad& plan = plans[count++];
      plan = plan_constant_grad(M_, set.groups(k).data(), static_cast<int>(set.groups(k).size()));
      plan.sums = sums[k];
      plan.sums_are_double = is_double_;
      plan.grad = grads[k].data_ptr();
      plan.dtype = to_dtype(grads[k].scalar_type());
      plan.factor = k == kTauSynInv || k == kTauMemInv ? dt : 1.0;
    }
    while (count > 0) {
      ConstantGrad next[kNumGrads];
      int left = 0;
      for (int k = 0; k < count; ++k) {
        if (plans[k].chunks == 1) continue;
        const int64_t elements = plans[k].elements, partial = plans[k].chunks * elements;
        const Group group = {elements, 1};
        ConstantGrad& rest = next[left++];
        rest = plan_constant_grad(partial, &group, 1);
        rest.sums_are_double = true;
        rest.grad = plans[k].grad;
        rest.dtype = plans[k].dtype;
        rest.factor = plans[k].factor;
        plans[k].grad = call.keep(call.empty({partial}, ScalarType::Double)).data_ptr();
        rest.sums = plans[k].grad;
      }
      launch_constant_grads(plans, count, call.stream);
      std::copy_n(next, left, plans);
      count = left;
    }
  }

  void* sums[kNumGrads];
  Tensor grads[kNumGrads];

 private:
  const int64_t M_;
  const bool is_double_;
  bool is_needed_[kNumGrads];
};

}  // namespace fused_lif::cuda
