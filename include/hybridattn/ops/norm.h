// Norms over the last dimension: RMSNorm, gated RMSNorm, L2 normalisation. Differentiable compositions of ATen ops.
#pragma once

#include <ATen/ops/rsqrt.h>
#include <ATen/ops/silu.h>
#include <ATen/TensorOperators.h>
#include <hybridattn/core/check.h>
#include <hybridattn/ops/rule.h>

namespace hybridattn::ops {

/// x / sqrt(mean(x^2) + eps) * weight, statistics in fp32 (fp64 for fp64 inputs), as Transformers' LlamaRMSNorm.
/// @param x [..., D]  @param weight [D]  @returns [..., D] in x's dtype
inline at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  HA_CHECK(weight.dim() == 1 && x.dim() >= 1 && weight.size(0) == x.size(-1), "rms_norm: weight must be [", x.size(-1),
           "], got ", weight.sizes());
  const auto wide = x.to(state_dtype(x));
  return weight * (wide * (wide.square().mean(-1, true) + eps).rsqrt()).to(x.scalar_type());
}

/// rms_norm(x, weight) * SiLU(gate); gate has x's shape. The product is formed in fp32.
inline at::Tensor gated_rms_norm(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& weight, double eps) {
  HA_CHECK(gate.sizes() == x.sizes(), "gated_rms_norm: gate must have x's shape ", x.sizes(), ", got ", gate.sizes());
  const auto dtype = state_dtype(x);
  return (rms_norm(x, weight, eps).to(dtype) * at::silu(gate.to(dtype))).to(x.scalar_type());
}

/// x / sqrt(sum(x^2) + eps): the epsilon inside the root keeps a zero vector's gradient finite.
inline at::Tensor l2_normalize(const at::Tensor& x, double eps = 1e-6) {
  const auto wide = x.to(state_dtype(x));
  return (wide * (wide.square().sum(-1, true) + eps).rsqrt()).to(x.scalar_type());
}

} // namespace hybridattn::ops
