// Turning heads by rotary embedding, differentiable: this library's CPU kernels, or a composition of ATen ops; both
// give the same bits. Letters: B batch, T tokens, H heads, K head dim, R rotary width.
#pragma once

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <hybridattn/core/check.h>
#include <hybridattn/kernels/cpu/sets.h>
#include <hybridattn/ops/backend.h>
#include <hybridattn/ops/tensor_rows.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <string>

namespace hybridattn::ops {

/// Sizes may be symbolic: tracing checks them too.
inline void check_rotary(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  HA_CHECK(x.dim() == 4 && cos.dim() == 3 && cos.sym_sizes() == sin.sym_sizes() &&
               (cos.sym_size(0) == 1 || cos.sym_size(0) == x.sym_size(0)) && cos.sym_size(1) == x.sym_size(1) &&
               cos.sym_size(2) <= x.sym_size(3) && cos.sym_size(2) % 2 == 0,
           "apply_rotary: x must be [B, T, H, K], cos and sin [B or 1, T, R] with an even R <= K, got ", x.sym_sizes(),
           ", ", cos.sym_sizes(), " and ", sin.sym_sizes());
}

/// Composed of ATen ops. `transposed`: the transpose of the same rotation, which gradients go through.
inline at::Tensor aten_apply_rotary(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                                    bool transposed) {
  const int64_t rotary = cos.size(2), half = rotary / 2;
  const auto turning = x.narrow(3, 0, rotary), first = turning.narrow(3, 0, half),
             second = turning.narrow(3, half, half);
  const auto sine = sin.unsqueeze(2);
  // Rows of the sine belong to where they were multiplied: for the transpose, to the half that the factor comes from.
  const auto crossed = transposed
                           ? at::cat({second * sine.narrow(3, half, half), (first * sine.narrow(3, 0, half)).neg()}, 3)
                           : at::cat({second.neg(), first}, 3) * sine;
  const auto out = (turning * cos.unsqueeze(2) + crossed).to(x.scalar_type());
  return rotary == x.size(3) ? out : at::cat({out, x.narrow(3, rotary, x.size(3) - rotary)}, 3);
}

namespace detail {

template <class T>
at::Tensor native_apply_rotary(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool transposed) {
  const bool narrow_steps = x.scalar_type() == at::kBFloat16 && cos.scalar_type() == at::kBFloat16;
  const auto cosine = readable<T>(cos).contiguous(), sine = readable<T>(sin).contiguous();
  const int64_t batch = x.size(0), tokens = x.size(1), heads = x.size(2), size = x.size(3), rotary = cos.size(2);
  auto out = at::empty(x.sizes(), x.options());
  const auto kernel = kernels::cpu::rotary_kernel<T>(kernels::cpu::chosen_instruction_set());
  constexpr int64_t kElements = 1 << 15; // of a task
  const int64_t block =
      std::clamp<int64_t>(kElements / std::max<int64_t>(1, heads * size), 1, std::max<int64_t>(1, tokens));
  const int64_t blocks = (tokens + block - 1) / block;
  at::parallel_for(0, batch * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t number = begin; number < end; ++number) {
      const int64_t row = number / blocks, first = number % blocks * block;
      const int64_t angles = ((cosine.size(0) == 1 ? 0 : row) * tokens + first) * rotary;
      kernels::cpu::RotaryTask<T> task;
      task.tokens = std::min(block, tokens - first);
      task.heads = static_cast<int>(heads);
      task.size = static_cast<int>(size);
      task.half = static_cast<int>(rotary / 2);
      task.transposed = transposed;
      task.narrow_steps = narrow_steps;
      task.x = tensor_rows<T>(x, row * x.stride(0) + first * x.stride(1), x.stride(1), x.stride(3));
      task.x_head_stride = x.stride(2);
      task.out = tensor_rows<T>(out, (row * tokens + first) * heads * size, heads * size);
      task.out_head_stride = size;
      task.cos = tensor_rows<T>(cosine, angles, rotary);
      task.sin = tensor_rows<T>(sine, angles, rotary);
      kernel(task);
    }
  });
  return out;
}

} // namespace detail

/// The op below autograd, on the native backend.
inline at::Tensor native_apply_rotary(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                                      bool transposed) {
  return x.scalar_type() == at::kDouble ? detail::native_apply_rotary<double>(x, cos, sin, transposed)
                                        : detail::native_apply_rotary<float>(x, cos, sin, transposed);
}

/// Calls the kernel itself: what C++ users get without any registration.
struct DirectRotaryCalls {
  static at::Tensor rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool transposed) {
    return native_apply_rotary(x, cos, sin, transposed);
  }
};

/// Autograd of the native op, to any order: the gradient goes through the transposed rotation. `Calls` says how the
/// op is reached: directly, or through the dispatcher.
template <class Calls>
struct RotaryFunction : torch::autograd::Function<RotaryFunction<Calls>> {
  using List = torch::autograd::variable_list;

  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, const at::Tensor& cos,
                            const at::Tensor& sin, bool transposed) {
    ctx->save_for_backward({cos, sin});
    ctx->saved_data["transposed"] = transposed;
    return Calls::rotate(x, cos, sin, transposed);
  }

  static List backward(torch::autograd::AutogradContext* ctx, List grads) {
    const auto saved = ctx->get_saved_variables();
    const bool transposed = ctx->saved_data["transposed"].toBool();
    return {RotaryFunction::apply(grads[0], saved[0], saved[1], !transposed), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

/// Rotates the first R of each head's dimensions, halves paired as in Llama.
/// @param x [B, T, H, K]  @param cos, sin [B or 1, T, R], R <= K  @returns [B, T, H, K] in x's dtype; differentiable
/// @throws c10::ValueError if shapes disagree, or the backend cannot compute on x
template <class Calls = DirectRotaryCalls>
at::Tensor apply_rotary(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool transposed = false,
                        Backend backend = Backend::automatic) {
  check_rotary(x, cos, sin);
  const bool native = runs_native("apply_rotary", backend, x);
  if (!native || cos.requires_grad() || sin.requires_grad()) {
    return aten_apply_rotary(x, cos, sin, transposed);
  }
  return RotaryFunction<Calls>::apply(x, cos, sin, transposed);
}

} // namespace hybridattn::ops
