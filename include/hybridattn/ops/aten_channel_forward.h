// The chunked form of a rule with a decay per channel, composed of ATen ops, forward.
#pragma once

#include <hybridattn/ops/aten_chunk_forward.h>
#include <hybridattn/ops/channel_tensors.h>

namespace hybridattn::ops {

/// Arguments as in aten_chunk_forward.
template <class R>
ChunkForwardResult aten_channel_forward(const RuleInputs& in, double scale,
                                        const std::optional<at::Tensor>& initial_state,
                                        const std::optional<at::Tensor>& cu_seqlens, int64_t chunk_size,
                                        bool save_states, int64_t state_interval) {
  const std::string op = "chunk_" + std::string(R::name);
  const detail::ChunkedCall call(op, in, cu_seqlens, chunk_size);
  const auto& [tokens, heads, key_dim, value_dim, table, dtype, options, flat] = call;
  auto states = detail::ordered_states(in, initial_state, table, dtype);
  auto out = at::empty({tokens + 1, heads, value_dim}, in.v.options());
  const detail::StateKeeper keeper(table, save_states, state_interval, {heads, key_dim, value_dim}, options);

  Scratch scratch(options);
  for (const auto& [first, last] : step_blocks(table, heads, in.v.device())) {
    const int64_t begin = table.first_row[first], end = table.first_row[last];
    const ChunkLayout layout(table, begin, end, heads, in.v.device());
    const auto chunk = channel::tensors<R>(flat, layout, scale, scratch);
    const auto starts = keeper.room(begin, end, [&](at::IntArrayRef shape) { return at::empty(shape, options); });
    auto solution = R::solves ? at::empty_like(chunk.v) : at::Tensor();
    for (int64_t step = first; step < last; ++step) {
      const int64_t row = (table.first_row[step] - begin) * heads, rows = table.active[step] * heads;
      const auto at_step = [&](const at::Tensor& x) { return x.narrow(0, row, rows); };
      auto state = states.narrow(0, 0, table.active[step]).view({rows, key_dim, value_dim});
      at_step(starts).copy_(state);
      keeper.keep(step, state);
      if constexpr (R::solves) {
        at_step(solution).copy_(
            at::bmm(at_step(chunk.inverse), at::baddbmm(at_step(chunk.offset), at_step(chunk.reader), state)));
      }
      state.mul_(at_step(chunk.decays.total))
          .baddbmm_(at_step(chunk.surviving_k).transpose(1, 2), at_step(chunk.written(solution)));
      if constexpr (R::generalised) {
        state.baddbmm_(at_step(chunk.surviving_b).transpose(1, 2), at_step(solution));
      }
    }
    auto result = at::bmm(chunk.decayed_q, starts).baddbmm_(chunk.scores, chunk.written(solution));
    if constexpr (R::generalised) {
      result.baddbmm_(chunk.b_scores, solution);
    }
    layout.scatter(result.narrow(1, 0, table.chunk), out, scratch);
  }
  return {out.narrow(0, 0, tokens).view(in.v.sizes()), detail::in_document_order(states, table), keeper.saved};
}

} // namespace hybridattn::ops
