// Squared distances between rows, and their gradient (distance_task.h). Included inside a set's namespace and target
// region.

/// f(row, difference, padded size): x - y of each row in scratch memory, zeros behind it up to a whole vector.
template <class T, class F>
HYBRIDATTN_INLINE void each_difference(const DistanceTask<T>& task, F&& f) {
  const int size = padded<T>(task.size);
  T *x, *y;
  Arena::of_this_thread().lay_out([&](auto& memory) {
    x = memory.template take<T>(static_cast<size_t>(size));
    y = memory.template take<T>(static_cast<size_t>(size));
  });
  std::fill_n(x, size, T(0));
  std::fill_n(y, size, T(0));
  for (int64_t row = 0; row < task.rows; ++row) {
    read_row<T>(task.x.from(row), task.size, T(1), x);
    read_row<T>(task.y.from(row), task.size, T(1), y);
    for (int column = 0; column < size; column += Lanes<T>::count) {
      store<T>(x + column, load<T>(x + column) - load<T>(y + column));
    }
    f(row, x, size);
  }
}

template <class T>
inline void distance_forward(const DistanceTask<T>& task) {
  each_difference<T>(task, [&](int64_t row, const T* difference, int size) HYBRIDATTN_INLINE_LAMBDA {
    Vector<T> squares{};
    for (int column = 0; column < size; column += Lanes<T>::count) {
      const Vector<T> part = load<T>(difference + column);
      squares = fma(part, part, squares);
    }
    task.squares[row] = sum<T>(squares);
  });
}

template <class T>
inline void distance_backward(const DistanceTask<T>& task) {
  each_difference<T>(task, [&](int64_t row, T* difference, int size) HYBRIDATTN_INLINE_LAMBDA {
    for (int column = 0; column < size; column += Lanes<T>::count) {
      store<T>(difference + column, load<T>(difference + column) * task.factor[row]);
    }
    write_row<T>(difference, task.size, task.grad.from(row));
  });
}
