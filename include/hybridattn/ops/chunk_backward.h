// The chunked form, backward: chunks in reverse, L, P and the writes recomputed from the state at each chunk's start.
#pragma once

#include <hybridattn/ops/chunk_forward.h>

namespace hybridattn::ops {

/// Gradients of a rule's inputs, in the inputs' dtypes; g, beta undefined where the rule has none.
struct RuleGradients {
  at::Tensor q, k, v, g, beta, initial_state;
};

namespace detail {

/// Gradients inside n chunks, given the gradient of the states after each chunk.
struct ChunkGradients {
  at::Tensor q, k, v, gamma, beta;
};

/// @param writes       X [n, C, V]: what each token added to the state
/// @param read         K S [n, C, V] (correcting rules)
/// @param grad_writes  dX [n, C, V];  @param grad_wanted  Y = (I + L)^-T dX (correcting rules)
template <class R>
ChunkGradients chunk_gradients(const ChunkTensors& chunk, double scale, const at::Tensor& starts, const at::Tensor& writes,
                               const at::Tensor& read, const at::Tensor& grad_out, const at::Tensor& grad_writes,
                               const at::Tensor& grad_wanted, const at::Tensor& grad_states) {
  ChunkGradients grad;
  const auto grad_scores = at::bmm(grad_out, writes.transpose(1, 2)).tril_(); // dP
  const auto state_q = chunk.decayed(at::bmm(grad_out, starts.transpose(1, 2))).mul_(scale);
  const auto state_k = chunk.surviving(at::bmm(writes, grad_states.transpose(1, 2)));
  const auto scores_weighted = chunk.weighted(grad_scores) * scale;
  grad.q = at::baddbmm(state_q, scores_weighted, chunk.k);
  grad.k = at::baddbmm(state_k, scores_weighted.transpose(1, 2), chunk.q);
  grad.v = grad_writes;
  at::Tensor pairs = R::gated ? grad_scores * chunk.scores : at::Tensor(); // M
  if constexpr (R::corrects) {
    const auto grad_lower = at::bmm(grad_wanted, writes.transpose(1, 2)).tril_(-1).neg_(); // dL
    const auto keys_weighted = chunk.weighted(grad_lower * chunk.beta);
    const auto grad_read = chunk.decayed(grad_wanted * chunk.beta).neg_(); // dU
    grad.k.baddbmm_(keys_weighted + keys_weighted.transpose(1, 2), chunk.k);
    grad.k.baddbmm_(grad_read, starts.transpose(1, 2));
    grad.v = grad_wanted * chunk.beta;
    grad.beta = (grad_wanted * (chunk.v - chunk.decayed(read))).sum(2, true) + (grad_lower * chunk.keys).sum(2, true);
    if constexpr (R::gated) {
      pairs.add_(grad_lower * chunk.keys * chunk.beta);
      grad.gamma = (grad_read * read).sum(2, true);
    }
  }
  if constexpr (R::gated) {
    const auto from_k = (chunk.k * state_k).sum(2, true);
    auto own = pairs.sum(2, true) - pairs.sum(1).unsqueeze(-1) + (chunk.q * state_q).sum(2, true) - from_k;
    grad.gamma = grad.gamma.defined() ? grad.gamma.add_(own) : own;
    const auto at_end = from_k.sum(1, true) + chunk.total * (starts * grad_states).sum({1, 2}, true);
    grad.gamma.narrow(1, grad.gamma.size(1) - 1, 1).add_(at_end);
  }
  return grad;
}

/// [tokens, HV, D] summed over the value heads of each query/key head, in x's shape and dtype.
inline at::Tensor like_input(const at::Tensor& flat, const at::Tensor& x) {
  const int64_t tokens = x.size(0) * x.size(1), own = x.size(2), groups = flat.size(1) / own;
  auto grad = flat.narrow(0, 0, tokens);
  if (groups > 1) {
    grad = grad.reshape({tokens, own, groups, -1}).sum(2);
  }
  return grad.reshape(x.sizes()).to(x.scalar_type());
}

} // namespace detail

/// @param states            states at every chunk's start, from chunk_rule_forward
/// @param grad_out          [B, T, HV, V]     @param grad_final_state  [B or N, HV, K, V]; undefined means zero
template <class R>
RuleGradients chunk_rule_backward(const RuleInputs& in, double scale, const std::optional<at::Tensor>& cu_seqlens,
                                  int64_t chunk_size, const at::Tensor& states, const at::Tensor& grad_out,
                                  const std::optional<at::Tensor>& grad_final_state) {
  const std::string op = "chunk_" + std::string(R::name) + "_backward";
  const int64_t batch = in.v.size(0), length = in.v.size(1), heads = in.v.size(2), tokens = batch * length;
  const int64_t key_dim = in.k.size(3), value_dim = in.v.size(3);
  const auto table = chunk_table(document_spans(op, batch, length, cu_seqlens), tokens, chunk_size);
  const auto dtype = state_dtype(in.v);
  const auto options = in.v.options().dtype(dtype);
  auto grad_state = detail::ordered_states(in, grad_final_state, table, dtype);
  const auto flat = [&](int64_t dim) { return at::empty({tokens + 1, heads, dim}, options); };
  auto grad_q = flat(key_dim), grad_k = flat(key_dim), grad_v = flat(value_dim);
  auto grad_g = R::gated ? flat(1) : at::Tensor(), grad_beta = R::corrects ? flat(1) : at::Tensor();

  const auto blocks = step_blocks(table, heads);
  for (auto block = blocks.rbegin(); block != blocks.rend(); ++block) {
    const auto [first, last] = *block;
    const int64_t begin = table.first_row[first], end = table.first_row[last], n = (end - begin) * heads;
    const ChunkLayout layout(table, begin, end, heads, in.v.device());
    const auto chunk = chunk_tensors<R>(in, layout, scale);
    const auto starts = states.narrow(0, begin, end - begin).view({n, key_dim, value_dim});
    const auto grad_chunk = layout.gather(grad_out, dtype);
    at::Tensor writes = chunk.v, read, read_k, grad_wanted;
    if constexpr (R::corrects) {
      read = at::bmm(chunk.k, starts);
      writes = at::bmm(chunk.inverse, (chunk.v - chunk.decayed(read)).mul_(chunk.beta));
      read_k = chunk.decayed(chunk.k * chunk.beta).transpose(1, 2);
      grad_wanted = at::empty_like(chunk.v);
    }
    auto grad_writes = at::bmm(chunk.scores.transpose(1, 2), grad_chunk);
    const auto surviving_k = chunk.surviving(chunk.k);
    const auto from_out = at::bmm(chunk.decayed(chunk.q).mul(scale).transpose(1, 2), grad_chunk); // [n, K, V]
    auto grad_states = at::empty({n, key_dim, value_dim}, options);
    for (int64_t step = last - 1; step >= first; --step) {
      const int64_t row = (table.first_row[step] - begin) * heads, rows = table.active[step] * heads;
      const auto at_step = [&](const at::Tensor& x) { return x.narrow(0, row, rows); };
      auto grad = grad_state.narrow(0, 0, table.active[step]).view({rows, key_dim, value_dim});
      at_step(grad_states).copy_(grad);
      at_step(grad_writes).baddbmm_(at_step(surviving_k), grad);
      if (chunk.total.defined()) {
        grad.mul_(at_step(chunk.total));
      }
      grad.add_(at_step(from_out));
      if constexpr (R::corrects) {
        auto wanted = at_step(grad_wanted);
        at::bmm_out(wanted, at_step(chunk.inverse).transpose(1, 2), at_step(grad_writes));
        grad.baddbmm_(at_step(read_k), wanted, 1, -1);
      }
    }
    const auto grad = detail::chunk_gradients<R>(chunk, scale, starts, writes, read, grad_chunk, grad_writes, grad_wanted,
                                                 grad_states);
    layout.scatter(grad.q, grad_q);
    layout.scatter(grad.k, grad_k);
    layout.scatter(grad.v, grad_v);
    if constexpr (R::gated) {
      layout.scatter(grad.gamma.flip(1).cumsum(1).flip(1), grad_g);
    }
    if constexpr (R::corrects) {
      layout.scatter(grad.beta, grad_beta);
    }
  }
  RuleGradients result{.q = detail::like_input(grad_q, in.q),
                       .k = detail::like_input(grad_k, in.k),
                       .v = detail::like_input(grad_v, in.v),
                       .initial_state = detail::in_document_order(grad_state, table)};
  if constexpr (R::gated) {
    result.g = detail::like_input(grad_g, in.g->unsqueeze(-1)).squeeze(-1);
  }
  if constexpr (R::corrects) {
    result.beta = detail::like_input(grad_beta, in.beta->unsqueeze(-1)).squeeze(-1);
  }
  return result;
}

} // namespace hybridattn::ops
