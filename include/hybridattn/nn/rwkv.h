// RAD-RWKV6 and RAD-RWKV7: RWKV's state updates in the place of attention, with its rotary positions and projections.
// Source of both: Goldstein et al., "RADLADS", arXiv 2505.03005: no output norm; instead keys are scaled so that the
// state's size does not depend on its decay ("state balancing").
// Letters: B batch, T tokens, H heads, K key dim, V value dim.
#pragma once

#include <ATen/ops/addcmul.h>
#include <ATen/ops/expm1.h>
#include <ATen/ops/linspace.h>
#include <torch/nn/pimpl.h>

#include <cmath>

#include "hybridattn/nn/linear_attention.h"
#include "hybridattn/ops/norm.h"
#include "hybridattn/ops/rule.h"

namespace hybridattn::nn {

/// What both kinds share. w0 [H K] and w_lora: the log decay comes from w0 + w_lora x. w0 rises over a head's channels
/// from -6 to -1, from a memory of hundreds of tokens to one of a few; w_lora starts at 0.
///
/// Options without effect at first: token_shift (token_shift.h), and value_residual, which makes the values
/// v + v_scale * sigmoid(v0 + v_lora x) * (first - v), `first` being the values of the model's first mixer. Published
/// models have v_scale = 1 (RWKV-7, arXiv 2503.14456); here it is learned, from 0.
template <class R, class Options>
class RwkvImpl : public LinearAttentionImpl<R, Options> {
public:
  explicit RwkvImpl(Options given, std::vector<std::string> also_shifted = {})
      : LinearAttentionImpl<R, Options>(std::move(given)) {
    const auto& options = this->options;
    const int64_t hidden = options.hidden_size, values = options.num_heads * options.value_head_dim;
    w_lora = from_zero("w_lora", options.gate_low_rank_dim, options.num_heads * options.head_dim, Middle::tanh);
    w0 = this->wide_parameter("w0", at::linspace(-6, -1, options.head_dim).repeat({options.num_heads}));
    if (options.token_shift != "none") {
      std::vector<std::string> shifted = {"q_proj", "k_proj", "v_proj", "w_lora"};
      shifted.insert(shifted.end(), also_shifted.begin(), also_shifted.end());
      if (options.output_gate) {
        shifted.push_back("g_proj");
      }
      token_shift = this->register_module("token_shift",
                                          TokenShift(options.token_shift, hidden, options.shift_low_rank_dim, shifted));
    }
    if (options.value_residual) {
      v_lora = from_zero("v_lora", options.value_low_rank_dim, values, Middle::plain);
      v0 = this->register_parameter("v0", at::zeros({values}));
      v_scale = this->register_parameter("v_scale", at::zeros({values}));
    }
  }

  LowRank w_lora{nullptr};
  at::Tensor w0;
  TokenShift token_shift{nullptr}; ///< empty without options.token_shift
  LowRank v_lora{nullptr};         ///< empty without options.value_residual
  at::Tensor v0, v_scale;          ///< [H V]; undefined without options.value_residual

protected:
  LowRank from_zero(const char* name, int64_t rank, int64_t outputs, Middle activation) {
    return this->register_module(name, low_rank_from_zero(this->options.hidden_size, rank, outputs, activation));
  }

  ProjectionInputs inputs(const at::Tensor& hidden_states, const std::optional<at::Tensor>& padded,
                          const std::optional<at::Tensor>& cu_seqlens, MixerState* state) override {
    return token_shift.is_empty()
               ? ProjectionInputs{hidden_states, {}}
               : token_shift(hidden_states, previous_tokens(hidden_states, padded, cu_seqlens, state));
  }

  at::Tensor values(const at::Tensor& v, const ProjectionInputs& x, at::Tensor* first_value) override {
    if (v_lora.is_empty() || first_value == nullptr) {
      return v;
    }
    if (!first_value->defined()) {
      *first_value = v;
      return v;
    }
    const auto opened = at::sigmoid(this->per_channel(v0, v_lora, x["v_proj"]));
    const auto share = v_scale.to(opened.scalar_type()).view({opened.size(-2), opened.size(-1)}) * opened;
    return at::addcmul(v, share.to(v.scalar_type()), first_value->to(v.scalar_type()) - v);
  }
};

/// S = diag(w) S + (1 - w) k v^T with w = exp(-exp(w0 + w_lora x)) >= e^-5.
/// Source: Peng et al., "Eagle and Finch", arXiv 2404.05892, without its bonus.
class Rwkv6Impl : public RwkvImpl<ops::GatedLinearAttentionRule, Rwkv6Options> {
public:
  explicit Rwkv6Impl(Rwkv6Options given) : RwkvImpl(std::move(given)) {}

protected:
  at::Tensor decay(const ProjectionInputs& x) override {
    static const double longest_step = std::log(5.0);
    return -per_channel(w0, w_lora, x["w_lora"]).clamp_max(longest_step).exp();
  }
  void before_writing(ops::RuleInputs& in, const ProjectionInputs& /*x*/) override {
    if (options.state_balancing) {
      in.k = (in.k * -at::expm1(*in.g)).to(in.k.scalar_type());
    }
  }
};
TORCH_MODULE(Rwkv6);

/// S = diag(w) S - (a kk) (kk^T S) + (1 - w + a) k v^T, kk = k / |k|; w = exp(-e^-0.5 sigmoid(w0 + w_lora x)) and the
/// in-context learning rate a = sigmoid(a0 + a_lora x), per channel.
/// Source: Peng et al., "RWKV-7 Goose", arXiv 2503.14456, without its bonus.
class Rwkv7Impl : public RwkvImpl<ops::DplrDeltaRule, Rwkv7Options> {
public:
  explicit Rwkv7Impl(Rwkv7Options given) : RwkvImpl(std::move(given), {"a_lora"}) {
    const int64_t channels = options.num_heads * options.head_dim;
    a_lora = from_zero("a_lora", options.rate_low_rank_dim, channels, Middle::plain);
    a0 = wide_parameter("a0", at::zeros({channels}));
  }

  LowRank a_lora{nullptr};
  at::Tensor a0;

protected:
  at::Tensor decay(const ProjectionInputs& x) override {
    return at::sigmoid(per_channel(w0, w_lora, x["w_lora"])) * -std::exp(-0.5);
  }
  void before_writing(ops::RuleInputs& in, const ProjectionInputs& x) override {
    const auto rate = at::sigmoid(per_channel(a0, a_lora, x["a_lora"]));
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
