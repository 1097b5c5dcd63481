// Vectors of one instruction set, in the compiler's own vector types, and functions on them. Included inside a set's
// namespace and target region, after its kVectorBytes, fma and halves.

template <class T>
struct Lanes {
  static constexpr int count = kVectorBytes / static_cast<int>(sizeof(T));
  typedef T Vector __attribute__((vector_size(kVectorBytes)));
  using Integer = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  typedef Integer Integers __attribute__((vector_size(kVectorBytes)));
};

template <class T>
using Vector = typename Lanes<T>::Vector;
template <class T>
using Integers = typename Lanes<T>::Integers;

template <class T>
HYBRIDATTN_INLINE Vector<T> load(const T* from) {
  Vector<T> x;
  __builtin_memcpy(&x, from, sizeof(x));
  return x;
}

template <class T>
HYBRIDATTN_INLINE void store(T* to, Vector<T> x) {
  __builtin_memcpy(to, &x, sizeof(x));
}

template <class T>
HYBRIDATTN_INLINE Vector<T> broadcast(T x) {
  return x - Vector<T>{}; // x - 0 is x for every x, so this costs the broadcast alone
}

/// 0, 1, 2, ...
template <class T>
HYBRIDATTN_INLINE Integers<T> lane_numbers() {
  Integers<T> numbers;
  for (int i = 0; i < Lanes<T>::count; ++i) {
    numbers[i] = i;
  }
  return numbers;
}

template <class T>
HYBRIDATTN_INLINE T sum(Vector<T> x) {
  T total = 0;
  for (int i = 0; i < Lanes<T>::count; ++i) {
    total += x[i];
  }
  return total;
}

/// e^x for x <= 0 (0 where it would be subnormal): x = n log 2 + f, e^f by its series to the last bit of T, 2^n by its
/// bits.
template <class T>
HYBRIDATTN_INLINE Vector<T> exp_of_nonpositive(Vector<T> x) {
  constexpr bool kDouble = sizeof(T) == 8;
  constexpr int kMantissa = kDouble ? 52 : 23, kBias = kDouble ? 1023 : 127, kTerms = kDouble ? 13 : 7;
  // Adding 1.5 * 2^mantissa rounds to an integer and leaves it in the lowest bits.
  constexpr T kRound = kDouble ? T(6755399441055744.0) : T(12582912.0);
  constexpr T kLog2e = T(1.4426950408889634), kSmallest = kDouble ? T(-708) : T(-87);
  constexpr T kLn2High = kDouble ? T(0x1.62e42feep-1) : T(0x1.62e4p-1); // few enough bits that n times it is exact
  constexpr T kLn2Low = kDouble ? T(0x1.a39ef35793c76p-33) : T(0x1.7f7d1cf79abcap-20); // log 2 - kLn2High
  const auto vanishes = x < kSmallest;
  x = vanishes ? broadcast<T>(kSmallest) : x;
  const Vector<T> shifted = fma(x, broadcast<T>(kLog2e), broadcast<T>(kRound));
  const Vector<T> n = shifted - kRound;
  const Vector<T> f = fma(n, broadcast<T>(-kLn2Low), fma(n, broadcast<T>(-kLn2High), x));
  T coefficient = 1;
  for (int k = 2; k <= kTerms; ++k) {
    coefficient /= static_cast<T>(k);
  }
  Vector<T> series = broadcast<T>(coefficient);
#pragma GCC unroll 16
  for (int k = kTerms; k >= 1; --k) {
    coefficient *= static_cast<T>(k);
    series = fma(series, f, broadcast<T>(coefficient));
  }
  Integers<T> bits;
  __builtin_memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits << kMantissa) + (static_cast<typename Lanes<T>::Integer>(kBias) << kMantissa);
  Vector<T> power;
  __builtin_memcpy(&power, &bits, sizeof(power));
  return vanishes ? Vector<T>{} : series * power;
}

/// One stage of a transposition: blocks of `Distance` lanes change places between a and b.
template <class T, int Distance, bool High, int... I>
HYBRIDATTN_INLINE Vector<T> interleaved(Vector<T> a, Vector<T> b, std::integer_sequence<int, I...>) {
  constexpr int kCount = Lanes<T>::count;
  return __builtin_shufflevector(a, b,
                                 ((I & Distance) ? kCount + (High ? I : I - Distance) : (High ? I + Distance : I))...);
}

template <class T, int Distance = 1>
HYBRIDATTN_INLINE void transpose_lanes(Vector<T> (&rows)[Lanes<T>::count]) {
  constexpr int kCount = Lanes<T>::count;
  if constexpr (Distance < kCount) {
    constexpr auto kLanes = std::make_integer_sequence<int, kCount>{};
#pragma GCC unroll 16
    for (int i = 0; i < kCount; ++i) {
      if ((i & Distance) == 0) {
        const Vector<T> a = rows[i], b = rows[i + Distance];
        rows[i] = interleaved<T, Distance, false>(a, b, kLanes);
        rows[i + Distance] = interleaved<T, Distance, true>(a, b, kLanes);
      }
    }
    transpose_lanes<T, Distance * 2>(rows);
  }
}

