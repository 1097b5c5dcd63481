// What forward and backward of a chunk share: its rows in scratch memory, its gates, its triangular matrices. Included
// inside a set's namespace and target region. Symbols as in docs/method.md: gamma the inclusive cumulative log decay,
// Gamma_ij = exp(gamma_i - gamma_j) for j <= i.

/// Gates of a chunk, one entry per row.
template <class T>
struct ChunkGates {
  T *high = nullptr, *low = nullptr; // gamma = high + low: differences stay exact after a gate of -1000
  T* decay = nullptr;                // exp(gamma)
  T* remaining = nullptr;            // exp(gamma_C - gamma)
  T* beta = nullptr;
  T total = 1; // exp(gamma_C)

  template <class Memory>
  void take(Memory& memory, int rows) {
    for (T** array : {&high, &low, &decay, &remaining, &beta}) {
      *array = memory.template take<T>(rows);
    }
  }
};

template <class T, class Products = Exact>
struct Chunk {
  int tokens = 0, rows = 0, keys = 0, values = 0;           // `rows`, `keys` and `values` are padded
  Matrix<T> q, k, v;                                        // Q (per channel: scale Q), K, V
  Factor<T, Products, Role::left> q_rows, k_rows;           // of products over channels
  Factor<T, Products, Role::right_transposed> k_transposed; // [K, C], of products over channels
  Factor<T, Products, Role::left_transposed> k_columns;     // of products over tokens
  Matrix<T> weight;                                         // Gamma, on and below the diagonal
  Matrix<T> key_pairs;                                      // strictlower(K K^T .* Gamma)
  Matrix<T> scores;                                         // P = scale lower(Q K^T .* Gamma)
  ChunkGates<T> gates;
  UpcomingRows<T> upcoming;

  template <class Memory>
  void take(Memory& memory, int most_rows) {
    for (auto* factor : {&q_rows, &k_rows}) {
      factor->take(memory, most_rows, keys);
    }
    k_transposed.take(memory, most_rows, keys);
    k_columns.take(memory, most_rows, keys);
    q = matrix<T>(memory, most_rows, keys);
    k = matrix<T>(memory, most_rows, keys);
    v = matrix<T>(memory, most_rows, values);
    for (auto* square : {&weight, &key_pairs, &scores}) {
      *square = matrix<T>(memory, most_rows, most_rows);
    }
    gates.take(memory, most_rows);
  }
};

/// Makes `upcoming` the rows of the chunk that starts at token `begin`; none where there is no such chunk.
template <class T>
inline void expect_chunk(const ChunkInputs<T>& in, int64_t begin, UpcomingRows<T>& upcoming) {
  upcoming.clear();
  if (begin < 0 || begin >= in.tokens) {
    return;
  }
  const int64_t count = in.tokens - begin < in.chunk ? in.tokens - begin : in.chunk;
  for (const auto* rows : {&in.q, &in.k, &in.channel_g, &in.a, &in.b}) {
    upcoming.add(rows->from(begin), count, in.key_dim);
  }
  upcoming.add(in.v.from(begin), count, in.value_dim);
}

/// The same for backward, which reads more.
template <class T>
inline void expect_chunk(const BackwardTask<T>& task, int64_t begin, UpcomingRows<T>& upcoming) {
  expect_chunk(static_cast<const ChunkInputs<T>&>(task), begin, upcoming);
  if (begin >= 0) {
    upcoming.add(task.grad_out.from(begin), task.chunk, task.value_dim);
    upcoming.add(Rows<T>::of(task.starts[begin / task.chunk], task.state_stride), task.key_dim, task.value_dim);
  }
}

/// Padding rows get no decay and no beta: they leave the state as it is.
template <class R, class T>
inline void load_gates(const ChunkInputs<T>& in, int64_t begin, int tokens, int rows, ChunkGates<T>& gates) {
  if constexpr (R::corrects) {
    for (int i = 0; i < rows; ++i) {
      gates.beta[i] = i < tokens ? in.beta[(begin + i) * in.gate_stride] : T(0);
    }
  }
  if constexpr (R::gated) {
    constexpr double kReset = -1e4; // -inf or less than this: the state is forgotten, exp(kReset) is 0
    double gamma = 0;
    for (int i = 0; i < rows; ++i) {
      if (i < tokens) {
        const double gate = static_cast<double>(in.g[(begin + i) * in.gate_stride]);
        gamma += gate < kReset ? kReset : gate;
      }
      gates.high[i] = static_cast<T>(gamma);
      gates.low[i] = static_cast<T>(gamma - static_cast<double>(gates.high[i]));
    }
    const Vector<T> high = broadcast<T>(gates.high[rows - 1]), low = broadcast<T>(gates.low[rows - 1]);
    for (int i = 0; i < rows; i += Lanes<T>::count) {
      const auto part_high = load<T>(gates.high + i), part_low = load<T>(gates.low + i);
      const auto decay = exp_of_nonpositive<T>(part_high);
      store<T>(gates.decay + i, fma(decay, part_low, decay)); // exp(high + low), low being tiny
      store<T>(gates.remaining + i, exp_of_nonpositive<T>((high - part_high) + (low - part_low)));
    }
    gates.total = gates.decay[rows - 1];
  }
}

/// x where the column (of the first lane) + lane <= row, else 0.
template <class T>
HYBRIDATTN_INLINE Vector<T> up_to(int row, int column, Vector<T> x) {
  const auto keep = lane_numbers<T>() <= static_cast<typename Lanes<T>::Integer>(row - column);
  return keep ? x : Vector<T>{};
}

