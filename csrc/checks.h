// Shape, dtype and device checks of the operators. The public Python functions check first and with
// friendlier words; these keep a direct call of torch.ops.fused_lif from reading foreign memory.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/HeaderOnlyArrayRef.h>

#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "lif_step.h"
#include "surrogate.h"

namespace fused_lif {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

// Throws a message of these parts. Called as `if (!rule) fail(...)`: the parts cost nothing
// otherwise.
template <typename... Args>
[[noreturn]] inline void fail(const Args&... args) {
  std::ostringstream message;
  message << "fused_lif: ";
  (message << ... << args);
  throw std::runtime_error(message.str());
}

inline std::string to_string(Sizes sizes) {
  std::ostringstream text;
  text << "[";
  for (size_t k = 0; k < sizes.size(); ++k) text << (k ? ", " : "") << sizes[k];
  text << "]";
  return text.str();
}

inline bool equal(Sizes a, Sizes b) {
  if (a.size() != b.size()) return false;
  for (size_t k = 0; k < a.size(); ++k)
    if (a[k] != b[k]) return false;
  return true;
}

inline bool is_floating(ScalarType t) {
  return t == ScalarType::Float || t == ScalarType::Double || t == ScalarType::Half ||
         t == ScalarType::BFloat16;
}

inline const char* name_of(ScalarType t) {
  switch (t) {
    case ScalarType::Double: return "float64";
    case ScalarType::Float: return "float32";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Long: return "int64";
    default: return "another one";
  }
}

// The type that the computation is done in, and that of states: float32 for half inputs.
inline ScalarType compute_type(ScalarType t) {
  return t == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// x is [T, *step], or [*step] for a single step; v is [*step].
inline void check_input(const char* op, const Tensor& x, const Tensor& v) {
  if (!(x.dim() == v.dim() || x.dim() == v.dim() + 1))
    fail(
        op, ": x must have shape [T, *step] for v of shape ", to_string(v.sizes()), ", got ",
        to_string(x.sizes()));
  if (!(x.dim() == v.dim() || x.size(0) >= 1))
    fail(op, ": x must have at least one time step, got shape ", to_string(x.sizes()));
  if (!is_floating(x.scalar_type())) fail(op, ": x must be float64, float32, float16 or bfloat16");
}

inline bool is_on_device_of(const Tensor& t, const Tensor& x) {
  return t.get_device_index() == x.get_device_index() && t.is_cpu() == x.is_cpu();
}

inline void check_tensor(
    const char* op,
    const char* name,
    const Tensor& t,
    Sizes sizes,
    ScalarType dtype,
    const Tensor& x) {
  if (!equal(t.sizes(), sizes))
    fail(
        op, ": ", name, " must have shape ", to_string(sizes), " to match x of shape ",
        to_string(x.sizes()), ", got ", to_string(t.sizes()));
  if (t.scalar_type() != dtype)
    fail(
        op, ": ", name, " must have the dtype ", name_of(dtype), ", got ",
        name_of(t.scalar_type()));
  if (!is_on_device_of(t, x)) fail(op, ": ", name, " must be on the device of x");
}

inline void check_weights(
    const char* op,
    const char* name,
    const Tensor& weights,
    Sizes sizes,
    const Tensor& input) {
  if (!is_floating(weights.scalar_type())) fail(op, ": ", name, " must be floating-point");
  check_tensor(op, name, weights, sizes, weights.scalar_type(), input);
}

inline Neuron check_neuron(const char* op, int64_t neuron) {
  if (!(neuron >= 0 && neuron < static_cast<int64_t>(Neuron::kCount)))
    fail(op, ": unknown neuron ", neuron);
  return static_cast<Neuron>(neuron);
}

inline Surrogate check_surrogate(const char* op, int64_t method) {
  if (!(method >= 0 && method < static_cast<int64_t>(Surrogate::kCount)))
    fail(
        op, ": unknown surrogate id ", method, "; known ids are 0 to ",
        static_cast<int64_t>(Surrogate::kCount) - 1);
  return static_cast<Surrogate>(method);
}

inline Method check_method(const char* op, int64_t method, bool smooth, ScalarType dtype) {
  if (method == kAdjoint || method == kEventProp) {
    if (smooth) fail(op, ": an event-based method has no smooth spikes");
    return {Spike::kEvent, Surrogate::kHeaviside, method == kAdjoint};
  }
  if (!(method >= 0 && method < kAdjoint))
    fail(op, ": unknown method ", method, "; known ones are 0 to ", kEventProp);
  if (smooth && dtype != ScalarType::Double) fail(op, ": smooth spikes need float64");
  return {smooth ? Spike::kSmooth : Spike::kStep, static_cast<Surrogate>(method), false};
}

}  // namespace fused_lif
