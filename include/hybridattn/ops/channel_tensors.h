// What the chunked forward and backward of a rule with a decay per channel share: rows of chunks and the quantities
// inside one. n = rows * HV runs over (chunk, head); C is padded to whole sub-chunks.
#pragma once

#include <ATen/ops/constant_pad_nd.h>
#include <hybridattn/ops/channel_pairs.h>
#include <hybridattn/ops/chunk_tensors.h>

namespace hybridattn::ops::channel {

/// A chunk of any per-channel rule is U = (I + L)^-1 (offset + reader S), and O = scale D Q S + P X [+ PB U],
/// S <- exp(gamma_C) S + surviving_k^T X [+ surviving_b^T U], with
///   additive    X = V, nothing solved
///   delta       X = U, offset = beta V, reader = -beta D K, L = beta strictlower(K, K)
///   generalised X = V, offset = strictlower(A, K) V, reader = A decayed by the gates before, L = -strictlower(A, B)
struct Tensors {
  at::Tensor q, k, v, a, b;            // scale Q, K, V, A, B [n, C, .]
  at::Tensor beta;                     // [n, C, 1]
  Decays decays;                       // of the gates
  at::Tensor decayed_q;                // scale D Q [n, C, K]
  at::Tensor surviving_k, surviving_b; // K and B decayed to the chunk's end [n, C, K]
  at::Tensor scores, b_scores;         // P (scale Q, K) and PB (scale Q, B) [n, C, C]
  at::Tensor key_pairs, reads_k;       // strictlower(K, K), strictlower(A, K)
  at::Tensor inverse, offset, reader;  // of the solution

  /// X, given U.
  const at::Tensor& written(const at::Tensor& solution) const { return key_pairs.defined() ? solution : v; }
};

/// (x, y)_ij for j <= i: on the diagonal no gate stands between the rows.
inline at::Tensor pairs_with_diagonal(const at::Tensor& x, const at::Tensor& y, const Decays& decays) {
  auto result = pairs(x, y, decays, Reads::after_decay);
  result.diagonal(0, 1, 2).copy_((x * y).sum(-1));
  return result;
}

/// x [n, C, D] with zeros up to a multiple of kSubChunk rows.
inline at::Tensor whole_sub_chunks(const at::Tensor& x) {
  const int64_t missing = (kSubChunk - x.size(1) % kSubChunk) % kSubChunk;
  return missing == 0 ? x : at::constant_pad_nd(x, {0, 0, 0, missing});
}

/// @param flat  flattened inputs
template <class R>
Tensors tensors(const RuleInputs& flat, const ChunkLayout& layout, double scale, Scratch& scratch) {
  const auto rows = [&](const at::Tensor& x) { return whole_sub_chunks(layout.gather(x, scratch)); };
  Tensors chunk{.q = rows(flat.q) * scale, .k = rows(flat.k), .v = rows(flat.v), .decays = decays(rows(*flat.g))};
  const auto& decays = chunk.decays;
  chunk.decayed_q = chunk.q * decays.from_start;
  chunk.surviving_k = chunk.k * decays.until_end;
  chunk.scores = pairs_with_diagonal(chunk.q, chunk.k, decays);
  if constexpr (R::corrects) {
    chunk.beta = rows(*flat.beta);
    chunk.key_pairs = pairs(chunk.k, chunk.k, decays, Reads::after_decay);
    chunk.inverse = unit_lower_inverse(chunk.key_pairs * chunk.beta, scratch);
    chunk.offset = chunk.v * chunk.beta;
    chunk.reader = -chunk.beta * chunk.k * decays.from_start;
  }
  if constexpr (R::generalised) {
    chunk.a = rows(*flat.a);
    chunk.b = rows(*flat.b);
    chunk.surviving_b = chunk.b * decays.until_end;
    chunk.b_scores = pairs_with_diagonal(chunk.q, chunk.b, decays);
    chunk.reads_k = pairs(chunk.a, chunk.k, decays, Reads::before_decay);
    chunk.inverse = unit_lower_inverse(-pairs(chunk.a, chunk.b, decays, Reads::before_decay), scratch);
    chunk.offset = at::bmm(chunk.reads_k, chunk.v);
    chunk.reader = chunk.a * decays.before;
  }
  return chunk;
}

} // namespace hybridattn::ops::channel
