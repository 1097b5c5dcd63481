// Every kernel, once per instruction set: the same headers are included in one namespace per set, each inside a region
// that lets the compiler use that set. A template that touches a vector must be defined inside such a region.
#pragma once

#include <hybridattn/kernels/cpu/arrays.h>
#include <hybridattn/kernels/cpu/attention_task.h>
#include <hybridattn/kernels/cpu/chunk_task.h>
#include <hybridattn/kernels/cpu/convolution_task.h>
#include <hybridattn/kernels/cpu/distance_task.h>
#include <hybridattn/kernels/cpu/instruction_set.h>
#include <hybridattn/kernels/cpu/norm_task.h>
#include <hybridattn/kernels/cpu/product_task.h>
#include <hybridattn/kernels/cpu/rotary_task.h>
#include <hybridattn/kernels/cpu/swiglu_task.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#if HYBRIDATTN_X86_KERNELS
#include <immintrin.h>
#endif

// Vectors of 32 and 64 bytes pass between inlined functions only, so that their calling convention does not matter.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpsabi"
#pragma GCC diagnostic ignored "-Wignored-attributes"

namespace hybridattn::kernels::cpu {

/// Rotary embedding, see rotary_task.h.
template <class T>
using RotaryKernel = void (*)(const RotaryTask<T>&);

/// A matrix product, see product_task.h.
template <class T>
using ProductKernel = void (*)(const ProductTask<T>&);

/// KL(softmax(left) || softmax(right)) of two rows of logits, see divergence-inl.h.
template <class T>
using DivergenceOfRows = double (*)(T* left, T* right, int64_t size, double temperature, double factor,
                                    bool wants_gradient);

} // namespace hybridattn::kernels::cpu

#define HYBRIDATTN_INLINE inline __attribute__((always_inline))
#define HYBRIDATTN_INLINE_LAMBDA __attribute__((always_inline))

namespace hybridattn::kernels::cpu::portable {
#include <hybridattn/kernels/cpu/simd_portable-inl.h>

#include <hybridattn/kernels/cpu/every_kernel-inl.h>
} // namespace hybridattn::kernels::cpu::portable

#if HYBRIDATTN_X86_KERNELS
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2")
namespace hybridattn::kernels::cpu::avx2 {
#include <hybridattn/kernels/cpu/simd_avx2-inl.h>

#include <hybridattn/kernels/cpu/every_kernel-inl.h>
} // namespace hybridattn::kernels::cpu::avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
namespace hybridattn::kernels::cpu::avx512 {
#include <hybridattn/kernels/cpu/simd_avx512-inl.h>

#include <hybridattn/kernels/cpu/every_kernel-inl.h>
} // namespace hybridattn::kernels::cpu::avx512
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,prefer-vector-width=512")
namespace hybridattn::kernels::cpu::avx512_bf16 {
#include <hybridattn/kernels/cpu/simd_avx512-inl.h>

#include <hybridattn/kernels/cpu/every_kernel-inl.h>

#include <hybridattn/kernels/cpu/pairs-inl.h>

#include <hybridattn/kernels/cpu/amx-inl.h>
} // namespace hybridattn::kernels::cpu::avx512_bf16
#pragma GCC pop_options
#endif

#undef HYBRIDATTN_INLINE
#undef HYBRIDATTN_INLINE_LAMBDA
#pragma GCC diagnostic pop

