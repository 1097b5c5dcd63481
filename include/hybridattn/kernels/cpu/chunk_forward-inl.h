// The chunked form, forward: correct first, then solve (docs/method.md). Included inside a set's namespace and target
// region.

/// R: a rule with `gated` (a log decay per head) and `corrects` (the delta rule). The triangular system is always
/// solved exactly.
template <class R, class T, class Products = Exact>
inline void chunk_forward(const ForwardTask<T>& task) {
  [[maybe_unused]] const typename Products::Scope scope;
  Chunk<T, Products> chunk;
  chunk.keys = padded<T, Products>(task.key_dim);
  chunk.values = padded<T, Products>(task.value_dim);
  const int keys = chunk.keys, values = chunk.values;
  const int most_rows = padded<T, Products>(task.tokens < task.chunk ? task.tokens : task.chunk);
  Matrix<T> writes, out, state;
  Factor<T, Products, Role::right> state_factor, write_factor;
  Factor<T, Products, Role::left> score_rows;
  Arena::of_this_thread().lay_out([&](auto& memory) {
    chunk.take(memory, most_rows);
    state_factor.take(memory, keys, values);
    write_factor.take(memory, most_rows, values);
    score_rows.take(memory, most_rows, most_rows);
    writes = matrix<T>(memory, most_rows, values);
    out = matrix<T>(memory, most_rows, values);
    state = matrix<T>(memory, keys, values);
  });
  const auto initial = Rows<T>::of(task.initial_state, task.state_stride);
  read_rows<T>(initial, task.initial_state != nullptr ? task.key_dim : 0, task.value_dim, T(1), keys, values, state);

  const ChunkGates<T>& gates = chunk.gates;
  for (int64_t n = 0; n < task.chunks(); ++n) {
    const int64_t begin = n * task.chunk;
    if (task.starts != nullptr && task.starts[n] != nullptr) {
      write_rows<T>(state, task.key_dim, task.value_dim, Rows<T>::of(task.starts[n], task.state_stride));
    }
    load_chunk<R>(task, begin, chunk);
    expect_chunk(task, begin + task.chunk, chunk.upcoming);
    state_factor.set(state, keys, values);
    auto x = chunk.v; // what each token adds to the state
    if constexpr (R::corrects) {
      // error = V - D K S
      for_tiles<T, Products>(chunk.rows, values, [&](auto& tile, int row, int column) HYBRIDATTN_INLINE_LAMBDA {
        chunk.upcoming.prefetch();
        tile.zero();
        tile.template add<Products>(chunk.k_rows, state_factor, row, column, 0, keys);
        tile.each([&](int i, int j, Vector<T> read) HYBRIDATTN_INLINE_LAMBDA {
          const Vector<T> v = load<T>(chunk.v.at(row + i, column + j));
          const Vector<T> decay = broadcast<T>(R::gated ? -gates.decay[row + i] : T(-1));
          store<T>(chunk.v.at(row + i, column + j), fma(decay, read, v));
        });
      });
      x = writes;
      solve<T>(chunk, chunk.v, x);
    }
    write_factor.set(x, chunk.rows, values);
    // O = D scale Q S + P X
    if (task.out.data != nullptr) {
      score_rows.set(chunk.scores, chunk.rows, chunk.rows);
      for_tiles<T, Products>(chunk.rows, values, [&](auto& tile, int row, int column) HYBRIDATTN_INLINE_LAMBDA {
        chunk.upcoming.prefetch();
        tile.zero();
        tile.template add<Products>(chunk.q_rows, state_factor, row, column, 0, keys);
        tile.each([&](int i, int, Vector<T>& c) HYBRIDATTN_INLINE_LAMBDA {
          c *= broadcast<T>(R::gated ? task.scale * gates.decay[row + i] : task.scale);
        });
        tile.template add<Products>(score_rows, write_factor, row, column, 0, row + tile.kRows);
        tile.store_to(out, row, column);
      });
      write_rows<T>(out, chunk.tokens, task.value_dim, task.out.from(begin));
    }
    // S = exp(gamma_C) S + K^T (R X)
    if constexpr (R::gated) {
      scale_rows<T>(x, gates.remaining, chunk.rows, values, x);
      write_factor.set(x, chunk.rows, values);
    }
    for_tiles<T, Products>(keys, values, [&](auto& tile, int row, int column) HYBRIDATTN_INLINE_LAMBDA {
      chunk.upcoming.prefetch();
      tile.fill([&](int i, int j) HYBRIDATTN_INLINE_LAMBDA {
        const Vector<T> before = load<T>(state.at(row + i, column + j));
        return R::gated ? before * gates.total : before;
      });
      tile.template add_transposed<Products>(chunk.k_columns, write_factor, row, column, 0, chunk.rows);
      tile.store_to(state, row, column);
    });
  }
  if (task.final_state != nullptr) {
    write_rows<T>(state, task.key_dim, task.value_dim, Rows<T>::of(task.final_state, task.state_stride));
  }
}
