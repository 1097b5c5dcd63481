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
template <class T, class Products>
struct BackwardMatrices {
  template <Role R>
  using Of = Factor<T, Products, R>;

  Matrix<T> grad_out, decayed_grad_out; // dO, scale D dO [C, V]
  Matrix<T> read;                       // D K S [C, V]
  Matrix<T> x;                          // X [C, V]
  Matrix<T> grad_x;                     // dX, then B (I + L)^-T dX = dV [C, V]
  Matrix<T> grad_read;                  // -D dV = dU [C, V]
  Matrix<T> score_grad, pair_grad;      // A1 (times scale) and A2: gradients of Q K^T and K K^T [C, C]
  Matrix<T> start, grad_state;          // S, dS [K, V]
  Matrix<T> result;                     // dQ or dK [C, K] on its way out
  Of<Role::left> grad_out_rows, decayed_grad_out_rows, x_rows, grad_x_rows, grad_read_rows;
  Of<Role::right> grad_out_factor, decayed_grad_out_factor, grad_read_factor, start_factor, grad_state_factor;
  Of<Role::right> q_factor, k_factor;
  Of<Role::right_transposed> x_transposed, start_transposed, grad_transposed; // [V, C], [V, K], [V, K]
  Of<Role::left> score_grad_rows, pair_grad_rows;
  Of<Role::left_transposed> score_columns, score_grad_columns, pair_grad_columns, q_columns;
  RowSums<T> gamma_sums, key_sums, beta_sums;
  T* column_sums = nullptr;

  template <class Memory>
  void take(Memory& memory, int rows, int keys, int values) {
    for (auto* m : {&grad_out, &decayed_grad_out, &read, &x, &grad_x, &grad_read}) {
      *m = matrix<T>(memory, rows, values);
    }
    score_grad = matrix<T>(memory, rows, rows);
    pair_grad = matrix<T>(memory, rows, rows);
    start = matrix<T>(memory, keys, values);
    grad_state = matrix<T>(memory, keys, values);
    result = matrix<T>(memory, rows, keys);
    for (auto* factor : {&grad_out_rows, &decayed_grad_out_rows, &x_rows, &grad_x_rows, &grad_read_rows}) {
      factor->take(memory, rows, values);
    }
    for (auto* factor : {&grad_out_factor, &decayed_grad_out_factor, &grad_read_factor}) {
      factor->take(memory, rows, values);
    }
    for (auto* factor : {&start_factor, &grad_state_factor}) {
      factor->take(memory, keys, values);
    }
    for (auto* factor : {&q_factor, &k_factor}) {
      factor->take(memory, rows, keys);
    }
    x_transposed.take(memory, rows, values);
    for (auto* factor : {&start_transposed, &grad_transposed}) {
      factor->take(memory, keys, values);
    }
    for (auto* factor : {&score_grad_rows, &pair_grad_rows}) {
      factor->take(memory, rows, rows);
    }
    for (auto* factor : {&score_columns, &score_grad_columns, &pair_grad_columns}) {
      factor->take(memory, rows, rows);
    }
    q_columns.take(memory, rows, keys);
    for (auto* sums : {&gamma_sums, &key_sums, &beta_sums}) {
      sums->take(memory, rows);
    }
    column_sums = memory.template take<T>(rows);
  }
};

