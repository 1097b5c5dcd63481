// Norms over the last dimension: RMSNorm, and RWKV's group norm.
#pragma once

#include <ATen/ops/addcmul.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include "hybridattn/ops/norm.h"
#include "hybridattn/ops/rule.h"

namespace hybridattn::nn {

/// x / sqrt(mean(x^2) + eps) * weight over the last dimension, computed in fp32 (Zhang & Sennrich, arXiv 1910.07467).
/// Shapes: x [..., N], weight [N]; the result has x's shape and dtype.
class RMSNormImpl : public torch::nn::Module {
public:
  RMSNormImpl(int64_t size, double eps) : eps(eps), weight(register_parameter("weight", at::ones({size}))) {}

  at::Tensor forward(const at::Tensor& x) const { return ops::rms_norm(x, weight, eps); }

  double eps;
  at::Tensor weight;
};
TORCH_MODULE(RMSNorm);

/// (x - mean) / sqrt(var + eps) over each head, then a weight and a bias per channel, computed in fp32: RWKV's group
/// norm with a group per head (arXiv 2404.05892).
/// Shapes: x [..., H, V], weight and bias [H V]; the result has x's shape and dtype.
class HeadGroupNormImpl : public torch::nn::Module {
public:
  HeadGroupNormImpl(int64_t heads, int64_t head_dim, double eps)
      : eps(eps), weight(register_parameter("weight", at::ones({heads * head_dim}))),
        bias(register_parameter("bias", at::zeros({heads * head_dim}))) {}

  at::Tensor forward(const at::Tensor& x) const {
    const auto dtype = ops::state_dtype(x);
    const auto normed = at::layer_norm(x.to(dtype), {x.size(-1)}, {}, {}, eps);
    const auto per_head = [&](const at::Tensor& y) { return y.to(dtype).view({x.size(-2), x.size(-1)}); };
    return at::addcmul(per_head(bias), normed, per_head(weight)).to(x.scalar_type());
  }

  double eps;
  at::Tensor weight, bias;
};
TORCH_MODULE(HeadGroupNorm);

} // namespace hybridattn::nn
