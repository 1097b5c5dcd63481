// The chunked form, forward: correct first, then solve (docs/method.md). Included inside a set's namespace and target
// region.

/// R: a rule with `gated` (a log decay per head) and `corrects` (the delta rule). The triangular system is always
/// solved exactly.
template <class R, class T, class Products = Exact>
inline void chunk_forward(const ForwardTask<T>& task) {
  constexpr int kTerms = Products::kTerms;
  Chunk<T> chunk;
  chunk.keys = padded<T>((task.key_dim + kTerms - 1) / kTerms) * kTerms;
  chunk.values = padded<T>(task.value_dim);
  const int keys = chunk.keys, values = chunk.values;
  const int most_rows = padded<T>(task.tokens < task.chunk ? task.tokens : task.chunk);
  Matrix<T> writes, out, state;
  Matrix<T> state_factor, write_factor, score_rows; // of products
  Arena::of_this_thread().lay_out([&](auto& memory) {
    chunk.template take<Products>(memory, most_rows);
    state_factor = Products::template take<T>(memory, keys / kTerms, values);
    write_factor = Products::template take<T>(memory, most_rows / kTerms, values);
    score_rows = Products::template take<T>(memory, most_rows, most_rows / kTerms);
    writes = matrix<T>(memory, most_rows, values);
    out = matrix<T>(memory, most_rows, values);
    state = matrix<T>(memory, keys, values);
  });
  const auto initial = Rows<T>::of(task.initial_state, task.state_stride);
  read_rows<T>(initial, task.initial_state != nullptr ? task.key_dim : 0, task.value_dim, T(1), keys, values, state);

  const ChunkGates<T>& gates = chunk.gates;
  for (int64_t n = 0; n < task.chunks(); ++n) {
    const int64_t begin = n * task.chunk;
    if (task.starts != nullptr) {
      write_rows<T>(state, task.key_dim, task.value_dim, Rows<T>::of(task.starts[n], task.state_stride));
    }
    load_chunk<R, Products>(task, begin, chunk);
    state_factor = Products::template along_columns<T>(state, keys, values, state_factor);
    auto x = chunk.v; // what each token adds to the state
    if constexpr (R::corrects) {
      // error = V - D K S
      for_tiles<T>(chunk.rows, values, [&](auto& tile, int row, int column) HYBRIDATTN_INLINE_LAMBDA {
        tile.zero();
        tile.template add<Products>(chunk.k_rows, state_factor, row, column, 0, keys / kTerms);
        tile.each([&](int i, int j, Vector<T> read) HYBRIDATTN_INLINE_LAMBDA {
          const Vector<T> v = load<T>(chunk.v.at(row + i, column + j));
          const Vector<T> decay = broadcast<T>(R::gated ? -gates.decay[row + i] : T(-1));
          store<T>(chunk.v.at(row + i, column + j), fma(decay, read, v));
        });
      });
      x = writes;
      solve<T>(chunk, chunk.v, x);
    }
    // O = D scale Q S + P X
    write_factor = Products::template along_columns<T>(x, chunk.rows, values, write_factor);
    score_rows = Products::template along_rows<T>(chunk.scores, chunk.rows, chunk.rows, score_rows);
    for_tiles<T>(chunk.rows, values, [&](auto& tile, int row, int column) HYBRIDATTN_INLINE_LAMBDA {
      tile.zero();
      tile.template add<Products>(chunk.q_rows, state_factor, row, column, 0, keys / kTerms);
      if constexpr (kTerms > 1) {
        tile.each([&](int, int, Vector<T>& c) HYBRIDATTN_INLINE_LAMBDA { c *= task.scale; });
      }
      if constexpr (R::gated) {
        tile.each([&](int i, int, Vector<T>& c) HYBRIDATTN_INLINE_LAMBDA { c *= broadcast<T>(gates.decay[row + i]); });
      }
      tile.template add<Products>(score_rows, write_factor, row, column, 0, (row + kTileRows) / kTerms);
      tile.store_to(out, row, column);
    });
    write_rows<T>(out, chunk.tokens, task.value_dim, task.out.from(begin));
    // S = exp(gamma_C) S + K^T (R X)
    if constexpr (R::gated) {
      scale_rows<T>(x, gates.remaining, chunk.rows, values, x);
      write_factor = Products::template along_columns<T>(x, chunk.rows, values, write_factor);
    }
    for_tiles<T>(keys, values, [&](auto& tile, int row, int column) HYBRIDATTN_INLINE_LAMBDA {
      tile.fill([&](int i, int j) HYBRIDATTN_INLINE_LAMBDA {
        const Vector<T> before = load<T>(state.at(row + i, column + j));
        return R::gated ? before * gates.total : before;
      });
      tile.template add_transposed<Products>(chunk.k_columns, write_factor, row, column, 0, chunk.rows / kTerms);
      tile.store_to(state, row, column);
    });
  }
  if (task.final_state != nullptr) {
    write_rows<T>(state, task.key_dim, task.value_dim, Rows<T>::of(task.final_state, task.state_stride));
  }
}
