// Softmax attention by blocks of queries and keys, never with all scores in memory (Dao, "FlashAttention-2", arXiv
// 2307.08691). Scores are transposed, [keys, queries]: a vector holds queries, so maxima, sums and exponentials of all
// of them are formed lane by lane. Included inside a set's namespace and target region.

/// A block of queries against a block of keys.
template <class T, class Products>
struct AttentionBlock {
  static constexpr T kHidden = -std::numeric_limits<T>::infinity();
  static constexpr int kPadding = Products::template kPadding<T>;
  static_assert(kAttentionBlock % kPadding == 0 && kAttentionColumns % kPadding == 0);

  const AttentionInputs<T>& in;
  int64_t query = 0, key = 0; // first of each
  int present_queries = 0, present_keys = 0;
  int queries = 0, keys = 0, key_dim, value_dim;            // padded
  Matrix<T> q, k, v;                                        // scale Q, K, V
  Factor<T, Products, Role::right_transposed> q_transposed; // of products over channels
  Factor<T, Products, Role::left> k_rows;
  UpcomingRows<T> upcoming; // keys and values of the next block

  explicit AttentionBlock(const AttentionInputs<T>& inputs)
      : in(inputs), key_dim(padded<T, Products>(in.key_dim)), value_dim(padded<T, Products>(in.value_dim)) {}

  static int most(int64_t size) { return padded<T, Products>(std::min<int64_t>(size, kAttentionBlock)); }
  int most_queries() const { return most(in.queries); }
  int most_keys() const { return most(in.keys); }

  template <class Memory>
  void take(Memory& memory) {
    q = matrix<T>(memory, most_queries(), key_dim);
    k = matrix<T>(memory, most_keys(), key_dim);
    v = matrix<T>(memory, most_keys(), value_dim);
    q_transposed.take(memory, most_queries(), key_dim);
    k_rows.take(memory, most_keys(), key_dim);
  }

  void set_queries(int64_t first) {
    query = first;
    present_queries = static_cast<int>(std::min<int64_t>(kAttentionBlock, in.queries - first));
    queries = padded<T, Products>(present_queries);
    read_rows<T>(in.q.from(first), present_queries, in.key_dim, in.scale, queries, key_dim, q);
    q_transposed.set(q, queries, key_dim);
  }
  void set_keys(int64_t first, int64_t end) {
    key = first;
    present_keys = static_cast<int>(std::min<int64_t>(kAttentionBlock, end - first));
    keys = padded<T, Products>(present_keys);
    read_rows<T>(in.k.from(first), present_keys, in.key_dim, T(1), keys, key_dim, k);
    read_rows<T>(in.v.from(first), present_keys, in.value_dim, T(1), keys, value_dim, v);
    k_rows.set(k, keys, key_dim);
  }

  void expect_keys(int64_t first, int64_t end) {
    upcoming.clear();
    if (const int64_t count = std::min<int64_t>(kAttentionBlock, end - first); count > 0) {
      upcoming.add(in.k.from(first), count, in.key_dim);
      upcoming.add(in.v.from(first), count, in.value_dim);
    }
  }

  int64_t first_position() const { return in.position(query); }
  int64_t last_position() const { return in.position(query + present_queries - 1); }

  /// f() for each block of keys in [begin, end) of which one of these queries may see a key. A block starts at the same
  /// keys for all queries.
  template <class F>
  void each_keys(int64_t begin, int64_t end, F&& f) {
    const auto each = [&](int64_t from, int64_t to) {
      for (int64_t at = from; at < to; at += kAttentionBlock) {
        set_keys(at, to);
        expect_keys(at + kAttentionBlock, to);
        f();
      }
    };
    const int64_t last = in.causal ? std::min(end, last_position() + 1) : end;
    if (in.window == 0) {
      each(begin, last);
      return;
    }
    const int64_t first_seen = std::max<int64_t>(0, first_position() - in.window + 1);
    const int64_t near = std::max(begin, first_seen / kAttentionBlock * kAttentionBlock);
    each(begin, std::min({in.sink_end, near, last}));
    each(near, last);
  }

  /// Keys of the block, from its first, beyond which queries up to `column` (exclusive) see none.
  int keys_seen_until(int column) const {
    const int64_t last = in.position(query + std::min(column, present_queries) - 1);
    return in.causal ? static_cast<int>(std::clamp<int64_t>(last - key + 1, 0, keys)) : keys;
  }
  /// The first query of the block that sees key `row` or a later one.
  int first_query_that_sees(int row) const {
    if (!in.causal || in.position_step == 0) {
      return 0;
    }
    return static_cast<int>(std::clamp<int64_t>(key + row - first_position(), 0, queries));
  }

