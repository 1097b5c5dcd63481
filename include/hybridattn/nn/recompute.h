// Gradient checkpointing: a block keeps its input only and computes its activations a second time in the backward pass.
// (Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174.)
#pragma once

#include <ATen/core/grad_mode.h>
#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <functional>

#include "hybridattn/nn/autocast.h"

namespace hybridattn::nn {

/// A function of one tensor whose parameters are reached through its closure. It must be deterministic.
using Block = std::function<at::Tensor(const at::Tensor&)>;

namespace detail {

struct Recompute : torch::autograd::Function<Recompute> {
  struct Holder : torch::CustomClassHolder {
    Holder(Block block, Autocast::State autocast) : block(std::move(block)), autocast(autocast) {}
    Block block;
    Autocast::State autocast;
  };

  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& input, const Block& block) {
    const auto autocast = Autocast::state(input.device().type());
    context->save_for_backward({input});
    context->saved_data["holder"] = c10::IValue::make_capsule(c10::make_intrusive<Holder>(block, autocast));
    return block(input);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto input = context->get_saved_variables()[0].detach().requires_grad_(true);
    const auto capsule = context->saved_data["holder"].toCapsule();
    const auto& holder = static_cast<const Holder&>(*capsule);
    at::Tensor output;
    {
      at::AutoGradMode enable(true);
      const Autocast as_before(input.device().type(), holder.autocast);
      output = holder.block(input);
    }
    // The parameters' gradients are added where they belong, as in the pass that was left out.
    torch::autograd::backward({output}, {gradients[0]});
    return {input.grad(), at::Tensor()};
  }
};

} // namespace detail

/// block(input), whose activations are not kept. Gradients are those of calling it directly.
/// `input` must require a gradient, or the block's parameters get none.
inline at::Tensor recomputed(const Block& block, const at::Tensor& input) {
  return input.requires_grad() && at::GradMode::is_enabled() ? detail::Recompute::apply(input, block) : block(input);
}

} // namespace hybridattn::nn