/// x = X and, for rules that correct, read = D K S and chunk.v = r of `solve`.
template <class R, class T, class Products>
inline void recompute_writes(Chunk<T, Products>& chunk, BackwardMatrices<T, Products>& m) {
  if constexpr (R::corrects) {
    for_tiles<T, Products>(chunk.rows, chunk.values, [&](auto& tile, int row, int column) HYBRIDATTN_INLINE_LAMBDA {
      chunk.upcoming.prefetch();
      tile.zero();
      tile.template add<Products>(chunk.k_rows, m.start_factor, row, column, 0, chunk.keys);
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
template <class T, class Products, class Tile>
HYBRIDATTN_INLINE void solve_transposed(const Chunk<T, Products>& chunk, Matrix<T> r, Matrix<T> solved,
                                        RowSums<T>& beta_sums, Tile& tile, int row, int column) {
  tile.each([&](int, int, Vector<T>& c) HYBRIDATTN_INLINE_LAMBDA { c = -c; });
  tile.add_transposed(chunk.key_pairs, solved, row, column, row + tile.kRows, chunk.rows);
#pragma GCC unroll 16
  for (int i = tile.kRows - 1; i >= 0; --i) {
    const Vector<T> beta = broadcast<T>(chunk.gates.beta[row + i]);
    Vector<T> along_row = {};
#pragma GCC unroll 4
    for (int j = 0; j < tile.kVectors; ++j) {
      Vector<T> y = -tile.c[i][j];
#pragma GCC unroll 16
      for (int after = tile.kRows - 1; after > i; --after) {
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
template <class R, class T, class Products>
inline void gradient_of_writes(Chunk<T, Products>& chunk, BackwardMatrices<T, Products>& m) {
  for_tiles<T, Products, true>(chunk.rows, chunk.values, [&](auto& tile, int row, int column) HYBRIDATTN_INLINE_LAMBDA {
    chunk.upcoming.prefetch();
    tile.zero();
    tile.template add<Products>(chunk.k_rows, m.grad_state_factor, row, column, 0, chunk.keys);
    if constexpr (R::gated) {
      tile.each([&](int i, int, Vector<T>& c)
                    HYBRIDATTN_INLINE_LAMBDA { c *= broadcast<T>(chunk.gates.remaining[row + i]); });
    }
    tile.template add_transposed<Products>(m.score_columns, m.grad_out_factor, row, column, row, chunk.rows);
    if constexpr (R::corrects) {
      solve_transposed<T>(chunk, chunk.v, m.grad_x, m.beta_sums, tile, row, column);
    }
    tile.store_to(m.grad_x, row, column);
  });
}

/// to = factor lower(left X^T .* Gamma) (or strictlower), the gradient of the products inside `pairs`; the gradient of
/// gamma through Gamma is sign left X^T .* pairs, added along rows and columns.
template <class R, bool Strict, class T, class Products>
inline void gradient_of_pairs(const Chunk<T, Products>& chunk, BackwardMatrices<T, Products>& m, Matrix<T> left, T sign,
                              T factor, Matrix<T> pairs, Matrix<T> to) {
  for_lower_tiles<T, Products>(chunk.rows, [&](auto& tile, int row, int column) HYBRIDATTN_INLINE_LAMBDA {
    tile.zero();
    tile.template add<Products>(left, m.x_transposed, row, column, 0, chunk.values);
#pragma GCC unroll 4
    for (int j = 0; j < tile.kVectors; ++j) {
      const int at = column + j * tile.kLanes;
      if (at >= row + tile.kRows) { // a vector wholly above the diagonal
        for (int i = 0; i < tile.kRows; ++i) {
          store<T>(to.at(row + i, at), Vector<T>{});
        }
        continue;
      }
      Vector<T> down_column = {};
#pragma GCC unroll 16
      for (int i = 0; i < tile.kRows; ++i) {
        Vector<T> c = up_to<T>(row + i - (Strict ? 1 : 0), at, tile.c[i][j] * sign);
        if constexpr (R::gated) {
          const Vector<T> through_decay = c * load<T>(pairs.at(row + i, at));
          m.gamma_sums.add(row + i, through_decay);
          down_column += through_decay;
          c *= load<T>(chunk.weight.at(row + i, at));
        }
        store<T>(to.at(row + i, at), c * factor);
      }
      if constexpr (R::gated) {
        store<T>(m.column_sums + at, load<T>(m.column_sums + at) + down_column);
      }
    }
  });
}

/// dQ = scale A1 K + scale D dO S^T
template <class R, class T, class Products>
inline void gradient_of_queries(Chunk<T, Products>& chunk, BackwardMatrices<T, Products>& m) {
  for_tiles<T, Products>(chunk.rows, chunk.keys, [&](auto& tile, int row, int column) HYBRIDATTN_INLINE_LAMBDA {
    chunk.upcoming.prefetch();
    tile.zero();
    tile.template add<Products>(m.decayed_grad_out_rows, m.start_transposed, row, column, 0, chunk.values);
    if constexpr (R::gated) {
      tile.each([&](int i, int j, Vector<T> c) HYBRIDATTN_INLINE_LAMBDA {
        m.gamma_sums.add(row + i, c * load<T>(chunk.q.at(row + i, column + j)));
      });
    }
    tile.template add<Products>(m.score_grad_rows, m.k_factor, row, column, 0, row + tile.kRows);
    tile.store_to(m.result, row, column);
  });
}

/// dK = scale A1^T Q + R X dS^T + (A2 + A2^T) K + dU S^T
template <class R, class T, class Products>
inline void gradient_of_keys(Chunk<T, Products>& chunk, BackwardMatrices<T, Products>& m) {
  for_tiles<T, Products>(chunk.rows, chunk.keys, [&](auto& tile, int row, int column) HYBRIDATTN_INLINE_LAMBDA {
    chunk.upcoming.prefetch();
    tile.zero();
    tile.template add<Products>(m.x_rows, m.grad_transposed, row, column, 0, chunk.values);
    if constexpr (R::gated) {
      tile.each([&](int i, int j, Vector<T>& c) HYBRIDATTN_INLINE_LAMBDA {
        c *= broadcast<T>(chunk.gates.remaining[row + i]);
        m.key_sums.add(row + i, c * load<T>(chunk.k.at(row + i, column + j)));
      });
    }
    tile.template add_transposed<Products>(m.score_grad_columns, m.q_factor, row, column, row, chunk.rows);
    if constexpr (R::corrects) {
      tile.template add<Products>(m.pair_grad_rows, m.k_factor, row, column, 0, row + tile.kRows);
      tile.template add_transposed<Products>(m.pair_grad_columns, m.k_factor, row, column, row, chunk.rows);
      tile.template add<Products>(m.grad_read_rows, m.start_transposed, row, column, 0, chunk.values);
    }
    tile.store_to(m.result, row, column);
  });
}

/// The gradients of g: those of gamma summed from each token to the chunk's end. `along_states` is <S, dS>
/// exp(gamma_C).
template <class R, class T, class Products>
inline void store_gate_gradients(const BackwardTask<T>& task, int64_t begin, const Chunk<T, Products>& chunk,
                                 const BackwardMatrices<T, Products>& m, T along_states) {
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

/// dU = -D dV, and what gamma gets of it: -dV . D K S along rows.
template <class R, class T, class Products>
inline void gradient_of_reads(const Chunk<T, Products>& chunk, BackwardMatrices<T, Products>& m) {
  for (int row = 0; row < chunk.rows; ++row) {
    const Vector<T> decay = broadcast<T>(R::gated ? -chunk.gates.decay[row] : T(-1));
    Vector<T> along_row = {};
    for (int column = 0; column < chunk.values; column += Lanes<T>::count) {
      const Vector<T> grad = load<T>(m.grad_x.at(row, column));
      store<T>(m.grad_read.at(row, column), decay * grad);
      along_row = fma(-grad, load<T>(m.read.at(row, column)), along_row);
    }
    m.gamma_sums.add(row, along_row);
  }
}

/// dS = exp(gamma_C) dS + Q^T (scale D dO) + K^T dU. Returns <S, dS> exp(gamma_C).
template <class R, class T, class Products>
inline T gradient_of_state(Chunk<T, Products>& chunk, BackwardMatrices<T, Products>& m) {
  Vector<T> along_states = {};
  for_tiles<T, Products>(chunk.keys, chunk.values, [&](auto& tile, int row, int column) HYBRIDATTN_INLINE_LAMBDA {
    chunk.upcoming.prefetch();
    tile.fill([&](int i, int j) HYBRIDATTN_INLINE_LAMBDA {
      Vector<T> grad = load<T>(m.grad_state.at(row + i, column + j));
      if constexpr (R::gated) {
        grad *= chunk.gates.total;
        along_states = fma(grad, load<T>(m.start.at(row + i, column + j)), along_states);
      }
      return grad;
    });
    tile.template add_transposed<Products>(m.q_columns, m.decayed_grad_out_factor, row, column, 0, chunk.rows);
    if constexpr (R::corrects) {
      tile.template add_transposed<Products>(chunk.k_columns, m.grad_read_factor, row, column, 0, chunk.rows);
    }
    tile.store_to(m.grad_state, row, column);
  });
  return sum<T>(along_states);
}

/// R: a rule with `gated` (a log decay per head) and `corrects` (the delta rule). Triangular systems are always solved
/// exactly.
template <class R, class T, class Products = Exact>
inline void chunk_backward(const BackwardTask<T>& task) {
  [[maybe_unused]] const typename Products::Scope scope;
  Chunk<T, Products> chunk;
  chunk.keys = padded<T, Products>(task.key_dim);
  chunk.values = padded<T, Products>(task.value_dim);
  const int keys = chunk.keys, values = chunk.values;
  const int most_rows = padded<T, Products>(task.tokens < task.chunk ? task.tokens : task.chunk);
  BackwardMatrices<T, Products> m;
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
    expect_chunk(task, begin - task.chunk, chunk.upcoming);
    const int rows = chunk.rows;
    read_rows<T>(task.grad_out.from(begin), chunk.tokens, task.value_dim, T(1), rows, values, m.grad_out);
    read_rows<T>(Rows<T>::of(task.starts[n], task.state_stride), task.key_dim, task.value_dim, T(1), keys, values,
                 m.start);
    for (auto* sums : {&m.gamma_sums, &m.key_sums, &m.beta_sums}) {
      sums->clear(rows);
    }
    __builtin_memset(m.column_sums, 0, sizeof(T) * rows);
    for (int row = 0; row < rows; ++row) {
      const Vector<T> factor = broadcast<T>(R::gated ? task.scale * chunk.gates.decay[row] : task.scale);
      for (int column = 0; column < values; column += Lanes<T>::count) {
        store<T>(m.decayed_grad_out.at(row, column), factor * load<T>(m.grad_out.at(row, column)));
      }
    }
    m.q_factor.set(chunk.q, rows, keys);
    m.q_columns.set(chunk.q, rows, keys);
    m.k_factor.set(chunk.k, rows, keys);
    m.score_columns.set(chunk.scores, rows, rows);
    m.start_factor.set(m.start, keys, values);
    m.start_transposed.set(m.start, keys, values);
    m.grad_state_factor.set(m.grad_state, keys, values);
    m.grad_transposed.set(m.grad_state, keys, values);
    m.grad_out_rows.set(m.grad_out, rows, values);
    m.grad_out_factor.set(m.grad_out, rows, values);
    m.decayed_grad_out_rows.set(m.decayed_grad_out, rows, values);
    m.decayed_grad_out_factor.set(m.decayed_grad_out, rows, values);

    recompute_writes<R>(chunk, m);
    m.x_rows.set(m.x, rows, values);
    m.x_transposed.set(m.x, rows, values);
    gradient_of_writes<R>(chunk, m);
    gradient_of_pairs<R, false, T>(chunk, m, m.grad_out_rows, T(1), task.scale, chunk.scores, m.score_grad);
    m.score_grad_rows.set(m.score_grad, rows, rows);
    m.score_grad_columns.set(m.score_grad, rows, rows);
    if constexpr (R::corrects) {
      m.grad_x_rows.set(m.grad_x, rows, values);
      gradient_of_pairs<R, true, T>(chunk, m, m.grad_x_rows, T(-1), T(1), chunk.key_pairs, m.pair_grad);
      m.pair_grad_rows.set(m.pair_grad, rows, rows);
      m.pair_grad_columns.set(m.pair_grad, rows, rows);
      gradient_of_reads<R>(chunk, m);
      m.grad_read_rows.set(m.grad_read, rows, values);
      m.grad_read_factor.set(m.grad_read, rows, values);
    }
    gradient_of_queries<R>(chunk, m);
    write_rows<T>(m.result, chunk.tokens, task.key_dim, task.grad_q.from(begin));
    gradient_of_keys<R>(chunk, m);
    write_rows<T>(m.result, chunk.tokens, task.key_dim, task.grad_k.from(begin));
    write_rows<T>(m.grad_x, chunk.tokens, task.value_dim, task.grad_v.from(begin));
    const T along_states = gradient_of_state<R>(chunk, m);
    store_gate_gradients<R>(task, begin, chunk, m, along_states);
  }
  if (task.grad_initial_state != nullptr) {
    write_rows<T>(m.grad_state, task.key_dim, task.value_dim, Rows<T>::of(task.grad_initial_state, task.state_stride));
  }
}