  bool all_visible() const {
    const bool past = !in.causal || key + present_keys - 1 <= first_position();
    const bool near = in.window == 0 || key + present_keys <= in.sink_end || key > last_position() - in.window;
    return past && near && in.tokens == nullptr && present_keys == keys;
  }

  /// x of key `row` and the queries from `column` on, hidden where they do not see it.
  HYBRIDATTN_INLINE Vector<T> masked(int row, int column, Vector<T> x) const {
    using Integer = typename Lanes<T>::Integer;
    if (row >= present_keys) {
      return broadcast<T>(kHidden);
    }
    // Of each query: its position, counted from the key.
    const Integers<T> ahead = lane_numbers<T>() * static_cast<Integer>(in.position_step) +
                              static_cast<Integer>(in.position(query + column) - (key + row));
    if (in.tokens != nullptr && !in.tokens[key + row]) {
      return ahead == 0 ? x : broadcast<T>(kHidden);
    }
    if (in.causal) {
      x = ahead >= 0 ? x : broadcast<T>(kHidden);
    }
    if (in.window > 0 && key + row >= in.sink_end) {
      x = ahead < static_cast<Integer>(in.window) ? x : broadcast<T>(kHidden);
    }
    return x;
  }

  /// f(tile, row, column, some visible) for all scores of keys from `row` and queries from `column` on, those that are
  /// hidden -infinity. Tiles of which no query sees a key are not computed.
  template <class F>
  HYBRIDATTN_INLINE void each_scores(F&& f) {
    const bool masks = !all_visible();
    // The fewer queries, the fewer tiles in which to ask for the next keys.
    const int prefetches = std::max(1, kAttentionBlock / 2 / queries);
    for_tiles<T, Products>(keys, queries, [&](auto& tile, int row, int column) HYBRIDATTN_INLINE_LAMBDA {
      for (int n = 0; n < prefetches; ++n) {
        upcoming.prefetch();
      }
      const bool visible = row < keys_seen_until(column + tile.kColumns);
      tile.zero();
      if (visible) {
        tile.template add<Products>(k_rows, q_transposed, row, column, 0, key_dim);
      }
      if (masks) {
        tile.each([&](int i, int j, Vector<T>& c) HYBRIDATTN_INLINE_LAMBDA { c = masked(row + i, column + j, c); });
      }
      f(tile, row, column, visible);
    });
  }
};

template <class T, class Products = Exact>
inline void attention_forward(const AttentionTask<T>& task) {
  if (AttentionStep<T>::computes(task)) {
    AttentionStep<T>(task).run();
    return;
  }
  [[maybe_unused]] const typename Products::Scope scope;
  constexpr int kLanes = Lanes<T>::count;
  using Block = AttentionBlock<T, Products>;
  Block block(task);
  Matrix<T> weights, out;
  T *highest, *block_highest, *total, *fading;
  Factor<T, Products, Role::left_transposed> weight_columns;
  Factor<T, Products, Role::right> v_rows;
  Arena::of_this_thread().lay_out([&](auto& memory) {
    block.take(memory);
    weights = matrix<T>(memory, block.most_keys(), block.most_queries());
    out = matrix<T>(memory, block.most_queries(), block.value_dim);
    weight_columns.take(memory, block.most_keys(), block.most_queries());
    v_rows.take(memory, block.most_keys(), block.value_dim);
    for (T** array : {&highest, &block_highest, &total, &fading}) {
      *array = memory.template take<T>(block.most_queries());
    }
  });
  for (int64_t first = 0; first < task.queries; first += kAttentionBlock) {
    block.set_queries(first);
    const int queries = block.queries;
    std::fill_n(highest, queries, std::numeric_limits<T>::lowest()); // a query may see no key of a block
    std::fill_n(total, queries, T(0));
    for (int row = 0; row < queries; ++row) {
      std::fill_n(out.at(row, 0), block.value_dim, T(0));
    }
    block.each_keys(0, task.keys, [&]() {
      std::copy_n(highest, queries, block_highest);
      block.each_scores([&](auto& tile, int row, int column, bool) HYBRIDATTN_INLINE_LAMBDA {
        Vector<T> most[tile.kVectors];
        for (int j = 0; j < tile.kVectors; ++j) {
          most[j] = load<T>(block_highest + column + j * kLanes);
        }
        tile.each([&](int i, int j, Vector<T> c) HYBRIDATTN_INLINE_LAMBDA {
          most[j / kLanes] = c > most[j / kLanes] ? c : most[j / kLanes];
          store<T>(weights.at(row + i, column + j), c);
        });
        for (int j = 0; j < tile.kVectors; ++j) {
          store<T>(block_highest + column + j * kLanes, most[j]);
        }
      });
      for (int column = 0; column < queries; column += kLanes) {
        const Vector<T> most = load<T>(block_highest + column);
        const Vector<T> fade = exp_of_nonpositive<T>(load<T>(highest + column) - most);
        Vector<T> sums = load<T>(total + column) * fade;
        const int seen = block.keys_seen_until(column + kLanes);
        for (int row = 0; row < seen; ++row) {
          const Vector<T> weight = exp_of_nonpositive<T>(load<T>(weights.at(row, column)) - most);
          store<T>(weights.at(row, column), weight);
          sums += weight;
        }
        for (int row = seen; row < block.keys; ++row) {
          store<T>(weights.at(row, column), Vector<T>{});
        }
        store<T>(total + column, sums);
        store<T>(fading + column, fade);
        store<T>(highest + column, most);
      }
      weight_columns.set(weights, block.keys, queries);
      v_rows.set(block.v, block.keys, block.value_dim);
      for_tiles<T, Products>(queries, block.value_dim, [&](auto& tile, int row, int column) HYBRIDATTN_INLINE_LAMBDA {
        if (row >= block.present_queries) {
          return;
        }
        tile.fill([&](int i, int j)
                      HYBRIDATTN_INLINE_LAMBDA { return load<T>(out.at(row + i, column + j)) * fading[row + i]; });
        tile.template add_transposed<Products>(weight_columns, v_rows, row, column, 0,
                                               padded<T, Products>(block.keys_seen_until(row + tile.kRows)));
        tile.store_to(out, row, column);
      });
    });
    for (int row = 0; row < block.present_queries; ++row) {
      const Vector<T> inverse = broadcast<T>(1 / total[row]);
      for (int column = 0; column < block.value_dim; column += kLanes) {
        store<T>(out.at(row, column), load<T>(out.at(row, column)) * inverse);
      }
      task.log_sum[first + row] = highest[row] + std::log(total[row]);
    }
    write_rows<T>(out, block.present_queries, task.value_dim, task.out.from(first));
  }
}

