// The chunked form where the decay is per channel, forward (docs/method.md). Included inside a set's namespace and
// target region.

/// R: a rule with `per_channel`.
template <class R, class T>
inline void channel_forward(const ForwardTask<T>& task) {
  ChannelChunk<T> chunk;
  chunk.keys = padded<T>(task.key_dim);
  chunk.values = padded<T>(task.value_dim);
  const int keys = chunk.keys, values = chunk.values;
  const int most_rows = padded<T>(task.tokens < task.chunk ? task.tokens : task.chunk);
  Matrix<T> solution, out, state;
  Arena::of_this_thread().lay_out([&](auto& memory) {
    chunk.template take<R>(memory, most_rows);
    solution = matrix<T>(memory, most_rows, values);
    out = matrix<T>(memory, most_rows, values);
    state = matrix<T>(memory, keys, values);
  });
  const auto initial = Rows<T>::of(task.initial_state, task.state_stride);
  read_rows<T>(initial, task.initial_state != nullptr ? task.key_dim : 0, task.value_dim, T(1), keys, values, state);

  for (int64_t n = 0; n < task.chunks(); ++n) {
    const int64_t begin = n * task.chunk;
    if (task.starts != nullptr && task.starts[n] != nullptr) {
      write_rows<T>(state, task.key_dim, task.value_dim, Rows<T>::of(task.starts[n], task.state_stride));
    }
    load_channel_chunk<R>(task, begin, chunk);
    expect_chunk(task, begin + task.chunk, chunk.upcoming);
    if constexpr (R::solves) {
      channel_error<R>(chunk, state, out);
      solve<T>(chunk, out, solution);
    }
    const auto x = R::corrects ? solution : chunk.v; // what k writes
    // O = D scale Q S + P X (+ PB U)
    if (task.out.data != nullptr) {
      for_tiles<T>(chunk.rows, values, [&](auto& tile, int row, int column) HYBRIDATTN_INLINE_LAMBDA {
        chunk.upcoming.prefetch();
        tile.zero();
        tile.add(chunk.decayed_q, state, row, column, 0, keys);
        tile.add(chunk.scores, x, row, column, 0, row + tile.kRows);
        if constexpr (R::generalised) {
          tile.add(chunk.b_scores, solution, row, column, 0, row + tile.kRows);
        }
        tile.store_to(out, row, column);
      });
      write_rows<T>(out, chunk.tokens, task.value_dim, task.out.from(begin));
    }
    // S = diag(exp(gamma_C)) S + K^T X (+ B^T U), K and B decayed to the chunk's end
    for_tiles<T>(keys, values, [&](auto& tile, int row, int column) HYBRIDATTN_INLINE_LAMBDA {
      chunk.upcoming.prefetch();
      tile.fill([&](int i, int j)
                    HYBRIDATTN_INLINE_LAMBDA { return load<T>(state.at(row + i, column + j)) * chunk.total[row + i]; });
      tile.add(chunk.k_transposed, x, row, column, 0, chunk.rows);
      if constexpr (R::generalised) {
        tile.add(chunk.b_transposed, solution, row, column, 0, chunk.rows);
      }
      tile.store_to(state, row, column);
    });
  }
  if (task.final_state != nullptr) {
    write_rows<T>(state, task.key_dim, task.value_dim, Rows<T>::of(task.final_state, task.state_stride));
  }
}
