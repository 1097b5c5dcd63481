// Divergence of two rows of logits, and its gradient, in place: three passes, two exponentials per entry. Included
// inside a set's namespace and target region.

template <class T>
HYBRIDATTN_INLINE Vector<T> larger(Vector<T> a, Vector<T> b) {
  return b > a ? b : a;
}

/// f(column, lanes) for every full vector of a row, then once for the entries that are left.
template <class T, class F>
HYBRIDATTN_INLINE void for_row(int64_t size, F&& f) {
  constexpr int kLanes = Lanes<T>::count;
  int64_t column = 0;
  for (; column + kLanes <= size; column += kLanes) {
    f(column, kLanes);
  }
  if (column < size) {
    f(column, static_cast<int>(size - column));
  }
}

/// The first `lanes` entries; the others are `fill`.
template <class T>
HYBRIDATTN_INLINE Vector<T> load_part(const T* from, int lanes, T fill) {
  if (lanes == Lanes<T>::count) {
    return load<T>(from);
  }
  Vector<T> x = broadcast<T>(fill);
  for (int i = 0; i < lanes; ++i) {
    x[i] = from[i];
  }
  return x;
}

template <class T>
HYBRIDATTN_INLINE void store_part(T* to, int lanes, Vector<T> x) {
  if (lanes == Lanes<T>::count) {
    store<T>(to, x);
    return;
  }
  for (int i = 0; i < lanes; ++i) {
    to[i] = x[i];
  }
}

/// A sum over a row whose rounding does not grow with the row: vectors of T for a while, then fp64.
template <class T>
struct LongSum {
  static constexpr int kFlush = 64; // vectors
  Vector<T> recent = {};
  double total = 0;
  int count = 0;

  HYBRIDATTN_INLINE void add(Vector<T> x) {
    recent += x;
    if (++count == kFlush) {
      flush();
    }
  }
  HYBRIDATTN_INLINE void flush() {
    for (int i = 0; i < Lanes<T>::count; ++i) {
      total += static_cast<double>(recent[i]);
    }
    recent = Vector<T>{};
    count = 0;
  }
};

template <class T>
inline T row_maximum(const T* x, int64_t size) {
  constexpr T kLowest = -std::numeric_limits<T>::infinity();
  Vector<T> most = broadcast<T>(kLowest);
  for_row<T>(size, [&](int64_t column, int lanes)
                       HYBRIDATTN_INLINE_LAMBDA { most = larger<T>(most, load_part<T>(x + column, lanes, kLowest)); });
  T result = most[0];
  for (int i = 1; i < Lanes<T>::count; ++i) {
    result = most[i] > result ? most[i] : result;
  }
  return result;
}

/// KL(p || q) of p = softmax(`left`), q = softmax(`right`), logits divided by a temperature t, times t^2.
/// If a gradient is wanted, that with respect to the logits of `student` (which is left or right), times `factor`,
/// replaces that row; both rows' contents are used up.
///
/// With u = (logits - their maximum) / t and Z = sum exp(u): KL = sum exp(u_p) (u_p - u_q) / Z_p - log Z_p + log Z_q,
/// so equal rows give exactly 0. Entries of probability 0 count nothing, whatever the other row has there.
template <bool StudentIsLeft, class T>
inline double divergence_of_rows(T* left, T* right, int64_t size, double temperature, double factor,
                                 bool wants_gradient) {
  const T at_left = row_maximum(left, size), at_right = row_maximum(right, size);
  const T inverse = static_cast<T>(1 / temperature);
  constexpr T kLowest = -std::numeric_limits<T>::infinity();
  LongSum<T> left_sum, right_sum, difference_sum;
  for_row<T>(size, [&](int64_t column, int lanes) HYBRIDATTN_INLINE_LAMBDA {
    const Vector<T> u = (load_part<T>(left + column, lanes, kLowest) - at_left) * inverse;
    const Vector<T> w = (load_part<T>(right + column, lanes, kLowest) - at_right) * inverse;
    const Vector<T> p = exp_of_nonpositive<T>(u), q = exp_of_nonpositive<T>(w);
    const Vector<T> difference = p == 0 ? Vector<T>{} : u - w;
    left_sum.add(p);
    right_sum.add(q);
    difference_sum.add(p * difference);
    if (wants_gradient) {
      store_part<T>(left + column, lanes, p);
      store_part<T>(right + column, lanes, StudentIsLeft ? difference : q);
    }
  });
  for (auto* total : {&left_sum, &right_sum, &difference_sum}) {
    total->flush();
  }
  const double normaliser = std::log(right_sum.total) - std::log(left_sum.total);
  const double divergence = difference_sum.total / left_sum.total + normaliser;
  if (wants_gradient) {
    const T of_left = static_cast<T>(factor * temperature / left_sum.total);
    const T of_right = static_cast<T>(factor * temperature / right_sum.total);
    const T offset = static_cast<T>(normaliser - divergence);
    for_row<T>(size, [&](int64_t column, int lanes) HYBRIDATTN_INLINE_LAMBDA {
      const Vector<T> p = load_part<T>(left + column, lanes, T(0)), other = load_part<T>(right + column, lanes, T(0));
      if constexpr (StudentIsLeft) { // p (log p - log q - KL)
        store_part<T>(left + column, lanes, p * of_left * (other + offset));
      } else { // q - p
        store_part<T>(right + column, lanes, other * of_right - p * of_left);
      }
    });
  }
  return divergence * temperature * temperature;
}
