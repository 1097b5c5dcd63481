// Gradient checkpointing: a block keeps its inputs only and computes its activations a second time in the backward
// pass. (Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174.)
#pragma once

#include <ATen/core/grad_mode.h>
#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <functional>
#include <optional>

#include "hybridattn/nn/autocast.h"

namespace hybridattn::nn {

/// A function of one tensor and of what earlier blocks share with later ones: a block that finds `shared` undefined may
/// define it. Parameters are reached through its closure. It must be deterministic.
using Block = std::function<at::Tensor(const at::Tensor& input, at::Tensor& shared)>;

namespace detail {

struct Recompute : torch::autograd::Function<Recompute> {
  struct Holder : torch::CustomClassHolder {
    Holder(Block block, Autocast::State autocast) : block(std::move(block)), autocast(autocast) {}
    Block block;
    Autocast::State autocast;
  };

  /// (output) or, where the block defines what is shared, (output, shared).
  static torch::autograd::variable_list call(const Block& block, const at::Tensor& input, const at::Tensor& given) {
    auto shared = given;
    const auto output = block(input, shared);
    return given.defined() || !shared.defined() ? torch::autograd::variable_list{output}
                                                : torch::autograd::variable_list{output, shared};
  }

  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context, const at::Tensor& input,
                                                const std::optional<at::Tensor>& shared, const Block& block) {
    const auto autocast = Autocast::state(input.device().type());
    context->save_for_backward({input, shared.value_or(at::Tensor())});
    context->saved_data["holder"] = c10::IValue::make_capsule(c10::make_intrusive<Holder>(block, autocast));
    return call(block, input, shared.value_or(at::Tensor()));
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const auto input = saved[0].detach().requires_grad_(true);
    const auto shared = saved[1].defined() ? saved[1].detach().requires_grad_(true) : at::Tensor();
    const auto capsule = context->saved_data["holder"].toCapsule();
    const auto& holder = static_cast<const Holder&>(*capsule);
    torch::autograd::variable_list outputs;
    {
      at::AutoGradMode enable(true);
      const Autocast as_before(input.device().type(), holder.autocast);
      outputs = call(holder.block, input, shared);
    }
    // The parameters' gradients are added where they belong, as in the pass that was left out.
    torch::autograd::backward(outputs, gradients);
    return {input.grad(), shared.defined() ? shared.grad() : at::Tensor(), at::Tensor()};
  }
};

} // namespace detail

/// block(input, shared), whose activations are not kept. Gradients are those of calling it directly.
/// `input` must require a gradient, or the block's parameters get none.
inline at::Tensor recomputed(const Block& block, const at::Tensor& input, at::Tensor& shared) {
  if (!input.requires_grad() || !at::GradMode::is_enabled()) {
    return block(input, shared);
  }
  const auto given = shared.defined() ? std::optional(shared) : std::nullopt;
  const auto outputs = detail::Recompute::apply(input, given, block);
  shared = outputs.size() > 1 ? outputs[1] : shared;
  return outputs[0];
}

} // namespace hybridattn::nn
