// Norms of rows with what stands around them, one pass forward and one backward (norm_task.h). Included inside a set's
// namespace and target region.

/// 1 / (1 + e^-x)
template <class T>
HYBRIDATTN_INLINE Vector<T> sigmoid(Vector<T> x) {
  const Vector<T> e = exp_of_nonpositive<T>(x < 0 ? x : -x), larger = 1 / (1 + e);
  return x < 0 ? e * larger : larger;
}

/// Rows in scratch memory, widened and padded with zeros to whole vectors; `activation` holds sigmoid(x) where x is
/// activated.
template <class T>
struct NormRows {
  int size, padded_size;
  T *x, *activation, *gate, *grad, *result, *weight_sums;

  explicit NormRows(const NormTask<T>& task) : size(task.size), padded_size(padded<T>(task.size)) {
    Arena::of_this_thread().lay_out([&](auto& memory) {
      for (T** row : {&x, &activation, &gate, &grad, &result, &weight_sums}) {
        *row = memory.template take<T>(static_cast<size_t>(padded_size));
      }
    });
    for (T* row : {x, gate, grad, weight_sums}) {
      __builtin_memset(row, 0, sizeof(T) * padded_size);
    }
  }

  /// f(column) for each vector of a row
  template <class F>
  HYBRIDATTN_INLINE void each(F&& f) const {
    for (int column = 0; column < padded_size; column += Lanes<T>::count) {
      f(column);
    }
  }
};

/// weight[column ...], zeros beyond the row.
template <class T>
HYBRIDATTN_INLINE Vector<T> norm_weight(const NormTask<T>& task, int column) {
  if (task.weight == nullptr) {
    return broadcast<T>(1);
  }
  const int left = task.size - column;
  return load_part<T>(task.weight + column, left < Lanes<T>::count ? left : Lanes<T>::count, T(0));
}

/// u, which is x or SiLU(x), once `inverse_norm` was there.
template <class T>
HYBRIDATTN_INLINE Vector<T> activated(const NormTask<T>& task, const NormRows<T>& rows, int column) {
  const Vector<T> x = load<T>(rows.x + column);
  return task.activates ? x * load<T>(rows.activation + column) : x;
}

/// 1 / sqrt(sum or mean of u^2 + eps)
template <class T>
HYBRIDATTN_INLINE T inverse_norm(const NormTask<T>& task, const NormRows<T>& rows) {
  Vector<T> squares = {};
  rows.each([&](int column) HYBRIDATTN_INLINE_LAMBDA {
    if (task.activates) {
      store<T>(rows.activation + column, sigmoid<T>(load<T>(rows.x + column)));
    }
    const Vector<T> u = activated(task, rows, column);
    squares = fma(u, u, squares);
  });
  const T total = sum<T>(squares);
  return 1 / std::sqrt((task.mean ? total / static_cast<T>(task.size) : total) + task.eps);
}

template <class T>
inline void norm_forward(const NormTask<T>& task) {
  const NormRows<T> rows(task);
  for (int64_t row = 0; row < task.rows; ++row) {
    read_row<T>(task.x.from(row), task.size, T(1), rows.x);
    if (task.gate.data != nullptr) {
      read_row<T>(task.gate.from(row), task.size, T(1), rows.gate);
    }
    const Vector<T> inverse = broadcast<T>(inverse_norm(task, rows));
    rows.each([&](int column) HYBRIDATTN_INLINE_LAMBDA {
      Vector<T> y = activated(task, rows, column) * inverse * norm_weight(task, column);
      if (task.gate.data != nullptr) {
        const Vector<T> gate = load<T>(rows.gate + column);
        y *= gate * sigmoid<T>(gate);
      }
      store<T>(rows.result + column, y);
    });
    write_row<T>(rows.result, task.size, task.out.from(row));
  }
}

/// With a = SiLU(gate) and dn = dy weight a: du = (dn - n (n . dn) / size) / norm (without the size for sums), dweight
/// = sum of dy n a, dgate = dy n weight SiLU'(gate), dx = du SiLU'(x) where u is SiLU(x).
template <class T>
inline void norm_backward(const NormTask<T>& task) {
  const NormRows<T> rows(task);
  const auto slope = [](Vector<T> x, Vector<T> s) HYBRIDATTN_INLINE_LAMBDA { return s * (1 + x * (1 - s)); }; // SiLU'
  for (int64_t row = 0; row < task.rows; ++row) {
    read_row<T>(task.x.from(row), task.size, T(1), rows.x);
    read_row<T>(task.grad_out.from(row), task.size, T(1), rows.grad);
    if (task.gate.data != nullptr) {
      read_row<T>(task.gate.from(row), task.size, T(1), rows.gate);
    }
    const T inverse = inverse_norm(task, rows);
    Vector<T> along = {};
    rows.each([&](int column) HYBRIDATTN_INLINE_LAMBDA {
      const Vector<T> n = activated(task, rows, column) * inverse, weight = norm_weight(task, column);
      Vector<T> grad = load<T>(rows.grad + column);
      if (task.gate.data != nullptr) {
        const Vector<T> gate = load<T>(rows.gate + column), s = sigmoid<T>(gate);
        store<T>(rows.gate + column, grad * n * weight * slope(gate, s));
        grad *= gate * s;
      }
      if (task.grad_weight != nullptr) {
        store<T>(rows.weight_sums + column, fma(grad, n, load<T>(rows.weight_sums + column)));
      }
      grad *= weight;
      along = fma(grad, n, along);
      store<T>(rows.grad + column, grad);
    });
    if (task.gate.data != nullptr) {
      write_row<T>(rows.gate, task.size, task.grad_gate.from(row));
    }
    const T share = task.mean ? sum<T>(along) / static_cast<T>(task.size) : sum<T>(along);
    rows.each([&](int column) HYBRIDATTN_INLINE_LAMBDA {
      const Vector<T> u = activated(task, rows, column);
      const Vector<T> grad = (load<T>(rows.grad + column) - u * (inverse * share)) * inverse;
      store<T>(rows.result + column,
               task.activates ? grad * slope(load<T>(rows.x + column), load<T>(rows.activation + column)) : grad);
    });
    write_row<T>(rows.result, task.size, task.grad_x.from(row));
  }
  for (int column = 0; task.grad_weight != nullptr && column < task.size; ++column) {
    task.grad_weight[column] = rows.weight_sums[column];
  }
}
