// Softmax attention of queries that stand at one position: decoding. Keys and values are read once, where they lie, and
// the next ones asked for meanwhile. Included inside a set's namespace and target region.

template <class T>
class AttentionStep {
public:
  /// Rows that fill whole vectors, few queries: more of them are worth a block of their own.
  static bool computes(const AttentionTask<T>& task) {
    return (task.queries == 1 || task.position_step == 0) && task.queries <= kLanes && task.k.step == 1 &&
           task.v.step == 1 && task.key_dim % kLanes == 0 && task.value_dim % kLanes == 0;
  }

  explicit AttentionStep(const AttentionTask<T>& given) : task_(given), queries_(static_cast<int>(given.queries)) {
    Arena::of_this_thread().lay_out([&](auto& memory) {
      q_ = matrix<T>(memory, queries_, task_.key_dim);
      weights_ = matrix<T>(memory, queries_, kKeys);
      out_ = matrix<T>(memory, queries_, task_.value_dim);
    });
  }

  void run() {
    read_rows<T>(task_.q, queries_, task_.key_dim, task_.scale, queries_, task_.key_dim, q_);
    for (int query = 0; query < queries_; ++query) {
      std::fill_n(out_.at(query, 0), task_.value_dim, T(0));
      highest_[query] = std::numeric_limits<T>::lowest(); // all keys of a block may be padding
      total_[query] = 0;
    }
    const int64_t position = task_.first_position, last = task_.causal ? position + 1 : task_.keys;
    const int64_t near = task_.window > 0 ? std::max<int64_t>(0, position - task_.window + 1) : 0;
    each_block(0, std::min(task_.sink_end, near));
    each_block(near, last);
    for (int query = 0; query < queries_; ++query) {
      const Vector<T> inverse = broadcast<T>(1 / total_[query]);
      for (int column = 0; column < task_.value_dim; column += kLanes) {
        store<T>(out_.at(query, column), load<T>(out_.at(query, column)) * inverse);
      }
      task_.log_sum[query] = highest_[query] + std::log(total_[query]);
    }
    write_rows<T>(out_, queries_, task_.value_dim, task_.out);
  }

private:
  static constexpr int kLanes = Lanes<T>::count, kKeys = 64, kMost = std::min(4, kLanes); // kMost: queries at once

  void each_block(int64_t begin, int64_t end) {
    for (int64_t key = begin; key < end; key += kKeys) {
      const int count = static_cast<int>(std::min<int64_t>(kKeys, end - key));
      upcoming_.clear();
      if (const int64_t next = std::min<int64_t>(kKeys, end - key - kKeys); next > 0) {
        upcoming_.add(task_.k.from(key + kKeys), next, task_.key_dim);
        upcoming_.add(task_.v.from(key + kKeys), next, task_.value_dim);
      }
      int query = 0;
      for (; query + kMost <= queries_; query += kMost) {
        block<kMost>(key, count, query);
      }
      for (; query + 2 <= queries_; query += 2) {
        block<2>(key, count, query);
      }
      for (; query < queries_; ++query) {
        block<1>(key, count, query);
      }
    }
  }

  /// Some queries, from `query` on, against some keys.
  template <int Queries>
  void block(int64_t key, int count, int query) {
    with_element_type(task_.k, [&]<class E>(E) HYBRIDATTN_INLINE_LAMBDA { attend<Queries, E>(key, count, query); });
  }

  template <int Queries, class E>
  void attend(int64_t key, int count, int query) {
    form_scores<Queries, E>(key, count, query);
    T fading[Queries];
    for (int j = 0; j < Queries; ++j) {
      fading[j] = form_weights(key, count, query + j);
    }
    int column = 0;
    for (constexpr int kWide = 2 * kTileRows / Queries; column + kWide * kLanes <= task_.value_dim;
         column += kWide * kLanes) {
      add_values<Queries, kWide, E>(key, count, query, column, fading);
    }
    for (; column < task_.value_dim; column += kLanes) {
      add_values<Queries, 1, E>(key, count, query, column, fading);
    }
  }

