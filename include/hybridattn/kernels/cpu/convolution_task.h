// What a kernel of short convolution is asked to do with some channels of one sequence: out_t = f(bias + sum_i weight_i
// x_(t - W + 1 + i)), zeros before a document's first token; f is SiLU or nothing. Letters: W taps.
#pragma once

#include <hybridattn/kernels/cpu/arrays.h>

namespace hybridattn::kernels::cpu {

template <class T>
struct ConvolutionTask {
  const int64_t* borders = nullptr; ///< [documents + 1] tokens; no tap reaches across one
  int64_t documents = 0;
  int channels = 0, taps = 0;
  bool activates = false;    ///< f = SiLU
  const T* weight = nullptr; ///< [W, channels], a tap's channels together
  int64_t weight_stride = 0;
  const T* bias = nullptr; ///< [channels]; null: zeros
  Rows<T> x, out;          ///< [tokens, channels]
  // backward
  Rows<T> grad_out, grad_x;
  T* grad_weight = nullptr; ///< [W, channels] like weight, written
  T* grad_bias = nullptr;   ///< [channels]; null: not wanted
};

template <class T>
struct ConvolutionKernels {
  void (*forward)(const ConvolutionTask<T>&);
  void (*backward)(const ConvolutionTask<T>&);
};

} // namespace hybridattn::kernels::cpu
