// The chunked form where the decay is per channel, backward: chunks in reverse, what a chunk wrote recomputed from the
// state at its start (docs/method.md). Included inside a set's namespace and target region.

/// What backward needs besides the chunk. Names as in docs/method.md; U is the solution, X what k writes.
template <class T>
struct ChannelBackwardMatrices {
  Matrix<T> grad_out;                     // dO [C, V]
  Matrix<T> residual, solution;           // r of `solve`, U [C, V]
  Matrix<T> grad_solution;                // dU, then B (I + L)^-T dU [C, V]
  Matrix<T> grad_v;                       // dV [C, V] (of rules that do not correct)
  Matrix<T> x_transposed, u_transposed;   // X, U [V, C]
  Matrix<T> q_k, q_b, reader_k, reader_b; // gradients of the products of pairs [C, C]
  Matrix<T> start, start_transposed;      // S [K, V], [V, K]
  Matrix<T> grad_state, grad_transposed;  // dS [K, V], [V, K]
  Matrix<T> read_q, read_reader;          // gradients of scale Q, and of K or A as what reads [C, K]
  Matrix<T> write_k, write_b;             // gradients of K and B as what is written [C, K]
  Matrix<T> decayed_y;                    // K or B decayed to the start of a sub-chunk [C, K]
  T* at_end = nullptr;                    // gradient of gamma_C [K]
  RowSums<T> beta_sums;

  template <class R, class Memory>
  void take(Memory& memory, int rows, int keys, int values) {
    grad_out = matrix<T>(memory, rows, values);
    x_transposed = matrix<T>(memory, values, rows);
    q_k = matrix<T>(memory, rows, rows);
    for (auto* m : {&start, &grad_state}) {
      *m = matrix<T>(memory, keys, values);
    }
    for (auto* m : {&start_transposed, &grad_transposed}) {
      *m = matrix<T>(memory, values, keys);
    }
    for (auto* m : {&read_q, &write_k, &decayed_y}) {
      *m = matrix<T>(memory, rows, keys);
    }
    at_end = memory.template take<T>(keys);
    if constexpr (R::solves) {
      for (auto* m : {&residual, &solution, &grad_solution}) {
        *m = matrix<T>(memory, rows, values);
      }
      reader_k = matrix<T>(memory, rows, rows);
      read_reader = matrix<T>(memory, rows, keys);
      beta_sums.take(memory, rows);
    }
    if constexpr (!R::corrects) {
      grad_v = matrix<T>(memory, rows, values);
    }
    if constexpr (R::generalised) {
      u_transposed = matrix<T>(memory, values, rows);
      for (auto* m : {&q_b, &reader_b}) {
        *m = matrix<T>(memory, rows, rows);
      }
      write_b = matrix<T>(memory, rows, keys);
    }
  }
};

/// to = sign lower(left right^T), or strictlower
template <bool Strict, class T>
inline void lower_products(int rows, int values, Matrix<T> left, Matrix<T> right_transposed, T sign, Matrix<T> to) {
  for_lower_tiles<T>(rows, [&](auto& tile, int row, int column) HYBRIDATTN_INLINE_LAMBDA {
    tile.zero();
    tile.add(left, right_transposed, row, column, 0, values);
    tile.each([&](int i, int j, Vector<T> c) HYBRIDATTN_INLINE_LAMBDA {
      store<T>(to.at(row + i, column + j), up_to<T>(row + i - (Strict ? 1 : 0), column + j, c * sign));
    });
  });
}

/// to += left right, [C, K]
template <class T>
inline void add_product(int rows, int keys, int depth, Matrix<T> left, Matrix<T> right, Matrix<T> to) {
  for_tiles<T>(rows, keys, [&](auto& tile, int row, int column) HYBRIDATTN_INLINE_LAMBDA {
    tile.fill([&](int i, int j) HYBRIDATTN_INLINE_LAMBDA { return load<T>(to.at(row + i, column + j)); });
    tile.add(left, right, row, column, 0, depth);
    tile.store_to(to, row, column);
  });
}

/// A product of pairs: its gradient, its reader's rows (decayed from their sub-chunks' starts, and as they are), and
/// where the reader's gradient goes.
template <Reads When, class T>
struct PairGradient {
  Matrix<T> grad, local, x, grad_x;
};

