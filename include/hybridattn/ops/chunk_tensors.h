// What the chunked forward and backward share: gathering chunks and the quantities inside one (kernels over [n, C, .]).
// n = rows * HV runs over (chunk, head); everything is fp32, or fp64 for fp64 inputs.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cumsum.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <hybridattn/ops/documents.h>
#include <hybridattn/ops/rule.h>

namespace hybridattn::ops {

/// (I + L)^-1 for strictly lower triangular L [n, C, C], by forward substitution inside blocks and merges of blocks.
/// A series in powers of L would be one line, but overflows in fp32 when keys repeat.
inline at::Tensor unit_lower_inverse(const at::Tensor& lower) {
  const int64_t size = lower.size(-1), n = lower.size(0);
  constexpr int64_t kBlock = 16;
  if (size <= kBlock) {
    auto inverse = at::eye(size, lower.options()).expand({n, size, size}).clone();
    for (int64_t row = 1; row < size; ++row) {
      const auto known = inverse.narrow(1, 0, row);
      inverse.select(1, row).sub_((lower.select(1, row).narrow(1, 0, row).unsqueeze(-1) * known).sum(1));
    }
    return inverse;
  }
  const int64_t half = (size / 2 + kBlock - 1) / kBlock * kBlock, rest = size - half;
  const auto block = [&](int64_t r, int64_t h, int64_t c, int64_t w) { return lower.narrow(1, r, h).narrow(2, c, w); };
  auto inverse = at::zeros_like(lower);
  at::Tensor top, bottom;
  if (half == rest) { // both halves in one call
    const auto both = unit_lower_inverse(at::cat({block(0, half, 0, half), block(half, half, half, half)}));
    top = both.narrow(0, 0, n);
    bottom = both.narrow(0, n, n);
  } else {
    top = unit_lower_inverse(block(0, half, 0, half));
    bottom = unit_lower_inverse(block(half, rest, half, rest));
  }
  inverse.narrow(1, 0, half).narrow(2, 0, half).copy_(top);
  inverse.narrow(1, half, rest).narrow(2, half, rest).copy_(bottom);
  inverse.narrow(1, half, rest).narrow(2, 0, half).copy_(at::bmm(bottom, at::bmm(block(half, rest, 0, half), top)).neg_());
  return inverse;
}

/// Moves rows of chunks between the caller's layout [B, T, heads, D] and [rows * HV, C, D].
class ChunkLayout {
public:
  ChunkLayout(const ChunkTable& table, int64_t begin, int64_t end, int64_t heads, at::Device device)
      : rows_(end - begin), chunk_(table.chunk), tokens_(table.tokens), heads_(heads), padded_(table.padded),
        index_(table.index(begin, end, device)) {}

  /// [B, T, heads or heads / g, D] -> [rows * heads, C, D] in `dtype`; padding reads as zero.
  at::Tensor gather(const at::Tensor& x, at::ScalarType dtype) const {
    const int64_t own = x.size(2);
    auto flat = x.reshape({tokens_, own, -1});
    if (padded_) {
      flat = at::cat({flat, at::zeros({1, own, flat.size(2)}, flat.options())});
    }
    auto chunks = flat.index_select(0, index_).view({rows_, chunk_, own, -1}).to(dtype).transpose(1, 2);
    if (own != heads_) {
      chunks = chunks.unsqueeze(2).expand({rows_, own, heads_ / own, chunk_, -1});
    }
    return chunks.reshape({rows_ * heads_, chunk_, -1});
  }

  /// A per-head gate [B, T, HV] -> [rows * HV, C, 1].
  at::Tensor gather_gate(const at::Tensor& gate, at::ScalarType dtype) const { return gather(gate.unsqueeze(-1), dtype); }

