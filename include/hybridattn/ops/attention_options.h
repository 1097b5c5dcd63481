// What softmax attention is asked to do. Letters: B batch, Tq queries, Tk keys, H query heads, HKV key/value heads, K
// and V head dims.
#pragma once

#include <ATen/core/Tensor.h>
#include <hybridattn/core/check.h>

#include <cmath>
#include <optional>

namespace hybridattn::ops {

struct AttentionOptions {
  std::optional<double> scale;            ///< multiplies q k^T; K^-1/2 when absent
  bool causal = true;                     ///< a query sees the keys up to its own position
  int64_t window = 0;                     ///< keys a query sees at most, its own included; 0 = all
  int64_t sinks = 0;                      ///< first keys of the sequence that stay visible beside the window
  std::optional<at::Tensor> cu_seqlens;   ///< [N + 1] documents packed into a batch of one
  std::optional<at::Tensor> padding_mask; ///< [B, Tk] bool, true = token

  double scale_of(const at::Tensor& q) const { return scale.value_or(1 / std::sqrt(static_cast<double>(q.size(3)))); }
};

/// Whether each query head that shares keys and values with others has a single query: then they are queries of one
/// head, so that the keys are read once for all of them.
inline bool folds_heads(const at::Tensor& q, const at::Tensor& k) {
  return q.size(1) == 1 && q.size(2) != k.size(2);
}

/// @throws c10::ValueError if shapes disagree
inline void check_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const AttentionOptions& options) {
  HA_CHECK(q.dim() == 4 && k.dim() == 4 && v.dim() == 4, "softmax_attention: q, k, v must be [B, T, H, D], got ",
           q.sizes(), ", ", k.sizes(), ", ", v.sizes());
  HA_CHECK(k.size(0) == q.size(0) && v.size(0) == q.size(0), "softmax_attention: q, k, v have batches of ", q.size(0),
           ", ", k.size(0), " and ", v.size(0));
  HA_CHECK(k.size(3) == q.size(3), "softmax_attention: k has head dimension ", k.size(3), ", q has ", q.size(3));
  HA_CHECK(k.size(1) == v.size(1) && k.size(2) == v.size(2), "softmax_attention: v must have k's tokens and heads ",
           k.sizes(), ", got ", v.sizes());
  HA_CHECK(q.size(2) % k.size(2) == 0, "softmax_attention: q's heads ", q.size(2), " must be a multiple of k's ",
           k.size(2));
  const int64_t queries = q.size(1), keys = k.size(1);
  HA_CHECK(queries <= keys, "softmax_attention: ", queries, " queries but only ", keys, " keys");
  HA_CHECK(!options.cu_seqlens || (q.size(0) == 1 && queries == keys),
           "softmax_attention: cu_seqlens needs a batch of 1 and as many queries as keys, got ", q.sizes());
  HA_CHECK(!options.padding_mask || options.padding_mask->sizes() == at::IntArrayRef({k.size(0), keys}),
           "softmax_attention: padding_mask must be [", k.size(0), ", ", keys, "], got ",
           options.padding_mask ? options.padding_mask->sizes() : at::IntArrayRef{});
  HA_CHECK(options.window >= 0 && options.sinks >= 0, "softmax_attention: window and sinks must not be negative");
}

} // namespace hybridattn::ops