/// Adds what the pairs inside the sub-chunk that starts at `first`, below the diagonal, send to x's and y's rows.
template <Reads When, class T>
inline void gradient_inside(const ChannelChunk<T>& chunk, int first, const PairGradient<When, T>& pairs, Matrix<T> y,
                            Matrix<T> grad_y) {
  constexpr int kRows = kSubChunk<T>;
  for (int d = 0; d < chunk.keys; d += Lanes<T>::count) {
    for (int j = 0; j + 1 < kRows; ++j) {
      const Vector<T> written = load<T>(y.at(first + j, d));
      Vector<T> decay = broadcast<T>(1), along_column = {};
      for (int i = j + 1; i < kRows; ++i) {
        const Vector<T> gate = load<T>(chunk.gate.at(first + i, d));
        const Vector<T> after = decay * gate;
        const Vector<T> weight =
            broadcast<T>(*pairs.grad.at(first + i, first + j)) * (When == Reads::after_decay ? after : decay);
        T* const grad_x = pairs.grad_x.at(first + i, d);
        store<T>(grad_x, fma(weight, written, load<T>(grad_x)));
        along_column = fma(weight, load<T>(pairs.x.at(first + i, d)), along_column);
        decay = after;
      }
      T* const grad = grad_y.at(first + j, d);
      store<T>(grad, load<T>(grad) + along_column);
    }
  }
}

/// Rows of one sub-chunk, each times the gates after it.
template <class T>
inline void decay_to_sub_end(const ChannelChunk<T>& chunk, int first, Matrix<T> x) {
  for (int d = 0; d < chunk.keys; d += Lanes<T>::count) {
    Vector<T> product = broadcast<T>(1);
    for (int row = first + kSubChunk<T> - 1; row >= first; --row) {
      store<T>(x.at(row, d), load<T>(x.at(row, d)) * product);
      product *= load<T>(chunk.gate.at(row, d));
    }
  }
}

/// Rows [0, rows) of x, each times `factors` [K].
template <class T>
inline void scale_channels(Matrix<T> x, int rows, int keys, const T* factors) {
  for (int row = 0; row < rows; ++row) {
    for (int d = 0; d < keys; d += Lanes<T>::count) {
      store<T>(x.at(row, d), load<T>(x.at(row, d)) * load<T>(factors + d));
    }
  }
}

/// Readers' gradients through products with rows of y before their sub-chunk: grad_x of sub-chunk s += grad decayed_y.
/// On entry grad_x holds the gradient with respect to x decayed from its sub-chunk's start. On return decayed_y holds y
/// decayed to the chunk's end.
template <class T, class... Pairs>
inline void gradient_of_readers(const ChannelChunk<T>& chunk, Matrix<T> y, Matrix<T> decayed_y, const Pairs&... pairs) {
  constexpr int kRows = kSubChunk<T>;
  for (int first = 0; first < chunk.rows; first += kRows) {
    (add_product<T>(kRows, chunk.keys, first, {pairs.grad.at(first, 0), pairs.grad.stride}, decayed_y,
                    {pairs.grad_x.at(first, 0), pairs.grad_x.stride}),
     ...);
    scale_channels<T>(decayed_y, first, chunk.keys, chunk.sub_total.at(first / kRows, 0));
    for (int row = first; row < first + kRows; ++row) {
      __builtin_memcpy(decayed_y.at(row, 0), y.at(row, 0), sizeof(T) * chunk.keys);
    }
    decay_to_sub_end<T>(chunk, first, decayed_y);
  }
}

/// The gradient of y: on entry grad_y is that of y decayed to the chunk's end.
template <class T, Reads... When>
inline void gradient_of_writer(ChannelChunk<T>& chunk, Matrix<T> y, Matrix<T> grad_y,
                               const PairGradient<When, T>&... pairs) {
  constexpr int kRows = kSubChunk<T>;
  for (int first = chunk.rows - kRows; first >= 0; first -= kRows) {
    scale_channels<T>(grad_y, first, chunk.keys, chunk.sub_total.at(first / kRows, 0));
    decay_to_sub_end<T>(chunk, first, grad_y);
    for_tiles<T>(first, chunk.keys, [&](auto& tile, int row, int column) HYBRIDATTN_INLINE_LAMBDA {
      chunk.upcoming.prefetch();
      tile.fill([&](int i, int j) HYBRIDATTN_INLINE_LAMBDA { return load<T>(grad_y.at(row + i, column + j)); });
      (tile.add_transposed(pairs.grad, pairs.local, row, column, first, first + kRows), ...);
      tile.store_to(grad_y, row, column);
    });
    (gradient_inside(chunk, first, pairs, y, grad_y), ...);
  }
}

