// What forward and backward of a chunk share where the decay is per channel: its decayed rows and its triangular
// matrices. Included inside a set's namespace and target region.
//
// A product sum_d x_id y_jd exp(gamma_id - gamma_jd) does not factor into rows and columns without overflow. A chunk is
// cut into sub-chunks: relative to the start of the sub-chunk that holds row i, both factors are <= 1 (a matrix
// product); inside a sub-chunk the gates are multiplied up row by row. Only gates themselves are exponentiated, so
// -inf needs no care.

/// Rows of a sub-chunk: whole tiles and whole vectors.
template <class T>
inline constexpr int kSubChunk = Exact::kPadding<T>;

/// Whose decay a row reads the state under: its own gate's too, or only those before it.
enum class Reads { after_decay, before_decay };

template <class T>
struct ChannelChunk : Chunk<T> {
  Matrix<T> gate;                         // exp(g) [C, K]
  Matrix<T> sub_total;                    // product of a sub-chunk's gates [C / kSubChunk, K]
  T* total = nullptr;                     // exp(gamma_C) [K]
  Matrix<T> local_q, decayed_q;           // scale Q decayed from the sub-chunk's start, from the chunk's [C, K]
  Matrix<T> local_reader, decayed_reader; // the same of what corrections read with: K, or A before its own gate
  Matrix<T> a, b, b_transposed;           // generalised rules: A, B [C, K], [K, C]
  Matrix<T> b_scores, reads_k;            // lower(scale Q, B), strictlower(A, K) [C, C]

  template <class R, class Memory>
  void take(Memory& memory, int most_rows) {
    Chunk<T>::take(memory, most_rows);
    const int keys = this->keys;
    for (auto* m : {&gate, &local_q, &decayed_q}) {
      *m = matrix<T>(memory, most_rows, keys);
    }
    sub_total = matrix<T>(memory, most_rows / kSubChunk<T>, keys);
    total = memory.template take<T>(keys);
    if constexpr (R::solves) {
      local_reader = matrix<T>(memory, most_rows, keys);
      decayed_reader = matrix<T>(memory, most_rows, keys);
    }
    if constexpr (R::generalised) {
      a = matrix<T>(memory, most_rows, keys);
      b = matrix<T>(memory, most_rows, keys);
      b_transposed = matrix<T>(memory, keys, most_rows);
      b_scores = matrix<T>(memory, most_rows, most_rows);
      reads_k = matrix<T>(memory, most_rows, most_rows);
    }
  }
};

/// gate = exp(g), sub_total and total of the chunk's rows. Padding rows do not decay.
template <class T>
inline void load_channel_gates(const ChunkInputs<T>& in, int64_t begin, ChannelChunk<T>& chunk) {
  constexpr int kLanes = Lanes<T>::count;
  read_rows<T>(in.channel_g.from(begin), chunk.tokens, in.key_dim, T(1), chunk.rows, chunk.keys, chunk.gate);
  for (int d = 0; d < chunk.keys; d += kLanes) {
    Vector<T> total = broadcast<T>(1);
    for (int sub = 0; sub < chunk.rows / kSubChunk<T>; ++sub) {
      Vector<T> product = broadcast<T>(1);
      for (int row = sub * kSubChunk<T>; row < (sub + 1) * kSubChunk<T>; ++row) {
        const Vector<T> gate = exp_of_nonpositive<T>(load<T>(chunk.gate.at(row, d)));
        store<T>(chunk.gate.at(row, d), gate);
        product *= gate;
      }
      store<T>(chunk.sub_total.at(sub, d), product);
      total *= product;
    }
    store<T>(chunk.total + d, total);
  }
}

/// local = x decayed from the start of its sub-chunk (it may be x), decayed = x decayed from the start of the chunk.
template <Reads When, class T>
inline void decay_reader(const ChannelChunk<T>& chunk, Matrix<T> x, Matrix<T> local, Matrix<T> decayed) {
  constexpr int kLanes = Lanes<T>::count;
  for (int d = 0; d < chunk.keys; d += kLanes) {
    Vector<T> before = broadcast<T>(1); // the product of all gates before the sub-chunk
    for (int sub = 0; sub < chunk.rows / kSubChunk<T>; ++sub) {
      Vector<T> product = broadcast<T>(1);
      for (int row = sub * kSubChunk<T>; row < (sub + 1) * kSubChunk<T>; ++row) {
        const Vector<T> after = product * load<T>(chunk.gate.at(row, d));
        const Vector<T> read = load<T>(x.at(row, d)) * (When == Reads::after_decay ? after : product);
        store<T>(local.at(row, d), read);
        store<T>(decayed.at(row, d), read * before);
        product = after;
      }
      before *= product;
    }
  }
}

