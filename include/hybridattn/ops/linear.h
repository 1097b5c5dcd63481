// A linear layer, differentiable: this library's matrix products, or ATen's. Letters: M rows of x, K features in, N
// features out.
#pragma once

#include <ATen/autocast_mode.h>
#include <ATen/ops/linear.h>
#include <ATen/TensorOperators.h>
#include <hybridattn/core/fresh_tensor.h>
#include <hybridattn/ops/matrix_product.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>
#include <string>

namespace hybridattn::ops {

/// Whether this library's kernels compute x W^T. `automatic`: where they are faster, which products of few rows, bound
/// by reading W, are not. @throws c10::ValueError if they are asked for and cannot
inline bool linear_runs_native(Backend wanted, const at::Tensor& x, const at::Tensor& weight) {
  const auto type = x.scalar_type();
  const bool possible = x.device().is_cpu() && weight.device().is_cpu() && type == weight.scalar_type() &&
                        (type == at::kFloat || type == at::kDouble) && x.dim() > 0 && weight.dim() == 2;
  HA_CHECK(possible || wanted != Backend::native,
           "linear: the native backend computes on CPU tensors of float64 or "
           "float32, both the same, got ",
           type, " and ", weight.scalar_type(), " on ", x.device(), "; choose backend aten");
  if (!possible || wanted != Backend::automatic) {
    return wanted == Backend::native;
  }
  if (at::autocast::is_autocast_enabled(at::kCPU)) {
    return false; // ATen's products are narrowed there
  }
  constexpr int64_t kFewestRows = 16, kFewestTerms = 1 << 20;
  return prefers_native_products(false) && x.sym_numel() >= kFewestRows * x.sym_size(-1) &&
         x.sym_numel() * weight.sym_size(0) >= kFewestTerms;
}

/// Sizes may be symbolic: tracing checks them too.
inline void check_linear_layer(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  HA_CHECK(x.dim() >= 1 && weight.dim() == 2 && x.sym_size(-1) == weight.sym_size(1) &&
               (!bias || (bias->dim() == 1 && bias->sym_size(0) == weight.sym_size(0))),
           "linear: x must be [..., K], weight [N, K] and bias [N], got ", x.sym_sizes(), ", ", weight.sym_sizes(),
           bias ? " and a bias of " : "", bias ? bias->sym_sizes() : c10::SymIntArrayRef{});
}

/// x W^T on the native backend. @param x [M, K]  @param weight [N, K]  @returns [M, N]
inline at::Tensor native_linear(const at::Tensor& x, const at::Tensor& weight) {
  auto out = fresh_tensor({x.size(0), weight.size(0)}, x.options());
  MatrixProducts(Backend::native, x, weight)(out, x, weight.t());
  return out;
}

/// product(rows [M, K], weight) + bias for x [..., K] of any dimensions.
template <class Product>
at::Tensor linear_by(Product&& product, const at::Tensor& x, const at::Tensor& weight,
                     const std::optional<at::Tensor>& bias) {
  auto sizes = x.sym_sizes().vec();
  c10::SymInt rows = 1;
  for (size_t i = 0; i + 1 < sizes.size(); ++i) {
    rows *= sizes[i];
  }
  auto out = product(x.reshape_symint({rows, sizes.back()}), weight);
  sizes.back() = weight.sym_size(0);
  return (bias ? out + *bias : out).view_symint(sizes);
}

/// Calls the kernel itself: what C++ users get without any registration.
struct DirectLinearCalls {
  static at::Tensor product(const at::Tensor& x, const at::Tensor& weight) { return native_linear(x, weight); }
};

/// Autograd of x W^T, to any order: the gradients g W and g^T x are products of the same form. `Calls` says how the op
/// is reached: directly, or through the dispatcher.
template <class Calls>
struct LinearFunction : torch::autograd::Function<LinearFunction<Calls>> {
  using List = torch::autograd::variable_list;

  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight) {
    ctx->save_for_backward({x, weight});
    return Calls::product(x, weight);
  }

  static List backward(torch::autograd::AutogradContext* ctx, List grads) {
    const auto saved = ctx->get_saved_variables();
    const auto &grad = grads[0], &x = saved[0], &weight = saved[1];
    return {ctx->needs_input_grad(0) ? LinearFunction::apply(grad, weight.t()) : at::Tensor(),
            ctx->needs_input_grad(1) ? LinearFunction::apply(grad.t(), x.t()) : at::Tensor()};
  }
};

/// x W^T + bias, as torch.nn.functional.linear.
/// @param x [..., K]  @param weight [N, K]  @param bias [N]  @returns [..., N]; differentiable
/// @throws c10::ValueError if shapes disagree, or the backend cannot compute on x
template <class Calls = DirectLinearCalls>
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias = {},
                  Backend backend = Backend::automatic) {
  check_linear_layer(x, weight, bias);
  if (!linear_runs_native(backend, x, weight)) {
    return at::linear(x, weight, bias);
  }
  return linear_by([](const at::Tensor& rows, const at::Tensor& w) { return LinearFunction<Calls>::apply(rows, w); }, x,
                   weight, bias);
}

} // namespace hybridattn::ops
