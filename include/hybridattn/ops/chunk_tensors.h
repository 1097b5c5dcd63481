// What the chunked forward and backward share: gathering chunks and the quantities inside one (kernels over [n, C, .]).
// n = rows * HV runs over (chunk, head); everything is fp32, or fp64 for fp64 inputs.
#pragma once

#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cumsum.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/sub.h>
#include <ATen/ops/tensor.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <hybridattn/ops/chunk_scratch.h>
#include <hybridattn/ops/documents.h>
#include <hybridattn/ops/rule.h>

namespace hybridattn::ops {

/// (I + L)^-1 for strictly lower triangular L [n, C, C], by forward substitution inside blocks and merges of blocks.
/// A series in powers of L would be one line, but overflows in fp32 when keys repeat.
inline at::Tensor unit_lower_inverse(const at::Tensor& lower, Scratch& scratch) {
  const int64_t size = lower.size(-1), n = lower.size(0);
  constexpr int64_t kBlock = 16;
  auto inverse = scratch.empty(lower.sizes());
  if (size <= kBlock) {
    inverse.copy_(at::eye(size, lower.options()));
    for (int64_t row = 1; row < size; ++row) {
      const auto known = inverse.narrow(1, 0, row);
      inverse.select(1, row).sub_((lower.select(1, row).narrow(1, 0, row).unsqueeze(-1) * known).sum(1));
    }
    return inverse;
  }
  const int64_t half = (size / 2 + kBlock - 1) / kBlock * kBlock, rest = size - half;
  const auto block = [](const at::Tensor& x, int64_t r, int64_t h, int64_t c, int64_t w) {
    return x.narrow(1, r, h).narrow(2, c, w);
  };
  at::Tensor top, bottom;
  if (half == rest) { // both halves in one call
    const auto diagonal = at::cat({block(lower, 0, half, 0, half), block(lower, half, half, half, half)});
    const auto both = unit_lower_inverse(diagonal, scratch);
    top = both.narrow(0, 0, n);
    bottom = both.narrow(0, n, n);
  } else {
    top = unit_lower_inverse(block(lower, 0, half, 0, half), scratch);
    bottom = unit_lower_inverse(block(lower, half, rest, half, rest), scratch);
  }
  block(inverse, 0, half, 0, half).copy_(top);
  block(inverse, 0, half, half, rest).zero_();
  block(inverse, half, rest, 0, half).copy_(at::bmm(bottom, at::bmm(block(lower, half, rest, 0, half), top)).neg_());
  block(inverse, half, rest, half, rest).copy_(bottom);
  return inverse;
}

/// The inputs with the tokens of all sequences in one dimension, [tokens, heads, D] with D = 1 for what a head has one
/// of.
inline RuleInputs flattened(const RuleInputs& in) {
  const auto flat = [](const std::optional<at::Tensor>& x) {
    return x ? std::optional(x->reshape({x->size(0) * x->size(1), x->size(2), x->dim() == 4 ? x->size(3) : 1}))
             : std::nullopt;
  };
  return {*flat(in.q), *flat(in.k), *flat(in.v), flat(in.g), flat(in.beta), flat(in.a), flat(in.b)};
}

/// Moves rows of chunks between flattened tokens [tokens, heads, D] and [rows * HV, C, D].
class ChunkLayout {
public:
  ChunkLayout(const ChunkTable& table, int64_t begin, int64_t end, int64_t heads, at::Device device)
      : rows_(end - begin), chunk_(table.chunk), heads_(heads), index_(table.index(begin, end, device)) {
    if (table.padded) {
      std::vector<int64_t> padding;
      for (int64_t place = 0; place < rows_ * chunk_; ++place) {
        if (table.token_index[begin * chunk_ + place] == table.tokens) {
          padding.push_back(place);
        }
      }
      padding_ = at::tensor(at::IntArrayRef(padding), at::TensorOptions().dtype(at::kLong)).to(device);
      existing_ = index_.index_fill(0, padding_, 0);
    } else {
      existing_ = index_;
    }
  }

  /// [tokens, heads or heads / g, D] -> [rows * heads, C, D] in the dtype of `scratch`; padding reads as zero.
  at::Tensor gather(const at::Tensor& flat, Scratch& scratch) const {
    const int64_t own = flat.size(1), dim = flat.size(2);
    auto tokens = scratch.empty({rows_ * chunk_, own, dim}, flat.scalar_type());
    at::index_select_out(tokens, flat, 0, existing_);
    if (padding_.defined()) {
      tokens.index_fill_(0, padding_, 0);
    }
    auto chunks = scratch.empty({rows_, own, heads_ / own, chunk_, dim});
    chunks.copy_(tokens.view({rows_, chunk_, own, dim}).transpose(1, 2).unsqueeze(2));
    return chunks.view({rows_ * heads_, chunk_, dim});
  }

