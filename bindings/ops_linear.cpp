// Registers linear layers: the op with its meta kernel and autograd.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <hybridattn/ops/linear.h>
#include <torch/library.h>

namespace {

using namespace hybridattn::ops;
using at::Tensor;
using Optional = std::optional<Tensor>;

constexpr const char* kOp = "linear";

/// Below autograd.
Tensor forward(const Tensor& x, const Tensor& weight, const Optional& bias, const std::string& backend_name) {
  check_linear_layer(x, weight, bias);
  return linear_runs_native(backend(kOp, backend_name), x, weight)
             ? linear_by([](const Tensor& rows, const Tensor& w) { return native_linear(rows, w); }, x, weight, bias)
             : at::linear(x, weight, bias);
}

bool runs_native_by_name(const Tensor& x, const Tensor& weight, const std::string& backend_name) {
  return linear_runs_native(backend(kOp, backend_name), x, weight);
}

Tensor forward_meta(const Tensor& x, const Tensor& weight, const Optional& bias, const std::string&) {
  check_linear_layer(x, weight, bias);
  auto sizes = x.sym_sizes().vec();
  sizes.back() = weight.sym_size(0);
  return at::empty_symint(sizes, x.options());
}

/// Reaches the op below autograd through the dispatcher, so that tracing sees it.
struct DispatchedCalls {
  static Tensor product(const Tensor& x, const Tensor& weight) {
    at::AutoDispatchBelowADInplaceOrView guard;
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow("hybridattn::linear", "").typed<decltype(::forward)>();
    return op.call(x, weight, {}, "native");
  }
};

Tensor autograd(const Tensor& x, const Tensor& weight, const Optional& bias, const std::string& backend_name) {
  return linear<DispatchedCalls>(x, weight, bias, backend(kOp, backend_name));
}

} // namespace

TORCH_LIBRARY_FRAGMENT(hybridattn, m) {
  m.def("linear_runs_native(Tensor x, Tensor weight, str backend=\"auto\") -> bool");
  m.def("linear(Tensor x, Tensor weight, Tensor? bias=None, str backend=\"auto\") -> Tensor");
}
TORCH_LIBRARY_IMPL(hybridattn, CompositeExplicitAutograd, m) {
  m.impl(kOp, TORCH_FN(forward));
  m.impl("linear_runs_native", TORCH_FN(runs_native_by_name));
}
TORCH_LIBRARY_IMPL(hybridattn, Meta, m) {
  m.impl(kOp, TORCH_FN(forward_meta));
}
TORCH_LIBRARY_IMPL(hybridattn, Autograd, m) {
  m.impl(kOp, TORCH_FN(autograd));
}
