// What every linear mixer shares: projections, convolution, activation, rule, output norm and gate.
// Letters: B batch, T tokens, H heads, HKV projected key/value heads, K key dim, V value dim, W convolution width.
#pragma once

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/zeros.h>
#include <ATen/TensorOperators.h>

#include "hybridattn/nn/linear.h"
#include "hybridattn/nn/low_rank.h"
#include "hybridattn/nn/mixer.h"
#include "hybridattn/nn/norm.h"
#include "hybridattn/nn/token_shift.h"
#include "hybridattn/ops/apply_rotary.h"
#include "hybridattn/ops/chunk_rule.h"
#include "hybridattn/ops/norm.h"
#include "hybridattn/ops/short_convolution.h"
#include "hybridattn/ops/step_rule.h"

namespace hybridattn::nn {

/// Causal depthwise convolution over the last `width` tokens; starts as the identity (last tap 1, others 0).
class ShortConvolutionImpl : public torch::nn::Module {
public:
  ShortConvolutionImpl(int64_t channels, int64_t width)
      : weight(register_parameter("weight", at::zeros({channels, 1, width}))) {
    at::NoGradGuard no_grad;
    weight.select(2, width - 1).fill_(1);
  }

  at::Tensor weight; ///< [channels, 1, width]
};
TORCH_MODULE(ShortConvolution);

/// A linear mixer over the rule R (ops/rule.h):
/// x -> [token shift] -> q, k, v projections -> [q/k norm] -> [rotary] -> [short convolution] -> activation
/// -> [L2 norm of q, k] -> [value residual] -> [keys scaled by the gates] -> rule -> [RMSNorm per head]
/// -> [activation(g_proj x)] -> o_proj.
///
/// A rule that corrects has beta = sigmoid(b_proj x); a rule that decays needs a subclass that defines `decay`.
/// Parameters registered with `wide_parameter` stay at least fp32 when the module is cast to a narrower type.
/// @tparam R a Rule  @tparam Options a LinearAttentionOptions with the mixer's `kind`
template <class R, class Options>
class LinearAttentionImpl : public Mixer {
public:
  explicit LinearAttentionImpl(Options given) : options(std::move(given)) {
    options.resolve(Options::kind);
    const int64_t hidden = options.hidden_size, heads = options.num_heads, kv_heads = options.projected_kv_heads();
    const int64_t queries = heads * options.head_dim, keys = kv_heads * options.head_dim;
    const int64_t values = kv_heads * options.value_head_dim, outputs = heads * options.value_head_dim;
    q_proj = linear("q_proj", hidden, queries, options.qkv_bias);
    k_proj = linear("k_proj", hidden, keys, options.qkv_bias);
    v_proj = linear("v_proj", hidden, values, options.qkv_bias);
    o_proj = linear("o_proj", outputs, hidden, options.output_bias);
    if (options.qk_norm) {
      q_norm = register_module("q_norm", RMSNorm(options.head_dim, options.norm_eps));
      k_norm = register_module("k_norm", RMSNorm(options.head_dim, options.norm_eps));
    }
    if (const int64_t width = options.short_convolution; width > 0) {
      q_conv1d = register_module("q_conv1d", ShortConvolution(queries, width));
      k_conv1d = register_module("k_conv1d", ShortConvolution(keys, width));
      v_conv1d = register_module("v_conv1d", ShortConvolution(values, width));
    }
    if (options.output_gate) {
      const int64_t rank = options.output_gate_low_rank_dim;
      const auto inner = options.gate_activation == "inner_sigmoid" ? Middle::sigmoid : Middle::plain;
      if (rank > 0) {
        narrow_g_proj = register_module("g_proj", LowRank(hidden, rank, outputs, false, inner));
      } else {
        g_proj = linear("g_proj", hidden, outputs, false);
      }
    }
    if constexpr (requires { options.group_norm; }) {
      if (options.group_norm) {
        o_group_norm = register_module("o_norm", HeadGroupNorm(heads, options.value_head_dim, group_norm_eps));
      }
    }
    if (options.output_norm && o_group_norm.is_empty()) {
      o_norm = register_module("o_norm", RMSNorm(options.value_head_dim, options.norm_eps));
    }
    if constexpr (R::corrects) {
      b_proj = linear("b_proj", hidden, heads, false);
    }
  }

