// RAD-RWKV6 and RAD-RWKV7: RWKV's state updates in the place of attention, with its rotary positions and projections.
// Source of both: Goldstein et al., "RADLADS", arXiv 2505.03005: no output norm; instead keys are scaled so that the
// state's size does not depend on its decay ("state balancing").
#pragma once

#include <ATen/ops/expm1.h>
#include <ATen/ops/linspace.h>
#include <torch/nn/pimpl.h>

#include <cmath>

#include "hybridattn/nn/linear_attention.h"
#include "hybridattn/ops/norm.h"
#include "hybridattn/ops/rule.h"

namespace hybridattn::nn {

/// w0 [H K] and w_lora: the log decay of both kinds comes from w0 + w_lora x. w0 rises over a head's channels from -6
/// to -1, from a memory of hundreds of tokens to one of a few; w_lora starts at 0.
template <class R, class Options>
class RwkvImpl : public LinearAttentionImpl<R, Options> {
public:
  explicit RwkvImpl(Options given) : LinearAttentionImpl<R, Options>(std::move(given)) {
    w_lora = low_rank_from_zero("w_lora", this->options.gate_low_rank_dim, true);
    w0 = this->wide_parameter("w0", at::linspace(-6, -1, this->options.head_dim).repeat({this->options.num_heads}));
  }

  LowRank w_lora{nullptr};
  at::Tensor w0;

protected:
  LowRank low_rank_from_zero(const char* name, int64_t rank, bool tanh) {
    const auto& options = this->options;
    auto result = this->register_module(
        name, LowRank(options.hidden_size, rank, options.num_heads * options.head_dim, false, tanh));
    at::NoGradGuard no_grad;
    result->up->weight.zero_();
    return result;
  }
};

/// S = diag(w) S + (1 - w) k v^T with w = exp(-exp(w0 + w_lora x)) >= e^-5.
/// Source: Peng et al., "Eagle and Finch", arXiv 2404.05892, without its bonus and token shift.
class Rwkv6Impl : public RwkvImpl<ops::GatedLinearAttentionRule, Rwkv6Options> {
public:
  using RwkvImpl::RwkvImpl;

protected:
  at::Tensor decay(const at::Tensor& hidden_states) override {
    static const double longest_step = std::log(5.0);
    return -per_channel(w0, w_lora, hidden_states).clamp_max(longest_step).exp();
  }
  void before_writing(ops::RuleInputs& in, const at::Tensor& /*hidden_states*/) override {
    if (options.state_balancing) {
      in.k = (in.k * -at::expm1(*in.g)).to(in.k.scalar_type());
    }
  }
};
TORCH_MODULE(Rwkv6);

/// S = diag(w) S - (a kk) (kk^T S) + (1 - w + a) k v^T, kk = k / |k|; w = exp(-e^-0.5 sigmoid(w0 + w_lora x)) and the
/// in-context learning rate a = sigmoid(a0 + a_lora x), per channel.
/// Source: Peng et al., "RWKV-7 Goose", arXiv 2503.14456, without its bonus, token shift and value residual.
class Rwkv7Impl : public RwkvImpl<ops::DplrDeltaRule, Rwkv7Options> {
public:
  explicit Rwkv7Impl(Rwkv7Options given) : RwkvImpl(std::move(given)) {
    a_lora = low_rank_from_zero("a_lora", options.rate_low_rank_dim, false);
    a0 = wide_parameter("a0", at::zeros({options.num_heads * options.head_dim}));
  }

  LowRank a_lora{nullptr};
  at::Tensor a0;

protected:
  at::Tensor decay(const at::Tensor& hidden_states) override {
    return at::sigmoid(per_channel(w0, w_lora, hidden_states)) * -std::exp(-0.5);
  }
  void before_writing(ops::RuleInputs& in, const at::Tensor& hidden_states) override {
    const auto rate = at::sigmoid(per_channel(a0, a_lora, hidden_states));
    const auto removed = ops::l2_normalize(in.k);
    in.a = -removed;
    in.b = (removed * rate).to(in.k.scalar_type());
    if (options.state_balancing) {
      in.k = (in.k * (rate - at::expm1(*in.g))).to(in.k.scalar_type());
    }
  }
};
TORCH_MODULE(Rwkv7);

} // namespace hybridattn::nn
