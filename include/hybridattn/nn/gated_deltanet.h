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
  /// A ~ U(0, 16) and softplus(dt_bias) log-uniform in [0.001, 0.1], as Mamba-2 draws them; A is kept above 1e-3.
  explicit GatedDeltaNetImpl(GatedDeltaNetOptions given) : LinearAttentionImpl(std::move(given)) {
    const int64_t heads = options.num_heads;
    a_proj = linear("a_proj", options.hidden_size, heads, false);
    const auto step = at::empty({heads}, at::kFloat).uniform_(std::log(0.001), std::log(0.1)).exp();
    A_log = register_parameter("A_log", at::empty({heads}, at::kFloat).uniform_(0, 16).clamp_min(1e-3).log());
    dt_bias = register_parameter("dt_bias", step + (-at::expm1(-step)).log());
  }

  void to(torch::Device device, torch::Dtype dtype, bool non_blocking = false) override {
    keeping_gates(dtype, [&] { Module::to(device, dtype, non_blocking); });
  }
  void to(torch::Dtype dtype, bool non_blocking = false) override {
    keeping_gates(dtype, [&] { Module::to(dtype, non_blocking); });
  }
  using Module::to;

  torch::nn::Linear a_proj{nullptr};
  at::Tensor A_log, dt_bias; ///< [H]

protected:
  at::Tensor decay(const at::Tensor& hidden_states) override {
    const auto raw = a_proj(hidden_states);
    const auto dtype = wide(raw);
    return -A_log.to(dtype).exp() * at::softplus(raw.to(dtype) + dt_bias.to(dtype));
  }

private:
  template <class Cast>
  void keeping_gates(torch::Dtype dtype, Cast&& cast) {
    const at::Tensor before[] = {A_log.detach(), dt_bias.detach()};
    cast();
    if (c10::elementSize(dtype) < c10::elementSize(at::kFloat)) {
      A_log.set_data(before[0].to(A_log.device()));
      dt_bias.set_data(before[1].to(dt_bias.device()));
    }
  }
};
TORCH_MODULE(GatedDeltaNet);

} // namespace hybridattn::nn