/// Gamma on and below the diagonal, 0 above it where a tile reaches there.
template <class T>
inline void decay_weights(const ChunkGates<T>& gates, int rows, Matrix<T> weight) {
  constexpr int kLanes = Lanes<T>::count;
  for (int row = 0; row < rows; ++row) {
    const Vector<T> high = broadcast<T>(gates.high[row]), low = broadcast<T>(gates.low[row]);
    for (int column = 0; column < row / kTileRows * kTileRows + kTileRows; column += kLanes) {
      const Vector<T> exponent = (high - load<T>(gates.high + column)) + (low - load<T>(gates.low + column));
      // Above the diagonal the exponent is positive: its sign goes before the exponential is taken.
      store<T>(weight.at(row, column),
               up_to<T>(row, column, exp_of_nonpositive<T>(exponent < 0 ? exponent : Vector<T>{})));
    }
  }
}

/// Calls f(tile, row, column) for the tiles of a [rows, rows] matrix that reach the diagonal or lie below it. What f
/// leaves in them above the diagonal must be 0: products may read it.
template <class T, class Products = Exact, class F>
HYBRIDATTN_INLINE void for_lower_tiles(int rows, F&& f) {
  for_tiles<T, Products>(rows, rows, [&](auto& tile, int row, int column) HYBRIDATTN_INLINE_LAMBDA {
    if (column < row + tile.kRows) {
      f(tile, row, column);
    }
  });
}

/// to = factor lower(X K^T .* Gamma), or strictlower; x as a left factor.
template <class R, bool Strict, class T, class Products>
inline void decayed_pairs(const Chunk<T, Products>& chunk, Matrix<T> x, T factor, Matrix<T> to) {
  for_lower_tiles<T, Products>(chunk.rows, [&](auto& tile, int row, int column) HYBRIDATTN_INLINE_LAMBDA {
    tile.zero();
    tile.template add<Products>(x, chunk.k_transposed, row, column, 0, chunk.keys);
    tile.each([&](int i, int j, Vector<T>& c) HYBRIDATTN_INLINE_LAMBDA {
      c *= factor;
      if constexpr (R::gated) {
        c = column + j < row + tile.kRows ? c * load<T>(chunk.weight.at(row + i, column + j)) : c;
      }
      store<T>(to.at(row + i, column + j), up_to<T>(row + i - (Strict ? 1 : 0), column + j, c));
    });
  });
}

/// Rows of the chunk that starts at token `begin`, its gates and its triangular matrices.
template <class R, class T, class Products>
inline void load_chunk(const ChunkInputs<T>& in, int64_t begin, Chunk<T, Products>& chunk) {
  chunk.tokens = static_cast<int>(in.tokens - begin < in.chunk ? in.tokens - begin : in.chunk);
  chunk.rows = padded<T, Products>(chunk.tokens);
  const int rows = chunk.rows, keys = chunk.keys;
  read_rows<T>(in.q.from(begin), chunk.tokens, in.key_dim, T(1), rows, keys, chunk.q);
  read_rows<T>(in.k.from(begin), chunk.tokens, in.key_dim, T(1), rows, keys, chunk.k);
  read_rows<T>(in.v.from(begin), chunk.tokens, in.value_dim, T(1), rows, chunk.values, chunk.v);
  chunk.q_rows.set(chunk.q, rows, keys);
  chunk.k_rows.set(chunk.k, rows, keys);
  chunk.k_transposed.set(chunk.k, rows, keys);
  chunk.k_columns.set(chunk.k, rows, keys);
  load_gates<R>(in, begin, chunk.tokens, rows, chunk.gates);
  if constexpr (R::gated) {
    decay_weights<T>(chunk.gates, rows, chunk.weight);
  }
  decayed_pairs<R, false, T>(chunk, chunk.q_rows, in.scale, chunk.scores);
  if constexpr (R::corrects) {
    decayed_pairs<R, true, T>(chunk, chunk.k_rows, T(1), chunk.key_pairs);
  }
}

/// Solves x_i = beta_i r_i, r_i = error_i - sum_{j<i} key_pairs_ij x_j, which is (I + L) X = B (V - D K S). `residual`
/// holds the error and may be `x`; it gets r.
template <class T, class Products>
inline void solve(Chunk<T, Products>& chunk, Matrix<T> residual, Matrix<T> x) {
  for_tiles<T>(chunk.rows, chunk.values, [&](auto& tile, int row, int column) HYBRIDATTN_INLINE_LAMBDA {
    chunk.upcoming.prefetch();
    tile.zero();
    tile.add(chunk.key_pairs, x, row, column, 0, row);
#pragma GCC unroll 16
    for (int i = 0; i < tile.kRows; ++i) {
      const Vector<T> beta = broadcast<T>(chunk.gates.beta[row + i]);
#pragma GCC unroll 4
      for (int j = 0; j < tile.kVectors; ++j) {
        T* at = residual.at(row + i, column + j * tile.kLanes);
        Vector<T> r = load<T>(at) - tile.c[i][j];
#pragma GCC unroll 16
        for (int before = 0; before < i; ++before) {
          r = fma(broadcast<T>(-*chunk.key_pairs.at(row + i, row + before)), tile.c[before][j], r);
        }
        store<T>(at, r);
        tile.c[i][j] = beta * r;
      }
    }
    tile.store_to(x, row, column);
  });
}

/// X scaled row by row.
template <class T>
inline void scale_rows(Matrix<T> x, const T* factors, int rows, int columns, Matrix<T> to) {
  for (int row = 0; row < rows; ++row) {
    const Vector<T> factor = broadcast<T>(factors[row]);
    for (int column = 0; column < columns; column += Lanes<T>::count) {
      store<T>(to.at(row, column), factor * load<T>(x.at(row, column)));
    }
  }
}
