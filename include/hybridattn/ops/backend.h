// Which implementation of an op runs.
#pragma once

#include <ATen/core/Tensor.h>
#include <hybridattn/core/check.h>

#include <string>
#include <string_view>

namespace hybridattn::ops {

/// automatic: native where it can run, else aten; native: this library's kernels (CPU; fp64, fp32, bf16); aten: a
/// composition of ATen ops (any device and dtype).
enum class Backend { automatic, native, aten };

constexpr std::string_view name(Backend backend) {
  return backend == Backend::native ? "native" : backend == Backend::aten ? "aten" : "auto";
}

/// @throws c10::ValueError for an unknown name
inline Backend backend(const std::string& op, std::string_view wanted) {
  for (const auto known : {Backend::automatic, Backend::native, Backend::aten}) {
    if (name(known) == wanted) {
      return known;
    }
  }
  HA_CHECK(false, op, ": unknown backend '", wanted, "', known are auto, native, aten");
}

inline bool native_can_run(at::Device device, at::ScalarType type) {
  return device.is_cpu() && (type == at::kFloat || type == at::kDouble || type == at::kBFloat16);
}
inline bool native_can_run(const at::Tensor& x) {
  return native_can_run(x.device(), x.scalar_type());
}

/// Whether native kernels are to compute on tensors of `type`. @throws c10::ValueError if they are asked for and cannot
inline bool runs_native(const std::string& op, Backend wanted, at::Device device, at::ScalarType type) {
  const bool possible = native_can_run(device, type);
  HA_CHECK(possible || wanted != Backend::native, op,
           ": the native backend computes on CPU tensors of float64, float32 or bfloat16, got ", type, " on ", device,
           "; choose backend aten");
  return possible && wanted != Backend::aten;
}
inline bool runs_native(const std::string& op, Backend wanted, const at::Tensor& x) {
  return runs_native(op, wanted, x.device(), x.scalar_type());
}

} // namespace hybridattn::ops
