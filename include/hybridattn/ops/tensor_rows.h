// Tensors as the CPU kernels read and write them: rows in the arithmetic's type T, or in bf16 where T is float.
#pragma once

#include <ATen/core/Tensor.h>
#include <hybridattn/kernels/cpu/arrays.h>

namespace hybridattn::ops::detail {

/// Rows `stride` elements apart, from `element` elements of memory behind x's first on. x has T's type, or bf16.
template <class T>
kernels::cpu::Rows<T> tensor_rows(const at::Tensor& x, int64_t element, int64_t stride, int64_t step = 1) {
  auto* first = static_cast<char*>(const_cast<void*>(x.const_data_ptr())) + element * x.element_size();
  return {first, x.scalar_type() == at::kBFloat16, stride, step};
}

/// Rows [T, D] of one head of x [B, T, heads, D], from a token of the flattened [B * T] on.
template <class T>
kernels::cpu::Rows<T> head_rows(const at::Tensor& x, int64_t token, int64_t head) {
  const int64_t length = x.size(1);
  const int64_t element = token / length * x.stride(0) + token % length * x.stride(1) + head * x.stride(2);
  return tensor_rows<T>(x, element, x.stride(1), x.stride(3));
}

/// Whether x holds bf16 numbers and kernels with arithmetic in T read and write such as they are.
template <class T>
bool is_narrow(const at::Tensor& x) {
  return sizeof(T) == sizeof(float) && x.scalar_type() == at::kBFloat16;
}

/// x where kernels with arithmetic in T can read it, else converted to T.
template <class T>
at::Tensor readable(const at::Tensor& x) {
  return is_narrow<T>(x) ? x : x.to(c10::CppTypeToScalarType<T>::value);
}

} // namespace hybridattn::ops::detail