/// The products of x's rows with those of y inside the sub-chunk that starts at `first`, below the diagonal (or on it
/// too) into `to`. y_transposed [K, C] holds y itself there; with Advance it is left decayed to the sub-chunk's end.
template <Reads When, bool Strict, bool Advance, class T>
inline void pairs_inside(const ChannelChunk<T>& chunk, int first, Matrix<T> x, Matrix<T> y_transposed, Matrix<T> to) {
  constexpr int kLanes = Lanes<T>::count, kRows = kSubChunk<T>;
  for (int column = 0; column < kRows; column += kLanes) {
    Vector<T> products[kRows] = {};
    for (int d = 0; d < chunk.keys; ++d) {
      T* const at = y_transposed.at(d, first + column);
      const Vector<T> y = load<T>(at);
      const T *gate = chunk.gate.at(first, d), *row = x.at(first, d);
      Vector<T> decayed = {}; // y_j decayed up to row i, for the j that came before
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const Vector<T> query = broadcast<T>(row[i * x.stride]);
        if constexpr (When == Reads::before_decay) {
          products[i] = fma(query, decayed, products[i]);
        }
        decayed *= broadcast<T>(gate[i * chunk.gate.stride]);
        decayed = lane_numbers<T>() == static_cast<typename Lanes<T>::Integer>(i - column) ? y : decayed;
        if constexpr (When == Reads::after_decay) {
          products[i] = fma(query, decayed, products[i]);
        }
      }
      if constexpr (Advance) {
        store<T>(at, decayed);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      store<T>(to.at(first + i, first + column), up_to<T>(i - (Strict ? 1 : 0), column, products[i]));
    }
  }
}

/// The products of the sub-chunk's rows, decayed from its start, with those before it, decayed to its start.
template <class T>
inline void pairs_before(int first, int keys, Matrix<T> local, Matrix<T> y_transposed, Matrix<T> to) {
  const Matrix<T> rows{local.at(first, 0), local.stride}, target{to.at(first, 0), to.stride};
  for_tiles<T>(kSubChunk<T>, first, [&](auto& tile, int row, int column) HYBRIDATTN_INLINE_LAMBDA {
    tile.zero();
    tile.add(rows, y_transposed, row, column, 0, keys);
    tile.store_to(target, row, column);
  });
}

/// Decays the rows of y before the sub-chunk to its end.
template <class T>
inline void advance(const ChannelChunk<T>& chunk, int first, Matrix<T> y_transposed) {
  const T* total = chunk.sub_total.at(first / kSubChunk<T>, 0);
  for (int d = 0; d < chunk.keys; ++d) {
    const Vector<T> factor = broadcast<T>(total[d]);
    for (int column = 0; column < first; column += Lanes<T>::count) {
      T* const at = y_transposed.at(d, column);
      store<T>(at, factor * load<T>(at));
    }
  }
}