/// grad = left S^T decayed to each sub-chunk's start: a reader's gradient through the state, the reader being decayed
/// from there.
template <class T>
inline void gradient_through_start(ChannelChunk<T>& chunk, Matrix<T> left, T sign, Matrix<T> start_transposed,
                                   Matrix<T> grad) {
  for_tiles<T>(chunk.rows, chunk.keys, [&](auto& tile, int row, int column) HYBRIDATTN_INLINE_LAMBDA {
    chunk.upcoming.prefetch();
    tile.zero();
    tile.add(left, start_transposed, row, column, 0, chunk.values);
    tile.each([&](int, int, Vector<T>& c) HYBRIDATTN_INLINE_LAMBDA { c *= sign; });
    tile.store_to(grad, row, column);
  });
  for (int first = 0; first < chunk.rows; first += kSubChunk<T>) {
    scale_channels<T>({grad.at(first + kSubChunk<T>, 0), grad.stride}, chunk.rows - first - kSubChunk<T>, chunk.keys,
                      chunk.sub_total.at(first / kSubChunk<T>, 0));
  }
}

/// grad = X dS^T, and at_end += sum of grad times y decayed to the chunk's end.
template <class T>
inline void gradient_through_end(ChannelChunk<T>& chunk, Matrix<T> x, Matrix<T> grad_transposed, Matrix<T> decayed_y,
                                 Matrix<T> grad, T* at_end) {
  for_tiles<T>(chunk.rows, chunk.keys, [&](auto& tile, int row, int column) HYBRIDATTN_INLINE_LAMBDA {
    chunk.upcoming.prefetch();
    tile.zero();
    tile.add(x, grad_transposed, row, column, 0, chunk.values);
    tile.store_to(grad, row, column);
  });
  for (int row = 0; row < chunk.rows; ++row) {
    for (int d = 0; d < chunk.keys; d += Lanes<T>::count) {
      store<T>(at_end + d, fma(load<T>(grad.at(row, d)), load<T>(decayed_y.at(row, d)), load<T>(at_end + d)));
    }
  }
}

/// dU = PU^T dO + W dS, then grad_solution = B y, y = dU - strictupper(key_pairs^T) B y, and the gradient of beta, y .
/// r. PU are the scores of what U is written with, W (transposed, [K, C]) those rows decayed to the chunk's end.
template <class T>
inline void gradient_of_solution(ChannelChunk<T>& chunk, ChannelBackwardMatrices<T>& m, Matrix<T> scores,
                                 Matrix<T> written_transposed) {
  for_tiles<T, Exact, true>(chunk.rows, chunk.values, [&](auto& tile, int row, int column) HYBRIDATTN_INLINE_LAMBDA {
    chunk.upcoming.prefetch();
    tile.zero();
    tile.add_transposed(written_transposed, m.grad_state, row, column, 0, chunk.keys);
    tile.add_transposed(scores, m.grad_out, row, column, row, chunk.rows);
    solve_transposed<T>(chunk, m.residual, m.grad_solution, m.beta_sums, tile, row, column);
    tile.store_to(m.grad_solution, row, column);
  });
}

