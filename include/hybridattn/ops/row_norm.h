// Norms over the last dimension with the activation before and the gate after them, as one differentiable op: this
// library's CPU kernels, or a composition of ATen ops. Letters: N rows, D size of a row.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/silu.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <hybridattn/core/check.h>
#include <hybridattn/kernels/cpu/sets.h>
#include <hybridattn/ops/backend.h>
#include <hybridattn/ops/rule.h>
#include <hybridattn/ops/tensor_rows.h>
#include <torch/csrc/autograd/custom_function.h>

#include <tuple>

namespace hybridattn::ops {

/// u = x or SiLU(x); n = u / sqrt(sum or mean of u^2 over the last dimension + eps); n [* weight] [* SiLU(gate)].
struct RowNormInputs {
  at::Tensor x;                           ///< [..., D]
  std::optional<at::Tensor> weight, gate; ///< [D], [..., D]
  double eps = 1e-6;
  bool mean = false;      ///< of the squares, rather than their sum
  bool activates = false; ///< SiLU(x) is normed
};

/// Gradients of x, weight and gate; undefined where there is no such input.
using RowNormGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

/// Sizes may be symbolic: tracing checks them too.
inline void check_row_norm(const std::string& op, const RowNormInputs& in) {
  HA_CHECK(in.x.dim() >= 1 && at::isFloatingType(in.x.scalar_type()), op, ": x must be floating [..., D], got ",
           in.x.scalar_type(), " ", in.x.sym_sizes());
  HA_CHECK(!in.weight || (in.weight->dim() == 1 && in.weight->sym_size(0) == in.x.sym_size(-1)), op,
           ": weight must be [", in.x.sym_size(-1), "], got ", in.weight->sym_sizes());
  HA_CHECK(!in.gate || in.gate->sym_sizes() == in.x.sym_sizes(), op, ": gate must have x's shape ", in.x.sym_sizes(),
           ", got ", in.gate->sym_sizes());
}

/// Composed of ATen ops; the norm, the weight and the gate are computed in fp32 (fp64 for fp64 inputs).
inline at::Tensor aten_row_norm(const RowNormInputs& in) {
  const auto dtype = state_dtype(in.x);
  const auto x = in.x.to(dtype), u = in.activates ? at::silu(x) : x, squares = u.square();
  auto y = u * ((in.mean ? squares.mean(-1, true) : squares.sum(-1, true)) + in.eps).rsqrt();
  y = in.weight ? y * in.weight->to(dtype) : y;
  return (in.gate ? y * at::silu(in.gate->to(dtype)) : y).to(in.x.scalar_type());
}

namespace detail {

/// Rows per task: the same for any number of threads, so that sums over rows do not depend on it.
inline constexpr int64_t kNormRows = 128;

/// The inputs as the kernels read them: rows one after another, of the arithmetic's type T or bf16.
template <class T>
struct NativeNorm {
  const RowNormInputs& in;
  at::Tensor x, gate, weight;
  int64_t rows, size;

  explicit NativeNorm(const RowNormInputs& inputs)
      : in(inputs), x(in.x.contiguous()), gate(in.gate ? readable<T>(*in.gate).contiguous() : at::Tensor()),
        weight(in.weight ? in.weight->to(state_dtype(x)).contiguous() : at::Tensor()),
        rows(x.numel() / std::max<int64_t>(1, x.size(-1))), size(x.size(-1)) {}

  kernels::cpu::Rows<T> rows_of(const at::Tensor& y, int64_t first) const {
    return tensor_rows<T>(y, first * size, size);
  }
  int64_t tasks() const { return (rows + kNormRows - 1) / kNormRows; }

