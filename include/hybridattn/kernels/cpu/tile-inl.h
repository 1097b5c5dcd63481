// The micro-kernel: a tile of a matrix product in registers. Included inside a set's namespace and target region.

/// How products are formed: in the type of the sums. `Products` of a kernel is this, or pairs of bf16 numbers where a
/// set has them (pairs-inl.h): then each element of an operand holds two neighbouring terms of a sum.
struct Exact {
  static constexpr int kTerms = 1;

  template <class T>
  static HYBRIDATTN_INLINE Vector<T> broadcast_terms(const T* x) {
    return broadcast<T>(*x);
  }
  template <class V>
  static HYBRIDATTN_INLINE V multiply_add(V a, V b, V c) {
    return fma(a, b, c);
  }

  /// Operands are what they are made of.
  template <class T, class Memory>
  static Matrix<T> take(Memory& /*memory*/, int /*rows*/, int /*columns*/) {
    return {};
  }
  template <class T>
  static Matrix<T> along_rows(Matrix<T> x, int /*rows*/, int /*columns*/, Matrix<T> /*operand*/) {
    return x;
  }
  template <class T>
  static Matrix<T> along_columns(Matrix<T> x, int /*rows*/, int /*columns*/, Matrix<T> /*operand*/) {
    return x;
  }
};

/// kTileRows x (Vectors * lanes) accumulators.
template <class T, int Vectors>
struct Tile {
  static constexpr int kRows = kTileRows, kVectors = Vectors, kLanes = Lanes<T>::count, kColumns = Vectors * kLanes;
  Vector<T> c[kRows][Vectors];

  /// c = value(i, j) for row i and column j (a multiple of the vector's length) of the tile
  template <class Value>
  HYBRIDATTN_INLINE void fill(Value&& value) {
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) {
        c[i][j] = value(i, j * kLanes);
      }
    }
  }

  HYBRIDATTN_INLINE void zero() {
    fill([](int, int) HYBRIDATTN_INLINE_LAMBDA { return Vector<T>{}; });
  }

  /// f(i, j, accumulator)
  template <class F>
  HYBRIDATTN_INLINE void each(F&& f) {
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) {
        f(i, j * kLanes, c[i][j]);
      }
    }
  }

  HYBRIDATTN_INLINE void store_to(Matrix<T> to, int row, int column) {
    each([&](int i, int j, Vector<T> x) HYBRIDATTN_INLINE_LAMBDA { store<T>(to.at(row + i, column + j), x); });
  }

  /// c += A[row : row + kRows, begin : end] B[begin : end, column : column + kColumns]
  template <class Products = Exact>
  HYBRIDATTN_INLINE void add(Matrix<T> a, Matrix<T> b, int row, int column, int begin, int end) {
    accumulate<Products>(a.at(row, 0), 1, a.stride, b, column, begin, end);
  }

  /// c += A[begin : end, row : row + kRows]^T B[begin : end, column : column + kColumns]
  template <class Products = Exact>
  HYBRIDATTN_INLINE void add_transposed(Matrix<T> a, Matrix<T> b, int row, int column, int begin, int end) {
    accumulate<Products>(a.at(0, row), a.stride, 1, b, column, begin, end);
  }

private:
  template <class Products>
  HYBRIDATTN_INLINE void accumulate(const T* a, ptrdiff_t step, ptrdiff_t stride, Matrix<T> b, int column, int begin,
                                    int end) {
    const T* factors = a + begin * step;
    const T* row = b.at(begin, column);
    for (int k = begin; k < end; ++k, factors += step, row += b.stride) {
      Vector<T> values[Vectors];
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) {
        values[j] = load<T>(row + j * kLanes);
      }
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const Vector<T> factor = Products::template broadcast_terms<T>(factors + i * stride);
#pragma GCC unroll 4
        for (int j = 0; j < Vectors; ++j) {
          c[i][j] = Products::multiply_add(factor, values[j], c[i][j]);
        }
      }
    }
  }
};

/// f(tile, row, column) for the tiles that cover [rows, columns], both multiples of kPadding<T>; column by column, so
/// that a product's right factor stays in the first cache. Upwards: from the last row to the first.
template <class T, bool Upwards = false, class F>
HYBRIDATTN_INLINE void for_tiles(int rows, int columns, F&& f) {
  const auto row_at = [&](int done) HYBRIDATTN_INLINE_LAMBDA { return Upwards ? rows - kTileRows - done : done; };
  using Wide = Tile<T, 2>;
  int column = 0;
  for (; column + Wide::kColumns <= columns; column += Wide::kColumns) {
    for (int done = 0; done < rows; done += kTileRows) {
      Wide tile;
      f(tile, row_at(done), column);
    }
  }
  for (; column < columns; column += Lanes<T>::count) {
    for (int done = 0; done < rows; done += kTileRows) {
      Tile<T, 1> tile;
      f(tile, row_at(done), column);
    }
  }
}

/// What sizes of matrices are rounded up to.
template <class T>
inline constexpr int kPadding = Lanes<T>::count > kTileRows ? Lanes<T>::count : kTileRows;

template <class T>
HYBRIDATTN_INLINE int padded(int64_t size) {
  return static_cast<int>((size + kPadding<T> - 1) / kPadding<T> * kPadding<T>);
}
