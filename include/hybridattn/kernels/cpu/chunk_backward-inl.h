// The chunked form, backward: chunks in reverse, what a chunk wrote recomputed from the state at its start
// (docs/method.md). Included inside a set's namespace and target region.

/// Sums of products along rows, kept as vectors until they are asked for.
template <class T>
struct RowSums {
  T* lanes = nullptr;

  template <class Memory>
  void take(Memory& memory, int rows) {
    lanes = memory.template take<T>(static_cast<size_t>(rows) * Lanes<T>::count);
  }
  void clear(int rows) { __builtin_memset(lanes, 0, sizeof(T) * rows * Lanes<T>::count); }
  HYBRIDATTN_INLINE void add(int row, Vector<T> x) {
    T* const at = lanes + row * Lanes<T>::count;
    store<T>(at, load<T>(at) + x);
  }
  T of(int row) const { return sum<T>(load<T>(lanes + row * Lanes<T>::count)); }
};

/// What backward needs besides the chunk. Names as in docs/method.md.
template <class T>
struct BackwardMatrices {
  Matrix<T> grad_out, decayed_grad_out;  // dO, D dO [C, V]
  Matrix<T> read;                        // D K S [C, V]
  Matrix<T> x, x_transposed;             // X [C, V], [V, C]
  Matrix<T> grad_x;                      // dX, then B (I + L)^-T dX = dV [C, V]
  Matrix<T> grad_read;                   // -D dV = dU [C, V]
  Matrix<T> score_grad, pair_grad;       // A1 and A2: gradients of Q K^T and K K^T [C, C]
  Matrix<T> start, start_transposed;     // S [K, V], [V, K]
  Matrix<T> grad_state, grad_transposed; // dS [K, V], [V, K]
  Matrix<T> result;                      // dQ or dK [C, K] on its way out
  RowSums<T> gamma_sums, key_sums, beta_sums;
  T* column_sums = nullptr;

  template <class Memory>
  void take(Memory& memory, int rows, int keys, int values) {
    for (auto* m : {&grad_out, &decayed_grad_out, &read, &x, &grad_x, &grad_read}) {
      *m = matrix<T>(memory, rows, values);
    }
    x_transposed = matrix<T>(memory, values, rows);
    score_grad = matrix<T>(memory, rows, rows);
    pair_grad = matrix<T>(memory, rows, rows);
    start = matrix<T>(memory, keys, values);
    grad_state = matrix<T>(memory, keys, values);
    start_transposed = matrix<T>(memory, values, keys);
    grad_transposed = matrix<T>(memory, values, keys);
    result = matrix<T>(memory, rows, keys);
    for (auto* sums : {&gamma_sums, &key_sums, &beta_sums}) {
      sums->take(memory, rows);
    }
    column_sums = memory.template take<T>(rows);
  }
};

/// x = X and, for rules that correct, read = D K S and chunk.v = r of `solve`.
template <class R, class T>
inline void recompute_writes(const Chunk<T>& chunk, BackwardMatrices<T>& m) {
  if constexpr (R::corrects) {
    for_tiles<T>(chunk.rows, chunk.values, [&](auto& tile, int row, int column) HYBRIDATTN_INLINE_LAMBDA {
      tile.zero();
      tile.add(chunk.k, m.start, row, column, 0, chunk.keys);
      tile.each([&](int i, int j, Vector<T> read) HYBRIDATTN_INLINE_LAMBDA {
        if constexpr (R::gated) {
          read *= broadcast<T>(chunk.gates.decay[row + i]);
        }
        store<T>(m.read.at(row + i, column + j), read);
        T* const v = chunk.v.at(row + i, column + j);
        store<T>(v, load<T>(v) - read);
      });
    });
    solve<T>(chunk, chunk.v, m.x);
  } else {
    m.x = chunk.v;
  }
}