  /// f(number, task) for blocks of rows, on all threads.
  template <class F>
  void each(F&& f) const {
    at::parallel_for(0, tasks(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t number = begin; number < end; ++number) {
        const int64_t first = number * kNormRows;
        kernels::cpu::NormTask<T> task;
        task.rows = std::min(kNormRows, rows - first);
        task.size = static_cast<int>(size);
        task.mean = in.mean;
        task.activates = in.activates;
        task.eps = static_cast<T>(in.eps);
        task.weight = weight.defined() ? weight.const_data_ptr<T>() : nullptr;
        task.x = rows_of(x, first);
        if (gate.defined()) {
          task.gate = rows_of(gate, first);
        }
        f(number, first, task);
      }
    });
  }
};

template <class T>
at::Tensor native_row_norm(const RowNormInputs& in) {
  const NativeNorm<T> norm(in);
  auto out = at::empty(norm.x.sizes(), norm.x.options());
  const auto kernels = kernels::cpu::norm_kernels<T>(kernels::cpu::chosen_instruction_set());
  norm.each([&](int64_t, int64_t first, kernels::cpu::NormTask<T>& task) {
    task.out = norm.rows_of(out, first);
    kernels.forward(task);
  });
  return out;
}

template <class T>
RowNormGradients native_row_norm_backward(const RowNormInputs& in, const at::Tensor& grad_out) {
  const NativeNorm<T> norm(in);
  const auto grad = readable<T>(grad_out).contiguous();
  auto grad_x = at::empty(norm.x.sizes(), norm.x.options());
  auto grad_gate = norm.gate.defined() ? at::empty(norm.gate.sizes(), norm.gate.options()) : at::Tensor();
  auto parts = norm.weight.defined() ? at::empty({norm.tasks(), norm.size}, norm.weight.options()) : at::Tensor();
  const auto kernels = kernels::cpu::norm_kernels<T>(kernels::cpu::chosen_instruction_set());
  norm.each([&](int64_t number, int64_t first, kernels::cpu::NormTask<T>& task) {
    task.grad_out = norm.rows_of(grad, first);
    task.grad_x = norm.rows_of(grad_x, first);
    if (grad_gate.defined()) {
      task.grad_gate = norm.rows_of(grad_gate, first);
    }
    task.grad_weight = parts.defined() ? parts.template mutable_data_ptr<T>() + number * norm.size : nullptr;
    kernels.backward(task);
  });
  return {grad_x, parts.defined() ? parts.sum(0).to(in.weight->scalar_type()) : at::Tensor(),
          grad_gate.defined() ? grad_gate.to(in.gate->scalar_type()) : at::Tensor()};
}

} // namespace detail

/// The op below autograd, on the native backend. @throws c10::ValueError if it cannot run there
inline at::Tensor row_norm_forward(const RowNormInputs& in) {
  const WithoutAutocast without_autocast;
  return in.x.scalar_type() == at::kDouble ? detail::native_row_norm<double>(in) : detail::native_row_norm<float>(in);
}
inline RowNormGradients row_norm_backward(const RowNormInputs& in, const at::Tensor& grad_out) {
  const WithoutAutocast without_autocast;
  return in.x.scalar_type() == at::kDouble ? detail::native_row_norm_backward<double>(in, grad_out)
                                           : detail::native_row_norm_backward<float>(in, grad_out);
}

/// Calls the kernels themselves: what C++ users get without any registration.
struct DirectNormCalls {
  static at::Tensor forward(const RowNormInputs& in) { return row_norm_forward(in); }
  static RowNormGradients backward(const RowNormInputs& in, const at::Tensor& grad_out) {
    return row_norm_backward(in, grad_out);
  }
};

/// Autograd of the native op. `Calls` says how forward and backward are reached: directly, or through the dispatcher.
template <class Calls>
struct RowNormFunction : torch::autograd::Function<RowNormFunction<Calls>> {
  using List = torch::autograd::variable_list;
  using Optional = std::optional<at::Tensor>;

  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, const Optional& weight,
                            const Optional& gate, double eps, bool mean, bool activates) {
    ctx->save_for_backward({x, weight.value_or(at::Tensor()), gate.value_or(at::Tensor())});
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["mean"] = mean;
    ctx->saved_data["activates"] = activates;
    return Calls::forward({x, weight, gate, eps, mean, activates});
  }

  static List backward(torch::autograd::AutogradContext* ctx, List grads) {
    const auto saved = ctx->get_saved_variables();
    const auto optional = [](const at::Tensor& x) { return x.defined() ? Optional(x) : std::nullopt; };
    const RowNormInputs in{saved[0],
                           optional(saved[1]),
                           optional(saved[2]),
                           ctx->saved_data["eps"].toDouble(),
                           ctx->saved_data["mean"].toBool(),
                           ctx->saved_data["activates"].toBool()};
    auto [x, weight, gate] = Calls::backward(in, grads[0]);
    return {x, weight, gate, at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

/// The norm, differentiable, on the backend that is asked for. @returns [..., D] in x's dtype
/// @throws c10::ValueError if shapes disagree, or the backend cannot compute on x
template <class Calls = DirectNormCalls>
at::Tensor row_norm(const std::string& op, const RowNormInputs& in, Backend backend = Backend::automatic) {
  check_row_norm(op, in);
  if (!runs_native(op, backend, in.x)) {
    const WithoutAutocast without_autocast;
    return aten_row_norm(in);
  }
  return RowNormFunction<Calls>::apply(in.x, in.weight, in.gate, in.eps, in.mean, in.activates);
}

} // namespace hybridattn::ops