/// dq, dk (and da, db) and dg of the chunk, from the gradients of readers and writers.
template <class R, class T>
inline void store_channel_gradients(const BackwardTask<T>& task, int64_t begin, const ChannelChunk<T>& chunk,
                                    const ChannelBackwardMatrices<T>& m) {
  constexpr int kLanes = Lanes<T>::count;
  for (int d = 0; d < chunk.keys; d += kLanes) {
    Vector<T> later = load<T>(m.at_end + d); // gradient of all gates after this row
    for (int row = chunk.rows - 1; row >= 0; --row) {
      const auto of = [&](Matrix<T> x) HYBRIDATTN_INLINE_LAMBDA { return load<T>(x.at(row, d)); };
      const Vector<T> q = of(chunk.q), k = of(chunk.k), read_q = of(m.read_q), write_k = of(m.write_k);
      const Vector<T> diagonal = broadcast<T>(*m.q_k.at(row, row));
      Vector<T> grad_q = fma(diagonal, k, read_q), grad_k = fma(diagonal, q, write_k);
      Vector<T> gate = q * read_q - k * write_k;
      if constexpr (R::corrects) {
        const Vector<T> read_k = of(m.read_reader);
        grad_k += read_k;
        gate = fma(k, read_k, gate);
      }
      if constexpr (R::generalised) {
        const Vector<T> b = of(chunk.b), write_b = of(m.write_b), b_diagonal = broadcast<T>(*m.q_b.at(row, row));
        grad_q = fma(b_diagonal, b, grad_q);
        store<T>(m.write_b.at(row, d), fma(b_diagonal, q, write_b));
        gate -= b * write_b;
      }
      later += gate;
      store<T>(chunk.gate.at(row, d), later);
      if constexpr (R::generalised) { // a reads before its own gate
        later = fma(of(chunk.a), of(m.read_reader), later);
      }
      store<T>(m.read_q.at(row, d), grad_q * task.scale);
      store<T>(m.write_k.at(row, d), grad_k);
    }
  }
  const auto write = [&](Matrix<T> from, int columns, Rows<T> to) {
    write_rows<T>(from, chunk.tokens, columns, to.from(begin));
  };
  write(m.read_q, task.key_dim, task.grad_q);
  write(m.write_k, task.key_dim, task.grad_k);
  write(chunk.gate, task.key_dim, task.grad_channel_g);
  write(R::corrects ? m.grad_solution : m.grad_v, task.value_dim, task.grad_v);
  if constexpr (R::generalised) {
    write(m.read_reader, task.key_dim, task.grad_a);
    write(m.write_b, task.key_dim, task.grad_b);
  }
  if constexpr (R::corrects) {
    for (int i = 0; i < chunk.tokens; ++i) {
      task.grad_beta[(begin + i) * task.grad_gate_stride] = m.beta_sums.of(i);
    }
  }
}

