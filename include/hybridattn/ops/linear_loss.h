// The loop that losses on logits share: hidden states -> logits of a few tokens -> loss and gradient, then the next
// few. Letters: N tokens, D hidden, V vocabulary.
#pragma once

#include <ATen/ops/dot.h>
#include <ATen/ops/empty.h>
#include <ATen/TensorOperators.h>
#include <hybridattn/core/check.h>
#include <hybridattn/core/fresh_tensor.h>
#include <hybridattn/ops/matrix_product.h>
#include <hybridattn/ops/rule.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/graph_task.h>

#include <algorithm>
#include <functional>
#include <string>
#include <tuple>

namespace hybridattn::ops {

/// {weighted sum [], loss per token [N], gradients of the weighted sum with respect to hidden [N, D] and head [V, D]};
/// gradients that were not asked for are empty. fp32, or fp64 for fp64 inputs.
using LinearLossResult = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

/// Tokens per chunk: the asked number, or as many as keep [chunk, V] in fp32 at 32 MiB or a quarter of the head's own
/// size, whichever is more: every chunk reads the whole head three times, so small ones are bound by memory.
inline int64_t linear_loss_chunk(int64_t asked, int64_t tokens, const at::Tensor& head) {
  constexpr int64_t kFloats = 8 << 20;
  const int64_t chosen =
      asked > 0 ? asked : std::max({int64_t{16}, kFloats / std::max<int64_t>(1, head.size(0)), head.size(1) / 4});
  return std::clamp<int64_t>(chosen, 1, std::max<int64_t>(1, tokens));
}

inline void check_linear(const std::string& op, const char* who, const at::Tensor& hidden, const at::Tensor& head) {
  HA_CHECK(hidden.dim() >= 1 && head.dim() == 2 && hidden.size(-1) == head.size(1), op, ": ", who, "head must be [V, ",
           hidden.dim() ? hidden.size(-1) : 0, "], got ", head.sizes());
  HA_CHECK(at::isFloatingType(hidden.scalar_type()) && at::isFloatingType(head.scalar_type()), op, ": ", who,
           "hidden states and head must be floating, got ", hidden.scalar_type(), " and ", head.scalar_type());
}

/// Logits in fp32 (fp64 for fp64 hidden states). Rounding them to bf16 before a softmax would cost up to a fifth of the
/// gradient.
struct LinearHead {
  at::Tensor hidden, head;
  MatrixProducts products;

  LinearHead(const at::Tensor& hidden_states, const at::Tensor& weight, Backend backend)
      : hidden(hidden_states.reshape({-1, hidden_states.size(-1)})), products(backend, hidden_states, weight) {
    head = products.native ? weight : weight.to(state_dtype(hidden_states)); // once, rather than in every product
  }

  at::Tensor rows(int64_t begin, int64_t count) const { return hidden.narrow(0, begin, count); }
  /// Logits [count, V] in the memory of `buffer` [chunk, V]. One buffer serves all chunks: touching fresh pages for
  /// each would cost more than the softmax.
  at::Tensor logits(int64_t begin, int64_t count, const at::Tensor& buffer) const {
    auto result = buffer.narrow(0, 0, count);
    products(result, rows(begin, count), head.t());
    return result;
  }
};

/// Tokens [begin, begin + count) of a linear loss.
struct LossChunk {
  int64_t begin, count;
  at::Tensor weights; // [count], or undefined for ones
  bool wants_gradient;

