// Products of two rows of a chunk under a decay per channel: sum_d x_id y_jd exp(gamma_id - gamma_jd) for j <= i.
// The decay does not factor into a row's part and a column's part without overflow. It does relative to the start of
// the sub-chunk that holds row i, where both exponents are <= 0; inside a sub-chunk, products of gates run along the
// diagonals. Nothing but exp(g) <= 1 is ever exponentiated, so a gate of -inf needs no care.
#pragma once

#include <ATen/ops/bmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cumprod.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <ATen/TensorOperators.h>

#include <utility>

namespace hybridattn::ops::channel {

inline constexpr int64_t kSubChunk = 16;

/// Whose decay a row i reads the state under: its own gate's too, or only those before it.
enum class Reads { after_decay, before_decay };

/// Products of exp(g) [n, C, K] over ranges of tokens; C is a multiple of kSubChunk.
struct Decays {
  at::Tensor gate;                       // exp(g)
  at::Tensor from_start, before;         // over the chunk's tokens <= i, and < i
  at::Tensor until_end;                  // over the chunk's tokens > i
  at::Tensor total;                      // over all of the chunk's tokens [n, K, 1]
  at::Tensor sub_from_start, sub_before; // the same over tokens of the sub-chunk
  at::Tensor sub_until_end, sub_total;   // [n, C, K], [n, C / kSubChunk, K]

