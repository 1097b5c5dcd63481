// Rotary embedding, one pass (rotary_task.h). Rounds as the composition of ATen ops does, so that both give the same
// bits. Included inside a set's namespace and target region.

/// x, computed by itself: no compiler joins its multiplication and an addition that follows.
template <class T>
HYBRIDATTN_INLINE Vector<T> by_itself(Vector<T> x) {
#if defined(__x86_64__)
  asm("" : "+x"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#endif
  return x;
}

/// To the nearest bf16, ties to even; NaN stays NaN.
template <class T>
HYBRIDATTN_INLINE Vector<T> rounded_to_bfloat16(Vector<T> x) {
  if constexpr (sizeof(T) == 4) {
    Integers<T> bits;
    __builtin_memcpy(&bits, &x, sizeof(bits));
    const Integers<T> rounded = (bits + 0x7fff + ((bits >> 16) & 1)) & static_cast<int32_t>(0xffff0000);
    Vector<T> result;
    __builtin_memcpy(&result, &rounded, sizeof(result));
    return x == x ? result : x;
  }
  return x;
}

template <class T>
inline void rotate(const RotaryTask<T>& task) {
  const int half = task.half, padded_half = padded<T>(half), rest = task.size - 2 * half;
  T *x[2], *y[2], *cos[2], *sin[2], *copied;
  Arena::of_this_thread().lay_out([&](auto& memory) {
    for (auto* halves : {&x, &y, &cos, &sin}) {
      for (T*& row : *halves) {
        row = memory.template take<T>(static_cast<size_t>(padded_half));
      }
    }
    copied = memory.template take<T>(static_cast<size_t>(rest));
  });
  for (auto* halves : {&x, &cos, &sin}) {
    for (T* row : *halves) {
      __builtin_memset(row, 0, sizeof(T) * padded_half);
    }
  }
  // Where the other half's sine stands, and with which sign.
  const int first = task.transposed ? 1 : 0, second = 1 - first;
  const Vector<T> sign = broadcast<T>(task.transposed ? T(1) : T(-1));
  const auto product = [&](Vector<T> a, Vector<T> b) HYBRIDATTN_INLINE_LAMBDA {
    const Vector<T> c = by_itself<T>(a * b);
    return task.narrow_steps ? rounded_to_bfloat16<T>(c) : c;
  };
  for (int64_t token = 0; token < task.tokens; ++token) {
    for (int i = 0; i < 2; ++i) {
      read_row<T>(task.cos.from(token).columns_from(i * half), half, T(1), cos[i]);
      read_row<T>(task.sin.from(token).columns_from(i * half), half, T(1), sin[i]);
    }
    Rows<T> from = task.x.from(token), to = task.out.from(token);
    from.stride = task.x_head_stride;
    to.stride = task.out_head_stride;
    for (int head = 0; head < task.heads; ++head) {
      const Rows<T> head_from = from.from(head), head_to = to.from(head);
      for (int i = 0; i < 2; ++i) {
        read_row<T>(head_from.columns_from(i * half), half, T(1), x[i]);
      }
      for (int column = 0; column < padded_half; column += Lanes<T>::count) {
        const auto at = [&](const T* row) HYBRIDATTN_INLINE_LAMBDA { return load<T>(row + column); };
        const Vector<T> x1 = at(x[0]), x2 = at(x[1]);
        store<T>(y[0] + column, product(x1, at(cos[0])) + product(sign * x2, at(sin[first])));
        store<T>(y[1] + column, product(x2, at(cos[1])) - product(sign * x1, at(sin[second])));
      }
      for (int i = 0; i < 2; ++i) {
        write_row<T>(y[i], half, head_to.columns_from(i * half));
      }
      if (rest > 0) {
        read_row<T>(head_from.columns_from(2 * half), rest, T(1), copied);
        write_row<T>(copied, rest, head_to.columns_from(2 * half));
      }
    }
  }
}
