// Linear: torch's linear layer on this library's matrix products.
#pragma once

#include <hybridattn/ops/linear.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>

namespace hybridattn::nn {

/// [..., in_features] -> [..., out_features]; parameters as torch::nn::Linear's.
class LinearImpl : public torch::nn::LinearImpl {
public:
  using torch::nn::LinearImpl::LinearImpl;

  at::Tensor forward(const at::Tensor& x) {
    return ops::linear(x, weight, bias.defined() ? std::optional(bias) : std::nullopt);
  }
};
TORCH_MODULE(Linear);

} // namespace hybridattn::nn
