// Products of pairs of bf16 numbers with sums in fp32 (AVX512-BF16). Included inside the set's namespace and target
// region. An element of an operand holds two neighbouring terms of a sum, the first in its lower half.

/// Products for chunk_forward: operands are rounded to bf16, sums are fp32.
struct Pairs {
  static constexpr int kTerms = 2;

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

  template <class T, class Memory>
  static Matrix<T> take(Memory& memory, int rows, int columns) {
    return matrix<T>(memory, rows, columns);
  }
  /// operand [rows, columns / 2]: pairs of neighbours in a row
  template <class T>
  static Matrix<T> along_rows(Matrix<T> x, int rows, int columns, Matrix<T> operand) {
    for (int row = 0; row < rows; ++row) {
      for (int column = 0; column < columns; column += Lanes<T>::count) {
        const auto narrow = _mm512_cvtneps_pbh(load<T>(x.at(row, column)));
        __builtin_memcpy(operand.at(row, column / 2), &narrow, sizeof(narrow));
      }
    }
    return operand;
  }
  /// operand [rows / 2, columns]: pairs of neighbours in a column
  template <class T>
  static Matrix<T> along_columns(Matrix<T> x, int rows, int columns, Matrix<T> operand) {
    typedef unsigned short Narrow __attribute__((vector_size(32)));
    typedef unsigned Wide __attribute__((vector_size(64)));
    const auto narrowed_bits = [&](int row, int column) HYBRIDATTN_INLINE_LAMBDA {
      return __builtin_convertvector((Narrow)_mm512_cvtneps_pbh(load<T>(x.at(row, column))), Wide);
    };
    for (int row = 0; row < rows; row += 2) {
      for (int column = 0; column < columns; column += Lanes<T>::count) {
        const Wide pair = narrowed_bits(row, column) | narrowed_bits(row + 1, column) << 16;
        store<T>(operand.at(row / 2, column), (Vector<T>)pair);
      }
    }
    return operand;
  }
};