/// R: a rule with `per_channel`.
template <class R, class T>
inline void channel_backward(const BackwardTask<T>& task) {
  constexpr auto kReader = R::generalised ? Reads::before_decay : Reads::after_decay;
  ChannelChunk<T> chunk;
  chunk.keys = padded<T>(task.key_dim);
  chunk.values = padded<T>(task.value_dim);
  const int keys = chunk.keys, values = chunk.values;
  const int most_rows = padded<T>(task.tokens < task.chunk ? task.tokens : task.chunk);
  ChannelBackwardMatrices<T> m;
  Arena::of_this_thread().lay_out([&](auto& memory) {
    chunk.template take<R>(memory, most_rows);
    m.template take<R>(memory, most_rows, keys, values);
  });
  const auto final_gradient = Rows<T>::of(task.grad_final_state, task.state_stride);
  read_rows<T>(final_gradient, task.grad_final_state != nullptr ? task.key_dim : 0, task.value_dim, T(1), keys, values,
               m.grad_state);

  for (int64_t n = task.chunks() - 1; n >= 0; --n) {
    const int64_t begin = n * task.chunk;
    load_channel_chunk<R>(task, begin, chunk);
    expect_chunk(task, begin - task.chunk, chunk.upcoming);
    const int rows = chunk.rows;
    read_rows<T>(task.grad_out.from(begin), chunk.tokens, task.value_dim, T(1), rows, values, m.grad_out);
    read_rows<T>(Rows<T>::of(task.starts[n], task.state_stride), task.key_dim, task.value_dim, T(1), keys, values,
                 m.start);
    if constexpr (R::solves) {
      m.beta_sums.clear(rows);
      channel_error<R>(chunk, m.start, m.residual);
      solve<T>(chunk, m.residual, m.solution);
      gradient_of_solution<T>(chunk, m, R::corrects ? chunk.scores : chunk.b_scores,
                              R::corrects ? chunk.k_transposed : chunk.b_transposed);
    }
    const auto x = R::corrects ? m.solution : chunk.v; // what k writes
    if constexpr (!R::corrects) {
      for_tiles<T>(rows, values, [&](auto& tile, int row, int column) HYBRIDATTN_INLINE_LAMBDA {
        chunk.upcoming.prefetch();
        tile.zero();
        tile.add_transposed(chunk.k_transposed, m.grad_state, row, column, 0, keys);
        tile.add_transposed(chunk.scores, m.grad_out, row, column, row, rows);
        if constexpr (R::generalised) {
          tile.add_transposed(chunk.reads_k, m.grad_solution, row, column, row, rows);
        }
        tile.store_to(m.grad_v, row, column);
      });
    }
    transpose<T>(x, rows, values, m.x_transposed);
    transpose<T>(m.start, keys, values, m.start_transposed);
    transpose<T>(m.grad_state, keys, values, m.grad_transposed);

    // Gradients of the products of pairs.
    lower_products<false, T>(rows, values, m.grad_out, m.x_transposed, T(1), m.q_k);
    if constexpr (R::corrects) {
      lower_products<true, T>(rows, values, m.grad_solution, m.x_transposed, T(-1), m.reader_k);
    }
    if constexpr (R::generalised) {
      transpose<T>(m.solution, rows, values, m.u_transposed);
      lower_products<true, T>(rows, values, m.grad_solution, m.x_transposed, T(1), m.reader_k);
      lower_products<true, T>(rows, values, m.grad_solution, m.u_transposed, T(1), m.reader_b);
      lower_products<false, T>(rows, values, m.grad_out, m.u_transposed, T(1), m.q_b);
    }

    // Readers, and on the way what the state sends to writers through its end.
    for (int d = 0; d < keys; ++d) {
      Vector<T> along_row = {};
      for (int column = 0; column < values; column += Lanes<T>::count) {
        along_row = fma(load<T>(m.start.at(d, column)), load<T>(m.grad_state.at(d, column)), along_row);
      }
      m.at_end[d] = chunk.total[d] * sum<T>(along_row);
    }
    const PairGradient<Reads::after_decay, T> q_k{m.q_k, chunk.local_q, chunk.q, m.read_q};
    const PairGradient<Reads::after_decay, T> q_b{m.q_b, chunk.local_q, chunk.q, m.read_q};
    const auto reader_rows = R::corrects ? chunk.k : chunk.a;
    const PairGradient<kReader, T> reader_k{m.reader_k, chunk.local_reader, reader_rows, m.read_reader};
    const PairGradient<kReader, T> reader_b{m.reader_b, chunk.local_reader, reader_rows, m.read_reader};
    gradient_through_start<T>(chunk, m.grad_out, T(1), m.start_transposed, m.read_q);
    if constexpr (R::solves) {
      gradient_through_start<T>(chunk, m.grad_solution, R::corrects ? T(-1) : T(1), m.start_transposed, m.read_reader);
      gradient_of_readers<T>(chunk, chunk.k, m.decayed_y, q_k, reader_k);
    } else {
      gradient_of_readers<T>(chunk, chunk.k, m.decayed_y, q_k);
    }
    gradient_through_end<T>(chunk, x, m.grad_transposed, m.decayed_y, m.write_k, m.at_end);
    if constexpr (R::generalised) {
      gradient_of_readers<T>(chunk, chunk.b, m.decayed_y, q_b, reader_b);
      gradient_through_end<T>(chunk, m.solution, m.grad_transposed, m.decayed_y, m.write_b, m.at_end);
    }
    decay_reader<Reads::after_decay>(chunk, m.read_q, m.read_q, m.decayed_y);
    if constexpr (R::solves) {
      decay_reader<kReader>(chunk, m.read_reader, m.read_reader, m.decayed_y);
    }

    // Writers.
    if constexpr (R::solves) {
      gradient_of_writer<T>(chunk, chunk.k, m.write_k, q_k, reader_k);
    } else {
      gradient_of_writer<T>(chunk, chunk.k, m.write_k, q_k);
    }
    if constexpr (R::generalised) {
      gradient_of_writer<T>(chunk, chunk.b, m.write_b, q_b, reader_b);
    }

    // dS = diag(exp(gamma_C)) dS + (scale D Q)^T dO, and what corrections read
    for_tiles<T>(keys, values, [&](auto& tile, int row, int column) HYBRIDATTN_INLINE_LAMBDA {
      chunk.upcoming.prefetch();
      tile.zero();
      if constexpr (R::solves) {
        tile.add_transposed(chunk.decayed_reader, m.grad_solution, row, column, 0, rows);
      }
      tile.each([&](int i, int j, Vector<T>& c) HYBRIDATTN_INLINE_LAMBDA {
        const Vector<T> before = load<T>(m.grad_state.at(row + i, column + j)) * chunk.total[row + i];
        c = R::corrects ? before - c : before + c;
      });
      tile.add_transposed(chunk.decayed_q, m.grad_out, row, column, 0, rows);
      tile.store_to(m.grad_state, row, column);
    });
    store_channel_gradients<R>(task, begin, chunk, m);
  }
  if (task.grad_initial_state != nullptr) {
    write_rows<T>(m.grad_state, task.key_dim, task.value_dim, Rows<T>::of(task.grad_initial_state, task.state_stride));
  }
}
