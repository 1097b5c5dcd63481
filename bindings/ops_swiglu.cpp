// Registers the gated unit: forward and backward ops with their meta kernels and autograd.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <hybridattn/ops/swiglu.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

namespace {

using namespace hybridattn::ops;
using at::Tensor;
using Gradients = std::tuple<Tensor, Tensor>;

constexpr const char* kOp = "swiglu";

Tensor forward(const Tensor& x, const Tensor& y, const std::string& backend_name) {
  check_swiglu(x, y);
  return runs_native(kOp, backend(kOp, backend_name), x) ? swiglu_forward(x, y) : at::silu(x) * y;
}

Gradients backward(const Tensor& x, const Tensor& y, const Tensor& grad_out) {
  return swiglu_backward(x, y, grad_out);
}

Tensor forward_meta(const Tensor& x, const Tensor& y, const std::string&) {
  check_swiglu(x, y);
  return at::empty_symint(x.sym_sizes(), x.options());
}

Gradients backward_meta(const Tensor& x, const Tensor& y, const Tensor&) {
  return {at::empty_symint(x.sym_sizes(), x.options()), at::empty_symint(y.sym_sizes(), y.options())};
}

/// Reaches forward and backward below autograd through the dispatcher, so that tracing sees the ops.
struct DispatchedCalls {
  static Tensor forward(const Tensor& x, const Tensor& y) {
    at::AutoDispatchBelowADInplaceOrView guard;
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow("hybridattn::swiglu", "").typed<decltype(::forward)>();
    return op.call(x, y, std::string(name(Backend::native)));
  }
  static Gradients backward(const Tensor& x, const Tensor& y, const Tensor& grad_out) {
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow("hybridattn::swiglu_backward", "").typed<decltype(::backward)>();
    return op.call(x, y, grad_out);
  }
};

Tensor autograd(const Tensor& x, const Tensor& y, const std::string& backend_name) {
  return swiglu<DispatchedCalls>(x, y, backend(kOp, backend_name));
}

} // namespace

TORCH_LIBRARY_FRAGMENT(hybridattn, m) {
  m.def("swiglu(Tensor x, Tensor y, str backend=\"auto\") -> Tensor");
  m.def("swiglu_backward(Tensor x, Tensor y, Tensor grad_out) -> (Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(hybridattn, CompositeExplicitAutograd, m) {
  m.impl("swiglu", TORCH_FN(forward));
  m.impl("swiglu_backward", TORCH_FN(backward));
}
TORCH_LIBRARY_IMPL(hybridattn, Meta, m) {
  m.impl("swiglu", TORCH_FN(forward_meta));
  m.impl("swiglu_backward", TORCH_FN(backward_meta));
}
TORCH_LIBRARY_IMPL(hybridattn, Autograd, m) {
  m.impl("swiglu", TORCH_FN(autograd));
  // Without this a second derivative would silently be wrong.
  m.impl("swiglu_backward", torch::autograd::autogradNotImplementedFallback());
}
