// Norms over the last dimension: RMSNorm, gated RMSNorm, L2 normalisation.
#pragma once

#include <hybridattn/ops/row_norm.h>

namespace hybridattn::ops {

/// x / sqrt(mean(x^2) + eps) * weight, computed in fp32 (fp64 for fp64 inputs).
/// @param x [..., D]  @param weight [D]  @returns [..., D] in x's dtype
/// @throws c10::ValueError if shapes disagree
inline at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps,
                           Backend backend = Backend::automatic) {
  return row_norm("rms_norm", {.x = x, .weight = weight, .eps = eps, .mean = true}, backend);
}

/// rms_norm(x, weight) * SiLU(gate), formed in fp32; gate has x's shape.
/// @throws c10::ValueError if shapes disagree
inline at::Tensor gated_rms_norm(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& weight, double eps,
                                 Backend backend = Backend::automatic) {
  return row_norm("gated_rms_norm", {.x = x, .weight = weight, .gate = gate, .eps = eps, .mean = true}, backend);
}

/// x / sqrt(sum(x^2) + eps), or the same of SiLU(x): the epsilon inside the root keeps a zero vector's gradient finite.
inline at::Tensor l2_normalize(const at::Tensor& x, double eps = 1e-6, bool silu = false,
                               Backend backend = Backend::automatic) {
  return row_norm("l2_normalize", {.x = x, .eps = eps, .activates = silu}, backend);
}

} // namespace hybridattn::ops
