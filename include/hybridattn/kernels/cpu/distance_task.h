// What a kernel of squared distances between rows is asked to do.
#pragma once

#include <hybridattn/kernels/cpu/arrays.h>

namespace hybridattn::kernels::cpu {

template <class T>
struct DistanceTask {
  int64_t rows = 0;
  int size = 0;
  Rows<T> x, y;
  // forward
  T* squares = nullptr; ///< [rows] sum of (x - y)^2
  // backward
  const T* factor = nullptr; ///< [rows]
  Rows<T> grad;              ///< factor (x - y), written
};

template <class T>
struct DistanceKernels {
  void (*forward)(const DistanceTask<T>&);
  void (*backward)(const DistanceTask<T>&);
};

} // namespace hybridattn::kernels::cpu