  /// [rows * HV, C, D] into rows of `flat` [tokens + 1, HV, D]; what lands in the last one was padding.
  void scatter(const at::Tensor& chunks, at::Tensor& flat, Scratch& scratch) const {
    const int64_t dim = chunks.size(2);
    auto tokens = scratch.empty({rows_, chunk_, heads_, dim}, flat.scalar_type());
    tokens.copy_(chunks.view({rows_, heads_, chunk_, dim}).transpose(1, 2));
    flat.index_copy_(0, index_, tokens.view({rows_ * chunk_, heads_, dim}));
  }

private:
  int64_t rows_, chunk_, heads_;
  at::Tensor index_;    // token of each place; one past the last for padding
  at::Tensor padding_;  // places that are padding; undefined if the table has none
  at::Tensor existing_; // index_, with any token for padding
};

/// Quantities of n chunks. Letters as in the paper's chunked form: gamma the inclusive cumulative log decay,
/// Gamma_ij = exp(gamma_i - gamma_j) for i >= j, L = strictlower(beta K K^T . Gamma), P = scale lower(Q K^T . Gamma).
struct ChunkTensors {
  at::Tensor q, k, v;      // scale Q [n, C, K], [n, C, K], [n, C, V]
  at::Tensor decay;        // exp(gamma) [n, C, 1]; undefined without decay
  at::Tensor remaining;    // exp(gamma_C - gamma) [n, C, 1]
  at::Tensor total;        // exp(gamma_C) [n, 1, 1]
  at::Tensor weight;       // Gamma [n, C, C]
  at::Tensor scores;       // P [n, C, C]
  at::Tensor beta;         // [n, C, 1]
  at::Tensor decayed_beta; // beta exp(gamma) [n, C, 1]
  at::Tensor keys;         // strictlower(K K^T . Gamma) [n, C, C]
  at::Tensor inverse;      // (I + L)^-1 [n, C, C]

  at::Tensor decayed(const at::Tensor& x, Scratch& scratch) const {
    return decay.defined() ? scratch.product(x, decay) : x;
  }
  at::Tensor surviving(const at::Tensor& x, Scratch& scratch) const {
    return remaining.defined() ? scratch.product(x, remaining) : x;
  }
  at::Tensor weighted(const at::Tensor& x, Scratch& scratch) const {
    return weight.defined() ? scratch.product(x, weight) : x;
  }
};

/// exp(gamma_i - gamma_j) on and below the diagonal. The cumulative sum runs in fp64 and enters as a sum of two floats,
/// so a gate of -1000 (a reset) costs the gates after it no precision; -inf is such a reset.
inline void fill_decay(ChunkTensors& chunk, const at::Tensor& log_gate, Scratch& scratch) {
  constexpr double kReset = -1e4; // exp(kReset) is 0 in fp32 and fp64
  const auto dtype = log_gate.scalar_type();
  const auto gamma = log_gate.to(at::kDouble).clamp_min(kReset).cumsum(1); // [n, C, 1]
  const auto high = gamma.to(dtype), low = (gamma - high.to(at::kDouble)).to(dtype);
  const auto last = gamma.narrow(1, gamma.size(1) - 1, 1);
  chunk.decay = high.exp();
  chunk.total = last.exp().to(dtype);
  chunk.remaining = (last - gamma).exp().to(dtype);
  chunk.weight = scratch.empty({gamma.size(0), gamma.size(1), gamma.size(1)});
  at::sub_out(chunk.weight, high, high.transpose(1, 2)).add_(low).sub_(low.transpose(1, 2));
  // Above the diagonal the exponent is positive and may overflow; tril_ assigns zeros there instead of multiplying.
  chunk.weight.exp_().tril_();
}

/// @param flat  flattened inputs
template <class R>
ChunkTensors chunk_tensors(const RuleInputs& flat, const ChunkLayout& layout, double scale, Scratch& scratch) {
  ChunkTensors chunk{.q = layout.gather(flat.q, scratch).mul_(scale),
                     .k = layout.gather(flat.k, scratch),
                     .v = layout.gather(flat.v, scratch)};
  const int64_t n = chunk.k.size(0), length = chunk.k.size(1);
  if constexpr (R::gated) {
    fill_decay(chunk, layout.gather(*flat.g, scratch), scratch);
  }
  const auto pairs = [&](const at::Tensor& x, int64_t diagonal) {
    auto products = scratch.empty({n, length, length});
    at::bmm_out(products, x, chunk.k.transpose(1, 2));
    return (chunk.weight.defined() ? products.mul_(chunk.weight) : products).tril_(diagonal);
  };
  chunk.scores = pairs(chunk.q, 0);
  if constexpr (R::corrects) {
    chunk.beta = layout.gather(*flat.beta, scratch);
    chunk.decayed_beta = chunk.decayed(chunk.beta, scratch);
    chunk.keys = pairs(chunk.k, -1);
    chunk.inverse = unit_lower_inverse(scratch.product(chunk.keys, chunk.beta), scratch);
  }
  return chunk;
}

/// Chunks times heads that a block should not exceed. On a CPU, 16 per thread: with 256 KiB of each [C, C] quantity per
/// thread a block stays in the cores' own caches, so it is faster than a larger one and takes less memory.
inline int64_t block_limit(at::Device device) {
  return device.is_cpu() ? std::max(32, 16 * at::get_num_threads()) : 256;
}

/// Steps [begin, end) of a table that are worked on at once; a block is never less than a step.
inline std::vector<std::pair<int64_t, int64_t>> step_blocks(const ChunkTable& table, int64_t heads, at::Device device) {
  const int64_t limit = block_limit(device);
  std::vector<std::pair<int64_t, int64_t>> blocks;
  int64_t begin = 0;
  for (int64_t step = 0; step < table.steps(); ++step) {
    const int64_t rows = table.first_row[step + 1] - table.first_row[begin];
    if (step > begin && rows * heads > limit) {
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
