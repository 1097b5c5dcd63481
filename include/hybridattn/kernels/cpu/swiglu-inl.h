// The gated unit SiLU(x) y and its gradients, one pass each (swiglu_task.h). Included inside a set's namespace and
// target region.

/// results = f(operands), vector by vector. E: the type of the elements, T or bf16.
template <class T, class E, size_t Operands, size_t Results, class F>
HYBRIDATTN_INLINE void map_elements(int64_t count, const std::array<Rows<T>, Operands>& operands,
                                    const std::array<Rows<T>, Results>& results, F&& f) {
  constexpr int kLanes = Lanes<T>::count;
  const auto apply = [&](const auto& from, const auto& to) HYBRIDATTN_INLINE_LAMBDA {
    Vector<T> values[Operands], found[Results];
#pragma GCC unroll 4
    for (size_t n = 0; n < Operands; ++n) {
      values[n] = load_as<T>(from(n));
    }
    f(values, found);
#pragma GCC unroll 4
    for (size_t n = 0; n < Results; ++n) {
      store_as<T>(to(n), found[n]);
    }
  };
  const auto element = [](const Rows<T>& rows, int64_t at)
                           HYBRIDATTN_INLINE_LAMBDA { return static_cast<E*>(rows.data) + at; };
  int64_t at = 0;
  for (; at + kLanes <= count; at += kLanes) {
    apply([&](size_t n) HYBRIDATTN_INLINE_LAMBDA { return element(operands[n], at); },
          [&](size_t n) HYBRIDATTN_INLINE_LAMBDA { return element(results[n], at); });
  }
  if (at < count) {
    E from[Operands][kLanes] = {}, to[Results][kLanes];
    for (size_t n = 0; n < Operands; ++n) {
      std::copy_n(element(operands[n], at), count - at, from[n]);
    }
    apply([&](size_t n) HYBRIDATTN_INLINE_LAMBDA { return from[n]; },
          [&](size_t n) HYBRIDATTN_INLINE_LAMBDA { return to[n]; });
    for (size_t n = 0; n < Results; ++n) {
      std::copy_n(to[n], count - at, element(results[n], at));
    }
  }
}

template <class T>
inline void swiglu_forward(const SwigluTask<T>& task) {
  with_element_type(task.x, [&]<class E>(E) HYBRIDATTN_INLINE_LAMBDA {
    map_elements<T, E, 2, 1>(task.elements, {task.x, task.y}, {task.out},
                             [](const auto& in, auto& out)
                                 HYBRIDATTN_INLINE_LAMBDA { out[0] = in[0] * sigmoid<T>(in[0]) * in[1]; });
  });
}

template <class T>
inline void swiglu_backward(const SwigluTask<T>& task) {
  with_element_type(task.x, [&]<class E>(E) HYBRIDATTN_INLINE_LAMBDA {
    map_elements<T, E, 3, 2>(task.elements, {task.x, task.y, task.grad_out}, {task.grad_x, task.grad_y},
                             [](const auto& in, auto& out) HYBRIDATTN_INLINE_LAMBDA {
                               const Vector<T> s = sigmoid<T>(in[0]), by_s = in[2] * s;
                               out[0] = by_s * in[1] * (1 + in[0] * (1 - s));
                               out[1] = by_s * in[0];
                             });
  });
}