  at::Tensor forward(const at::Tensor& hidden_states, const MixerContext& context = {},
                     MixerState* state = nullptr) override {
    check(hidden_states, context, state);
    const int64_t tokens = hidden_states.size(1);
    std::optional<at::Tensor> padded; // [B, T, 1]
    if (context.padding_mask) {
      const auto& mask = *context.padding_mask;
      padded = mask.narrow(1, mask.size(1) - tokens, tokens).to(at::kBool).logical_not().unsqueeze(-1);
    }
    const auto without_padding = [&](const at::Tensor& y) {
      return padded ? y.masked_fill(y.dim() == 4 ? padded->unsqueeze(-1) : *padded, 0) : y;
    };
    const auto x = inputs(hidden_states, padded, context.cu_seqlens, state);
    auto v = v_proj(x["v_proj"]);
    std::vector<at::Tensor> qkv = {positioned(q_proj(x["q_proj"]), q_norm, context).to(v.scalar_type()),
                                   positioned(k_proj(x["k_proj"]), k_norm, context).to(v.scalar_type()), v};
    for (auto& y : qkv) {
      y = without_padding(y);
    }
    if (options.short_convolution > 0) {
      qkv = convolve(qkv, context.cu_seqlens, state);
    }
    const bool silu = options.activation == "silu";
    for (auto& y : qkv) {
      const bool later = options.l2_norm && &y != &qkv.back(); // the norm of q and k takes SiLU along
      y = silu && !later ? at::silu(y) : y;
    }
    // A padded token leaves the state alone: nothing is written, nothing is forgotten.
    ops::RuleInputs in{qkv[0].unflatten(-1, {-1, options.head_dim}),
                       without_padding(qkv[1]).unflatten(-1, {-1, options.head_dim}),
                       without_padding(qkv[2]).unflatten(-1, {-1, options.value_head_dim}),
                       {},
                       {}};
    if constexpr (R::gated) {
      in.g = without_padding(decay(x));
    }
    if constexpr (R::corrects) {
      in.beta = without_padding(beta(x));
    }
    if (options.l2_norm) {
      in.q = ops::l2_normalize(in.q, 1e-6, silu);
      in.k = ops::l2_normalize(in.k, 1e-6, silu);
    }
    if (const int64_t groups = options.num_heads / in.k.size(2); groups > 1) {
      in.k = in.k.repeat_interleave(groups, 2);
      in.v = in.v.repeat_interleave(groups, 2);
    }
    in.v = values(in.v, x, context.first_value);
    before_writing(in, x);
    const auto out = rule(std::move(in), context.cu_seqlens, state);
    if (state != nullptr) {
      state->seen += tokens;
    }
    return o_proj(gated(out, x).flatten(-2));
  }

  void to(torch::Device device, torch::Dtype dtype, bool non_blocking = false) override {
    keeping_wide(dtype, [&] { Module::to(device, dtype, non_blocking); });
  }
  void to(torch::Dtype dtype, bool non_blocking = false) override {
    keeping_wide(dtype, [&] { Module::to(dtype, non_blocking); });
  }
  using Module::to;

  std::string kind() const override { return Options::kind; }
  bool is_linear() const override { return true; }
  const MixerOptions& shape() const override { return options; }
  nlohmann::json options_json() const override { return fields_to_json(options); }

  Options options;
  Linear q_proj{nullptr}, k_proj{nullptr}, v_proj{nullptr}, o_proj{nullptr};
  RMSNorm q_norm{nullptr}, k_norm{nullptr};                                 ///< empty without options.qk_norm
  ShortConvolution q_conv1d{nullptr}, k_conv1d{nullptr}, v_conv1d{nullptr}; ///< empty without short_convolution
  Linear g_proj{nullptr};              ///< empty without output_gate or of low rank
  LowRank narrow_g_proj{nullptr};      ///< "g_proj" with output_gate_low_rank_dim, else empty
  RMSNorm o_norm{nullptr};             ///< empty without output_norm or with group_norm
  HeadGroupNorm o_group_norm{nullptr}; ///< "o_norm" with group_norm, else empty
  Linear b_proj{nullptr};              ///< empty unless the rule corrects

protected:
  /// What the projections read. @param padded [B, T, 1], true where a position is padding
  virtual ProjectionInputs inputs(const at::Tensor& hidden_states, const std::optional<at::Tensor>& /*padded*/,
                                  const std::optional<at::Tensor>& /*cu_seqlens*/, MixerState* /*state*/) {
    return {hidden_states, {}};
  }

  /// The values that the rule reads [B, T, H, V].
  virtual at::Tensor values(const at::Tensor& v, const ProjectionInputs& /*x*/, at::Tensor* /*first_value*/) {
    return v;
  }

  /// Log decay [B, T, H], or [B, T, H, K] per channel, <= 0, fp32 or wider.
  virtual at::Tensor decay(const ProjectionInputs& /*x*/) {
    HA_CHECK(false, kind(), ": the rule decays, so the mixer must define decay()");
  }

  /// Last change to what the rule reads: k scaled by its gates, a and b of a generalised rule.
  virtual void before_writing(ops::RuleInputs& /*in*/, const ProjectionInputs& /*x*/) {}

  static at::ScalarType wide(const at::Tensor& x) { return ops::state_dtype(x); }

  at::Tensor wide_parameter(const char* name, at::Tensor start) {
    return wide_parameters_.emplace_back(register_parameter(name, std::move(start)));
  }

  /// bias + projection(x) [B, T, H, K or V], fp32 or wider; bias [H K or V].
  at::Tensor per_channel(const at::Tensor& bias, LowRank& projection, const at::Tensor& x) {
    const auto raw = projection(x);
    return (raw.to(wide(raw)) + bias.to(wide(raw))).unflatten(-1, {options.num_heads, -1});
  }

private:
  template <class Cast>
  void keeping_wide(torch::Dtype dtype, Cast&& cast) {
    std::vector<at::Tensor> before;
    for (const auto& parameter : wide_parameters_) {
      before.push_back(parameter.detach());
    }
    cast();
    for (size_t i = 0; i < before.size() && c10::elementSize(dtype) < c10::elementSize(at::kFloat); ++i) {
      wide_parameters_[i].set_data(before[i].to(wide_parameters_[i].device()));
    }
  }

