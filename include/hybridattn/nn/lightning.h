// Lightning: additive linear attention with a fixed decay per head.
#pragma once

#include <ATen/ops/tensor.h>
#include <torch/nn/pimpl.h>

#include <cmath>
#include <string>
#include <vector>

#include "hybridattn/nn/linear_attention.h"
#include "hybridattn/ops/rule.h"

namespace hybridattn::nn {

/// Log decay per token of each head, all < 0. "lightning": -2^(-8 h / H), h = 1..H, the ALiBi slopes of Lightning
/// Attention (Qin et al., arXiv 2401.04658); "retnet": log(1 - 2^(-5 - h)), h = 0..H-1 (Sun et al., arXiv 2307.08621).
inline std::vector<double> decay_slopes(int64_t heads, const std::string& family) {
  std::vector<double> slopes;
  for (int64_t head = 0; head < heads; ++head) {
    const auto h = static_cast<double>(head);
    slopes.push_back(family == "lightning" ? -std::exp2(-8.0 * (h + 1) / static_cast<double>(heads))
                                           : std::log1p(-std::exp2(-5.0 - h)));
  }
  return slopes;
}

/// S = e^(g_h) S + k v^T with g_h fixed by the head's index.
class LightningImpl : public LinearAttentionImpl<ops::LightningRule, LightningOptions> {
public:
  using LinearAttentionImpl::LinearAttentionImpl;

protected:
  at::Tensor decay(const ProjectionInputs& x) override {
    const auto& hidden_states = x.hidden_states;
    const auto slopes = at::tensor(decay_slopes(options.num_heads, options.decay_slopes),
                                   hidden_states.options().dtype(wide(hidden_states)));
    return slopes.expand({hidden_states.size(0), hidden_states.size(1), options.num_heads});
  }
};
TORCH_MODULE(Lightning);

} // namespace hybridattn::nn
