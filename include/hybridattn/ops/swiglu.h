// The gated unit SiLU(x) y of Llama's feed-forward layers (Shazeer, arXiv 2002.05202), differentiable: this library's
// CPU kernels, or a composition of ATen ops.
#pragma once

#include <ATen/ops/silu.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <hybridattn/core/check.h>
#include <hybridattn/core/fresh_tensor.h>
#include <hybridattn/kernels/cpu/sets.h>
#include <hybridattn/ops/backend.h>
#include <hybridattn/ops/rule.h>
#include <hybridattn/ops/tensor_rows.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <tuple>

namespace hybridattn::ops {

namespace detail {

/// f(first element, task) for parts of x and y, contiguous and of one dtype, on all threads.
template <class T, class F>
void each_swiglu_task(const at::Tensor& x, const at::Tensor& y, F&& f) {
  constexpr int64_t kGrain = 1 << 14;
  at::parallel_for(0, x.numel(), kGrain, [&](int64_t begin, int64_t end) {
    kernels::cpu::SwigluTask<T> task;
    task.elements = end - begin;
    task.x = tensor_rows<T>(x, begin, 1);
    task.y = tensor_rows<T>(y, begin, 1);
    f(begin, task);
  });
}

template <class T>
at::Tensor native_swiglu(const at::Tensor& given_x, const at::Tensor& given_y) {
  const auto x = given_x.contiguous(), y = given_y.contiguous();
  auto out = fresh_tensor(x.sizes(), x.options());
  const auto kernels = kernels::cpu::swiglu_kernels<T>(kernels::cpu::chosen_instruction_set());
  each_swiglu_task<T>(x, y, [&](int64_t first, kernels::cpu::SwigluTask<T>& task) {
    task.out = tensor_rows<T>(out, first, 1);
    kernels.forward(task);
  });
  return out;
}

template <class T>
std::tuple<at::Tensor, at::Tensor> native_swiglu_backward(const at::Tensor& given_x, const at::Tensor& given_y,
                                                          const at::Tensor& given_grad) {
  const auto x = given_x.contiguous(), y = given_y.contiguous(), grad = given_grad.to(x.scalar_type()).contiguous();
  auto grad_x = fresh_tensor(x.sizes(), x.options()), grad_y = fresh_tensor(x.sizes(), x.options());
  const auto kernels = kernels::cpu::swiglu_kernels<T>(kernels::cpu::chosen_instruction_set());
  each_swiglu_task<T>(x, y, [&](int64_t first, kernels::cpu::SwigluTask<T>& task) {
    task.grad_out = tensor_rows<T>(grad, first, 1);
    task.grad_x = tensor_rows<T>(grad_x, first, 1);
    task.grad_y = tensor_rows<T>(grad_y, first, 1);
    kernels.backward(task);
  });
  return {grad_x, grad_y};
}

} // namespace detail

/// Below autograd, on the native backend.
inline at::Tensor swiglu_forward(const at::Tensor& x, const at::Tensor& y) {
  return x.scalar_type() == at::kDouble ? detail::native_swiglu<double>(x, y) : detail::native_swiglu<float>(x, y);
}
/// Gradients of x and y.
inline std::tuple<at::Tensor, at::Tensor> swiglu_backward(const at::Tensor& x, const at::Tensor& y,
                                                          const at::Tensor& grad_out) {
  return x.scalar_type() == at::kDouble ? detail::native_swiglu_backward<double>(x, y, grad_out)
                                        : detail::native_swiglu_backward<float>(x, y, grad_out);
}

/// Calls the kernels themselves: what C++ users get without any registration.
struct DirectSwigluCalls {
  static at::Tensor forward(const at::Tensor& x, const at::Tensor& y) { return swiglu_forward(x, y); }
  static std::tuple<at::Tensor, at::Tensor> backward(const at::Tensor& x, const at::Tensor& y,
                                                     const at::Tensor& grad_out) {
    return swiglu_backward(x, y, grad_out);
  }
};

/// Autograd of the native op. `Calls` says how forward and backward are reached: directly, or through the dispatcher.
template <class Calls>
struct SwigluFunction : torch::autograd::Function<SwigluFunction<Calls>> {
  using List = torch::autograd::variable_list;

  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, const at::Tensor& y) {
    ctx->save_for_backward({x, y});
    return Calls::forward(x, y);
  }

  static List backward(torch::autograd::AutogradContext* ctx, List grads) {
    const auto saved = ctx->get_saved_variables();
    auto [x, y] = Calls::backward(saved[0], saved[1], grads[0]);
    return {x, y};
  }
};

/// Sizes may be symbolic: tracing checks them too.
inline void check_swiglu(const at::Tensor& x, const at::Tensor& y) {
  HA_CHECK(x.sym_sizes() == y.sym_sizes() && x.scalar_type() == y.scalar_type(),
           "swiglu: x and y must have one shape and dtype, got ", x.scalar_type(), " ", x.sym_sizes(), " and ",
           y.scalar_type(), " ", y.sym_sizes());
}

/// SiLU(x) y, rounded once.
/// @param x, y [...] of one dtype  @returns [...] in that dtype; differentiable
/// @throws c10::ValueError if shapes or dtypes disagree, or the backend cannot compute on x
template <class Calls = DirectSwigluCalls>
at::Tensor swiglu(const at::Tensor& x, const at::Tensor& y, Backend backend = Backend::automatic) {
  check_swiglu(x, y);
  return runs_native("swiglu", backend, x) ? SwigluFunction<Calls>::apply(x, y) : at::silu(x) * y;
}

} // namespace hybridattn::ops
