// A product of two large matrices by blocks that fit the caches: a block of the right factor, in panels as wide as a
// tile; a block of the left factor; tiles of sums in registers (Goto and van de Geijn, "Anatomy of High-Performance
// Matrix Multiplication", ACM TOMS 34, 2008). Included inside a set's namespace and target region.

/// Whether a factor of this role is the matrix itself, in the type of the sums.
template <class Products, Role R>
inline constexpr bool kIsItsFactor = std::is_same_v<Products, Exact>&& R != Role::right_transposed;

/// Memory for a copy of a [rows, columns] matrix as a factor.
template <class Products, Role R, class T, class Memory>
Matrix<T> take_copy(Memory& memory, int rows, int columns) {
  if constexpr (kIsItsFactor<Products, R>) {
    return matrix<T>(memory, rows, columns);
  } else {
    return Products::template take<R, T>(memory, rows, columns);
  }
}

template <class Products, Role R, class T>
HYBRIDATTN_INLINE void copy_factor(Matrix<T> x, int rows, int columns, Matrix<T> to) {
  if constexpr (kIsItsFactor<Products, R>) {
    for (int row = 0; row < rows; ++row) {
      for (int column = 0; column < columns; column += Lanes<T>::count) {
        store<T>(to.at(row, column), load<T>(x.at(row, column)));
      }
    }
  } else {
    Products::template factor<R, T>(x, rows, columns, to);
  }
}

/// Left is Role::left or Role::left_transposed.
template <class T, class Products, Role Left>
class BlockedProduct {
public:
  explicit BlockedProduct(const ProductTask<T>& task)
      : task_(task), row_block_(block(task.rows, kMostRows, kRowPadding)),
        column_block_(block(task.columns, kMostColumns, kPanel)), term_block_(block(task.terms, kMostTerms, kPadding)) {
    Arena::of_this_thread().lay_out([&](auto& memory) {
      panels_ = memory.template take<T>(static_cast<size_t>(column_block_) * term_block_);
      left_ = kByTerms ? take_copy<Products, Left, T>(memory, term_block_, row_block_)
                       : take_copy<Products, Left, T>(memory, row_block_, term_block_);
      strip_ = matrix<T>(memory, kStrip, std::max({row_block_, column_block_, term_block_}));
    });
  }

  void run() {
    for (int64_t column = 0; column < task_.columns; column += column_block_) {
      int64_t term = 0;
      do { // without terms, sums are 0
        const Range columns(column, task_.columns, column_block_), terms(term, task_.terms, term_block_);
        place_right(terms, columns);
        expect_right(term + term_block_ < task_.terms ? column : column + column_block_,
                     term + term_block_ < task_.terms ? term + term_block_ : 0);
        for (int64_t row = 0; row < task_.rows; row += row_block_) {
          const Range rows(row, task_.rows, row_block_);
          place_left(rows, terms);
          multiply_blocks(rows, columns, terms);
        }
        term += term_block_;
      } while (term < task_.terms);
    }
  }

private:
  static constexpr int kTile = Products::kLargeRows, kPanel = 2 * Lanes<T>::count;
  static constexpr int kPadding = Products::template kPadding<T>;
  static constexpr int kRowPadding = std::lcm(kPadding, kTile);
  static constexpr int kTerms = Products::kTerms; ///< of a sum in an element of a factor
  static constexpr bool kByTerms = Left == Role::left_transposed;
  static constexpr int kStrip = 32; ///< rows of a factor that are converted at a time
  /// A panel takes half of a first cache of 64 KiB, a left block a fraction of a second cache.
  static constexpr int kMostTerms = 1024 / static_cast<int>(sizeof(T)) * kTerms, kMostRows = 192, kMostColumns = 1024;
  static_assert(kStrip % kPadding == 0 && kMostTerms % kStrip == 0 && kMostRows % kRowPadding == 0);

  /// Part of a dimension: `count` elements from `begin` on.
  struct Range {
    int64_t begin;
    int count;
    Range(int64_t from, int64_t size, int block)
        : begin(from), count(static_cast<int>(std::min<int64_t>(block, size - from))) {}
  };

  static int rounded_up(int64_t size, int multiple) {
    return static_cast<int>((size + multiple - 1) / multiple * multiple);
  }
  /// The size of equal blocks of at most `most`.
  static int block(int64_t size, int most, int multiple) {
    const int64_t blocks = std::max<int64_t>(1, (size + most - 1) / most);
    return rounded_up((size + blocks - 1) / blocks, multiple);
  }

  Matrix<T> panel(int number) const {
    return {panels_ + static_cast<ptrdiff_t>(number) * kPanel * term_block_ / kTerms, kPanel};
  }

