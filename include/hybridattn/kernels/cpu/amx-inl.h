// Products of bf16 numbers in the tile registers of AMX, sums in fp32. Included inside the namespace and target region
// of AVX512-BF16, which forms the factors; the tile instructions themselves are assembly.

/// Products for the chunked form. A register holds 16 rows of 64 bytes: 16 x 16 sums, 16 rows of 32 terms of a left
/// factor, or 32 terms of 16 columns of a right one, two neighbours of a column side by side.
struct Amx {
  static constexpr int kRows = 16, kLargeRows = kRows, kTerms = Pairs::kTerms, kTermsOfTile = 32;
  template <class T>
  static constexpr int kPadding = kTermsOfTile;

  /// The shapes of the tile registers, for as long as a kernel runs.
  struct Scope {
    Scope() {
      struct alignas(64) {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t bytes_per_row[16] = {};
        uint8_t rows[16] = {};
      } shapes;
      for (int tile = 0; tile < 5; ++tile) {
        shapes.bytes_per_row[tile] = 64;
        shapes.rows[tile] = kRows;
      }
      __asm__ volatile("ldtilecfg %0" : : "m"(shapes));
    }
    ~Scope() { __asm__ volatile("tilerelease" : : : "memory"); }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
  };

  template <Role R, class T, class Memory>
  static Matrix<T> take(Memory& memory, int rows, int columns) {
    return R == Role::left_transposed ? matrix<T>(memory, columns, rows / kTerms)
                                      : Pairs::take<R, T>(memory, rows, columns);
  }
  /// As pairs; a transposed left factor is laid out by its own rows.
  template <Role R, class T>
  static Matrix<T> factor(Matrix<T> x, int rows, int columns, Matrix<T> to) {
    if constexpr (R == Role::left_transposed) {
      transpose_blocks<T>(rows / kTerms, columns, to, [&](int pair, int column) HYBRIDATTN_INLINE_LAMBDA {
        return Pairs::pairs_of_rows<T>(x.at(pair * kTerms, column), x.stride);
      });
      return to;
    } else {
      return Pairs::factor<R, T>(x, rows, columns, to);
    }
  }

  template <Role R, class T>
  static Matrix<T> rows_from(Matrix<T> factor, int row) {
    return R == Role::left_transposed ? Matrix<T>{factor.at(0, row / kTerms), factor.stride}
                                      : Pairs::rows_from<R>(factor, row);
  }

  /// Terms from `begin` rounded down to `end` rounded up to whole registers: those besides are 0.
  template <class Tile, class T>
  static HYBRIDATTN_INLINE void add(Tile& tile, Matrix<T> a, Matrix<T> b, int row, int column, int begin, int end) {
    static_assert(Tile::kRows == kRows && Tile::kVectors == 2 && sizeof(T) == sizeof(float));
    constexpr int kPairs = kTermsOfTile / kTerms;
    load<0>(&tile.c[0][0], sizeof(tile.c[0]));
    load<1>(&tile.c[0][1], sizeof(tile.c[0]));
    const int first = begin / kTermsOfTile * kPairs, last = (end + kTermsOfTile - 1) / kTermsOfTile * kPairs;
    for (int pair = first; pair < last; pair += kPairs) {
      load<2>(a.at(row, pair), a.stride * sizeof(T));
      load<3>(b.at(pair, column), b.stride * sizeof(T));
      load<4>(b.at(pair, column + Tile::kLanes), b.stride * sizeof(T));
      __asm__ volatile("tdpbf16ps %tmm3, %tmm2, %tmm0");
      __asm__ volatile("tdpbf16ps %tmm4, %tmm2, %tmm1");
    }
    store<0>(&tile.c[0][0], sizeof(tile.c[0]));
    store<1>(&tile.c[0][1], sizeof(tile.c[0]));
  }
  template <class Tile, class T>
  static HYBRIDATTN_INLINE void add_transposed(Tile& tile, Matrix<T> a, Matrix<T> b, int row, int column, int begin,
                                               int end) {
    add(tile, a, b, row, column, begin, end);
  }

private:
  template <int Register>
  static HYBRIDATTN_INLINE void load(const void* from, size_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(Register) : "memory");
  }
  template <int Register>
  static HYBRIDATTN_INLINE void store(void* to, size_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(Register) : "memory");
  }
};