/// On entry the tile holds dX; it gets B y, y = dX - strictupper(key_pairs^T) B y, of which `solved` holds the rows
/// below. Adds the gradient of beta, y . r.
template <class T, class Tile>
HYBRIDATTN_INLINE void solve_transposed(const Chunk<T>& chunk, Matrix<T> r, Matrix<T> solved, RowSums<T>& beta_sums,
                                        Tile& tile, int row, int column) {
  tile.each([&](int, int, Vector<T>& c) HYBRIDATTN_INLINE_LAMBDA { c = -c; });
  tile.add_transposed(chunk.key_pairs, solved, row, column, row + kTileRows, chunk.rows);
#pragma GCC unroll 16
  for (int i = kTileRows - 1; i >= 0; --i) {
    const Vector<T> beta = broadcast<T>(chunk.gates.beta[row + i]);
    Vector<T> along_row = {};
#pragma GCC unroll 4
    for (int j = 0; j < tile.kVectors; ++j) {
      Vector<T> y = -tile.c[i][j];
#pragma GCC unroll 16
      for (int after = kTileRows - 1; after > i; --after) {
        y = fma(broadcast<T>(-*chunk.key_pairs.at(row + after, row + i)), tile.c[after][j], y);
      }
      along_row = fma(y, load<T>(r.at(row + i, column + j * tile.kLanes)), along_row);
      tile.c[i][j] = beta * y;
    }
    beta_sums.add(row + i, along_row);
  }
}

/// dX = P^T dO + R K dS; for rules that correct then dV = B y, y = dX - strictupper(key_pairs^T) dV, and the gradient
/// of beta, y . r.
template <class R, class T>
inline void gradient_of_writes(const Chunk<T>& chunk, BackwardMatrices<T>& m) {
  for_tiles<T, true>(chunk.rows, chunk.values, [&](auto& tile, int row, int column) HYBRIDATTN_INLINE_LAMBDA {
    tile.zero();
    tile.add(chunk.k, m.grad_state, row, column, 0, chunk.keys);
    if constexpr (R::gated) {
      tile.each([&](int i, int, Vector<T>& c)
                    HYBRIDATTN_INLINE_LAMBDA { c *= broadcast<T>(chunk.gates.remaining[row + i]); });
    }
    tile.add_transposed(chunk.scores, m.grad_out, row, column, row, chunk.rows);
    if constexpr (R::corrects) {
      solve_transposed<T>(chunk, chunk.v, m.grad_x, m.beta_sums, tile, row, column);
    }
    tile.store_to(m.grad_x, row, column);
  });
}

/// to = sign lower(left X^T .* Gamma) (or strictlower), the gradient of the products inside `pairs`; the gradient of
/// gamma through Gamma is sign left X^T .* pairs, added along rows and columns.
template <class R, bool Strict, class T>
inline void gradient_of_pairs(const Chunk<T>& chunk, BackwardMatrices<T>& m, Matrix<T> left, T sign, Matrix<T> pairs,
                              Matrix<T> to) {
  for_lower_tiles<T>(chunk.rows, [&](auto& tile, int row, int column) HYBRIDATTN_INLINE_LAMBDA {
    tile.zero();
    tile.add(left, m.x_transposed, row, column, 0, chunk.values);
#pragma GCC unroll 4
    for (int j = 0; j < tile.kVectors; ++j) {
      const int at = column + j * tile.kLanes;
      if (at >= row + kTileRows) {
        continue; // a vector wholly above the diagonal
      }
      Vector<T> down_column = {};
#pragma GCC unroll 16
      for (int i = 0; i < kTileRows; ++i) {
        Vector<T> c = up_to<T>(row + i - (Strict ? 1 : 0), at, tile.c[i][j] * sign);
        if constexpr (R::gated) {
          const Vector<T> through_decay = c * load<T>(pairs.at(row + i, at));
          m.gamma_sums.add(row + i, through_decay);
          down_column += through_decay;
          c *= load<T>(chunk.weight.at(row + i, at));
        }
        store<T>(to.at(row + i, at), c);
      }
      if constexpr (R::gated) {
        store<T>(m.column_sums + at, load<T>(m.column_sums + at) + down_column);
      }
    }
  });
}

