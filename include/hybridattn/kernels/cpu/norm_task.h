// What a norm kernel is asked to do with each row x of an array: u = x or SiLU(x); n = u / sqrt(sum or mean of u^2 +
// eps); the result is n, times a weight and SiLU(gate) where there are such.
#pragma once

#include <hybridattn/kernels/cpu/arrays.h>

namespace hybridattn::kernels::cpu {

template <class T>
struct NormTask {
  int64_t rows = 0;
  int size = 0;           ///< of a row
  bool mean = false;      ///< of the squares, rather than their sum
  bool activates = false; ///< u = SiLU(x)
  T eps = 0;
  const T* weight = nullptr; ///< [size]; null: ones
  Rows<T> x, gate;           ///< [rows, size], step 1; gate.data null: none
  Rows<T> out;
  // backward
  Rows<T> grad_out, grad_x, grad_gate;
  T* grad_weight = nullptr; ///< [size], this task's own; null: not wanted
};

template <class T>
struct NormKernels {
  void (*forward)(const NormTask<T>&);
  void (*backward)(const NormTask<T>&);
};

} // namespace hybridattn::kernels::cpu
