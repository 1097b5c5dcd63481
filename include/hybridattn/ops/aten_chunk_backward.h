// The chunked form composed of ATen ops, backward: chunks in reverse, L, P and the writes recomputed from the state at
// each chunk's start.
#pragma once

#include <ATen/ops/add.h>
#include <hybridattn/ops/aten_chunk_forward.h>

namespace hybridattn::ops {

namespace detail {

/// Gradients inside n chunks, given the gradient of the states after each chunk.
struct ChunkGradients {
  at::Tensor q, k, v, gamma, beta;
};

/// What a block's backward pass knows once the gradient of every state is known.
struct ChunkAdjoint {
  at::Tensor starts;      // S [n, K, V] at the chunks' starts
  at::Tensor writes;      // X [n, C, V]: what each token added to the state
  at::Tensor read, error; // K S and V - exp(gamma) K S [n, C, V] (correcting rules)
  at::Tensor grad_out;    // dO [n, C, V]
  at::Tensor grad_writes; // dX [n, C, V]
  at::Tensor grad_wanted; // Y = (I + L)^-T dX (correcting rules)
  at::Tensor grad_states; // dS [n, K, V] at the chunks' ends
};

template <class R>
ChunkGradients chunk_gradients(const ChunkTensors& chunk, double scale, const ChunkAdjoint& at_chunk,
                               Scratch& scratch) {
  const auto product = [&](const at::Tensor& a, const at::Tensor& b) {
    auto result = scratch.empty({a.size(0), a.size(1), b.size(2)});
    return at::bmm_out(result, a, b);
  };
  const auto row_dot = [&](const at::Tensor& a, const at::Tensor& b) { return scratch.product(a, b).sum(2, true); };
  ChunkGradients grad{.q = product(at_chunk.grad_out, at_chunk.starts.transpose(1, 2)),
                      .k = product(at_chunk.writes, at_chunk.grad_states.transpose(1, 2)),
                      .v = at_chunk.grad_writes};
  at::Tensor pairs = product(at_chunk.grad_out, at_chunk.writes.transpose(1, 2)).tril_(); // dP
  const auto scores_weighted = chunk.weighted(pairs, scratch);
  if constexpr (R::gated) {
    grad.q.mul_(chunk.decay);
    grad.k.mul_(chunk.remaining);
    const auto from_k = row_dot(chunk.k, grad.k);
    grad.gamma = row_dot(chunk.q, grad.q).sub_(from_k);
    const auto at_end = chunk.total * scratch.product(at_chunk.starts, at_chunk.grad_states).sum({1, 2}, true);
    grad.gamma.narrow(1, grad.gamma.size(1) - 1, 1).add_(at_end).add_(from_k.sum(1, true));
    pairs.mul_(chunk.scores);
  }
  grad.q.baddbmm_(scores_weighted, chunk.k).mul_(scale);
  grad.k.baddbmm_(scores_weighted.transpose(1, 2), chunk.q);
  if constexpr (R::corrects) {
    auto grad_lower = product(at_chunk.grad_wanted, at_chunk.writes.transpose(1, 2)).tril_(-1).neg_(); // dL
    const auto lower_pairs = scratch.product(grad_lower, chunk.keys);
    grad.beta = row_dot(at_chunk.grad_wanted, at_chunk.error).add_(lower_pairs.sum(2, true));
    const auto grad_read = scratch.product(at_chunk.grad_wanted, chunk.decayed_beta); // -dU
    if constexpr (R::gated) {
      pairs.addcmul_(lower_pairs, chunk.beta);
      grad.gamma.sub_(row_dot(grad_read, at_chunk.read));
    }
    const auto keys_weighted = chunk.weighted(grad_lower.mul_(chunk.beta), scratch);
    auto both_ways = scratch.empty(keys_weighted.sizes());
    grad.k.baddbmm_(at::add_out(both_ways, keys_weighted, keys_weighted.transpose(1, 2)), chunk.k);
    grad.k.baddbmm_(grad_read, at_chunk.starts.transpose(1, 2), 1, -1);
    grad.v = scratch.product(at_chunk.grad_wanted, chunk.beta);
  }
  if constexpr (R::gated) {
    grad.gamma.add_(pairs.sum(2, true)).sub_(pairs.sum(1).unsqueeze(-1));
  }
  return grad;
}

} // namespace detail

/// @param states            states at every chunk's start, from the forward pass
/// @param grad_out          [B, T, HV, V]     @param grad_final_state  [B or N, HV, K, V]; undefined means zero
template <class R>
RuleGradients aten_chunk_backward(const RuleInputs& in, double scale, const std::optional<at::Tensor>& cu_seqlens,
                                  int64_t chunk_size, const at::Tensor& states, const at::Tensor& grad_out,
                                  const std::optional<at::Tensor>& grad_final_state) {
  const std::string op = "chunk_" + std::string(R::name) + "_backward";
  const detail::ChunkedCall call(op, in, cu_seqlens, chunk_size);
  const auto& [tokens, heads, key_dim, value_dim, table, dtype, options, flat] = call;
  auto grad_state = detail::ordered_states(in, grad_final_state, table, dtype);
  const auto tokens_of = [&](int64_t dim) { return at::empty({tokens + 1, heads, dim}, options); };
  auto grad_q = tokens_of(key_dim), grad_k = tokens_of(key_dim), grad_v = tokens_of(value_dim);
  auto grad_g = R::gated ? tokens_of(1) : at::Tensor(), grad_beta = R::corrects ? tokens_of(1) : at::Tensor();

  const auto flat_grad_out = grad_out.flatten(0, 1);
  Scratch scratch(options);
  const auto blocks = step_blocks(table, heads, in.v.device());
  for (auto block = blocks.rbegin(); block != blocks.rend(); ++block) {
    const auto [first, last] = *block;
    const int64_t begin = table.first_row[first], end = table.first_row[last], n = (end - begin) * heads;
    const ChunkLayout layout(table, begin, end, heads, in.v.device());
    const auto chunk = chunk_tensors<R>(flat, layout, scale, scratch);
    detail::ChunkAdjoint known{.starts = states.narrow(0, begin, end - begin).view({n, key_dim, value_dim}),
                               .writes = chunk.v,
                               .grad_out = layout.gather(flat_grad_out, scratch),
                               .grad_writes = scratch.empty(chunk.v.sizes()),
                               .grad_states = scratch.empty({n, key_dim, value_dim})};
    at::Tensor read_k;
    if constexpr (R::corrects) {
      known.read = scratch.empty(chunk.v.sizes());
      at::bmm_out(known.read, chunk.k, known.starts);
      known.error = scratch.empty(chunk.v.sizes());
      at::sub_out(known.error, chunk.v, chunk.decayed(known.read, scratch));
      known.writes = scratch.empty(chunk.v.sizes());
      at::bmm_out(known.writes, chunk.inverse, scratch.product(known.error, chunk.beta));
      known.grad_wanted = scratch.empty(chunk.v.sizes());
      read_k = scratch.product(chunk.k, chunk.decayed_beta).transpose(1, 2);
    }
    at::bmm_out(known.grad_writes, chunk.scores.transpose(1, 2), known.grad_out);
    const auto surviving_k = chunk.surviving(chunk.k, scratch);
    const auto decayed_q = chunk.decayed(chunk.q, scratch).transpose(1, 2);
    for (int64_t step = last - 1; step >= first; --step) {
      const int64_t row = (table.first_row[step] - begin) * heads, rows = table.active[step] * heads;
      const auto at_step = [&](const at::Tensor& x) { return x.narrow(0, row, rows); };
      auto grad = grad_state.narrow(0, 0, table.active[step]).view({rows, key_dim, value_dim});
      at_step(known.grad_states).copy_(grad);
      at_step(known.grad_writes).baddbmm_(at_step(surviving_k), grad);
      if (chunk.total.defined()) {
        grad.mul_(at_step(chunk.total));
      }
      grad.baddbmm_(at_step(decayed_q), at_step(known.grad_out));
      if constexpr (R::corrects) {
        auto wanted = at_step(known.grad_wanted);
        at::bmm_out(wanted, at_step(chunk.inverse).transpose(1, 2), at_step(known.grad_writes));
        grad.baddbmm_(at_step(read_k), wanted, 1, -1);
      }
    }
    const auto grad = detail::chunk_gradients<R>(chunk, scale, known, scratch);
    layout.scatter(grad.q, grad_q, scratch);
    layout.scatter(grad.k, grad_k, scratch);
    layout.scatter(grad.v, grad_v, scratch);
    if constexpr (R::gated) {
      layout.scatter(grad.gamma.flip(1).cumsum(1).flip(1), grad_g, scratch);
    }
    if constexpr (R::corrects) {
      layout.scatter(grad.beta, grad_beta, scratch);
    }
  }
  RuleGradients result{.q = like_input(grad_q, in.q),
                       .k = like_input(grad_k, in.k),
                       .v = like_input(grad_v, in.v),
                       .initial_state = detail::in_document_order(grad_state, table)};
  if constexpr (R::gated) {
    result.g = like_input(grad_g, in.g->unsqueeze(-1)).squeeze(-1);
  }
  if constexpr (R::corrects) {
    result.beta = like_input(grad_beta, in.beta->unsqueeze(-1)).squeeze(-1);
  }
  return result;
}

} // namespace hybridattn::ops
