// The gated feed-forward block of Llama-like decoders.
#pragma once

#include <hybridattn/nn/linear.h>
#include <hybridattn/ops/swiglu.h>
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

namespace hybridattn::nn {

/// down_proj(SiLU(gate_proj x) * up_proj x) (Shazeer, "GLU Variants Improve Transformer", arXiv 2002.05202).
/// Shapes: x [..., D], inside [..., intermediate_size].
class MLPImpl : public torch::nn::Module {
public:
  MLPImpl(int64_t hidden_size, int64_t intermediate_size, bool bias)
      : gate_proj(torch::nn::LinearOptions(hidden_size, intermediate_size).bias(bias)),
        up_proj(torch::nn::LinearOptions(hidden_size, intermediate_size).bias(bias)),
        down_proj(torch::nn::LinearOptions(intermediate_size, hidden_size).bias(bias)) {
    register_module("gate_proj", gate_proj);
    register_module("up_proj", up_proj);
    register_module("down_proj", down_proj);
  }

  at::Tensor forward(const at::Tensor& x) { return down_proj(ops::swiglu(gate_proj(x), up_proj(x))); }

  Linear gate_proj, up_proj, down_proj;
};
TORCH_MODULE(MLP);

} // namespace hybridattn::nn
