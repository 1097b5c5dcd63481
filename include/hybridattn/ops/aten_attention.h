// Softmax attention over PyTorch's SDPA.
#pragma once

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/TensorOperators.h>
#include <hybridattn/ops/attention_options.h>

#include <algorithm>
#include <vector>

namespace hybridattn::ops {

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

/// Composed of ATen ops, for inputs that were checked. With a window, memory is O(T (window + sinks)).
inline at::Tensor aten_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const AttentionOptions& options) {
  const int64_t queries = q.size(1), keys = k.size(1);
  const bool folded = folds_heads(q, k), grouped = !folded && q.size(2) != k.size(2);
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
