// Registers squared distances between rows: forward and backward ops with their meta kernels and autograd; and the
// alignment loss, which tracing sees through.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <hybridattn/ops/alignment_loss.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

namespace {

using namespace hybridattn::ops;
using at::Tensor;

Tensor forward(const Tensor& x, const Tensor& y) {
  runs_native("native_squared_distance", Backend::native, x);
  return squared_distance_forward(x, y);
}

Tensor forward_meta(const Tensor& x, const Tensor&) {
  return at::empty_symint(x.sym_sizes().slice(0, x.dim() - 1), x.options().dtype(state_dtype(x)));
}

Tensor backward(const Tensor& x, const Tensor& y, const Tensor& factor) {
  return squared_distance_backward(x, y, factor);
}

Tensor backward_meta(const Tensor& x, const Tensor&, const Tensor&) {
  return at::empty_symint(x.sym_sizes(), x.options());
}

/// Reaches forward and backward below autograd through the dispatcher, so that tracing sees the ops.
struct DispatchedCalls {
  static Tensor forward(const Tensor& x, const Tensor& y) {
    at::AutoDispatchBelowADInplaceOrView guard;
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("hybridattn::native_squared_distance", "")
                               .typed<decltype(::forward)>();
    return op.call(x, y);
  }
  static Tensor backward(const Tensor& x, const Tensor& y, const Tensor& factor) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("hybridattn::native_squared_distance_backward", "")
                               .typed<decltype(::backward)>();
    return op.call(x, y, factor);
  }
};

Tensor autograd(const Tensor& x, const Tensor& y) {
  return DistanceFunction<DispatchedCalls>::apply(x, y);
}

Tensor alignment(const Tensor& prediction, const Tensor& target, const std::optional<Tensor>& mask,
                 const std::string& kind, const std::string& reduction, const std::string& backend_name) {
  return alignment_loss<DispatchedCalls>(prediction, target, mask, kind, reduction,
                                         backend("alignment_loss", backend_name));
}

} // namespace

TORCH_LIBRARY_FRAGMENT(hybridattn, m) {
  m.def("native_squared_distance(Tensor x, Tensor y) -> Tensor");
  m.def("native_squared_distance_backward(Tensor x, Tensor y, Tensor factor) -> Tensor");
  m.def("alignment_loss(Tensor prediction, Tensor target, Tensor? mask, str kind, str reduction, str "
        "backend=\"auto\") -> Tensor");
}
TORCH_LIBRARY_IMPL(hybridattn, CompositeExplicitAutograd, m) {
  m.impl("native_squared_distance", TORCH_FN(forward));
  m.impl("native_squared_distance_backward", TORCH_FN(backward));
}
TORCH_LIBRARY_IMPL(hybridattn, CompositeImplicitAutograd, m) {
  m.impl("alignment_loss", TORCH_FN(alignment));
}
TORCH_LIBRARY_IMPL(hybridattn, Meta, m) {
  m.impl("native_squared_distance", TORCH_FN(forward_meta));
  m.impl("native_squared_distance_backward", TORCH_FN(backward_meta));
}
TORCH_LIBRARY_IMPL(hybridattn, Autograd, m) {
  m.impl("native_squared_distance", TORCH_FN(autograd));
  // Without this a second derivative would silently be wrong.
  m.impl("native_squared_distance_backward", torch::autograd::autogradNotImplementedFallback());
}
