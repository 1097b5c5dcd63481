// GatedLinearAttention: the additive rule under a data-dependent decay per channel.
#pragma once

#include <ATen/ops/log_sigmoid.h>
#include <torch/nn/pimpl.h>

#include "hybridattn/nn/linear_attention.h"
#include "hybridattn/ops/rule.h"

namespace hybridattn::nn {

/// S = diag(e^g) S + k v^T with g = logsigmoid(gk_proj x) / gate_logit_normalizer, gk_proj of low rank.
/// Source: Yang et al., arXiv 2312.06635.
class GatedLinearAttentionImpl
    : public LinearAttentionImpl<ops::GatedLinearAttentionRule, GatedLinearAttentionOptions> {
public:
  explicit GatedLinearAttentionImpl(GatedLinearAttentionOptions given) : LinearAttentionImpl(std::move(given)) {
    gk_proj = register_module(
        "gk_proj", LowRank(options.hidden_size, options.gate_low_rank_dim, options.num_heads * options.head_dim, true));
  }

  LowRank gk_proj{nullptr};

protected:
  at::Tensor decay(const ProjectionInputs& x) override {
    const auto raw = gk_proj(x["gk_proj"]).unflatten(-1, {-1, options.head_dim});
    return at::log_sigmoid(raw.to(wide(raw))) / options.gate_logit_normalizer;
  }
};
TORCH_MODULE(GatedLinearAttention);

} // namespace hybridattn::nn
