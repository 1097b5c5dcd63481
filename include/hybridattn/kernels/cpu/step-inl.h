// One token: the state is read twice and written once. Included inside a set's namespace and target region.

/// The token's rows in the arithmetic's type. `reader` is what the state is read with before it is written: the key
/// decayed (rules that correct) or a (generalised ones).
template <class T>
struct StepRows {
  T *q = nullptr, *k = nullptr, *v = nullptr, *reader = nullptr, *b = nullptr;
  T* decays = nullptr; // exp(g), one per channel
  T decay = 1;         // or one for all

  template <class R>
  HYBRIDATTN_INLINE T decay_of(int row) const {
    return R::per_channel ? decays[row] : decay;
  }
};

/// `Vectors` columns of vectors at a time: their sums stay in registers while the rows of the state pass by.
template <class R, int Vectors, class T>
HYBRIDATTN_INLINE void step_columns(const StepTask<T>& task, const StepRows<T>& rows, int column, T* out_row) {
  constexpr int kLanes = Lanes<T>::count;
  T* const state = task.state + column;
  Vector<T> write[Vectors], out[Vectors];
#pragma GCC unroll 8
  for (int j = 0; j < Vectors; ++j) {
    write[j] = load<T>(rows.v + column + j * kLanes);
    out[j] = Vector<T>{};
  }
  Vector<T> read[Vectors] = {};
  if constexpr (R::solves) {
    for (int row = 0; row < task.key_dim; ++row) {
      const Vector<T> key = broadcast<T>(rows.reader[row]);
#pragma GCC unroll 8
      for (int j = 0; j < Vectors; ++j) {
        read[j] = fma(key, load<T>(state + static_cast<ptrdiff_t>(row) * task.value_dim + j * kLanes), read[j]);
      }
    }
  }
  if constexpr (R::corrects) {
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) {
      write[j] = (write[j] - read[j]) * task.beta;
    }
  }
  for (int row = 0; row < task.key_dim; ++row) {
    const Vector<T> key = broadcast<T>(rows.k[row]), query = broadcast<T>(rows.q[row]);
    T* const line = state + static_cast<ptrdiff_t>(row) * task.value_dim;
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) {
      Vector<T> s = load<T>(line + j * kLanes);
      s = fma(key, write[j], R::gated ? s * rows.template decay_of<R>(row) : s);
      if constexpr (R::generalised) {
        s = fma(broadcast<T>(rows.b[row]), read[j], s);
      }
      store<T>(line + j * kLanes, s);
      out[j] = fma(query, s, out[j]);
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < Vectors; ++j) {
    store<T>(out_row + column + j * kLanes, out[j]);
  }
}

template <class R, class T>
inline void step(const StepTask<T>& task) {
  constexpr int kLanes = Lanes<T>::count;
  StepRows<T> rows;
  T* out_row = nullptr;
  Arena::of_this_thread().lay_out([&](auto& memory) {
    for (T** row : {&rows.q, &rows.k, &rows.reader, &rows.b, &rows.decays}) {
      *row = memory.template take<T>(task.key_dim);
    }
    for (T** row : {&rows.v, &out_row}) {
      *row = memory.template take<T>(task.value_dim);
    }
  });
  read_row<T>(task.q, task.key_dim, task.scale, rows.q);
  read_row<T>(task.k, task.key_dim, T(1), rows.k);
  read_row<T>(task.v, task.value_dim, T(1), rows.v);
  if constexpr (R::per_channel) {
    read_row<T>(task.channel_g, task.key_dim, T(1), rows.decays);
    for (int row = 0; row < task.key_dim; ++row) {
      rows.decays[row] = std::exp(rows.decays[row]);
    }
  } else if constexpr (R::gated) {
    rows.decay = std::exp(task.g);
  }
  if constexpr (R::corrects) {
    for (int row = 0; row < task.key_dim; ++row) {
      rows.reader[row] = rows.k[row] * rows.template decay_of<R>(row);
    }
  }
  if constexpr (R::generalised) {
    read_row<T>(task.a, task.key_dim, T(1), rows.reader);
    read_row<T>(task.b, task.key_dim, T(1), rows.b);
  }
  int column = 0;
  for (; column + 8 * kLanes <= task.value_dim; column += 8 * kLanes) {
    step_columns<R, 8>(task, rows, column, out_row);
  }
  for (; column + kLanes <= task.value_dim; column += kLanes) {
    step_columns<R, 1>(task, rows, column, out_row);
  }
  for (; column < task.value_dim; ++column) { // the columns that no vector covers
    T write = rows.v[column], out = 0, read = 0;
    const auto state = [&](int row) -> T& { return task.state[static_cast<ptrdiff_t>(row) * task.value_dim + column]; };
    if constexpr (R::solves) {
      for (int row = 0; row < task.key_dim; ++row) {
        read += rows.reader[row] * state(row);
      }
    }
    if constexpr (R::corrects) {
      write = (write - read) * task.beta;
    }
    for (int row = 0; row < task.key_dim; ++row) {
      T& s = state(row);
      s = s * rows.template decay_of<R>(row) + rows.k[row] * write;
      if constexpr (R::generalised) {
        s += rows.b[row] * read;
      }
      out += rows.q[row] * s;
    }
    out_row[column] = out;
  }
  write_row<T>(out_row, task.value_dim, task.out);
}
