// Products of bf16 numbers with sums in fp32 (AVX512-BF16). Included inside the set's namespace and target region. An
// element of a factor holds two neighbouring terms of a sum, the first in its lower half.

/// Products for the chunked form: factors are rounded to bf16, sums are fp32.
struct Pairs {
  static constexpr int kRows = kTileRows, kLargeRows = kLargeTileRows, kTerms = 2;
  template <class T>
  static constexpr int kPadding = kTerms* Lanes<T>::count;
  using Scope = Exact::Scope;

  template <Role R, class T, class Memory>
  static Matrix<T> take(Memory& memory, int rows, int columns) {
    switch (R) {
    case Role::left:
      return matrix<T>(memory, rows, columns / kTerms);
    case Role::right_transposed:
      return matrix<T>(memory, columns / kTerms, rows);
    case Role::right:
    case Role::left_transposed:
      break;
    }
    return matrix<T>(memory, rows / kTerms, columns);
  }

  template <Role R, class T>
  static Matrix<T> factor(Matrix<T> x, int rows, int columns, Matrix<T> to) {
    constexpr int kLanes = Lanes<T>::count;
    if constexpr (R == Role::left) { // neighbours in a row
      for (int row = 0; row < rows; ++row) {
        for (int column = 0; column < columns; column += kTerms * kLanes) {
          store<T>(to.at(row, column / kTerms), pairs_of_row<T>(x.at(row, column)));
        }
      }
    } else if constexpr (R == Role::right_transposed) { // neighbours in a row, transposed
      transpose_blocks<T>(rows, columns / kTerms, to, [&](int row, int pair) HYBRIDATTN_INLINE_LAMBDA {
        return pairs_of_row<T>(x.at(row, pair * kTerms));
      });
    } else { // neighbours in a column
      for (int row = 0; row < rows; row += kTerms) {
        for (int column = 0; column < columns; column += kLanes) {
          store<T>(to.at(row / kTerms, column), pairs_of_rows<T>(x.at(row, column), x.stride));
        }
      }
    }
    return to;
  }

  template <Role R, class T>
  static Matrix<T> rows_from(Matrix<T> factor, int row) {
    constexpr bool kAcrossRows = R == Role::right || R == Role::left_transposed;
    return Exact::rows_from<R>(factor, kAcrossRows ? row / kTerms : row);
  }

  template <class Tile, class T>
  static HYBRIDATTN_INLINE void add(Tile& tile, Matrix<T> a, Matrix<T> b, int row, int column, int begin, int end) {
    tile.template accumulate<Pairs>(a.at(row, 0), 1, a.stride, b, column, begin / kTerms, end / kTerms);
  }
  template <class Tile, class T>
  static HYBRIDATTN_INLINE void add_transposed(Tile& tile, Matrix<T> a, Matrix<T> b, int row, int column, int begin,
                                               int end) {
    tile.template accumulate<Pairs>(a.at(0, row), a.stride, 1, b, column, begin / kTerms, end / kTerms);
  }

  /// As bits: as a number, an element may be subnormal.
  template <class T>
  static HYBRIDATTN_INLINE Vector<T> broadcast_terms(const T* x) {
    int bits;
    __builtin_memcpy(&bits, x, sizeof(bits));
    typedef int Bits __attribute__((vector_size(64)));
    return (Vector<T>)(bits - Bits{});
  }
  template <class V>
  static HYBRIDATTN_INLINE V multiply_add(V a, V b, V c) {
    return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b);
  }

  /// Elements 0 and 1, 2 and 3, ... of a row.
  template <class T>
  static HYBRIDATTN_INLINE Vector<T> pairs_of_row(const T* x) {
    return (Vector<T>)_mm512_cvtne2ps_pbh(load<T>(x + Lanes<T>::count), load<T>(x));
  }
  /// Elements of a row, each with the one below.
  template <class T>
  static HYBRIDATTN_INLINE Vector<T> pairs_of_rows(const T* x, ptrdiff_t stride) {
    typedef unsigned short Narrow __attribute__((vector_size(32)));
    typedef unsigned Wide __attribute__((vector_size(64)));
    const auto bits = [](const T* row) HYBRIDATTN_INLINE_LAMBDA {
      return __builtin_convertvector((Narrow)_mm512_cvtneps_pbh(load<T>(row)), Wide);
    };
    return (Vector<T>)(bits(x) | bits(x + stride) << 16);
  }
};
