// LowRank: a projection through a narrow middle.
#pragma once

#include <ATen/core/grad_mode.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/tanh.h>
#include <hybridattn/nn/linear.h>
#include <torch/nn/pimpl.h>

namespace hybridattn::nn {

enum class Middle { plain, tanh, sigmoid };

/// up(activation(down x)): a data-dependent gate per channel at the cost of a narrow projection.
class LowRankImpl : public torch::nn::Module {
public:
  LowRankImpl(int64_t inputs, int64_t rank, int64_t outputs, bool bias = false, Middle activation = Middle::plain)
      : activation(activation) {
    down = register_module("down", Linear(torch::nn::LinearOptions(inputs, rank).bias(false)));
    up = register_module("up", Linear(torch::nn::LinearOptions(rank, outputs).bias(bias)));
  }

  /// [..., inputs] -> [..., outputs]
  at::Tensor forward(const at::Tensor& x) {
    const auto narrow = down(x);
    return up(activation == Middle::tanh      ? at::tanh(narrow)
              : activation == Middle::sigmoid ? at::sigmoid(narrow)
                                              : narrow);
  }

  Middle activation;
  Linear down{nullptr}, up{nullptr};
};
TORCH_MODULE(LowRank);

/// One that gives 0 at first, whatever it reads.
inline LowRank low_rank_from_zero(int64_t inputs, int64_t rank, int64_t outputs, Middle activation = Middle::plain) {
  LowRank projection(inputs, rank, outputs, false, activation);
  at::NoGradGuard no_grad;
  projection->up->weight.zero_();
  return projection;
}

} // namespace hybridattn::nn
