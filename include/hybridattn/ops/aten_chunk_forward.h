// The chunked form composed of ATen ops, forward: correct first, then solve (docs/method.md, "The gated delta rule").
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <hybridattn/ops/chunk_results.h>
#include <hybridattn/ops/chunk_tensors.h>

namespace hybridattn::ops {

namespace detail {

/// What every chunked pass works out first: sizes, the order of the chunks, the inputs with all tokens in one
/// dimension.
struct ChunkedCall {
  int64_t tokens, heads, key_dim, value_dim;
  ChunkTable table;
  at::ScalarType dtype;      // of states and arithmetic
  at::TensorOptions options; // with this dtype
  RuleInputs flat;

  ChunkedCall(const std::string& op, const RuleInputs& in, const std::optional<at::Tensor>& cu_seqlens,
              int64_t chunk_size)
      : tokens(in.v.size(0) * in.v.size(1)), heads(in.v.size(2)), key_dim(in.k.size(3)), value_dim(in.v.size(3)),
        table(chunk_table(document_spans(op, in.v.size(0), in.v.size(1), cu_seqlens), tokens, chunk_size)),
        dtype(state_dtype(in.v)), options(in.v.options().dtype(dtype)), flat(flattened(in)) {}
};

/// Initial states in the table's order of documents, ready to be updated in place.
inline at::Tensor ordered_states(const RuleInputs& in, const std::optional<at::Tensor>& initial,
                                 const ChunkTable& table, at::ScalarType dtype) {
  const auto n = static_cast<int64_t>(table.document.size());
  if (!initial) {
    return at::zeros({n, in.v.size(2), in.k.size(3), in.v.size(3)}, in.v.options().dtype(dtype));
  }
  return initial->to(dtype).index_select(0, table.order(in.v.device())).contiguous();
}

inline at::Tensor in_document_order(const at::Tensor& states, const ChunkTable& table) {
  return at::empty_like(states).index_copy_(0, table.order(states.device()), states);
}

/// The states that forward saves for backward.
struct StateKeeper {
  const ChunkOrder& order;
  SavedStates layout;
  at::Tensor saved; // [rows, HV, K, V]

  StateKeeper(const ChunkOrder& chunks, bool save_states, int64_t interval, std::array<int64_t, 3> shape,
              const at::TensorOptions& options)
      : order(chunks), layout(chunks, interval),
        saved(at::empty({save_states ? layout.rows : 0, shape[0], shape[1], shape[2]}, options)) {}

  bool keeps_all() const { return layout.interval == 1 && saved.size(0) > 0; }

  /// Room for the states at the starts of rows [begin, end): in `saved` if all are kept, else as `make` gives it.
  template <class Make>
  at::Tensor room(int64_t begin, int64_t end, Make&& make) const {
    const std::array<int64_t, 3> shape{(end - begin) * saved.size(1), saved.size(2), saved.size(3)};
    return keeps_all() ? saved.narrow(0, begin, end - begin).view(shape) : make(at::IntArrayRef(shape));
  }

  /// `states`: those before `step`, of the documents that have such a chunk.
  void keep(int64_t step, const at::Tensor& states) const {
    if (!keeps_all() && saved.size(0) > 0 && layout.holds(step)) {
      auto rows = saved.narrow(0, layout.first_row[step], order.active[step]);
      rows.copy_(states.view(rows.sizes()));
    }
  }
};

} // namespace detail

/// @param save_states  keep the states at chunks' starts, which the backward pass needs
/// @param state_interval  chunks from one that is kept to the next
template <class R>
ChunkForwardResult aten_chunk_forward(const RuleInputs& in, double scale,
                                      const std::optional<at::Tensor>& initial_state,
                                      const std::optional<at::Tensor>& cu_seqlens, int64_t chunk_size, bool save_states,
                                      int64_t state_interval) {
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
    const auto chunk = chunk_tensors<R>(flat, layout, scale, scratch);
    const auto starts = keeper.room(begin, end, [&](at::IntArrayRef shape) { return scratch.empty(shape); });
    const auto surviving_k = chunk.surviving(chunk.k, scratch).transpose(1, 2);
    at::Tensor writes = chunk.v, wanted, read_k; // X, beta V and beta exp(gamma) K
    if constexpr (R::corrects) {
      wanted = scratch.product(chunk.v, chunk.beta);
      read_k = scratch.product(chunk.k, chunk.decayed_beta);
      writes = scratch.empty(chunk.v.sizes());
    }
    for (int64_t step = first; step < last; ++step) {
      const int64_t row = (table.first_row[step] - begin) * heads, rows = table.active[step] * heads;
      const auto at_step = [&](const at::Tensor& x) { return x.narrow(0, row, rows); };
      auto state = states.narrow(0, 0, table.active[step]).view({rows, key_dim, value_dim});
      at_step(starts).copy_(state);
      keeper.keep(step, state);
      if constexpr (R::corrects) {
        auto write = at_step(writes);
        at::bmm_out(write, at_step(chunk.inverse), at_step(wanted).baddbmm_(at_step(read_k), state, 1, -1));
      }
      if (chunk.total.defined()) {
        state.mul_(at_step(chunk.total));
      }
      state.baddbmm_(at_step(surviving_k), at_step(writes));
    }
    auto result = scratch.empty(chunk.v.sizes());
    at::bmm_out(result, chunk.decayed(chunk.q, scratch), starts).baddbmm_(chunk.scores, writes);
    layout.scatter(result, out, scratch);
  }
  return {out.narrow(0, 0, tokens).view(in.v.sizes()), detail::in_document_order(states, table), keeper.saved};
}

} // namespace hybridattn::ops
