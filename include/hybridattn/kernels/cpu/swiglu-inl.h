// The gated unit SiLU(x) y and its gradients, one pass each (swiglu_task.h). Included inside a set's namespace and
// target region.

/// f(row, elements in it, scratch of so many rows) for each row.
template <class T, int Scratch, class F>
HYBRIDATTN_INLINE void each_swiglu_row(const SwigluTask<T>& task, F&& f) {
  T* scratch[Scratch];
  Arena::of_this_thread().lay_out([&](auto& memory) {
    for (T*& row : scratch) {
      row = memory.template take<T>(SwigluTask<T>::kElements);
    }
  });
  for (int64_t row = 0; row * SwigluTask<T>::kElements < task.elements; ++row) {
    const int64_t left = task.elements - row * SwigluTask<T>::kElements;
    f(row, static_cast<int>(std::min<int64_t>(left, SwigluTask<T>::kElements)), scratch);
  }
}

template <class T>
inline void swiglu_forward(const SwigluTask<T>& task) {
  each_swiglu_row<T, 2>(task, [&](int64_t row, int size, T* const* scratch) HYBRIDATTN_INLINE_LAMBDA {
    T *x = scratch[0], *y = scratch[1];
    read_row<T>(task.x.from(row), size, T(1), x);
    read_row<T>(task.y.from(row), size, T(1), y);
    for (int i = 0; i < size; i += Lanes<T>::count) { // behind the last element: numbers that nobody reads
      const Vector<T> value = load<T>(x + i);
      store<T>(x + i, value * sigmoid<T>(value) * load<T>(y + i));
    }
    write_row<T>(x, size, task.out.from(row));
  });
}

template <class T>
inline void swiglu_backward(const SwigluTask<T>& task) {
  each_swiglu_row<T, 3>(task, [&](int64_t row, int size, T* const* scratch) HYBRIDATTN_INLINE_LAMBDA {
    T *x = scratch[0], *y = scratch[1], *grad = scratch[2];
    read_row<T>(task.x.from(row), size, T(1), x);
    read_row<T>(task.y.from(row), size, T(1), y);
    read_row<T>(task.grad_out.from(row), size, T(1), grad);
    for (int i = 0; i < size; i += Lanes<T>::count) {
      const Vector<T> value = load<T>(x + i), s = sigmoid<T>(value), g = load<T>(grad + i);
      store<T>(x + i, g * load<T>(y + i) * s * (1 + value * (1 - s)));
      store<T>(y + i, g * value * s);
    }
    write_row<T>(x, size, task.grad_x.from(row));
    write_row<T>(y, size, task.grad_y.from(row));
  });
}