  template <class E>
  static HYBRIDATTN_INLINE Vector<T> vector_of(const Rows<T>& rows, int64_t row, int column) {
    return load_as<T>(static_cast<const E*>(rows.data) + row * rows.stride + column);
  }

  /// A vector of sums holds those of some keys for one query after those for another.
  template <int Queries, class E>
  void form_scores(int64_t key, int count, int query) {
    constexpr int kAtOnce = kLanes / Queries; // keys
    for (int first = 0; first < count; first += kAtOnce) {
      for (int n = 0; n < 4; ++n) {
        upcoming_.prefetch();
      }
      Vector<T> sums[kLanes] = {};
      for (int column = 0; column < task_.key_dim; column += kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kAtOnce; ++i) {
          const int row = first + i < count ? first + i : count - 1;
          const Vector<T> values = vector_of<E>(task_.k, key + row, column);
#pragma GCC unroll 4
          for (int j = 0; j < Queries; ++j) {
            sums[j * kAtOnce + i] = fma(load<T>(q_.at(query + j, column)), values, sums[j * kAtOnce + i]);
          }
        }
      }
      transpose_lanes<T>(sums);
      Vector<T> scores = sums[0];
#pragma GCC unroll 16
      for (int i = 1; i < kLanes; ++i) {
        scores += sums[i];
      }
      T apart[kLanes];
      store<T>(apart, scores);
      for (int j = 0; j < Queries; ++j) {
        std::copy_n(apart + j * kAtOnce, kAtOnce, weights_.at(query + j, first));
      }
    }
  }

  /// Scores of a query become exp(score - highest so far). @returns what earlier sums are multiplied by
  T form_weights(int64_t key, int count, int query) {
    constexpr T kHidden = -std::numeric_limits<T>::infinity();
    T* weights = weights_.at(query, 0);
    for (int i = 0; task_.tokens != nullptr && i < count; ++i) {
      weights[i] = task_.tokens[key + i] || key + i == task_.first_position ? weights[i] : kHidden;
    }
    const int padded_count = (count + kLanes - 1) / kLanes * kLanes;
    std::fill(weights + count, weights + padded_count, kHidden);
    Vector<T> most = broadcast<T>(highest_[query]);
    for (int i = 0; i < padded_count; i += kLanes) {
      const Vector<T> scores = load<T>(weights + i);
      most = scores > most ? scores : most;
    }
    T highest = highest_[query];
    for (int lane = 0; lane < kLanes; ++lane) {
      highest = std::max<T>(highest, most[lane]);
    }
    Vector<T> sums{};
    for (int i = 0; i < padded_count; i += kLanes) {
      const Vector<T> part = exp_of_nonpositive<T>(load<T>(weights + i) - highest);
      store<T>(weights + i, part);
      sums += part;
    }
    const T fading = exp_of_nonpositive<T>(broadcast<T>(highest_[query] - highest))[0];
    total_[query] = total_[query] * fading + sum<T>(sums);
    highest_[query] = highest;
    return fading;
  }

  /// Columns of out = fading out + weights V
  template <int Queries, int Vectors, class E>
  void add_values(int64_t key, int count, int query, int column, const T* fading) {
    Tile<T, Vectors, Queries> tile;
    tile.fill([&](int j, int c)
                  HYBRIDATTN_INLINE_LAMBDA { return load<T>(out_.at(query + j, column + c)) * fading[j]; });
    for (int i = 0; i < count; ++i) {
      Vector<T> values[Vectors];
#pragma GCC unroll 16
      for (int c = 0; c < Vectors; ++c) {
        values[c] = vector_of<E>(task_.v, key + i, column + c * kLanes);
      }
      tile.each([&](int j, int c, Vector<T>& x) HYBRIDATTN_INLINE_LAMBDA {
        x = fma(broadcast<T>(*weights_.at(query + j, i)), values[c / kLanes], x);
      });
    }
    tile.store_to(out_, query, column);
  }

  const AttentionTask<T>& task_;
  const int queries_;
  Matrix<T> q_, weights_, out_; // [queries, K], [queries, kKeys], [queries, V]
  T highest_[kLanes], total_[kLanes];
  UpcomingRows<T> upcoming_;
};
