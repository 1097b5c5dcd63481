// What the chunked form returns, whichever backend computes it.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

namespace hybridattn::ops {

/// {out [B, T, HV, V], final state [B or N, HV, K, V], states at every chunk's start [rows, HV, K, V] (or empty)}
using ChunkForwardResult = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

/// Gradients of a rule's inputs, in the inputs' dtypes; g, beta, a, b undefined where the rule has none.
struct RuleGradients {
  at::Tensor q, k, v, g, beta, a, b, initial_state;
};

/// [tokens, HV, D] summed over the value heads of each query/key head, in x's shape and dtype.
inline at::Tensor like_input(const at::Tensor& flat, const at::Tensor& x) {
  const int64_t tokens = x.size(0) * x.size(1), own = x.size(2), groups = flat.size(1) / own;
  auto grad = flat.narrow(0, 0, tokens);
  if (groups > 1) {
    grad = grad.reshape({tokens, own, groups, -1}).sum(2);
  }
  return grad.reshape(x.sizes()).to(x.scalar_type());
}

} // namespace hybridattn::ops
