// One token: the state is read twice and written once. Included inside a set's namespace and target region.

/// `Vectors` columns of vectors at a time: their sums stay in registers while the rows of the state pass by.
template <class R, int Vectors, class T>
HYBRIDATTN_INLINE void step_columns(const StepTask<T>& task, const T* q, const T* k, const T* v, T decay, int column,
                                    T* out_row) {
  constexpr int kLanes = Lanes<T>::count;
  T* const state = task.state + column;
  Vector<T> write[Vectors], out[Vectors];
#pragma GCC unroll 8
  for (int j = 0; j < Vectors; ++j) {
    write[j] = load<T>(v + column + j * kLanes);
    out[j] = Vector<T>{};
  }
  if constexpr (R::corrects) {
    Vector<T> read[Vectors] = {};
    for (int row = 0; row < task.key_dim; ++row) {
      const Vector<T> key = broadcast<T>(k[row]);
#pragma GCC unroll 8
      for (int j = 0; j < Vectors; ++j) {
        read[j] = fma(key, load<T>(state + static_cast<ptrdiff_t>(row) * task.value_dim + j * kLanes), read[j]);
      }
    }
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) {
      write[j] = (write[j] - read[j] * decay) * task.beta;
    }
  }
  for (int row = 0; row < task.key_dim; ++row) {
    const Vector<T> key = broadcast<T>(k[row]), query = broadcast<T>(q[row]);
    T* const line = state + static_cast<ptrdiff_t>(row) * task.value_dim;
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) {
      Vector<T> s = load<T>(line + j * kLanes);
      s = fma(key, write[j], R::gated ? s * decay : s);
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
  Arena& arena = Arena::of_this_thread();
  arena.reset(2 * Arena::bytes_of<T>(task.key_dim) + 2 * Arena::bytes_of<T>(task.value_dim));
  T *q = arena.take<T>(task.key_dim), *k = arena.take<T>(task.key_dim);
  T *v = arena.take<T>(task.value_dim), *out_row = arena.take<T>(task.value_dim);
  read_row<T>(task.q, task.key_dim, task.scale, q);
  read_row<T>(task.k, task.key_dim, T(1), k);
  read_row<T>(task.v, task.value_dim, T(1), v);
  T decay = 1;
  if constexpr (R::gated) {
    decay = std::exp(task.g);
  }
  int column = 0;
  for (; column + 8 * kLanes <= task.value_dim; column += 8 * kLanes) {
    step_columns<R, 8>(task, q, k, v, decay, column, out_row);
  }
  for (; column + kLanes <= task.value_dim; column += kLanes) {
    step_columns<R, 1>(task, q, k, v, decay, column, out_row);
  }
  for (; column < task.value_dim; ++column) { // the columns that no vector covers
    T write = v[column], out = 0;
    T* const state = task.state + column;
    if constexpr (R::corrects) {
      T read = 0;
      for (int row = 0; row < task.key_dim; ++row) {
        read += k[row] * state[static_cast<ptrdiff_t>(row) * task.value_dim];
      }
      write = (write - read * decay) * task.beta;
    }
    for (int row = 0; row < task.key_dim; ++row) {
      T& s = state[static_cast<ptrdiff_t>(row) * task.value_dim];
      s = s * decay + k[row] * write;
      out += q[row] * s;
    }
    out_row[column] = out;
  }
  write_row<T>(out_row, task.value_dim, task.out);
}
