// Squared distances between rows, differentiable: this library's CPU kernels, or a composition of ATen ops.
#pragma once

#include <ATen/ops/empty.h>
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

namespace hybridattn::ops {

/// Composed of ATen ops, in fp32 (fp64 for fp64).
inline at::Tensor aten_squared_distance(const at::Tensor& x, const at::Tensor& y) {
  const auto dtype = state_dtype(x);
  return (x.to(dtype) - y.to(dtype)).square().sum(-1);
}

namespace detail {

/// f(first row, task) for blocks of rows of x and y, on all threads.
template <class T, class F>
void each_distance_task(const at::Tensor& x, const at::Tensor& y, F&& f) {
  constexpr int64_t kRows = 128;
  const int64_t size = x.size(-1), rows = x.numel() / std::max<int64_t>(1, size);
  at::parallel_for(0, (rows + kRows - 1) / kRows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t number = begin; number < end; ++number) {
      const int64_t first = number * kRows;
      kernels::cpu::DistanceTask<T> task;
      task.rows = std::min(kRows, rows - first);
      task.size = static_cast<int>(size);
      task.x = tensor_rows<T>(x, first * size, size);
      task.y = tensor_rows<T>(y, first * size, size);
      f(first, task);
    }
  });
}

template <class T>
at::Tensor native_squared_distance(const at::Tensor& given_x, const at::Tensor& given_y) {
  const auto x = readable<T>(given_x).contiguous(), y = readable<T>(given_y).contiguous();
  auto squares = at::empty(x.sizes().slice(0, x.dim() - 1), x.options().dtype(state_dtype(x)));
  const auto kernels = kernels::cpu::distance_kernels<T>(kernels::cpu::chosen_instruction_set());
  each_distance_task<T>(x, y, [&](int64_t first, kernels::cpu::DistanceTask<T>& task) {
    task.squares = squares.template mutable_data_ptr<T>() + first;
    kernels.forward(task);
  });
  return squares;
}

template <class T>
at::Tensor native_squared_distance_backward(const at::Tensor& given_x, const at::Tensor& given_y,
                                            const at::Tensor& factor) {
  const auto x = readable<T>(given_x).contiguous(), y = readable<T>(given_y).contiguous();
  const auto factors = factor.to(state_dtype(x)).contiguous();
  auto grad = fresh_tensor(x.sizes(), given_x.options());
  const auto kernels = kernels::cpu::distance_kernels<T>(kernels::cpu::chosen_instruction_set());
  each_distance_task<T>(x, y, [&](int64_t first, kernels::cpu::DistanceTask<T>& task) {
    task.factor = factors.template const_data_ptr<T>() + first;
    task.grad = tensor_rows<T>(grad, first * task.size, task.size);
    kernels.backward(task);
  });
  return grad;
}

} // namespace detail

/// Below autograd, on the native backend.
inline at::Tensor squared_distance_forward(const at::Tensor& x, const at::Tensor& y) {
  return x.scalar_type() == at::kDouble ? detail::native_squared_distance<double>(x, y)
                                        : detail::native_squared_distance<float>(x, y);
}
/// factor (x - y), factor [...], in x's dtype.
inline at::Tensor squared_distance_backward(const at::Tensor& x, const at::Tensor& y, const at::Tensor& factor) {
  return x.scalar_type() == at::kDouble ? detail::native_squared_distance_backward<double>(x, y, factor)
                                        : detail::native_squared_distance_backward<float>(x, y, factor);
}

/// Calls the kernels themselves: what C++ users get without any registration.
struct DirectDistanceCalls {
  static at::Tensor forward(const at::Tensor& x, const at::Tensor& y) { return squared_distance_forward(x, y); }
  static at::Tensor backward(const at::Tensor& x, const at::Tensor& y, const at::Tensor& factor) {
    return squared_distance_backward(x, y, factor);
  }
};

/// Autograd of the native op. `Calls` says how forward and backward are reached: directly, or through the dispatcher.
template <class Calls>
struct DistanceFunction : torch::autograd::Function<DistanceFunction<Calls>> {
  using List = torch::autograd::variable_list;

  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, const at::Tensor& y) {
    ctx->save_for_backward({x, y});
    return Calls::forward(x, y);
  }

  static List backward(torch::autograd::AutogradContext* ctx, List grads) {
    const auto saved = ctx->get_saved_variables();
    const auto factor = grads[0] * 2;
    return {ctx->needs_input_grad(0) ? Calls::backward(saved[0], saved[1], factor) : at::Tensor(),
            ctx->needs_input_grad(1) ? Calls::backward(saved[1], saved[0], factor) : at::Tensor()};
  }
};

/// |x - y|^2 over the last dimension.
/// @param x, y [..., D]  @returns [...] in fp32 (fp64 for an fp64 x); differentiable
/// @throws c10::ValueError if shapes disagree, or the backend cannot compute on x
template <class Calls = DirectDistanceCalls>
at::Tensor squared_distance(const at::Tensor& x, const at::Tensor& y, Backend backend = Backend::automatic) {
  HA_CHECK(x.sym_sizes() == y.sym_sizes() && x.dim() >= 1, "squared_distance: x and y must be [..., D], got ",
           x.sym_sizes(), " and ", y.sym_sizes());
  const bool native = runs_native("squared_distance", backend, x) && native_can_run(y);
  return native ? DistanceFunction<Calls>::apply(x, y) : aten_squared_distance(x, y);
}

} // namespace hybridattn::ops
