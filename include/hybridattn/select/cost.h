// Floating-point operations per token of a hybrid, counted from shapes: a multiply-add is two.
#pragma once

#include <cstdint>
#include <stdexcept>

#include <fmt/format.h>

namespace hybridattn::select {

/// The shapes that decide a decoder's cost.
struct ModelShape {
  int64_t num_layers = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0; ///< of the gated MLP
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t vocab_size = 0;
};

/// Operations per token of each part, forward.
/// Projections and head cost 2 per weight. Softmax attention: scores and mixing over the (seq_len + 1) / 2 tokens that
/// a causal query sees on average. Linear attention is counted as its recurrence, which reads the state twice and
/// writes it once (6 K V per head and token); the chunked form does more operations of a cheaper kind.
struct TokenFlops {
  double softmax_mixer;
  double linear_mixer;
  double mlp;
  double head;
};

/// @throws std::invalid_argument unless all sizes and `seq_len` are at least 1
inline TokenFlops token_flops(const ModelShape& shape, int64_t seq_len) {
  for (int64_t size : {shape.num_layers, shape.hidden_size, shape.intermediate_size, shape.num_heads,
                       shape.num_kv_heads, shape.head_dim, shape.vocab_size, seq_len})
    if (size < 1)
      throw std::invalid_argument(
          fmt::format("token_flops: every size must be at least 1, got {} (layers {}, hidden {}, "
                      "intermediate {}, heads {}, KV heads {}, head_dim {}, vocabulary {}, seq_len {})",
                      size, shape.num_layers, shape.hidden_size, shape.intermediate_size, shape.num_heads,
                      shape.num_kv_heads, shape.head_dim, shape.vocab_size, seq_len));
  const auto hidden = static_cast<double>(shape.hidden_size);
  const double heads = static_cast<double>(shape.num_heads * shape.head_dim);
  const double kv_heads = static_cast<double>(shape.num_kv_heads * shape.head_dim);
  const double head_dim = static_cast<double>(shape.head_dim);
  TokenFlops flops{};
  flops.softmax_mixer = 2 * hidden * (2 * heads + 2 * kv_heads) + 2 * heads * static_cast<double>(seq_len + 1);
  // q, k, v expanded to all heads, output gate and output projection, two gates per head.
  flops.linear_mixer = 2 * hidden * (5 * heads + 2 * static_cast<double>(shape.num_heads)) + 6 * heads * head_dim;
  flops.mlp = 6 * hidden * static_cast<double>(shape.intermediate_size);
  flops.head = 2 * hidden * static_cast<double>(shape.vocab_size);
  return flops;
}

/// Forward operations per token of a model in which `softmax_layers` keep softmax attention.
inline double forward_flops(const ModelShape& shape, int64_t softmax_layers, int64_t seq_len) {
  const TokenFlops part = token_flops(shape, seq_len);
  if (softmax_layers < 0 || softmax_layers > shape.num_layers)
    throw std::invalid_argument(
        fmt::format("forward_flops: {} softmax layers, expected 0 to {}", softmax_layers, shape.num_layers));
  const auto softmax = static_cast<double>(softmax_layers);
  const auto linear = static_cast<double>(shape.num_layers) - softmax;
  return softmax * part.softmax_mixer + linear * part.linear_mixer + (softmax + linear) * part.mlp + part.head;
}

/// Operations per token of distillation: the student forward and backward (three times its forward), the teacher
/// forward.
inline double distillation_flops(const ModelShape& shape, int64_t softmax_layers, int64_t seq_len) {
  return 3 * forward_flops(shape, softmax_layers, seq_len) + forward_flops(shape, shape.num_layers, seq_len);
}

} // namespace hybridattn::select
