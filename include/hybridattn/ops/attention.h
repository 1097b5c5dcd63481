// Softmax attention over PyTorch's SDPA: grouped heads, causal, sliding window with sinks, padding, packed documents.
// Letters: Tq queries, Tk keys, H query heads, HKV key/value heads, K head dim.
#pragma once

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/TensorOperators.h>
#include <hybridattn/core/check.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

namespace hybridattn::ops {

struct AttentionOptions {
  std::optional<double> scale;            ///< multiplies q k^T; K^-1/2 when absent
  bool causal = true;                     ///< a query sees the keys up to its own position
  int64_t window = 0;                     ///< keys a query sees at most, its own included; 0 = all
  int64_t sinks = 0;                      ///< first keys of the sequence that stay visible beside the window
  std::optional<at::Tensor> cu_seqlens;   ///< [N + 1] documents packed into a batch of one
  std::optional<at::Tensor> padding_mask; ///< [B, Tk] bool, true = token
};

namespace detail {

/// Which of the keys a query sees, from positions; bool [B or 1, 1, queries, keys], true = visible.
class Visibility {
public:
  Visibility(const AttentionOptions& options, int64_t keys, at::Device device) : options_(options) {
    positions_ = at::arange(keys, at::TensorOptions().dtype(at::kLong).device(device));
    if (options.cu_seqlens) {
      const auto offsets = options.cu_seqlens->to(at::kLong);
      document_ = at::searchsorted(offsets, positions_, false, true) - 1;
      first_ = offsets.index_select(0, document_);
    }
    if (options.padding_mask) {
      const auto mask = options.padding_mask->to(at::kBool);
      first_token_ = mask.to(at::kLong).argmax(1).view({-1, 1, 1});
    }
  }

  at::Tensor mask(const at::Tensor& queries, const at::Tensor& keys) const {
    const auto q = queries.unsqueeze(-1), k = keys.unsqueeze(0);
    auto visible = options_.causal ? k.le(q) : k.ge(0).expand({q.size(0), k.size(1)});
    visible = visible.unsqueeze(0);
    if (options_.window > 0) {
      auto place = k.unsqueeze(0); // of each key in its sequence: sinks are a document's or a row's first tokens
      if (first_.defined()) {
        place = place - first_.index_select(0, keys);
      } else if (first_token_.defined()) {
        place = place - first_token_;
      }
      visible = visible.logical_and(k.gt(q - options_.window).unsqueeze(0).logical_or(place.lt(options_.sinks)));
    }
    if (document_.defined()) {
      visible = visible.logical_and(
          document_.index_select(0, queries).unsqueeze(-1).eq(document_.index_select(0, keys).unsqueeze(0)));
    }
    if (options_.padding_mask) {
      const auto tokens = options_.padding_mask->to(at::kBool).index_select(1, keys).unsqueeze(1);
      // A padded query would see nothing and its softmax would be NaN; it sees itself, and nobody reads it.
      visible = visible.logical_and(tokens).logical_or(q.eq(k).unsqueeze(0));
    }
    return visible.unsqueeze(1);
  }

  const at::Tensor& positions() const { return positions_; }

private:
  const AttentionOptions& options_;
  at::Tensor positions_, document_, first_, first_token_;
};

} // namespace detail

/// @param q [B, Tq, H, K]  @param k [B, Tk, HKV, K]  @param v [B, Tk, HKV, V]; the queries are the last Tq positions
/// @returns [B, Tq, H, V]. With a window, memory is O(T (window + sinks)); with documents, attention is per document.
/// @throws c10::ValueError if shapes disagree
inline at::Tensor softmax_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                    const AttentionOptions& options = {}) {
  HA_CHECK(q.dim() == 4 && k.dim() == 4 && v.dim() == 4, "softmax_attention: q, k, v must be [B, T, H, D], got ",
           q.sizes(), ", ", k.sizes(), ", ", v.sizes());
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
  // The heads that share keys and values are queries of one head where each has a single query: the keys are then read
  // once for all of them.
  const bool folded = queries == 1 && q.size(2) != k.size(2), grouped = !folded && q.size(2) != k.size(2);
  const auto qt = folded ? q.reshape({q.size(0), k.size(2), -1, q.size(3)}) : q.transpose(1, 2);
  const auto kt = k.transpose(1, 2), vt = v.transpose(1, 2);
  const auto as_tokens = [&](const at::Tensor& out) {
    return folded ? out.reshape({q.size(0), 1, q.size(2), v.size(3)}) : out.transpose(1, 2);
  };
  const auto attend = [&](const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                          const std::optional<at::Tensor>& mask, bool causal) {
    return at::scaled_dot_product_attention(query, key, value, mask, 0.0, causal, options.scale, grouped);
  };
  const bool windowed = options.window > 0 && options.window < keys;
  if (!windowed && !options.cu_seqlens && !options.padding_mask &&
      (!options.causal || queries == keys || queries == 1)) {
    return as_tokens(attend(qt, kt, vt, {}, options.causal && queries > 1));
  }
  const detail::Visibility visibility(options, keys, q.device());
  const auto& positions = visibility.positions();
  // Blocks of queries with the keys that any of them can see: nothing quadratic beyond window, sinks and block.
  const int64_t block = windowed ? std::max<int64_t>(64, options.window) : queries;
  std::vector<at::Tensor> outputs;
  for (int64_t begin = 0; begin < queries; begin += block) {
    const int64_t count = std::min(block, queries - begin), first_query = keys - queries + begin;
    const int64_t end = options.causal ? first_query + count : keys;
    int64_t start = windowed ? std::max<int64_t>(0, first_query - options.window + 1) : 0;
    // With packed documents or padding the sinks are elsewhere in each sequence: keep all keys up to here.
    if (options.sinks > 0 && (options.cu_seqlens || options.padding_mask || start <= options.sinks)) {
      start = 0;
    }
    auto seen = positions.narrow(0, start, end - start);
    auto key = kt.narrow(2, start, end - start), value = vt.narrow(2, start, end - start);
    if (start > 0 && options.sinks > 0) {
      seen = at::cat({positions.narrow(0, 0, options.sinks), seen});
      key = at::cat({kt.narrow(2, 0, options.sinks), key}, 2);
      value = at::cat({vt.narrow(2, 0, options.sinks), value}, 2);
    }
    const auto mask = visibility.mask(positions.narrow(0, first_query, count), seen);
    outputs.push_back(attend(folded ? qt : qt.narrow(2, begin, count), key, value, mask, false));
  }
  return as_tokens(outputs.size() == 1 ? outputs[0] : at::cat(outputs, 2));
}

} // namespace hybridattn::ops
