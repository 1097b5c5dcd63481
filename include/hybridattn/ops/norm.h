// Norms over the last dimension: RMSNorm, gated RMSNorm, L2 normalisation.
#pragma once

#include <ATen/ops/rsqrt.h>
#include <ATen/TensorOperators.h>
#include <hybridattn/core/check.h>
#include <hybridattn/ops/row_norm.h>

namespace hybridattn::ops {

/// x / sqrt(mean(x^2) + eps) * weight, statistics in fp32 (fp64 for fp64 inputs), as Transformers' LlamaRMSNorm to the
/// last bit: kept attention layers must not change. A composition of ATen ops.
/// @param x [..., D]  @param weight [D]  @returns [..., D] in x's dtype
inline at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  HA_CHECK(weight.dim() == 1 && x.dim() >= 1 && weight.size(0) == x.size(-1), "rms_norm: weight must be [", x.size(-1),
           "], got ", weight.sizes());
  const auto wide = x.to(state_dtype(x));
  return weight * (wide * (wide.square().mean(-1, true) + eps).rsqrt()).to(x.scalar_type());
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
