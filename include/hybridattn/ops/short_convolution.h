// Short causal depthwise convolution over tokens.
#pragma once

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/zeros.h>
#include <ATen/TensorOperators.h>
#include <hybridattn/core/check.h>

namespace hybridattn::ops {

/// out_t = sum_i weight[:, i] x_(t - W + 1 + i), zeros (or `state`) before the first token.
/// @param x [B, T, D]  @param weight [D, W]  @param bias [D]
/// @param state [B, D, W - 1] the tokens before x
/// @param cu_seqlens [N + 1] documents packed into a batch of one: taps that would reach another document read zero
/// @returns [B, T, D] in x's dtype
inline at::Tensor short_convolution(const at::Tensor& x, const at::Tensor& weight,
                                    const std::optional<at::Tensor>& bias = {},
                                    const std::optional<at::Tensor>& state = {},
                                    const std::optional<at::Tensor>& cu_seqlens = {}) {
  HA_CHECK(x.dim() == 3 && weight.dim() == 2 && weight.size(0) == x.size(2), "short_convolution: weight must be [",
           x.size(-1), ", W], got ", weight.sizes());
  const int64_t width = weight.size(1), length = x.size(1), dim = x.size(2);
  HA_CHECK(!state || state->sizes() == at::IntArrayRef({x.size(0), dim, width - 1}),
           "short_convolution: state must be ", at::IntArrayRef({x.size(0), dim, width - 1}));
  HA_CHECK(!cu_seqlens || x.size(0) == 1, "short_convolution: cu_seqlens needs a batch of 1, got ", x.size(0));
  const auto before =
      state ? state->to(x.scalar_type()).transpose(1, 2) : at::zeros({x.size(0), width - 1, dim}, x.options());
  const auto padded = at::cat({before, x}, 1);
  at::Tensor place; // of each token in its document
  if (cu_seqlens) {
    const auto tokens = at::arange(length, cu_seqlens->options());
    const auto document = at::searchsorted(*cu_seqlens, tokens, false, true) - 1;
    place = tokens - cu_seqlens->index_select(0, document);
  }
  at::Tensor out;
  for (int64_t tap = 0; tap < width; ++tap) { // W is 3 or 4: shifted products beat torch's depthwise conv1d on a CPU
    auto term = padded.narrow(1, tap, length) * weight.select(1, tap);
    if (place.defined() && tap + 1 < width) {
      term = term.masked_fill(place.lt(width - 1 - tap).unsqueeze(-1), 0);
    }
    out = out.defined() ? out + term : term;
  }
  return bias ? out + *bias : out;
}

} // namespace hybridattn::ops
