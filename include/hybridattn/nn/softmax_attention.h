// Softmax attention as a mixer: grouped heads, biases, q/k norm, rotary embedding, window and sinks.
// Letters: B batch, T tokens, H query heads, HKV key/value heads, K head dim, D hidden size.
#pragma once

#include "hybridattn/nn/linear.h"
#include "hybridattn/nn/mixer.h"
#include "hybridattn/nn/norm.h"
#include "hybridattn/ops/apply_rotary.h"
#include "hybridattn/ops/attention.h"

namespace hybridattn::nn {

/// The attention of Llama, Qwen2, Qwen3 and Mistral; with `window` sliding-window attention with sinks
/// (Xiao et al., arXiv 2309.17453).
///
/// Example:
///   SoftmaxAttentionOptions options;
///   options.hidden_size = 64, options.num_heads = 4, options.rotary = "drop";
///   SoftmaxAttention attention(options);
///   auto out = attention->forward(hidden_states); // [B, T, 64] -> [B, T, 64]
class SoftmaxAttentionImpl : public Mixer {
public:
  explicit SoftmaxAttentionImpl(SoftmaxAttentionOptions given) : options(std::move(given)) {
    options.resolve("SoftmaxAttention");
    const int64_t hidden = options.hidden_size, queries = options.num_heads * options.head_dim;
    const int64_t keys = options.num_kv_heads * options.head_dim;
    q_proj = linear("q_proj", hidden, queries, options.qkv_bias);
    k_proj = linear("k_proj", hidden, keys, options.qkv_bias);
    v_proj = linear("v_proj", hidden, keys, options.qkv_bias);
    o_proj = linear("o_proj", queries, hidden, options.output_bias);
    if (options.qk_norm) {
      q_norm = register_module("q_norm", RMSNorm(options.head_dim, options.norm_eps));
      k_norm = register_module("k_norm", RMSNorm(options.head_dim, options.norm_eps));
    }
  }

  at::Tensor forward(const at::Tensor& hidden_states, const MixerContext& context = {},
                     MixerState* state = nullptr) override {
    check(hidden_states, context, state);
    auto q = q_proj(hidden_states).unflatten(-1, {options.num_heads, options.head_dim});
    auto k = k_proj(hidden_states).unflatten(-1, {options.num_kv_heads, options.head_dim});
    auto v = v_proj(hidden_states).unflatten(-1, {options.num_kv_heads, options.head_dim});
    if (options.qk_norm) {
      q = q_norm(q);
      k = k_norm(k);
    }
    if (options.rotary == "keep") {
      const auto& [cos, sin] = *context.rotary;
      q = ops::apply_rotary(q, cos, sin).to(v.scalar_type());
      k = ops::apply_rotary(k, cos, sin).to(v.scalar_type());
    }
    ops::AttentionOptions attention{.window = options.window, .sinks = options.sinks, .cu_seqlens = context.cu_seqlens};
    attention.padding_mask = context.padding_mask;
    if (state != nullptr) {
      attention.padding_mask = state->extend(k, v, context.padding_mask);
      k = state->key.all();
      v = state->value.all();
      state->seen += hidden_states.size(1);
      if (options.window > 0) {
        state->forget(options.window, options.sinks);
      }
    }
    const auto shape = q.sizes().vec();
    if (context.cu_seqlens) {
      q = one_row(q);
      k = one_row(k);
      v = one_row(v);
      if (attention.padding_mask) {
        attention.padding_mask = attention.padding_mask->reshape({1, -1});
      }
    }
    return o_proj(ops::softmax_attention(q, k, v, attention).reshape(shape).flatten(-2));
  }

  std::string kind() const override { return options.window > 0 ? "sliding_window" : "softmax_attention"; }
  bool is_linear() const override { return false; }
  const MixerOptions& shape() const override { return options; }
  nlohmann::json options_json() const override { return fields_to_json(options); }

  SoftmaxAttentionOptions options;
  Linear q_proj{nullptr}, k_proj{nullptr}, v_proj{nullptr}, o_proj{nullptr};
  RMSNorm q_norm{nullptr}, k_norm{nullptr}; ///< empty without options.qk_norm
};
TORCH_MODULE(SoftmaxAttention);

} // namespace hybridattn::nn
