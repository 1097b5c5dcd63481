// Registers rotary embedding: the op with its meta kernel and autograd.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <hybridattn/ops/apply_rotary.h>
#include <torch/library.h>

namespace {

using namespace hybridattn::ops;
using at::Tensor;

constexpr const char* kOp = "apply_rotary";

Tensor forward(const Tensor& x, const Tensor& cos, const Tensor& sin, bool transposed,
               const std::string& backend_name) {
  check_rotary(x, cos, sin);
  return runs_native(kOp, backend(kOp, backend_name), x) ? native_apply_rotary(x, cos, sin, transposed)
                                                         : aten_apply_rotary(x, cos, sin, transposed).contiguous();
}

Tensor forward_meta(const Tensor& x, const Tensor&, const Tensor&, bool, const std::string&) {
  return at::empty_symint(x.sym_sizes(), x.options());
}

/// Reaches the op below autograd through the dispatcher, so that tracing sees it.
struct DispatchedCalls {
  static Tensor rotate(const Tensor& x, const Tensor& cos, const Tensor& sin, bool transposed) {
    at::AutoDispatchBelowADInplaceOrView guard;
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow("hybridattn::apply_rotary", "").typed<decltype(::forward)>();
    return op.call(x, cos, sin, transposed, "native");
  }
};

Tensor autograd(const Tensor& x, const Tensor& cos, const Tensor& sin, bool transposed,
                const std::string& backend_name) {
  return apply_rotary<DispatchedCalls>(x, cos, sin, transposed, backend(kOp, backend_name));
}

} // namespace

TORCH_LIBRARY_FRAGMENT(hybridattn, m) {
  m.def("apply_rotary(Tensor x, Tensor cos, Tensor sin, bool transposed=False, str backend=\"auto\") -> Tensor");
}
TORCH_LIBRARY_IMPL(hybridattn, CompositeExplicitAutograd, m) {
  m.impl(kOp, TORCH_FN(forward));
}
TORCH_LIBRARY_IMPL(hybridattn, Meta, m) {
  m.impl(kOp, TORCH_FN(forward_meta));
}
TORCH_LIBRARY_IMPL(hybridattn, Autograd, m) {
  m.impl(kOp, TORCH_FN(autograd));
}
