// ModelConfig: what a decoder of one of the supported families is made of.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "hybridattn/core/check.h"
#include "hybridattn/nn/options.h"
#include "hybridattn/ops/rotary.h"

namespace hybridattn::models {

/// A decoder-only Transformer of the Llama, Qwen2, Qwen3 or Mistral family and, per layer, what mixes its tokens.
/// hf_config.h reads it from a Hugging Face config.json.
struct ModelConfig {
  std::string family = "llama"; ///< llama, qwen2, qwen3 or mistral
  int64_t vocab_size = 0;
  int64_t hidden_size = 0; ///< D
  int64_t intermediate_size = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0; ///< H
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  double norm_eps = 1e-6;
  bool qkv_bias = false, output_bias = false, mlp_bias = false;
  bool qk_norm = false;
  bool tie_word_embeddings = false;
  ops::RotaryOptions rotary;
  std::vector<int64_t> window;  ///< per layer, of its softmax attention; 0 = all positions
  std::vector<bool> linear;     ///< per layer: replaced by a mixer of kind `mixer`
  std::string mixer;            ///< kind, where any layer is replaced
  nlohmann::json mixer_options; ///< of that kind
  nlohmann::json teacher;       ///< the config.json of the teacher, as it was read

  /// Options of the softmax attention in `layer`.
  nn::SoftmaxAttentionOptions attention_options(int64_t layer) const {
    nn::SoftmaxAttentionOptions options;
    static_cast<nn::MixerOptions&>(options) = attention_shape();
    options.window = window.empty() ? 0 : window[layer];
    return options;
  }

  /// What the family's attention decides about any mixer in its place.
  nn::MixerOptions attention_shape() const {
    return {.hidden_size = hidden_size,
            .num_heads = num_heads,
            .num_kv_heads = num_kv_heads,
            .head_dim = head_dim,
            .qkv_bias = qkv_bias,
            .output_bias = output_bias,
            .qk_norm = qk_norm,
            .norm_eps = norm_eps};
  }

  bool is_linear(int64_t layer) const { return !linear.empty() && linear[layer]; }
  bool is_hybrid() const { return std::find(linear.begin(), linear.end(), true) != linear.end(); }
};

} // namespace hybridattn::models
