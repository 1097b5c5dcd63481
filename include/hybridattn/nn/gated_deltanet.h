// GatedDeltaNet: the delta rule under a data-dependent scalar decay per head.
// Letters: B batch, T tokens, H heads, D hidden size.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/expm1.h>
#include <ATen/ops/softplus.h>
#include <torch/nn/pimpl.h>

#include <cmath>

#include "hybridattn/nn/linear_attention.h"
#include "hybridattn/ops/rule.h"

namespace hybridattn::nn {

/// [heads] log of a rate drawn from U(0, 16), as Mamba-2 draws it; the rate is kept above 1e-3.
inline at::Tensor initial_rates(int64_t heads) {
  return at::empty({heads}, at::kFloat).uniform_(0, 16).clamp_min(1e-3).log();
}

/// [count] inverse softplus of a step drawn log-uniformly from [0.001, 0.1], as Mamba-2 draws it.
inline at::Tensor initial_steps(int64_t count) {
  const auto step = at::empty({count}, at::kFloat).uniform_(std::log(0.001), std::log(0.1)).exp();
  return step + (-at::expm1(-step)).log();
}

/// S' = e^g S, then the delta rule; g = -exp(A_log) softplus(a_proj x + dt_bias), beta = sigmoid(b_proj x).
/// A_log and dt_bias stay at least fp32 when the module is cast to a narrower type.
/// Source: Yang et al., "Gated Delta Networks", arXiv 2412.06464.
///
/// Example:
///   GatedDeltaNetOptions options;
///   options.hidden_size = 64, options.num_heads = 4, options.rotary = "drop";
///   GatedDeltaNet mixer(options);
///   MixerState state;
///   auto out = mixer->forward(hidden_states, {}, &state); // [B, T, 64] -> [B, T, 64], state [B, 4, 16, 16]
class GatedDeltaNetImpl : public LinearAttentionImpl<ops::GatedDeltaRule, GatedDeltaNetOptions> {
public:
  explicit GatedDeltaNetImpl(GatedDeltaNetOptions given) : LinearAttentionImpl(std::move(given)) {
    const int64_t heads = options.num_heads;
    a_proj = linear("a_proj", options.hidden_size, heads, false);
    A_log = wide_parameter("A_log", initial_rates(heads));
    dt_bias = wide_parameter("dt_bias", initial_steps(heads));
  }

  Linear a_proj{nullptr};
  at::Tensor A_log, dt_bias; ///< [H]

protected:
  at::Tensor decay(const ProjectionInputs& x) override {
    const auto raw = a_proj(x["a_proj"]);
    const auto dtype = wide(raw);
    return -A_log.to(dtype).exp() * at::softplus(raw.to(dtype) + dt_bias.to(dtype));
  }
};
TORCH_MODULE(GatedDeltaNet);

} // namespace hybridattn::nn