  /// [rows * HV, C, D] into rows of `flat` [tokens + 1, HV, D]; what lands in the last one was padding.
  void scatter(const at::Tensor& chunks, at::Tensor& flat) const {
    const auto rows = chunks.view({rows_, heads_, chunk_, -1}).transpose(1, 2).reshape({rows_ * chunk_, heads_, -1});
    flat.index_copy_(0, index_, rows.to(flat.scalar_type()));
  }

private:
  int64_t rows_, chunk_, tokens_, heads_;
  bool padded_;
  at::Tensor index_;
};

/// Quantities of n chunks. Letters as in the paper's chunked form: gamma the inclusive cumulative log decay,
/// Gamma_ij = exp(gamma_i - gamma_j) for i >= j, L = strictlower(beta K K^T . Gamma), P = scale lower(Q K^T . Gamma).
struct ChunkTensors {
  at::Tensor q, k, v;   // [n, C, K], [n, C, K], [n, C, V]
  at::Tensor decay;     // exp(gamma) [n, C, 1]; undefined without decay
  at::Tensor remaining; // exp(gamma_C - gamma) [n, C, 1]
  at::Tensor total;     // exp(gamma_C) [n, 1, 1]
  at::Tensor weight;    // Gamma [n, C, C]
  at::Tensor scores;    // P [n, C, C]
  at::Tensor beta;      // [n, C, 1]
  at::Tensor keys;      // strictlower(K K^T . Gamma) [n, C, C]
  at::Tensor inverse;   // (I + L)^-1 [n, C, C]

  at::Tensor decayed(const at::Tensor& x) const { return decay.defined() ? x * decay : x; }
  at::Tensor surviving(const at::Tensor& x) const { return remaining.defined() ? x * remaining : x; }
  at::Tensor weighted(const at::Tensor& x) const { return weight.defined() ? x * weight : x; }
};

/// exp(gamma_i - gamma_j) on and below the diagonal. The cumulative sum runs in fp64 and enters as a sum of two floats, so
/// a gate of -1000 (a reset) costs the gates after it no precision; -inf is such a reset.
inline void fill_decay(ChunkTensors& chunk, const at::Tensor& log_gate, at::ScalarType dtype) {
  constexpr double kReset = -1e4; // exp(kReset) is 0 in fp32 and fp64
  const auto gamma = log_gate.to(at::kDouble).clamp_min(kReset).cumsum(1); // [n, C, 1]
  const auto high = gamma.to(dtype), low = (gamma - high.to(at::kDouble)).to(dtype);
  const auto last = gamma.narrow(1, gamma.size(1) - 1, 1);
  chunk.decay = high.exp();
  chunk.total = last.exp().to(dtype);
  chunk.remaining = (last - gamma).exp().to(dtype);
  auto difference = high - high.transpose(1, 2);
  difference.add_(low).sub_(low.transpose(1, 2));
  // Above the diagonal the exponent is positive and may overflow; tril_ assigns zeros there instead of multiplying.
  chunk.weight = difference.exp_().tril_();
}

template <class R>
ChunkTensors chunk_tensors(const RuleInputs& in, const ChunkLayout& layout, double scale) {
  const auto dtype = state_dtype(in.v);
  ChunkTensors chunk{.q = layout.gather(in.q, dtype), .k = layout.gather(in.k, dtype), .v = layout.gather(in.v, dtype)};
  if constexpr (R::gated) {
    fill_decay(chunk, layout.gather_gate(*in.g, dtype), dtype);
  }
  const auto k_transposed = chunk.k.transpose(1, 2);
  auto scores = at::bmm(chunk.q, k_transposed).mul_(scale);
  chunk.scores = chunk.weight.defined() ? scores.mul_(chunk.weight) : scores.tril_();
  if constexpr (R::corrects) {
    chunk.beta = layout.gather_gate(*in.beta, dtype);
    auto keys = at::bmm(chunk.k, k_transposed);
    chunk.keys = (chunk.weight.defined() ? keys.mul_(chunk.weight) : keys).tril_(-1);
    chunk.inverse = unit_lower_inverse(chunk.keys * chunk.beta);
  }
  return chunk;
}

/// Steps [begin, end) of a table whose rows are worked on at once: enough to be efficient, few enough to be small.
inline std::vector<std::pair<int64_t, int64_t>> step_blocks(const ChunkTable& table, int64_t heads) {
  constexpr int64_t kRowsTimesHeads = 256; // 4 MiB per [n, 64, 64] fp32 tensor
  std::vector<std::pair<int64_t, int64_t>> blocks;
  int64_t begin = 0;
  for (int64_t step = 0; step < table.steps(); ++step) {
    const int64_t rows = table.first_row[step + 1] - table.first_row[begin];
    if (step > begin && rows * heads > kRowsTimesHeads) {
      blocks.emplace_back(begin, step);
      begin = step;
    }
  }
  if (table.steps() > begin) {
    blocks.emplace_back(begin, table.steps());
  }
  return blocks;
}

} // namespace hybridattn::ops