  /// The gradient of the weighted losses from that of the losses [count, V], in place.
  void weigh(at::Tensor& gradient) const {
    if (weights.defined()) {
      gradient.mul_(weights.unsqueeze(-1));
    }
  }
};

/// @param weights  per token [N], or undefined for ones
/// @param loss_and_gradient (LossChunk, logits [count, V]) -> loss [count], not weighted; replaces logits with the
///        gradient of the weighted losses where that is wanted
template <class LossAndGradient>
LinearLossResult linear_loss(const at::Tensor& hidden, const at::Tensor& head, const at::Tensor& weights,
                             int64_t chunk_size, Backend backend, bool hidden_grad, bool head_grad,
                             LossAndGradient&& loss_and_gradient) {
  const LinearHead linear(hidden, head, backend);
  const int64_t tokens = linear.hidden.size(0), vocabulary = head.size(0);
  const int64_t chunk = linear_loss_chunk(chunk_size, tokens, head);
  const auto options = head.options().dtype(state_dtype(hidden));
  const auto buffer = fresh_tensor({chunk, vocabulary}, options);
  auto loss = at::empty({tokens}, options);
  auto grad_hidden = at::empty(hidden_grad ? linear.hidden.sizes() : at::IntArrayRef{0}, options);
  auto grad_head = fresh_tensor(head_grad ? head.sizes() : at::IntArrayRef{0}, options);
  if (tokens == 0) {
    grad_head.zero_();
  }
  for (int64_t begin = 0; begin < tokens; begin += chunk) {
    const int64_t count = std::min(chunk, tokens - begin);
    auto logits = linear.logits(begin, count, buffer);
    const auto chunk_weights = weights.defined() ? weights.narrow(0, begin, count) : weights;
    const LossChunk part{begin, count, chunk_weights, hidden_grad || head_grad};
    loss.narrow(0, begin, count).copy_(loss_and_gradient(part, logits));
    if (hidden_grad) {
      auto rows = grad_hidden.narrow(0, begin, count);
      linear.products(rows, logits, linear.head);
    }
    if (head_grad) {
      linear.products(grad_head, logits.t(), linear.rows(begin, count), begin > 0);
    }
  }
  return {weights.defined() ? at::dot(loss, weights) : loss.sum(), loss, grad_hidden, grad_head};
}

/// Autograd of a linear loss whose gradients are computed together with its value: backward only scales them.
/// `compute(hidden_grad, head_grad)` is called without gradient tracking.
struct LinearLossFunction : torch::autograd::Function<LinearLossFunction> {
  using List = torch::autograd::variable_list;
  using Compute = std::function<LinearLossResult(bool, bool)>;

  static List forward(torch::autograd::AutogradContext* ctx, const at::Tensor& hidden, const at::Tensor& head,
                      const Compute& compute) {
    auto [total, loss, grad_hidden, grad_head] = compute(hidden.requires_grad(), head.requires_grad());
    ctx->save_for_backward({grad_hidden, grad_head});
    ctx->saved_data["hidden_sizes"] = hidden.sizes().vec();
    ctx->saved_data["hidden_dtype"] = static_cast<int64_t>(hidden.scalar_type());
    ctx->saved_data["head_dtype"] = static_cast<int64_t>(head.scalar_type());
    ctx->saved_data["hidden_grad"] = hidden.requires_grad();
    ctx->saved_data["head_grad"] = head.requires_grad();
    ctx->mark_non_differentiable({loss});
    return {total, loss};
  }

  static List backward(torch::autograd::AutogradContext* ctx, List grads) {
    const auto saved = ctx->get_saved_variables();
    // The head's gradient may be the largest tensor of all: no copy of it unless the graph is to be used again.
    const bool keep = torch::autograd::get_current_graph_task_keep_graph();
    const auto scaled = [&](at::Tensor grad, const char* dtype) {
      const auto type = static_cast<at::ScalarType>(static_cast<int8_t>(ctx->saved_data[dtype].toInt()));
      return (keep ? grad * grads[0] : grad.mul_(grads[0])).to(type);
    };
    at::Tensor grad_hidden, grad_head;
    if (ctx->saved_data["hidden_grad"].toBool()) {
      grad_hidden = scaled(saved[0], "hidden_dtype").view(ctx->saved_data["hidden_sizes"].toIntVector());
    }
    if (ctx->saved_data["head_grad"].toBool()) {
      grad_head = scaled(saved[1], "head_dtype");
    }
    return {grad_hidden, grad_head, at::Tensor()};
  }
};

/// How per-token losses become the result.
inline void check_reduction(const std::string& op, const std::string& reduction) {
  HA_CHECK(reduction == "mean" || reduction == "sum" || reduction == "none", op, ": unknown reduction '", reduction,
           "', known are mean, sum, none");
}

/// mean: sum / total_weight; sum; none: per token in the shape of `hidden` without its last dimension.
inline at::Tensor reduced(const std::string& reduction, const at::Tensor& total, const at::Tensor& loss,
                          const at::Tensor& total_weight, const at::Tensor& hidden) {
  if (reduction == "none") {
    return loss.view(hidden.sizes().slice(0, hidden.dim() - 1));
  }
  return reduction == "sum" ? total : total / total_weight;
}

} // namespace hybridattn::ops
