// The micro-kernel: a tile of a matrix product in registers. Included inside a set's namespace and target region.

/// Rows of a matrix in scratch memory are a vector further apart than they must be: a power of two would put whole
/// columns into few sets of the first cache.
template <class T>
HYBRIDATTN_INLINE int row_stride(int columns) {
  return columns + Lanes<T>::count;
}

/// Memory: an Arena or an ArenaSize.
template <class T, class Memory>
HYBRIDATTN_INLINE Matrix<T> matrix(Memory& memory, int rows, int columns) {
  const int stride = row_stride<T>(columns);
  return {memory.template take<T>(static_cast<size_t>(rows) * stride), stride};
}

/// What a matrix is in a product: a factor as it is, or transposed.
enum class Role { left, right, left_transposed, right_transposed };

/// How products are formed: in the type of the sums. `Products` of a kernel is this, or products of bf16 numbers where
/// a set has them (pairs-inl.h, amx-inl.h). Such a type says how a matrix becomes a factor, and adds tiles of products.
struct Exact {
  static constexpr int kRows = kTileRows;           ///< of a tile
  static constexpr int kLargeRows = kLargeTileRows; ///< of a tile of a matrix of any number of rows
  static constexpr int kTerms = 1;                  ///< of a sum in an element of a factor
  /// What sizes of matrices are rounded up to.
  template <class T>
  static constexpr int kPadding = Lanes<T>::count > kTileRows ? Lanes<T>::count : kTileRows;

  /// What a thread must have done while it forms products.
  struct Scope {};

  /// Memory for a factor made of a [rows, columns] matrix; empty where the matrix itself serves.
  template <Role R, class T, class Memory>
  static Matrix<T> take(Memory& memory, int rows, int columns) {
    return R == Role::right_transposed ? matrix<T>(memory, columns, rows) : Matrix<T>{};
  }
  template <Role R, class T>
  static Matrix<T> factor(Matrix<T> x, int rows, int columns, Matrix<T> memory) {
    if constexpr (R == Role::right_transposed) {
      transpose<T>(x, rows, columns, memory);
      return memory;
    } else {
      return x;
    }
  }

  /// The part of a factor that was made of a matrix's rows from `row` on.
  template <Role R, class T>
  static Matrix<T> rows_from(Matrix<T> factor, int row) {
    return {R == Role::right_transposed ? factor.at(0, row) : factor.at(row, 0), factor.stride};
  }

  /// tile += A[row : row + kRows, begin : end] B[begin : end, column : column + kColumns]
  template <class Tile, class T>
  static HYBRIDATTN_INLINE void add(Tile& tile, Matrix<T> a, Matrix<T> b, int row, int column, int begin, int end) {
    tile.template accumulate<Exact>(a.at(row, 0), 1, a.stride, b, column, begin, end);
  }
  /// tile += A[begin : end, row : row + kRows]^T B[begin : end, column : column + kColumns]
  template <class Tile, class T>
  static HYBRIDATTN_INLINE void add_transposed(Tile& tile, Matrix<T> a, Matrix<T> b, int row, int column, int begin,
                                               int end) {
    tile.template accumulate<Exact>(a.at(0, row), a.stride, 1, b, column, begin, end);
  }

  template <class T>
  static HYBRIDATTN_INLINE Vector<T> broadcast_terms(const T* x) {
    return broadcast<T>(*x);
  }
  template <class V>
  static HYBRIDATTN_INLINE V multiply_add(V a, V b, V c) {
    return fma(a, b, c);
  }
};

/// A factor of products, made of the matrix that `set` was given last.
template <class T, class Products, Role R>
struct Factor : Matrix<T> {
  template <class Memory>
  void take(Memory& memory, int rows, int columns) {
    static_cast<Matrix<T>&>(*this) = Products::template take<R, T>(memory, rows, columns);
  }
  void set(Matrix<T> x, int rows, int columns) {
    static_cast<Matrix<T>&>(*this) = Products::template factor<R, T>(x, rows, columns, *this);
  }
};

/// Rows x (Vectors * lanes) accumulators.
template <class T, int Vectors, int Rows = kTileRows>
struct Tile {
  static constexpr int kRows = Rows, kVectors = Vectors, kLanes = Lanes<T>::count, kColumns = Vectors * kLanes;
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

  template <class Products = Exact>
  HYBRIDATTN_INLINE void add(Matrix<T> a, Matrix<T> b, int row, int column, int begin, int end) {
    Products::add(*this, a, b, row, column, begin, end);
  }
  template <class Products = Exact>
  HYBRIDATTN_INLINE void add_transposed(Matrix<T> a, Matrix<T> b, int row, int column, int begin, int end) {
    Products::add_transposed(*this, a, b, row, column, begin, end);
  }

  /// The products of elements `begin` to `end` of the factors: those of the left one `step` apart along a sum and
  /// `stride` apart from row to row.
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

/// f(tile, row, column) for the tiles that cover [rows, columns], both padded; column by column, so that a product's
/// right factor stays in the first cache. Upwards: from the last row to the first.
template <class T, class Products = Exact, bool Upwards = false, class F>
HYBRIDATTN_INLINE void for_tiles(int rows, int columns, F&& f) {
  constexpr int kRows = Products::kRows;
  const auto row_at = [&](int done) HYBRIDATTN_INLINE_LAMBDA { return Upwards ? rows - kRows - done : done; };
  using Wide = Tile<T, 2, kRows>;
  int column = 0;
  for (; column + Wide::kColumns <= columns; column += Wide::kColumns) {
    for (int done = 0; done < rows; done += kRows) {
      Wide tile;
      f(tile, row_at(done), column);
    }
  }
  if constexpr (Products::template kPadding<T> < Wide::kColumns) {
    for (; column < columns; column += Lanes<T>::count) {
      for (int done = 0; done < rows; done += kRows) {
        Tile<T, 1, kRows> tile;
        f(tile, row_at(done), column);
      }
    }
  }
}

template <class T, class Products = Exact>
HYBRIDATTN_INLINE int padded(int64_t size) {
  constexpr int kPadding = Products::template kPadding<T>;
  return static_cast<int>((size + kPadding - 1) / kPadding * kPadding);
}
