// KimiDeltaAttention: the delta rule under a data-dependent decay per channel.
#pragma once

#include <ATen/ops/softplus.h>
#include <torch/nn/pimpl.h>

#include "hybridattn/nn/gated_deltanet.h"
#include "hybridattn/nn/linear_attention.h"
#include "hybridattn/ops/rule.h"

namespace hybridattn::nn {

/// S' = diag(e^g) S, then the delta rule; g = -exp(A_log) softplus(f_proj x + dt_bias) per channel, f_proj of low rank;
/// with gate_lower_bound the decay is bounded. Source: Kimi Team, "Kimi Linear", arXiv 2510.26692.
class KimiDeltaAttentionImpl : public LinearAttentionImpl<ops::KimiDeltaRule, KimiDeltaAttentionOptions> {
public:
  explicit KimiDeltaAttentionImpl(KimiDeltaAttentionOptions given) : LinearAttentionImpl(std::move(given)) {
    const int64_t channels = options.num_heads * options.head_dim;
    f_proj = register_module("f_proj", LowRank(options.hidden_size, options.gate_low_rank_dim, channels));
    A_log = wide_parameter("A_log", initial_rates(options.num_heads));
    dt_bias = wide_parameter("dt_bias", initial_steps(channels));
  }

  LowRank f_proj{nullptr};
  at::Tensor A_log, dt_bias; ///< [H], [H K]

protected:
  at::Tensor decay(const ProjectionInputs& x) override {
    const auto raw = per_channel(dt_bias, f_proj, x["f_proj"]);
    const auto rate = A_log.to(raw.scalar_type()).exp().unsqueeze(-1);
    const double bound = options.gate_lower_bound;
    return bound < 0 ? at::sigmoid(rate * raw) * bound : -rate * at::softplus(raw);
  }
};
TORCH_MODULE(KimiDeltaAttention);

} // namespace hybridattn::nn
