// Next-token cross-entropy from hidden states, without [tokens, vocabulary].
#pragma once

#include <ATen/ops/gather.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/scalar_tensor.h>
#include <hybridattn/ops/linear_loss.h>

namespace hybridattn::ops {

/// The label of tokens that do not count.
inline constexpr int64_t kIgnoredLabel = -100;

/// The op below autograd.
/// @throws c10::ValueError if shapes disagree, or a label is neither in [0, V) nor -100
inline LinearLossResult linear_cross_entropy_forward(const at::Tensor& hidden, const at::Tensor& head,
                                                     const at::Tensor& labels, int64_t chunk_size, bool hidden_grad,
                                                     bool head_grad) {
  const std::string op = "linear_cross_entropy";
  check_linear(op, "", hidden, head);
  HA_CHECK(labels.sizes() == hidden.sizes().slice(0, hidden.dim() - 1) && labels.scalar_type() == at::kLong, op,
           ": labels must be int64 ", hidden.sizes().slice(0, hidden.dim() - 1), ", got ", labels.scalar_type(), " ",
           labels.sizes());
  const auto flat = labels.reshape({-1});
  const auto valid = flat.ne(kIgnoredLabel);
  const auto targets = flat.masked_fill(valid.logical_not(), 0);
  HA_CHECK(targets.numel() == 0 || (targets.min().item<int64_t>() >= 0 && targets.max().item<int64_t>() < head.size(0)),
           op, ": labels must be in [0, ", head.size(0), ") or ", kIgnoredLabel);
  const auto weights = valid.to(state_dtype(hidden));
  return linear_loss(
      hidden, head, weights, chunk_size, Backend::automatic, hidden_grad, head_grad,
      [&](const LossChunk& part, at::Tensor& logits) {
        const auto index = targets.narrow(0, part.begin, part.count).unsqueeze(-1);
        auto log_q = at::log_softmax(logits, -1);
        const auto loss = log_q.gather(-1, index).squeeze(-1).neg();
        if (part.wants_gradient) {
          logits = log_q.exp_();
          logits.scatter_add_(-1, index, at::scalar_tensor(-1, logits.options()).expand({part.count, 1}));
          part.weigh(logits);
        }
        return loss * part.weights;
      });
}

/// Cross-entropy in nats. @param hidden [..., D]  @param head [V, D]  @param labels [...] int64, -100 = ignored
/// @param reduction mean (over the labels that count), sum, or none (per token, 0 where ignored, no gradient)
inline at::Tensor linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& head, const at::Tensor& labels,
                                       const std::string& reduction = "mean", int64_t chunk_size = 0) {
  check_reduction("linear_cross_entropy", reduction);
  const LinearLossFunction::Compute compute = [&](bool hidden_grad, bool head_grad) {
    const bool grads = reduction != "none";
    return linear_cross_entropy_forward(hidden.detach(), head.detach(), labels, chunk_size, grads && hidden_grad,
                                        grads && head_grad);
  };
  const auto result = LinearLossFunction::apply(hidden, head, compute);
  return reduced(reduction, result[0], result[1], labels.ne(kIgnoredLabel).sum(), hidden);
}

} // namespace hybridattn::ops