/// What backward of a block of queries against blocks of keys needs.
template <class T, class Products>
struct AttentionBackwardBlock : AttentionBlock<T, Products> {
  using Base = AttentionBlock<T, Products>;
  const AttentionBackwardTask<T>& task;
  Matrix<T> weights, grad_scores; // [keys, queries]: P^T and the gradient of the scores
  Matrix<T> out, grad_out, grad_q;
  T *delta, *log_sum; // of each query: out . grad_out
  Factor<T, Products, Role::right_transposed> grad_out_transposed;
  Factor<T, Products, Role::right> grad_out_rows, q_rows, k_right;
  Factor<T, Products, Role::left> v_left, weight_rows, grad_score_rows;
  Factor<T, Products, Role::left_transposed> grad_score_columns;

  explicit AttentionBackwardBlock(const AttentionBackwardTask<T>& given) : Base(given), task(given) {
    Arena::of_this_thread().lay_out([&](auto& memory) {
      const int queries = this->most_queries(), keys = this->most_keys();
      this->take(memory);
      weights = matrix<T>(memory, keys, queries);
      grad_scores = matrix<T>(memory, keys, queries);
      out = matrix<T>(memory, queries, this->value_dim);
      grad_out = matrix<T>(memory, queries, this->value_dim);
      grad_q = matrix<T>(memory, queries, this->key_dim);
      delta = memory.template take<T>(queries);
      log_sum = memory.template take<T>(queries);
      grad_out_transposed.take(memory, queries, this->value_dim);
      grad_out_rows.take(memory, queries, this->value_dim);
      q_rows.take(memory, queries, this->key_dim);
      k_right.take(memory, keys, this->key_dim);
      v_left.take(memory, keys, this->value_dim);
      weight_rows.take(memory, keys, queries);
      grad_score_rows.take(memory, keys, queries);
      grad_score_columns.take(memory, keys, queries);
    });
  }

  void run() {
    for (int64_t first = 0; first < task.queries; first += kAttentionBlock) {
      start(first);
      this->each_keys(task.first_key, task.end_key, [&]() {
        form_weights();
        if (task.grad_v != nullptr) {
          weight_rows.set(weights, this->keys, this->queries);
          add_products(task.grad_v, task.grad_v_stride, weight_rows, grad_out_rows, this->value_dim);
          grad_score_rows.set(grad_scores, this->keys, this->queries);
          add_products(task.grad_k, task.grad_k_stride, grad_score_rows, q_rows, this->key_dim);
        }
        if (task.grad_q.data != nullptr) {
          add_to_grad_q();
        }
      });
      if (task.grad_q.data != nullptr) {
        finish(first);
      }
    }
  }

private:
  static constexpr int kLanes = Lanes<T>::count;

