// What a matrix-product kernel is asked to do. Letters: M rows and N columns of the result, K terms of every sum.
#pragma once

#include <hybridattn/kernels/cpu/arrays.h>

namespace hybridattn::kernels::cpu {

/// out = A B, or out += A B. Sums are formed in T, in an order that depends on K alone, so that any split of M and N
/// gives the same bits.
template <class T>
struct ProductTask {
  int64_t rows = 0, columns = 0, terms = 0; ///< M, N, K
  Rows<T> left, right;                      ///< A [M, K] and B [K, N], or their transposes as below
  bool left_transposed = false;             ///< `left` is [K, M]
  bool right_transposed = false;            ///< `right` is [N, K]
  T* out = nullptr;                         ///< [M, N]
  int64_t out_stride = 0;
  bool accumulate = false;
};

} // namespace hybridattn::kernels::cpu