/// dQ = scale (A1 K + D dO S^T)
template <class R, class T>
inline void gradient_of_queries(const Chunk<T>& chunk, BackwardMatrices<T>& m, T scale) {
  for_tiles<T>(chunk.rows, chunk.keys, [&](auto& tile, int row, int column) HYBRIDATTN_INLINE_LAMBDA {
    tile.zero();
    tile.add(m.decayed_grad_out, m.start_transposed, row, column, 0, chunk.values);
    if constexpr (R::gated) {
      tile.each([&](int i, int j, Vector<T> c) HYBRIDATTN_INLINE_LAMBDA {
        m.gamma_sums.add(row + i, c * load<T>(chunk.q.at(row + i, column + j)));
      });
    }
    tile.add(m.score_grad, chunk.k, row, column, 0, row + kTileRows);
    tile.each([&](int, int, Vector<T>& c) HYBRIDATTN_INLINE_LAMBDA { c *= scale; });
    tile.store_to(m.result, row, column);
  });
}

/// dK = A1^T scale Q + R X dS^T + (A2 + A2^T) K + dU S^T
template <class R, class T>
inline void gradient_of_keys(const Chunk<T>& chunk, BackwardMatrices<T>& m) {
  for_tiles<T>(chunk.rows, chunk.keys, [&](auto& tile, int row, int column) HYBRIDATTN_INLINE_LAMBDA {
    tile.zero();
    tile.add(m.x, m.grad_transposed, row, column, 0, chunk.values);
    if constexpr (R::gated) {
      tile.each([&](int i, int j, Vector<T>& c) HYBRIDATTN_INLINE_LAMBDA {
        c *= broadcast<T>(chunk.gates.remaining[row + i]);
        m.key_sums.add(row + i, c * load<T>(chunk.k.at(row + i, column + j)));
      });
    }
    tile.add_transposed(m.score_grad, chunk.q, row, column, row, chunk.rows);
    if constexpr (R::corrects) {
      tile.add(m.pair_grad, chunk.k, row, column, 0, row + kTileRows);
      tile.add_transposed(m.pair_grad, chunk.k, row, column, row, chunk.rows);
      tile.add(m.grad_read, m.start_transposed, row, column, 0, chunk.values);
    }
    tile.store_to(m.result, row, column);
  });
}

/// The gradients of g: those of gamma summed from each token to the chunk's end. `along_states` is <S, dS>
/// exp(gamma_C).
template <class R, class T>
inline void store_gate_gradients(const BackwardTask<T>& task, int64_t begin, const Chunk<T>& chunk,
                                 const BackwardMatrices<T>& m, T along_states) {
  if constexpr (R::corrects) {
    for (int i = 0; i < chunk.tokens; ++i) {
      task.grad_beta[(begin + i) * task.grad_gate_stride] = m.beta_sums.of(i);
    }
  }
  if constexpr (R::gated) {
    T at_end = along_states;
    for (int i = 0; i < chunk.tokens; ++i) {
      at_end += m.key_sums.of(i);
    }
    T total = at_end;
    for (int i = chunk.tokens - 1; i >= 0; --i) {
      total += m.gamma_sums.of(i) - m.column_sums[i] - m.key_sums.of(i);
      task.grad_g[(begin + i) * task.grad_gate_stride] = total;
    }
  }
}