  /// [B, T, H, ...] -> normed and rotated, flattened again.
  at::Tensor positioned(const at::Tensor& projected, const RMSNorm& norm, const MixerContext& context) const {
    auto heads = projected.unflatten(-1, {-1, options.head_dim});
    if (options.qk_norm) {
      heads = norm->forward(heads);
    }
    if (options.rotary == "keep") {
      heads = ops::apply_rotary(heads, context.rotary->first, context.rotary->second);
    }
    return heads.flatten(-2);
  }

  std::vector<at::Tensor> convolve(const std::vector<at::Tensor>& qkv, const std::optional<at::Tensor>& cu_seqlens,
                                   MixerState* state) {
    const auto convolved = [&](const at::Tensor& y, const at::Tensor& weight, const std::optional<at::Tensor>& past) {
      const ops::ConvolutionInputs in{
          cu_seqlens ? one_row(y) : y, weight.squeeze(1).to(y.scalar_type()), {}, cu_seqlens};
      return ops::short_convolution(in, past).reshape(y.sizes());
    };
    if (state == nullptr) {
      return {convolved(qkv[0], q_conv1d->weight, {}), convolved(qkv[1], k_conv1d->weight, {}),
              convolved(qkv[2], v_conv1d->weight, {})};
    }
    const auto x = at::cat(qkv, -1);
    const int64_t past_tokens = options.short_convolution - 1;
    const auto past = state->convolution.defined() ? state->convolution.to(x.scalar_type())
                                                   : at::zeros({x.size(0), x.size(2), past_tokens}, x.options());
    const auto inputs = at::cat({past, x.detach().transpose(1, 2)}, -1);
    state->convolution = inputs.narrow(2, inputs.size(2) - past_tokens, past_tokens).contiguous();
    // Documents begin anew.
    return convolved(x, at::cat({q_conv1d->weight, k_conv1d->weight, v_conv1d->weight}),
                     cu_seqlens ? std::nullopt : std::optional(past))
        .split_with_sizes({qkv[0].size(-1), qkv[1].size(-1), qkv[2].size(-1)}, -1);
  }

  at::Tensor beta(const ProjectionInputs& x) {
    const auto raw = b_proj(x["b_proj"]);
    const auto strength = at::sigmoid(raw.to(wide(raw)));
    if constexpr (requires { options.allow_negative_eigenvalues; }) {
      return options.allow_negative_eigenvalues ? strength * 2 : strength;
    }
    return strength;
  }

  at::Tensor rule(ops::RuleInputs in, const std::optional<at::Tensor>& cu_seqlens, MixerState* state) const {
    const auto shape = at::IntArrayRef{in.v.size(0), in.v.size(1), in.v.size(2), in.v.size(3)}.vec();
    if (state != nullptr && state->recurrent.defined() && shape[1] == 1 && !at::GradMode::is_enabled()) {
      return ops::step_rule<R>(in, state->recurrent);
    }
    ops::RuleOptions call{.cu_seqlens = cu_seqlens};
    if (cu_seqlens) {
      for (at::Tensor* x : {&in.q, &in.k, &in.v}) {
        *x = one_row(*x);
      }
      for (auto* x : {&in.g, &in.beta, &in.a, &in.b}) {
        if (*x) {
          *x = one_row(**x);
        }
      }
    }
    if (state != nullptr && state->recurrent.defined()) {
      call.initial_state = state->recurrent;
    }
    const auto [out, final_state] = ops::chunk_rule<R>(in, call);
    if (state != nullptr) {
      state->recurrent = final_state.contiguous();
    }
    return out.reshape(shape);
  }

  at::Tensor gated(const at::Tensor& out, const ProjectionInputs& x) {
    at::Tensor gate;
    if (options.output_gate) {
      gate = (narrow_g_proj.is_empty() ? g_proj(x["g_proj"]) : narrow_g_proj(x["g_proj"])).view_as(out);
    }
    if (gate.defined() && !o_norm.is_empty() && options.gate_activation == "silu") {
      return ops::gated_rms_norm(out, gate, o_norm->weight, o_norm->eps);
    }
    const auto normed = !o_norm.is_empty() ? o_norm(out) : !o_group_norm.is_empty() ? o_group_norm(out) : out;
    if (!gate.defined() || options.gate_activation == "inner_sigmoid") {
      return gate.defined() ? normed * gate : normed;
    }
    return normed * (options.gate_activation == "sigmoid" ? at::sigmoid(gate) : at::silu(gate));
  }

  /// RWKV's is V times this on an output without the scale K^(-1/2), which for K = V is the same.
  static constexpr double group_norm_eps = 1e-5;

  std::vector<at::Tensor> wide_parameters_;
};

} // namespace hybridattn::nn
