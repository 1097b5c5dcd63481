// Short causal convolution, one pass forward and one backward (convolution_task.h). Included inside a set's namespace
// and target region.

/// The last W rows, the oldest first; each is widened and padded with zeros to whole vectors.
template <class T>
struct RecentRows {
  T** rows;
  int count, size;

  template <class Memory>
  void take(Memory& memory, int taps, int padded_size) {
    count = taps;
    size = padded_size;
    rows = memory.template take<T*>(static_cast<size_t>(taps));
    for (int i = 0; i < taps; ++i) {
      T* row = memory.template take<T>(static_cast<size_t>(padded_size));
      if (rows != nullptr) {
        rows[i] = row;
      }
    }
  }
  void clear() const {
    for (int i = 0; i < count; ++i) {
      __builtin_memset(rows[i], 0, sizeof(T) * size);
    }
  }
  /// The oldest row, which becomes the newest.
  T* next() const {
    T* oldest = rows[0];
    for (int i = 1; i < count; ++i) {
      rows[i - 1] = rows[i];
    }
    return rows[count - 1] = oldest;
  }
};

template <class T>
struct ConvolutionRows {
  const ConvolutionTask<T>& task;
  int padded_channels;
  RecentRows<T> x, grads;
  RecentRows<T> weight, weight_sums; ///< a row per tap
  T *bias, *bias_sums, *result;

  explicit ConvolutionRows(const ConvolutionTask<T>& given) : task(given), padded_channels(padded<T>(given.channels)) {
    Arena::of_this_thread().lay_out([&](auto& memory) {
      for (auto* rows : {&x, &grads, &weight, &weight_sums}) {
        rows->take(memory, task.taps, padded_channels);
      }
      for (T** row : {&bias, &bias_sums, &result}) {
        *row = memory.template take<T>(static_cast<size_t>(padded_channels));
      }
    });
    for (T* row : {bias, bias_sums}) {
      __builtin_memset(row, 0, sizeof(T) * padded_channels);
    }
    weight.clear();
    weight_sums.clear();
    for (int i = 0; i < task.taps; ++i) {
      std::copy_n(task.weight + i * task.weight_stride, task.channels, weight.rows[i]);
    }
    if (task.bias != nullptr) {
      std::copy_n(task.bias, task.channels, bias);
    }
  }

  /// f(column) for each vector of a row
  template <class F>
  HYBRIDATTN_INLINE void each(F&& f) const {
    for (int column = 0; column < padded_channels; column += Lanes<T>::count) {
      f(column);
    }
  }
  /// bias + sum_i weight_i x_(t - W + 1 + i) for the token t that was read last.
  HYBRIDATTN_INLINE Vector<T> sum_of_taps(int column) const {
    Vector<T> sum = load<T>(bias + column);
    for (int i = 0; i < task.taps; ++i) {
      sum = fma(load<T>(weight.rows[i] + column), load<T>(x.rows[i] + column), sum);
    }
    return sum;
  }
};

template <class T>
inline void convolution_forward(const ConvolutionTask<T>& task) {
  const ConvolutionRows<T> rows(task);
  for (int64_t document = 0; document < task.documents; ++document) {
    rows.x.clear();
    for (int64_t token = task.borders[document]; token < task.borders[document + 1]; ++token) {
      read_row<T>(task.x.from(token), task.channels, T(1), rows.x.next());
      rows.each([&](int column) HYBRIDATTN_INLINE_LAMBDA {
        const Vector<T> y = rows.sum_of_taps(column);
        store<T>(rows.result + column, task.activates ? y * sigmoid<T>(y) : y);
      });
      write_row<T>(rows.result, task.channels, task.out.from(token));
    }
  }
}

template <class T>
inline void convolution_backward(const ConvolutionTask<T>& task) {
  const ConvolutionRows<T> rows(task);
  const int last = task.taps - 1;
  // x_s is read by tap i of the token s + W - 1 - i: its gradient is known once that of the token s + W - 1 is.
  const auto write_grad_x = [&](int64_t token) HYBRIDATTN_INLINE_LAMBDA {
    rows.each([&](int column) HYBRIDATTN_INLINE_LAMBDA {
      Vector<T> sum = {};
      for (int i = 0; i <= last; ++i) {
        sum = fma(load<T>(rows.weight.rows[last - i] + column), load<T>(rows.grads.rows[i] + column), sum);
      }
      store<T>(rows.result + column, sum);
    });
    write_row<T>(rows.result, task.channels, task.grad_x.from(token));
  };
  for (int64_t document = 0; document < task.documents; ++document) {
    const int64_t begin = task.borders[document], end = task.borders[document + 1];
    rows.x.clear();
    rows.grads.clear();
    for (int64_t token = begin; token < end; ++token) {
      read_row<T>(task.x.from(token), task.channels, T(1), rows.x.next());
      T* grads = rows.grads.next();
      read_row<T>(task.grad_out.from(token), task.channels, T(1), grads);
      rows.each([&](int column) HYBRIDATTN_INLINE_LAMBDA {
        Vector<T> grad = load<T>(grads + column);
        if (task.activates) {
          const Vector<T> y = rows.sum_of_taps(column), s = sigmoid<T>(y);
          grad *= s * (1 + y * (1 - s)); // SiLU'
          store<T>(grads + column, grad);
        }
        store<T>(rows.bias_sums + column, load<T>(rows.bias_sums + column) + grad);
        for (int i = 0; i <= last; ++i) {
          T* sums = rows.weight_sums.rows[i] + column;
          store<T>(sums, fma(grad, load<T>(rows.x.rows[i] + column), load<T>(sums)));
        }
      });
      if (token - begin >= last) {
        write_grad_x(token - last);
      }
    }
    for (int64_t token = end - last; token < end; ++token) { // the later readers of these do not exist
      __builtin_memset(rows.grads.next(), 0, sizeof(T) * rows.padded_channels);
      if (token >= begin) {
        write_grad_x(token);
      }
    }
  }
  for (int i = 0; i <= last; ++i) {
    std::copy_n(rows.weight_sums.rows[i], task.channels, task.grad_weight + i * task.weight_stride);
  }
  if (task.grad_bias != nullptr) {
    std::copy_n(rows.bias_sums, task.channels, task.grad_bias);
  }
}