  const at::Tensor& of_reader(Reads reads) const { return reads == Reads::after_decay ? from_start : before; }
  const at::Tensor& of_sub_reader(Reads reads) const {
    return reads == Reads::after_decay ? sub_from_start : sub_before;
  }
};

/// x [n, C, K] as [n, C / kSubChunk, kSubChunk, K].
inline at::Tensor in_sub_chunks(const at::Tensor& x) {
  return x.unflatten(1, {-1, kSubChunk});
}

/// Products over the entries before each one along `dim`.
inline at::Tensor product_before(const at::Tensor& x, int64_t dim) {
  const auto last = x.size(dim) - 1;
  return at::cumprod(at::cat({at::ones_like(x.narrow(dim, 0, 1)), x.narrow(dim, 0, last)}, dim), dim);
}

inline Decays decays(const at::Tensor& log_gate) {
  Decays result{.gate = log_gate.exp()};
  result.from_start = at::cumprod(result.gate, 1);
  result.before = product_before(result.gate, 1);
  result.until_end = product_before(result.gate.flip(1), 1).flip(1);
  result.total = result.from_start.select(1, log_gate.size(1) - 1).unsqueeze(-1);
  const auto sub = in_sub_chunks(result.gate);
  const auto sub_from_start = at::cumprod(sub, 2);
  result.sub_from_start = sub_from_start.flatten(1, 2);
  result.sub_before = product_before(sub, 2).flatten(1, 2);
  result.sub_until_end = product_before(sub.flip(2), 2).flip(2).flatten(1, 2);
  result.sub_total = sub_from_start.select(2, kSubChunk - 1);
  return result;
}

/// Calls f(sub-chunk, its first row, y of the rows before it decayed to its start [n, first row, K]) for each sub-chunk
/// but the first.
template <class F>
void for_sub_chunks(const at::Tensor& y, const Decays& decays, F&& f) {
  const auto ends = y * decays.sub_until_end;
  auto decayed = ends.narrow(1, 0, kSubChunk);
  for (int64_t sub = 1; sub < y.size(1) / kSubChunk; ++sub) {
    const int64_t row = sub * kSubChunk;
    f(sub, row, decayed);
    decayed = at::cat({decayed * decays.sub_total.narrow(1, sub, 1), ends.narrow(1, row, kSubChunk)}, 1);
  }
}

/// Calls f(distance r, y_j decayed to row j + r [n, subs, kSubChunk - r, K]) for each diagonal r >= 1 of the
/// sub-chunks.
template <class F>
void for_diagonals(const at::Tensor& y, const Decays& decays, Reads reads, F&& f) {
  const auto gate = in_sub_chunks(decays.gate);
  auto decayed = in_sub_chunks(y);
  for (int64_t r = 1; r < kSubChunk; ++r) {
    const auto before = decayed.narrow(2, 0, kSubChunk - r);
    decayed = before * gate.narrow(2, r, kSubChunk - r);
    f(r, reads == Reads::after_decay ? decayed : before);
  }
}

/// The diagonal blocks [n, subs, kSubChunk, kSubChunk] of x [n, C, C], as a view.
inline at::Tensor diagonal_blocks(const at::Tensor& x) {
  const int64_t n = x.size(0), size = x.size(1);
  return x.as_strided({n, size / kSubChunk, kSubChunk, kSubChunk},
                      {x.stride(0), kSubChunk * (x.stride(1) + x.stride(2)), x.stride(1), x.stride(2)},
                      x.storage_offset());
}

/// The products [n, C, C] of x and y [n, C, K] below the diagonal, and on it where the reader decays with its own gate.
inline at::Tensor pairs(const at::Tensor& x, const at::Tensor& y, const Decays& decays, Reads reads) {
  const int64_t n = x.size(0), size = x.size(1);
  auto result = at::zeros({n, size, size}, x.options());
  const auto reader = x * decays.of_sub_reader(reads);
  for_sub_chunks(y, decays, [&](int64_t, int64_t row, const at::Tensor& before) {
    result.narrow(1, row, kSubChunk)
        .narrow(2, 0, row)
        .copy_(at::bmm(reader.narrow(1, row, kSubChunk), before.transpose(1, 2)));
  });
  auto blocks = diagonal_blocks(result);
  const auto rows = in_sub_chunks(x);
  for_diagonals(y, decays, reads, [&](int64_t r, const at::Tensor& decayed) {
    blocks.diagonal(-r, 2, 3).copy_((rows.narrow(2, r, kSubChunk - r) * decayed).sum(-1));
  });
  return result;
}

/// The gradients {dx, dy} of `pairs`, given that of its entries below the diagonal.
inline std::pair<at::Tensor, at::Tensor> pairs_backward(const at::Tensor& grad, const at::Tensor& x,
                                                        const at::Tensor& y, const Decays& decays, Reads reads) {
  const auto& sub_reader = decays.of_sub_reader(reads);
  const auto reader = x * sub_reader;
  auto grad_x = at::zeros_like(x), grad_y = at::zeros_like(y);
  for_sub_chunks(y, decays, [&](int64_t, int64_t row, const at::Tensor& before) {
    grad_x.narrow(1, row, kSubChunk).copy_(at::bmm(grad.narrow(1, row, kSubChunk).narrow(2, 0, row), before));
  });
  grad_x.mul_(sub_reader);
  // Backwards: `grad_y` holds the gradient of y decayed to the start of the sub-chunk that was visited last.
  for (int64_t sub = x.size(1) / kSubChunk - 1; sub > 0; --sub) {
    const int64_t row = sub * kSubChunk;
    auto before = grad_y.narrow(1, 0, row);
    before.mul_(decays.sub_total.narrow(1, sub, 1));
    before.baddbmm_(grad.narrow(1, row, kSubChunk).narrow(2, 0, row).transpose(1, 2), reader.narrow(1, row, kSubChunk));
  }
  grad_y.mul_(decays.sub_until_end);
  const auto blocks = diagonal_blocks(grad);
  const auto rows = in_sub_chunks(x), gate = in_sub_chunks(decays.gate);
  auto rows_grad = in_sub_chunks(grad_x), columns_grad = in_sub_chunks(grad_y);
  auto factor = at::ones_like(rows); // the gates between row j and row j + r
  for_diagonals(y, decays, reads, [&](int64_t r, const at::Tensor& decayed) {
    const auto g = blocks.diagonal(-r, 2, 3).unsqueeze(-1);
    const auto before = factor.narrow(2, 0, kSubChunk - r);
    factor = before * gate.narrow(2, r, kSubChunk - r);
    rows_grad.narrow(2, r, kSubChunk - r).add_(g * decayed);
    columns_grad.narrow(2, 0, kSubChunk - r)
        .add_(g * rows.narrow(2, r, kSubChunk - r) * (reads == Reads::after_decay ? factor : before));
  });
  return {grad_x, grad_y};
}

} // namespace hybridattn::ops::channel