namespace hybridattn::kernels::cpu {

namespace detail {
/// f(Kernels of the set that computes in the type of its sums). AVX512-BF16 and AMX only add products of bf16 numbers.
template <class F>
auto with_kernels(InstructionSet set, F&& f) {
#if HYBRIDATTN_X86_KERNELS
  switch (set) {
  case InstructionSet::amx:
  case InstructionSet::avx512_bf16:
  case InstructionSet::avx512:
    return f(avx512::Kernels{});
  case InstructionSet::avx2:
    return f(avx2::Kernels{});
  case InstructionSet::portable:
    break;
  }
#endif
  static_cast<void>(set);
  return f(portable::Kernels{});
}

#if HYBRIDATTN_X86_KERNELS
/// Puts products of bf16 numbers where the inputs are such.
template <class R, class T, class Products>
void use_narrow_products(RuleKernels<T>& kernels) {
  kernels.chunk_forward = [](const ForwardTask<T>& task) {
    task.q.is_bfloat16 ? avx512_bf16::chunk_forward<R, T, Products>(task) : avx512::chunk_forward<R, T>(task);
  };
  kernels.chunk_backward = [](const BackwardTask<T>& task) {
    task.q.is_bfloat16 ? avx512_bf16::chunk_backward<R, T, Products>(task) : avx512::chunk_backward<R, T>(task);
  };
}
#endif
} // namespace detail

/// The kernels of rule R with arithmetic in T.
template <class R, class T>
RuleKernels<T> rule_kernels(InstructionSet set) {
  auto kernels = detail::with_kernels(set, []<class K>(K) { return K::template rule<R, T>(); });
#if HYBRIDATTN_X86_KERNELS
  if constexpr (sizeof(T) == sizeof(float) && !R::per_channel) {
    if (set == InstructionSet::amx) {
      detail::use_narrow_products<R, T, avx512_bf16::Amx>(kernels);
    } else if (set == InstructionSet::avx512_bf16) {
      detail::use_narrow_products<R, T, avx512_bf16::Pairs>(kernels);
    }
  }
#endif
  return kernels;
}

/// The norms of rows with arithmetic in T; see norm_task.h.
template <class T>
NormKernels<T> norm_kernels(InstructionSet set) {
  return detail::with_kernels(set, []<class K>(K) { return K::template norm<T>(); });
}

/// Squared distances between rows with arithmetic in T; see distance_task.h.
template <class T>
DistanceKernels<T> distance_kernels(InstructionSet set) {
  return detail::with_kernels(set, []<class K>(K) { return K::template distance<T>(); });
}

/// The gated unit with arithmetic in T; see swiglu_task.h.
template <class T>
SwigluKernels<T> swiglu_kernels(InstructionSet set) {
  return detail::with_kernels(set, []<class K>(K) { return K::template swiglu<T>(); });
}

/// Rotary embedding with arithmetic in T.
template <class T>
RotaryKernel<T> rotary_kernel(InstructionSet set) {
  return detail::with_kernels(set, []<class K>(K) { return K::template rotary<T>(); });
}

/// Short convolution with arithmetic in T; see convolution_task.h.
template <class T>
ConvolutionKernels<T> convolution_kernels(InstructionSet set) {
  return detail::with_kernels(set, []<class K>(K) { return K::template convolution<T>(); });
}

/// Matrix products with sums in T. `narrow`: factors may be rounded to bf16 (T float), which sets with products of such
/// numbers do.
template <class T>
ProductKernel<T> product_kernel(InstructionSet set, bool narrow) {
#if HYBRIDATTN_X86_KERNELS
  if constexpr (sizeof(T) == sizeof(float)) {
    if (narrow && set == InstructionSet::amx) {
      return avx512_bf16::multiply<T, avx512_bf16::Amx>;
    }
    if (narrow && set == InstructionSet::avx512_bf16) {
      return avx512_bf16::multiply<T, avx512_bf16::Pairs>;
    }
  }
#endif
  static_cast<void>(narrow);
  return detail::with_kernels(set, []<class K>(K) { return K::template product<T>(); });
}

/// Softmax attention with sums in T. `narrow`: factors may be rounded to bf16 (T float), which sets with products of
/// such numbers do.
template <class T>
AttentionKernels<T> attention_kernels(InstructionSet set, bool narrow) {
#if HYBRIDATTN_X86_KERNELS
  if constexpr (sizeof(T) == sizeof(float)) {
    if (narrow && set == InstructionSet::amx) {
      return avx512_bf16::Kernels::attention<T, avx512_bf16::Amx>();
    }
    if (narrow && set == InstructionSet::avx512_bf16) {
      return avx512_bf16::Kernels::attention<T, avx512_bf16::Pairs>();
    }
  }
#endif
  static_cast<void>(narrow);
  return detail::with_kernels(set, []<class K>(K) { return K::template attention<T>(); });
}

template <class T, bool StudentIsLeft>
DivergenceOfRows<T> divergence_of_rows(InstructionSet set) {
  return detail::with_kernels(set, []<class K>(K) { return K::template divergence<T, StudentIsLeft>(); });
}

} // namespace hybridattn::kernels::cpu
