// What a rotary kernel is asked to do: turn the first 2 `half` dimensions of every head of some tokens, halves paired
// as in Llama; the rest is copied.
#pragma once

#include <hybridattn/kernels/cpu/arrays.h>

namespace hybridattn::kernels::cpu {

/// y1 = x1 cos1 - x2 sin1, y2 = x2 cos2 + x1 sin2; transposed y1 = x1 cos1 + x2 sin2, y2 = x2 cos2 - x1 sin1.
template <class T>
struct RotaryTask {
  int64_t tokens = 0;
  int heads = 0, size = 0, half = 0; ///< `size` of a head
  bool transposed = false;
  bool narrow_steps = false; ///< products are rounded to bf16 before they are added, as PyTorch does it
  Rows<T> x, out;            ///< a row per token; heads are `head_stride` apart
  int64_t x_head_stride = 0, out_head_stride = 0;
  Rows<T> cos, sin; ///< [tokens, 2 half]
};

} // namespace hybridattn::kernels::cpu
