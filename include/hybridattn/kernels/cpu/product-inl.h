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
    for (Block at, next; at.column < task_.columns && at.row < task_.rows; at = next) {
      next = after(at);
      if (at.row == 0) {
        place_right(at);
        right_to_come_.clear();
        expect(right_to_come_, right_source(after({at.column, at.term, task_.rows})));
      }
      place_left(at);
      left_to_come_.clear();
      expect(left_to_come_, left_source(next));
      multiply_block(at);
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
  static_assert(kStrip % kPadding == 0 && kMostTerms % kStrip == 0 && kMostRows % kRowPadding == 0 && kPanel <= kStrip);

  /// Part of a dimension: `count` elements from `begin` on.
  struct Range {
    int64_t begin;
    int count;
    Range(int64_t from, int64_t size, int block)
        : begin(from), count(static_cast<int>(std::clamp<int64_t>(size - from, 0, block))) {}
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

  /// Where a block of the product and of its terms begins. Blocks of rows come first: they share one of the right
  /// factor.
  struct Block {
    int64_t column = 0, term = 0, row = 0;
  };
  Block after(Block at) const {
    at.row += row_block_;
    if (at.row >= task_.rows) {
      at.row = 0;
      at.term += term_block_;
    }
    if (at.row == 0 && at.term >= task_.terms) {
      at.term = 0;
      at.column += column_block_;
    }
    return at;
  }
  Range rows(Block at) const { return {at.row, task_.rows, row_block_}; }
  Range columns(Block at) const { return {at.column, task_.columns, column_block_}; }
  Range terms(Block at) const { return {at.term, task_.terms, term_block_}; }

  /// Rows of memory that a block of a factor is made of.
  struct Source {
    Rows<T> from;
    int rows, columns;
    Source(Rows<T> matrix, Range outer, Range inner)
        : from(matrix.from(outer.begin).columns_from(inner.begin)), rows(outer.count), columns(inner.count) {}
  };
  Source left_source(Block at) const {
    return kByTerms ? Source(task_.left, terms(at), rows(at)) : Source(task_.left, rows(at), terms(at));
  }
  Source right_source(Block at) const {
    return task_.right_transposed ? Source(task_.right, columns(at), terms(at))
                                  : Source(task_.right, terms(at), columns(at));
  }

  void place_right(Block at) {
    const Source source = right_source(at);
    const int padded_terms = rounded_up(terms(at).count, kPadding);
    if (task_.right_transposed) {
      for (int row = 0; row < source.rows; row += kPanel) {
        read_rows<T>(source.from.from(row), source.rows - row, source.columns, T(1), kPanel, padded_terms, strip_);
        copy_factor<Products, Role::right_transposed, T>(strip_, kPanel, padded_terms, panel(row / kPanel));
      }
      return;
    }
    const int padded_columns = rounded_up(source.columns, kPanel);
    for (int row = 0; row < padded_terms; row += kStrip) {
      const int count = std::min(kStrip, padded_terms - row);
      read_rows<T>(source.from.from(row), source.rows - row, source.columns, T(1), count, padded_columns, strip_);
      for (int column = 0; column < padded_columns; column += kPanel) {
        copy_factor<Products, Role::right, T>({strip_.at(0, column), strip_.stride}, count, kPanel,
                                              Products::template rows_from<Role::right>(panel(column / kPanel), row));
      }
    }
  }

  void place_left(Block at) {
    const Source source = left_source(at);
    const int padded_rows = rounded_up(rows(at).count, kRowPadding),
              padded_terms = rounded_up(terms(at).count, kPadding);
    const int padded_outer = kByTerms ? padded_terms : padded_rows,
              padded_inner = kByTerms ? padded_rows : padded_terms;
    for (int row = 0; row < padded_outer; row += kStrip) {
      const int count = std::min(kStrip, padded_outer - row);
      read_rows<T>(source.from.from(row), source.rows - row, source.columns, T(1), count, padded_inner, strip_);
      copy_factor<Products, Left, T>(strip_, count, padded_inner, Products::template rows_from<Left>(left_, row));
    }
  }

  /// Blocks to come are read from memory while this one is multiplied.
  static void expect(UpcomingRows<T>& to_come, const Source& source) {
    if (source.rows > 0 && source.columns > 0) {
      to_come.add(source.from, source.rows, source.columns);
    }
  }

  void multiply_block(Block at) {
    const Range rows = this->rows(at), columns = this->columns(at);
    const int padded_terms = rounded_up(terms(at).count, kPadding);
    const bool adds = task_.accumulate || at.term > 0;
    for (int column = 0; column < columns.count; column += kPanel) {
      const Matrix<T> right = panel(column / kPanel);
      for (int row = 0; row < rows.count; row += kTile) {
        left_to_come_.prefetch();
        right_to_come_.prefetch();
        T* out = task_.out + (rows.begin + row) * task_.out_stride + columns.begin + column;
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
  UpcomingRows<T> left_to_come_, right_to_come_;
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