  void place_right(Range terms, Range columns) {
    const int padded_terms = rounded_up(terms.count, kPadding), padded_columns = rounded_up(columns.count, kPanel);
    if (task_.right_transposed) {
      const Rows<T> from = task_.right.from(columns.begin).columns_from(terms.begin);
      for (int row = 0; row < padded_columns; row += kPanel) {
        read_rows<T>(from.from(row), columns.count - row, terms.count, T(1), kPanel, padded_terms, strip_);
        copy_factor<Products, Role::right_transposed, T>(strip_, kPanel, padded_terms, panel(row / kPanel));
      }
      return;
    }
    const Rows<T> from = task_.right.from(terms.begin).columns_from(columns.begin);
    for (int row = 0; row < padded_terms; row += kStrip) {
      const int rows = std::min(kStrip, padded_terms - row);
      read_rows<T>(from.from(row), terms.count - row, columns.count, T(1), rows, padded_columns, strip_);
      for (int column = 0; column < padded_columns; column += kPanel) {
        copy_factor<Products, Role::right, T>({strip_.at(0, column), strip_.stride}, rows, kPanel,
                                              Products::template rows_from<Role::right>(panel(column / kPanel), row));
      }
    }
  }

  /// The next block of the right factor is read while this one is multiplied.
  void expect_right(int64_t column, int64_t term) {
    upcoming_.clear();
    if (column < task_.columns) {
      const Range columns(column, task_.columns, column_block_), terms(term, task_.terms, term_block_);
      const Range &outer = task_.right_transposed ? columns : terms, &inner = task_.right_transposed ? terms : columns;
      upcoming_.add(task_.right.from(outer.begin).columns_from(inner.begin), outer.count, inner.count);
    }
  }

  void place_left(Range rows, Range terms) {
    const Range &outer = kByTerms ? terms : rows, &inner = kByTerms ? rows : terms;
    const int padded_rows = rounded_up(rows.count, kRowPadding), padded_terms = rounded_up(terms.count, kPadding);
    const int padded_outer = kByTerms ? padded_terms : padded_rows,
              padded_inner = kByTerms ? padded_rows : padded_terms;
    const Rows<T> from = task_.left.from(outer.begin).columns_from(inner.begin);
    for (int row = 0; row < padded_outer; row += kStrip) {
      const int count = std::min(kStrip, padded_outer - row);
      read_rows<T>(from.from(row), outer.count - row, inner.count, T(1), count, padded_inner, strip_);
      copy_factor<Products, Left, T>(strip_, count, padded_inner, Products::template rows_from<Left>(left_, row));
    }
  }

  void multiply_blocks(Range rows, Range columns, Range terms) {
    const int padded_terms = rounded_up(terms.count, kPadding);
    const bool adds = task_.accumulate || terms.begin > 0;
    for (int column = 0; column < columns.count; column += kPanel) {
      const Matrix<T> right = panel(column / kPanel);
      for (int row = 0; row < rows.count; row += kTile) {
        T* out = task_.out + (rows.begin + row) * task_.out_stride + columns.begin + column;
        upcoming_.prefetch();
        const int present_rows = std::min(kTile, rows.count - row), present = std::min(kPanel, columns.count - column);
        if (present_rows == kTile && present == kPanel) {
          multiply_tile(right, row, padded_terms, adds, out, task_.out_stride);
          continue;
        }
        T edge[kTile * kPanel];
        for (int i = 0; adds && i < present_rows; ++i) {
          std::copy_n(out + i * task_.out_stride, present, edge + i * kPanel);
        }
        multiply_tile(right, row, padded_terms, adds, edge, kPanel);
        for (int i = 0; i < present_rows; ++i) {
          std::copy_n(edge + i * kPanel, present, out + i * task_.out_stride);
        }
      }
    }
  }

  HYBRIDATTN_INLINE void multiply_tile(Matrix<T> right, int row, int terms, bool adds, T* out, int64_t stride) {
    for (int i = 0; i < kTile; ++i) { // what the sums are added to comes while they are formed
      __builtin_prefetch(out + i * stride, 1);
      __builtin_prefetch(out + i * stride + kPanel - 1, 1);
    }
    Tile<T, 2, kTile> tile;
    tile.zero();
    if constexpr (kByTerms) {
      Products::add_transposed(tile, left_, right, row, 0, 0, terms);
    } else {
      Products::add(tile, left_, right, row, 0, 0, terms);
    }
    tile.each([&](int i, int j, Vector<T> x) HYBRIDATTN_INLINE_LAMBDA {
      T* to = out + i * stride + j;
      store<T>(to, adds ? load<T>(to) + x : x);
    });
  }

  const ProductTask<T>& task_;
  const int row_block_, column_block_, term_block_;
  T* panels_;
  Matrix<T> left_, strip_;
  UpcomingRows<T> upcoming_;
};

template <class T, class Products = Exact>
inline void multiply(const ProductTask<T>& task) {
  [[maybe_unused]] const typename Products::Scope scope;
  if (task.left_transposed) {
    BlockedProduct<T, Products, Role::left_transposed>(task).run();
  } else {
    BlockedProduct<T, Products, Role::left>(task).run();
  }
}
