// MixerState: what a mixer remembers between calls.
// Letters: B batch, T tokens, H heads, HKV key/value heads, K key dim, V value dim, W convolution width, C channels, D
// hidden size.
#pragma once

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/TensorOperators.h>

#include <algorithm>
#include <optional>

#include "hybridattn/core/check.h"

namespace hybridattn::nn {

/// A tensor [B, T, ...] that grows along T; its storage doubles, so that appending a token does not copy the past.
class TokenBuffer {
public:
  bool empty() const { return !storage_.defined(); }
  int64_t tokens() const { return tokens_; }
  at::Tensor all() const { return storage_.narrow(1, 0, tokens_); }

  void append(const at::Tensor& rows) {
    const int64_t needed = tokens_ + rows.size(1);
    if (empty() || needed > storage_.size(1)) {
      auto shape = rows.sizes().vec();
      shape[1] = empty() ? needed : std::max(needed, 2 * storage_.size(1));
      const auto grown = at::empty(shape, rows.options());
      if (!empty()) {
        grown.narrow(1, 0, tokens_).copy_(all());
      }
      storage_ = grown;
    }
    storage_.narrow(1, tokens_, rows.size(1)).copy_(rows);
    tokens_ = needed;
  }

  /// Leaves `rows` and nothing else.
  void replace(const at::Tensor& rows) {
    storage_ = rows;
    tokens_ = rows.size(1);
  }

private:
  at::Tensor storage_;
  int64_t tokens_ = 0;
};

/// State of one mixer. An empty one starts a sequence; Mixer::forward reads and updates it in place. Not
/// differentiable.
struct MixerState {
  at::Tensor recurrent;   ///< [B, H, K, V] fp32 (fp64): a linear rule's state
  at::Tensor convolution; ///< [B, C, W - 1]: inputs of the short convolutions of q, k and v, side by side
  at::Tensor previous;    ///< [B, 1, D]: the last token's hidden state, for a token shift
  TokenBuffer key, value; ///< [B, T, HKV, K] of softmax attention
  at::Tensor padding;     ///< [B, T] bool, which cached keys are tokens; undefined when all are
  int64_t seen = 0;       ///< positions processed so far, padding included

  /// Appends keys and values [B, T, HKV, K]; returns the padding mask [B, Tk] of all of them, if any is padding.
  /// @param padding_mask may cover the new tokens only or everything seen so far
  std::optional<at::Tensor> extend(const at::Tensor& new_key, const at::Tensor& new_value,
                                   const std::optional<at::Tensor>& padding_mask) {
    const int64_t before = key.tokens(), tokens = new_key.size(1), batch = new_key.size(0);
    key.append(new_key);
    value.append(new_value);
    const auto bools = new_key.options().dtype(at::kBool);
    const auto past = [&] { return padding.defined() ? padding : at::ones({batch, before}, bools); };
    if (!padding_mask) {
      if (padding.defined()) {
        padding = at::cat({past(), at::ones({batch, tokens}, bools)}, 1);
      }
    } else if (padding_mask->size(1) == tokens && before > 0) {
      padding = at::cat({past(), padding_mask->to(at::kBool)}, 1);
    } else {
      HA_CHECK(padding_mask->size(1) == before + tokens, "softmax_attention: padding_mask covers ",
               padding_mask->size(1), " positions, expected the ", tokens, " new ones or all ", before + tokens);
      padding = padding_mask->to(at::kBool);
    }
    return padding.defined() ? std::optional(padding) : std::nullopt;
  }

  /// Keeps only what a later query can still see: the first `sinks` positions and the last `window` - 1.
  /// With padding everything stays, because the sinks are at different places in each row.
  void forget(int64_t window, int64_t sinks) {
    const int64_t tokens = key.tokens(), recent = window - 1;
    // Twice as many as needed before any is dropped: dropping copies.
    if (padding.defined() || tokens <= 2 * (sinks + recent)) {
      return;
    }
    for (TokenBuffer* buffer : {&key, &value}) {
      const auto all = buffer->all();
      buffer->replace(at::cat({all.narrow(1, 0, sinks), all.narrow(1, tokens - recent, recent)}, 1));
    }
  }
};

} // namespace hybridattn::nn
