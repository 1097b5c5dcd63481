// Registers the norm over rows with its activation and gate: forward and backward with meta kernels, autograd.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <hybridattn/ops/row_norm.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

namespace {

using namespace hybridattn::ops;
using at::Tensor;
using Optional = std::optional<Tensor>;
using Gradients = std::tuple<Tensor, Tensor, Tensor>;

Tensor forward(const Tensor& x, const Optional& weight, const Optional& gate, double eps, bool mean, bool activates,
               const std::string& backend_name) {
  const RowNormInputs in{x, weight, gate, eps, mean, activates};
  const auto wanted = backend("row_norm", backend_name);
  check_row_norm("row_norm", in);
  return runs_native("row_norm", wanted, x) ? row_norm_forward(in) : aten_row_norm(in);
}

/// An op's result must be defined; a gradient that there is not is empty.
Gradients backward(const Tensor& x, const Optional& weight, const Optional& gate, double eps, bool mean, bool activates,
                   const Tensor& grad_out) {
  auto [grad_x, grad_weight, grad_gate] = row_norm_backward({x, weight, gate, eps, mean, activates}, grad_out);
  const auto defined = [&](const Tensor& y) { return y.defined() ? y : at::empty({0}, x.options()); };
  return {grad_x, defined(grad_weight), defined(grad_gate)};
}

Tensor forward_meta(const Tensor& x, const Optional&, const Optional&, double, bool, bool, const std::string&) {
  return at::empty_symint(x.sym_sizes(), x.options());
}

Gradients backward_meta(const Tensor& x, const Optional& weight, const Optional& gate, double, bool, bool,
                        const Tensor&) {
  const auto like = [&](const Optional& y) {
    return y ? at::empty_symint(y->sym_sizes(), y->options()) : at::empty_symint({0}, x.options());
  };
  return {like(x), like(weight), like(gate)};
}

/// Reaches forward and backward below autograd through the dispatcher, so that tracing sees the ops.
struct DispatchedCalls {
  static Tensor forward(const RowNormInputs& in) {
    at::AutoDispatchBelowADInplaceOrView guard;
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow("hybridattn::row_norm", "").typed<decltype(::forward)>();
    return op.call(in.x, in.weight, in.gate, in.eps, in.mean, in.activates, "native");
  }
  static RowNormGradients backward(const RowNormInputs& in, const Tensor& grad_out) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("hybridattn::row_norm_backward", "")
                               .typed<decltype(::backward)>();
    auto [x, weight, gate] = op.call(in.x, in.weight, in.gate, in.eps, in.mean, in.activates, grad_out);
    return {x, in.weight ? weight : Tensor(), in.gate ? gate : Tensor()};
  }
};

Tensor autograd(const Tensor& x, const Optional& weight, const Optional& gate, double eps, bool mean, bool activates,
                const std::string& backend_name) {
  return row_norm<DispatchedCalls>("row_norm", {x, weight, gate, eps, mean, activates},
                                   backend("row_norm", backend_name));
}

} // namespace

TORCH_LIBRARY_FRAGMENT(hybridattn, m) {
  m.def(
      "row_norm(Tensor x, Tensor? weight, Tensor? gate, float eps, bool mean, bool activates, str backend=\"auto\") -> "
      "Tensor");
  m.def("row_norm_backward(Tensor x, Tensor? weight, Tensor? gate, float eps, bool mean, bool activates, Tensor "
        "grad_out) -> (Tensor, Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(hybridattn, CompositeExplicitAutograd, m) {
  m.impl("row_norm", TORCH_FN(forward));
  m.impl("row_norm_backward", TORCH_FN(backward));
}
TORCH_LIBRARY_IMPL(hybridattn, Meta, m) {
  m.impl("row_norm", TORCH_FN(forward_meta));
  m.impl("row_norm_backward", TORCH_FN(backward_meta));
}
TORCH_LIBRARY_IMPL(hybridattn, Autograd, m) {
  m.impl("row_norm", TORCH_FN(autograd));
  // Without this a second derivative would silently be wrong.
  m.impl("row_norm_backward", torch::autograd::autogradNotImplementedFallback());
}