/// Rows of the chunk that starts at token `begin`, decayed, and its triangular matrices: scores and, for rules that
/// correct, key_pairs = strictlower(K, K); for generalised ones key_pairs = -strictlower(A, B), so that `solve` with
/// beta = 1 solves U = error + strictlower(A, B) U. On return k_transposed and b_transposed are decayed to the chunk's
/// end.
template <class R, class T>
inline void load_channel_chunk(const ChunkInputs<T>& in, int64_t begin, ChannelChunk<T>& chunk) {
  const auto read = [&](Rows<T> from, int columns, T factor, int padded_columns, Matrix<T> to) {
    read_rows<T>(from.from(begin), chunk.tokens, columns, factor, chunk.rows, padded_columns, to);
  };
  chunk.tokens = static_cast<int>(in.tokens - begin < in.chunk ? in.tokens - begin : in.chunk);
  chunk.rows = padded<T>(chunk.tokens);
  read(in.q, in.key_dim, in.scale, chunk.keys, chunk.q);
  read(in.k, in.key_dim, T(1), chunk.keys, chunk.k);
  read(in.v, in.value_dim, T(1), chunk.values, chunk.v);
  load_channel_gates<T>(in, begin, chunk);
  transpose<T>(chunk.k, chunk.rows, chunk.keys, chunk.k_transposed);
  decay_reader<Reads::after_decay>(chunk, chunk.q, chunk.local_q, chunk.decayed_q);
  if constexpr (R::corrects) {
    decay_reader<Reads::after_decay>(chunk, chunk.k, chunk.local_reader, chunk.decayed_reader);
  }
  if constexpr (R::generalised) {
    read(in.a, in.key_dim, T(1), chunk.keys, chunk.a);
    read(in.b, in.key_dim, T(1), chunk.keys, chunk.b);
    transpose<T>(chunk.b, chunk.rows, chunk.keys, chunk.b_transposed);
    decay_reader<Reads::before_decay>(chunk, chunk.a, chunk.local_reader, chunk.decayed_reader);
  }
  if constexpr (R::solves) {
    for (int i = 0; i < chunk.rows; ++i) {
      chunk.gates.beta[i] = R::generalised ? T(1) : i < chunk.tokens ? in.beta[(begin + i) * in.gate_stride] : T(0);
    }
  }
  for (int first = 0; first < chunk.rows; first += kSubChunk<T>) {
    const auto before = [&](Matrix<T> local, Matrix<T> y_transposed, Matrix<T> to) {
      pairs_before<T>(first, chunk.keys, local, y_transposed, to);
    };
    before(chunk.local_q, chunk.k_transposed, chunk.scores);
    pairs_inside<Reads::after_decay, false, !R::solves>(chunk, first, chunk.q, chunk.k_transposed, chunk.scores);
    if constexpr (R::corrects) {
      before(chunk.local_reader, chunk.k_transposed, chunk.key_pairs);
      pairs_inside<Reads::after_decay, true, true>(chunk, first, chunk.k, chunk.k_transposed, chunk.key_pairs);
    }
    if constexpr (R::generalised) {
      before(chunk.local_reader, chunk.k_transposed, chunk.reads_k);
      pairs_inside<Reads::before_decay, true, true>(chunk, first, chunk.a, chunk.k_transposed, chunk.reads_k);
      before(chunk.local_q, chunk.b_transposed, chunk.b_scores);
      pairs_inside<Reads::after_decay, false, false>(chunk, first, chunk.q, chunk.b_transposed, chunk.b_scores);
      before(chunk.local_reader, chunk.b_transposed, chunk.key_pairs);
      pairs_inside<Reads::before_decay, true, true>(chunk, first, chunk.a, chunk.b_transposed, chunk.key_pairs);
      advance<T>(chunk, first, chunk.b_transposed);
    }
    advance<T>(chunk, first, chunk.k_transposed);
  }
  if constexpr (R::generalised) {
    for_lower_tiles<T>(chunk.rows, [&](auto& tile, int row, int column) HYBRIDATTN_INLINE_LAMBDA {
      tile.fill([&](int i, int j)
                    HYBRIDATTN_INLINE_LAMBDA { return -load<T>(chunk.key_pairs.at(row + i, column + j)); });
      tile.store_to(chunk.key_pairs, row, column);
    });
  }
}

/// What is to be solved for, before what earlier tokens wrote is taken into account, in chunk.v or in `to`: V - D K S
/// (corrects), or A S + strictlower(A, K) V with A decayed by the gates before (generalised).
template <class R, class T>
inline void channel_error(ChannelChunk<T>& chunk, Matrix<T> state, Matrix<T> to) {
  for_tiles<T>(chunk.rows, chunk.values, [&](auto& tile, int row, int column) HYBRIDATTN_INLINE_LAMBDA {
    chunk.upcoming.prefetch();
    tile.zero();
    tile.add(chunk.decayed_reader, state, row, column, 0, chunk.keys);
    if constexpr (R::corrects) {
      tile.each([&](int i, int j, Vector<T>& c)
                    HYBRIDATTN_INLINE_LAMBDA { c = load<T>(chunk.v.at(row + i, column + j)) - c; });
    } else {
      tile.add(chunk.reads_k, chunk.v, row, column, 0, row + tile.kRows);
    }
    tile.store_to(to, row, column);
  });
}
