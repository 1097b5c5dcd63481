// Every kernel, once per instruction set: the same headers are included in one namespace per set, each inside a region
// that lets the compiler use that set. A template that touches a vector must be defined inside such a region.
#pragma once

#include <hybridattn/kernels/cpu/arrays.h>
#include <hybridattn/kernels/cpu/chunk_task.h>
#include <hybridattn/kernels/cpu/instruction_set.h>
#include <hybridattn/kernels/cpu/norm_task.h>
#include <hybridattn/kernels/cpu/rotary_task.h>

#include <cmath>
#include <limits>
#include <utility>

#if HYBRIDATTN_X86_KERNELS
#include <immintrin.h>
#endif

// Vectors of 32 and 64 bytes pass between inlined functions only, so that their calling convention does not matter.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpsabi"
#pragma GCC diagnostic ignored "-Wignored-attributes"

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

#if HYBRIDATTN_X86_KERNELS
/// AVX-512's kernels, and products of bf16 numbers where the inputs are such.
template <class R, class T, class Products>
RuleKernels<T> rule_kernels_with_narrow_products() {
  auto kernels = avx512::rule_kernels<R, T>();
  if constexpr (sizeof(T) == sizeof(float) && !R::per_channel) {
    kernels.chunk_forward = [](const ForwardTask<T>& task) {
      task.q.is_bfloat16 ? avx512_bf16::chunk_forward<R, T, Products>(task) : avx512::chunk_forward<R, T>(task);
    };
    kernels.chunk_backward = [](const BackwardTask<T>& task) {
      task.q.is_bfloat16 ? avx512_bf16::chunk_backward<R, T, Products>(task) : avx512::chunk_backward<R, T>(task);
    };
  }
  return kernels;
}
#endif

/// The kernels of rule R with arithmetic in T.
template <class R, class T>
RuleKernels<T> rule_kernels(InstructionSet set) {
#if HYBRIDATTN_X86_KERNELS
  switch (set) {
  case InstructionSet::amx:
    return rule_kernels_with_narrow_products<R, T, avx512_bf16::Amx>();
  case InstructionSet::avx512_bf16:
    return rule_kernels_with_narrow_products<R, T, avx512_bf16::Pairs>();
  case InstructionSet::avx512:
    return avx512::rule_kernels<R, T>();
  case InstructionSet::avx2:
    return avx2::rule_kernels<R, T>();
  case InstructionSet::portable:
    break;
  }
#endif
  static_cast<void>(set);
  return portable::rule_kernels<R, T>();
}

/// The norms of rows with arithmetic in T; see norm_task.h.
template <class T>
NormKernels<T> norm_kernels(InstructionSet set) {
#if HYBRIDATTN_X86_KERNELS
  switch (set) {
  case InstructionSet::amx:
  case InstructionSet::avx512_bf16:
  case InstructionSet::avx512:
    return avx512::norm_kernels<T>();
  case InstructionSet::avx2:
    return avx2::norm_kernels<T>();
  case InstructionSet::portable:
    break;
  }
#endif
  static_cast<void>(set);
  return portable::norm_kernels<T>();
}

/// Rotary embedding with arithmetic in T; see rotary_task.h.
template <class T>
using RotaryKernel = void (*)(const RotaryTask<T>&);

template <class T>
RotaryKernel<T> rotary_kernel(InstructionSet set) {
#if HYBRIDATTN_X86_KERNELS
  switch (set) {
  case InstructionSet::amx:
  case InstructionSet::avx512_bf16:
  case InstructionSet::avx512:
    return avx512::rotate<T>;
  case InstructionSet::avx2:
    return avx2::rotate<T>;
  case InstructionSet::portable:
    break;
  }
#endif
  static_cast<void>(set);
  return portable::rotate<T>;
}

/// KL(softmax(left) || softmax(right)) of two rows of logits; see divergence-inl.h.
template <class T>
using DivergenceOfRows = double (*)(T* left, T* right, int64_t size, double temperature, double factor,
                                    bool wants_gradient);

template <class T, bool StudentIsLeft>
DivergenceOfRows<T> divergence_of_rows(InstructionSet set) {
#if HYBRIDATTN_X86_KERNELS
  switch (set) {
  case InstructionSet::amx:
  case InstructionSet::avx512_bf16:
  case InstructionSet::avx512:
    return avx512::divergence_of_rows<StudentIsLeft, T>;
  case InstructionSet::avx2:
    return avx2::divergence_of_rows<StudentIsLeft, T>;
  case InstructionSet::portable:
    break;
  }
#endif
  static_cast<void>(set);
  return portable::divergence_of_rows<StudentIsLeft, T>;
}

} // namespace hybridattn::kernels::cpu
