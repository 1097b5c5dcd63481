// The chunked form of a rule with a decay per channel, composed of ATen ops, backward: chunks in reverse, the solution
// recomputed from the state at each chunk's start.
#pragma once

#include <ATen/ops/cumsum.h>
#include <hybridattn/ops/aten_channel_forward.h>

namespace hybridattn::ops {

namespace channel {

/// Gradients inside n chunks [n, C, .], those of gates already summed over the tokens after them.
struct Gradients {
  at::Tensor q, k, v, g, beta, a, b;
};

/// What a block's backward pass knows once the gradient of every state is known.
struct Adjoint {
  at::Tensor starts, solution; // S [n, K, V] at the chunks' starts, U [n, C, V]
  at::Tensor grad_out;         // dO [n, C, V]
  at::Tensor grad_solved;      // Y = (I + L)^-T dU [n, C, V]
  at::Tensor grad_states;      // dS [n, K, V] at the chunks' ends
};

/// The gradient of gates from that of gamma: a gate counts in the gamma of its own token and of all after it.
inline at::Tensor sum_over_later(const at::Tensor& x) {
  return x.flip(1).cumsum(1).flip(1);
}

template <class R>
Gradients gradients(const Tensors& chunk, double scale, const Adjoint& known) {
  const auto transposed = [](const at::Tensor& x) { return x.transpose(1, 2); };
  const auto& decays = chunk.decays;
  const auto& written = chunk.written(known.solution);
  const auto row_sum = [](const at::Tensor& x) { return x.sum(-1, true); };
  Gradients grad;
  at::Tensor at_end; // the gradient of gamma_C [n, K]

  // A product of pairs sends gradients to its reader's and its writer's row; the entries on the diagonal see no gate.
  const auto grad_scores = at::bmm(known.grad_out, transposed(written));
  auto [read_q, write_k] = pairs_backward(grad_scores, chunk.q, chunk.k, decays, Reads::after_decay);
  const auto diagonal = grad_scores.diagonal(0, 1, 2).unsqueeze(-1);
  auto ungated_q = diagonal * chunk.k;
  const auto ungated_k = diagonal * chunk.q;
  read_q.add_(at::bmm(known.grad_out, transposed(known.starts)) * decays.from_start);
  const auto end_k = at::bmm(written, transposed(known.grad_states)) * decays.until_end;
  at_end = (decays.total * known.starts * known.grad_states).sum(2) + (chunk.k * end_k).sum(1);
  write_k.add_(end_k);
  if constexpr (R::corrects) {
    const auto grad_lower = at::bmm(known.grad_solved, transposed(known.solution)).neg_();
    const auto grad_reader = at::bmm(known.grad_solved, transposed(known.starts)).neg_() * decays.from_start;
    auto [read_k, pair_write] = pairs_backward(grad_lower * chunk.beta, chunk.k, chunk.k, decays, Reads::after_decay);
    read_k.add_(chunk.beta * grad_reader);
    write_k.add_(pair_write);
    grad.v = chunk.beta * known.grad_solved;
    grad.beta =
        row_sum(known.grad_solved * chunk.v) + row_sum(grad_reader * chunk.k) + row_sum(grad_lower * chunk.key_pairs);
    grad.g = sum_over_later(chunk.q * read_q + chunk.k * (read_k - write_k)) + at_end.unsqueeze(1);
    grad.k = read_k + write_k + ungated_k;
  } else {
    grad.v = at::bmm(transposed(chunk.scores), known.grad_out).baddbmm_(chunk.surviving_k, known.grad_states);
  }
  if constexpr (R::generalised) {
    const auto grad_b_scores = at::bmm(known.grad_out, transposed(known.solution));
    auto [read_q_b, write_b] = pairs_backward(grad_b_scores, chunk.q, chunk.b, decays, Reads::after_decay);
    const auto b_diagonal = grad_b_scores.diagonal(0, 1, 2).unsqueeze(-1);
    auto [read_a, write_k_a] =
        pairs_backward(at::bmm(known.grad_solved, transposed(chunk.v)), chunk.a, chunk.k, decays, Reads::before_decay);
    const auto [read_a_b, write_b_a] = pairs_backward(at::bmm(known.grad_solved, transposed(known.solution)), chunk.a,
                                                      chunk.b, decays, Reads::before_decay);
    const auto end_b = at::bmm(known.solution, transposed(known.grad_states)) * decays.until_end;
    at_end = at_end + (chunk.b * end_b).sum(1);
    read_q.add_(read_q_b);
    ungated_q = ungated_q + b_diagonal * chunk.b;
    write_k.add_(write_k_a);
    write_b.add_(write_b_a).add_(end_b);
    read_a.add_(read_a_b).add_(at::bmm(known.grad_solved, transposed(known.starts)) * decays.before);
    const auto through_a = chunk.a * read_a; // counts in the gates before the token only
    grad.g = sum_over_later(chunk.q * read_q - chunk.k * write_k - chunk.b * write_b + through_a) - through_a +
             at_end.unsqueeze(1);
    grad.v.baddbmm_(transposed(chunk.reads_k), known.grad_solved);
    grad.a = read_a;
    grad.b = write_b + b_diagonal * chunk.q;
  }
  if constexpr (!R::corrects) {
    grad.k = write_k + ungated_k;
  }
  if constexpr (!R::solves) {
    grad.g = sum_over_later(chunk.q * read_q - chunk.k * write_k) + at_end.unsqueeze(1);
  }
  grad.q = (read_q + ungated_q) * scale;
  return grad;
}

} // namespace channel

/// Arguments as in aten_chunk_backward.
template <class R>
RuleGradients aten_channel_backward(const RuleInputs& in, double scale, const std::optional<at::Tensor>& cu_seqlens,
                                    int64_t chunk_size, const at::Tensor& states, const at::Tensor& grad_out,
                                    const std::optional<at::Tensor>& grad_final_state) {
  const std::string op = "chunk_" + std::string(R::name) + "_backward";
  const detail::ChunkedCall call(op, in, cu_seqlens, chunk_size);
  const auto& [tokens, heads, key_dim, value_dim, table, dtype, options, flat] = call;
  auto grad_state = detail::ordered_states(in, grad_final_state, table, dtype);
  const auto tokens_of = [&](bool wanted, int64_t dim) {
    return wanted ? at::empty({tokens + 1, heads, dim}, options) : at::Tensor();
  };
  channel::Gradients all{.q = tokens_of(true, key_dim),
                         .k = tokens_of(true, key_dim),
                         .v = tokens_of(true, value_dim),
                         .g = tokens_of(true, key_dim),
                         .beta = tokens_of(R::corrects, 1),
                         .a = tokens_of(R::generalised, key_dim),
                         .b = tokens_of(R::generalised, key_dim)};

  const auto flat_grad_out = grad_out.flatten(0, 1);
  Scratch scratch(options);
  const auto blocks = step_blocks(table, heads, in.v.device());
  for (auto block = blocks.rbegin(); block != blocks.rend(); ++block) {
    const auto [first, last] = *block;
    const int64_t begin = table.first_row[first], end = table.first_row[last], n = (end - begin) * heads;
    const ChunkLayout layout(table, begin, end, heads, in.v.device());
    const auto chunk = channel::tensors<R>(flat, layout, scale, scratch);
    channel::Adjoint known{.starts = states.narrow(0, begin, end - begin).view({n, key_dim, value_dim}),
                           .grad_out = channel::whole_sub_chunks(layout.gather(flat_grad_out, scratch)),
                           .grad_states = at::empty({n, key_dim, value_dim}, options)};
    at::Tensor grad_solution; // dU, but for the part through the state
    if constexpr (R::solves) {
      known.solution = at::bmm(chunk.inverse, at::baddbmm(chunk.offset, chunk.reader, known.starts));
      known.grad_solved = at::empty_like(chunk.v);
      grad_solution = at::bmm((R::corrects ? chunk.scores : chunk.b_scores).transpose(1, 2), known.grad_out);
    }
    for (int64_t step = last - 1; step >= first; --step) {
      const int64_t row = (table.first_row[step] - begin) * heads, rows = table.active[step] * heads;
      const auto at_step = [&](const at::Tensor& x) { return x.narrow(0, row, rows); };
      auto grad = grad_state.narrow(0, 0, table.active[step]).view({rows, key_dim, value_dim});
      at_step(known.grad_states).copy_(grad);
      if constexpr (R::solves) {
        const auto& surviving = R::corrects ? chunk.surviving_k : chunk.surviving_b;
        at_step(known.grad_solved)
            .copy_(at::bmm(at_step(chunk.inverse).transpose(1, 2),
                           at::baddbmm(at_step(grad_solution), at_step(surviving), grad)));
      }
      grad.mul_(at_step(chunk.decays.total))
          .baddbmm_(at_step(chunk.decayed_q).transpose(1, 2), at_step(known.grad_out));
      if constexpr (R::solves) {
        grad.baddbmm_(at_step(chunk.reader).transpose(1, 2), at_step(known.grad_solved));
      }
    }
    const auto grad = channel::gradients<R>(chunk, scale, known);
    const auto scatter = [&](const at::Tensor& from, at::Tensor& to) {
      if (to.defined()) {
        layout.scatter(from.narrow(1, 0, table.chunk), to, scratch);
      }
    };
    scatter(grad.q, all.q);
    scatter(grad.k, all.k);
    scatter(grad.v, all.v);
    scatter(grad.g, all.g);
    scatter(grad.beta, all.beta);
    scatter(grad.a, all.a);
    scatter(grad.b, all.b);
  }
  RuleGradients result{.q = like_input(all.q, in.q),
                       .k = like_input(all.k, in.k),
                       .v = like_input(all.v, in.v),
                       .g = like_input(all.g, *in.g),
                       .initial_state = detail::in_document_order(grad_state, table)};
  if constexpr (R::corrects) {
    result.beta = like_input(all.beta, in.beta->unsqueeze(-1)).squeeze(-1);
  }
  if constexpr (R::generalised) {
    result.a = like_input(all.a, *in.a);
    result.b = like_input(all.b, *in.b);
  }
  return result;
}

} // namespace hybridattn::ops