  void start(int64_t first) {
    this->set_queries(first);
    const int queries = this->queries, present = this->present_queries, values = this->value_dim;
    read_rows<T>(task.out.from(first), present, task.value_dim, T(1), queries, values, out);
    read_rows<T>(task.grad_out.from(first), present, task.value_dim, T(1), queries, values, grad_out);
    for (int row = 0; row < queries; ++row) {
      Vector<T> products{};
      for (int column = 0; column < values; column += kLanes) {
        products = fma(load<T>(out.at(row, column)), load<T>(grad_out.at(row, column)), products);
      }
      delta[row] = sum<T>(products);
      log_sum[row] = row < present ? task.log_sum[first + row] : T(0);
      std::fill_n(grad_q.at(row, 0), this->key_dim, T(0));
    }
    grad_out_transposed.set(grad_out, queries, values);
    grad_out_rows.set(grad_out, queries, values);
    q_rows.set(this->q, queries, this->key_dim);
  }

  /// P = exp(scores - log sum), and the gradient of the scores P (grad_out V^T - delta).
  void form_weights() {
    v_left.set(this->v, this->keys, this->value_dim);
    this->each_scores([&](auto& tile, int row, int column, bool visible) HYBRIDATTN_INLINE_LAMBDA {
      if (!visible) {
        tile.zero();
        tile.store_to(weights, row, column);
        tile.store_to(grad_scores, row, column);
        return;
      }
      tile.each([&](int i, int j, Vector<T> c) HYBRIDATTN_INLINE_LAMBDA {
        store<T>(weights.at(row + i, column + j), exp_of_nonpositive<T>(c - load<T>(log_sum + column + j)));
      });
      tile.zero();
      tile.template add<Products>(v_left, grad_out_transposed, row, column, 0, this->value_dim);
      tile.each([&](int i, int j, Vector<T> c) HYBRIDATTN_INLINE_LAMBDA {
        const Vector<T> difference = c - load<T>(delta + column + j);
        store<T>(grad_scores.at(row + i, column + j), load<T>(weights.at(row + i, column + j)) * difference);
      });
    });
  }

  /// to [keys, columns] += left [keys, queries] right [queries, columns]
  template <class Left, class Right>
  void add_products(T* to, int64_t stride, const Left& left, const Right& right, int columns) {
    for_tiles<T, Products>(this->keys, columns, [&](auto& tile, int row, int column) HYBRIDATTN_INLINE_LAMBDA {
      T* first = to + (this->key + row) * stride + column;
      const int begin = this->first_query_that_sees(row) / Base::kPadding * Base::kPadding,
                rows = this->present_keys - row;
      if (begin >= this->queries || rows <= 0) {
        return;
      }
      tile.fill([&](int i, int j)
                    HYBRIDATTN_INLINE_LAMBDA { return i < rows ? load<T>(first + i * stride + j) : Vector<T>{}; });
      tile.template add<Products>(left, right, row, column, begin, this->queries);
      tile.each([&](int i, int j, Vector<T> c) HYBRIDATTN_INLINE_LAMBDA {
        if (i < rows) {
          store<T>(first + i * stride + j, c);
        }
      });
    });
  }

  void add_to_grad_q() {
    grad_score_columns.set(grad_scores, this->keys, this->queries);
    k_right.set(this->k, this->keys, this->key_dim);
    for_tiles<T, Products>(this->queries, this->key_dim, [&](auto& tile, int row, int column) HYBRIDATTN_INLINE_LAMBDA {
      tile.fill([&](int i, int j) HYBRIDATTN_INLINE_LAMBDA { return load<T>(grad_q.at(row + i, column + j)); });
      tile.template add_transposed<Products>(grad_score_columns, k_right, row, column, 0,
                                             padded<T, Products>(this->keys_seen_until(row + tile.kRows)));
      tile.store_to(grad_q, row, column);
    });
  }

  void finish(int64_t first) {
    for (int row = 0; row < this->present_queries; ++row) {
      for (int column = 0; column < this->key_dim; column += kLanes) {
        store<T>(grad_q.at(row, column), load<T>(grad_q.at(row, column)) * task.scale);
      }
    }
    write_rows<T>(grad_q, this->present_queries, task.key_dim, task.grad_q.from(first));
  }
};

template <class T, class Products = Exact>
inline void attention_backward(const AttentionBackwardTask<T>& task) {
  [[maybe_unused]] const typename Products::Scope scope;
  AttentionBackwardBlock<T, Products>(task).run();
}