/// to [columns, rows] = the transpose of a [rows, columns] matrix of which vector(row, column) is a part of a row; both
/// sizes multiples of the vector's length.
template <class T, class VectorAt>
HYBRIDATTN_INLINE void transpose_blocks(int rows, int columns, Matrix<T> to, VectorAt&& vector) {
  constexpr int kCount = Lanes<T>::count;
  for (int row = 0; row < rows; row += kCount) {
    for (int column = 0; column < columns; column += kCount) {
      Vector<T> block[kCount];
#pragma GCC unroll 16
      for (int i = 0; i < kCount; ++i) {
        block[i] = vector(row + i, column);
      }
      transpose_lanes<T>(block);
#pragma GCC unroll 16
      for (int i = 0; i < kCount; ++i) {
        store<T>(to.at(column + i, row), block[i]);
      }
    }
  }
}

/// to [columns, rows] = from [rows, columns]^T; both sizes multiples of the vector's length.
template <class T>
inline void transpose(Matrix<T> from, int rows, int columns, Matrix<T> to) {
  transpose_blocks<T>(rows, columns, to,
                      [&](int row, int column) HYBRIDATTN_INLINE_LAMBDA { return load<T>(from.at(row, column)); });
}

HYBRIDATTN_INLINE float widened(Bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float result;
  __builtin_memcpy(&result, &bits, sizeof(result));
  return result;
}

/// To the nearest, ties to even; NaN stays NaN.
HYBRIDATTN_INLINE Bfloat16 narrowed(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return {static_cast<uint16_t>(x == x ? rounded : 0x7fc0)};
}

/// As many bf16 numbers as a vector has lanes.
HYBRIDATTN_INLINE Vector<float> load_widened(const Bfloat16* from) {
  return (Vector<float>)(load_halves(from) << 16);
}

HYBRIDATTN_INLINE void store_narrowed(Bfloat16* to, Vector<float> x) {
  const Halves bits = (Halves)x, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  store_halves(to, x == x ? rounded : rounded * 0 + 0x7fc0);
}

/// A vector of T from elements of type E: T, or bf16 where T is float.
template <class T, class E>
HYBRIDATTN_INLINE Vector<T> load_as(const E* from) {
  if constexpr (std::is_same_v<E, T>) {
    return load<T>(from);
  } else {
    return load_widened(from);
  }
}

template <class T, class E>
HYBRIDATTN_INLINE void store_as(E* to, Vector<T> x) {
  if constexpr (std::is_same_v<E, T>) {
    store<T>(to, x);
  } else {
    store_narrowed(to, x);
  }
}

/// f(E{}) with the type of the rows' elements.
template <class T, class F>
HYBRIDATTN_INLINE void with_element_type(const Rows<T>& rows, F&& f) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (rows.is_bfloat16) {
      f(Bfloat16{});
      return;
    }
  }
  f(T{});
}

/// to[c] = factor * element c of the row.
template <class T>
inline void read_row(const Rows<T>& from, int columns, T factor, T* to) {
  constexpr int kLanes = Lanes<T>::count;
  const auto read = [&](auto element, auto vector) HYBRIDATTN_INLINE_LAMBDA {
    if (from.step == 1) {
      int c = 0;
      for (; c + kLanes <= columns; c += kLanes) {
        store<T>(to + c, factor * vector(c));
      }
      for (; c < columns; ++c) {
        to[c] = factor * element(c);
      }
    } else {
      for (int c = 0; c < columns; ++c) {
        to[c] = factor * element(c * from.step);
      }
    }
  };
  if constexpr (sizeof(T) == 4) {
    if (from.is_bfloat16) {
      const auto* data = static_cast<const Bfloat16*>(from.data);
      read([data](int64_t at) HYBRIDATTN_INLINE_LAMBDA { return widened(data[at]); },
           [data](int64_t at) HYBRIDATTN_INLINE_LAMBDA { return load_widened(data + at); });
      return;
    }
  }
  const auto* data = static_cast<const T*>(from.data);
  read([data](int64_t at) HYBRIDATTN_INLINE_LAMBDA { return data[at]; },
       [data](int64_t at) HYBRIDATTN_INLINE_LAMBDA { return load<T>(data + at); });
}

template <class T>
inline void write_row(const T* from, int columns, const Rows<T>& to) {
  constexpr int kLanes = Lanes<T>::count;
  int c = 0;
  if constexpr (sizeof(T) == 4) {
    if (to.is_bfloat16) {
      auto* data = static_cast<Bfloat16*>(to.data);
      for (; c + kLanes <= columns; c += kLanes) {
        store_narrowed(data + c, load<T>(from + c));
      }
      for (; c < columns; ++c) {
        data[c] = narrowed(from[c]);
      }
      return;
    }
  }
  auto* data = static_cast<T*>(to.data);
  for (; c + kLanes <= columns; c += kLanes) {
    store<T>(data + c, load<T>(from + c));
  }
  for (; c < columns; ++c) {
    data[c] = from[c];
  }
}

/// to[r, c] = factor * from[r, c] for the rows and columns that exist, 0 in the padding up to `padded` of each.
template <class T>
inline void read_rows(const Rows<T>& from, int rows, int columns, T factor, int padded_rows, int padded_columns,
                      Matrix<T> to) {
  for (int r = 0; r < padded_rows; ++r) {
    T* row = to.at(r, 0);
    const int present = r < rows ? columns : 0;
    if (present > 0) {
      read_row<T>(from.from(r), present, factor, row);
    }
    for (int c = present; c < padded_columns; ++c) {
      row[c] = 0;
    }
  }
}

template <class T>
inline void write_rows(Matrix<T> from, int rows, int columns, const Rows<T>& to) {
  for (int r = 0; r < rows; ++r) {
    write_row<T>(from.at(r, 0), columns, to.from(r));
  }
}
