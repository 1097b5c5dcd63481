// What a kernel of the gated unit SiLU(x) y is asked to do with some elements.
#pragma once

#include <hybridattn/kernels/cpu/arrays.h>

namespace hybridattn::kernels::cpu {

/// Rows of one element, one behind the other, all of one type.
template <class T>
struct SwigluTask {
  int64_t elements = 0;
  Rows<T> x, y, out;
  // backward
  Rows<T> grad_out, grad_x, grad_y;
};

template <class T>
struct SwigluKernels {
  void (*forward)(const SwigluTask<T>&);
  void (*backward)(const SwigluTask<T>&);
};

} // namespace hybridattn::kernels::cpu