/// R: a rule with `gated` (a log decay per head) and `corrects` (the delta rule).
template <class R, class T>
inline void chunk_backward(const BackwardTask<T>& task) {
  constexpr int kLanes = Lanes<T>::count;
  Chunk<T> chunk;
  chunk.keys = padded<T>(task.key_dim);
  chunk.values = padded<T>(task.value_dim);
  const int keys = chunk.keys, values = chunk.values;
  const int most_rows = padded<T>(task.tokens < task.chunk ? task.tokens : task.chunk);
  BackwardMatrices<T> m;
  Arena::of_this_thread().lay_out([&](auto& memory) {
    chunk.take(memory, most_rows);
    m.take(memory, most_rows, keys, values);
  });
  const auto final_gradient = Rows<T>::of(task.grad_final_state, task.state_stride);
  read_rows<T>(final_gradient, task.grad_final_state != nullptr ? task.key_dim : 0, task.value_dim, T(1), keys, values,
               m.grad_state);

  for (int64_t n = task.chunks() - 1; n >= 0; --n) {
    const int64_t begin = n * task.chunk;
    load_chunk<R>(task, begin, chunk);
    const int rows = chunk.rows;
    read_rows<T>(task.grad_out.from(begin), chunk.tokens, task.value_dim, T(1), rows, values, m.grad_out);
    read_rows<T>(Rows<T>::of(task.starts[n], task.state_stride), task.key_dim, task.value_dim, T(1), keys, values,
                 m.start);
    for (auto* sums : {&m.gamma_sums, &m.key_sums, &m.beta_sums}) {
      sums->clear(rows);
    }
    __builtin_memset(m.column_sums, 0, sizeof(T) * rows);

    recompute_writes<R>(chunk, m);
    gradient_of_writes<R>(chunk, m);
    transpose<T>(m.x, rows, values, m.x_transposed);
    transpose<T>(m.start, keys, values, m.start_transposed);
    transpose<T>(m.grad_state, keys, values, m.grad_transposed);
    gradient_of_pairs<R, false>(chunk, m, m.grad_out, T(1), chunk.scores, m.score_grad);
    if constexpr (R::gated) {
      scale_rows<T>(m.grad_out, chunk.gates.decay, rows, values, m.decayed_grad_out);
    } else {
      m.decayed_grad_out = m.grad_out;
    }
    if constexpr (R::corrects) {
      gradient_of_pairs<R, true>(chunk, m, m.grad_x, T(-1), chunk.key_pairs, m.pair_grad);
      for (int row = 0; row < rows; ++row) {
        const Vector<T> decay = broadcast<T>(R::gated ? -chunk.gates.decay[row] : T(-1));
        Vector<T> along_row = {};
        for (int column = 0; column < values; column += kLanes) {
          const Vector<T> grad = load<T>(m.grad_x.at(row, column));
          store<T>(m.grad_read.at(row, column), decay * grad);
          along_row = fma(-grad, load<T>(m.read.at(row, column)), along_row);
        }
        m.gamma_sums.add(row, along_row);
      }
    }
    gradient_of_queries<R>(chunk, m, task.scale);
    write_rows<T>(m.result, chunk.tokens, task.key_dim, task.grad_q.from(begin));
    gradient_of_keys<R>(chunk, m);
    write_rows<T>(m.result, chunk.tokens, task.key_dim, task.grad_k.from(begin));
    write_rows<T>(m.grad_x, chunk.tokens, task.value_dim, task.grad_v.from(begin));

    // dS = exp(gamma_C) dS + (scale Q)^T D dO + K^T dU
    Vector<T> along_states = {};
    for_tiles<T>(keys, values, [&](auto& tile, int row, int column) HYBRIDATTN_INLINE_LAMBDA {
      tile.fill([&](int i, int j) HYBRIDATTN_INLINE_LAMBDA {
        Vector<T> grad = load<T>(m.grad_state.at(row + i, column + j));
        if constexpr (R::gated) {
          grad *= chunk.gates.total;
          along_states = fma(grad, load<T>(m.start.at(row + i, column + j)), along_states);
        }
        return grad;
      });
      tile.add_transposed(chunk.q, m.decayed_grad_out, row, column, 0, rows);
      if constexpr (R::corrects) {
        tile.add_transposed(chunk.k, m.grad_read, row, column, 0, rows);
      }
      tile.store_to(m.grad_state, row, column);
    });
    store_gate_gradients<R>(task, begin, chunk, m, sum<T>(along_states));
  }
  if (task.grad_initial_state != nullptr) {
    write_rows<T>(m.grad_state, task.key_dim, task.value_dim, Rows<T>::of(task.grad_initial_state, task.state_stride));
  }
}
