// RMSNorm with a learned weight over the last dimension.
#pragma once

#include <ATen/ops/ones.h>
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include "hybridattn/ops/norm.h"

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

} // namespace hybridattn::nn
