// Registers short convolution: forward and backward ops with their meta kernels, autograd, and what carries a state.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <hybridattn/ops/short_convolution.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

namespace {

using namespace hybridattn::ops;
using at::Tensor;
using Optional = std::optional<Tensor>;
using Gradients = std::tuple<Tensor, Tensor, Tensor>;

constexpr const char* kOp = "short_convolution";

Tensor forward(const Tensor& x, const Tensor& weight, const Optional& bias, const Optional& cu_seqlens, bool activates,
               const std::string& backend_name) {
  const ConvolutionInputs in{x, weight, bias, cu_seqlens, activates};
  check_convolution(in);
  return runs_native(kOp, backend(kOp, backend_name), x) ? convolution_forward(in) : aten_convolution(in);
}

Gradients backward(const Tensor& x, const Tensor& weight, const Optional& bias, const Optional& cu_seqlens,
                   bool activates, const Tensor& grad_out) {
  auto [grad_x, grad_weight, grad_bias] = convolution_backward({x, weight, bias, cu_seqlens, activates}, grad_out);
  return {grad_x, grad_weight, grad_bias.defined() ? grad_bias : at::empty({0}, x.options())};
}

Tensor forward_meta(const Tensor& x, const Tensor&, const Optional&, const Optional&, bool, const std::string&) {
  return at::empty_symint(x.sym_sizes(), x.options());
}

Gradients backward_meta(const Tensor& x, const Tensor& weight, const Optional& bias, const Optional&, bool,
                        const Tensor&) {
  return {at::empty_symint(x.sym_sizes(), x.options()), at::empty_symint(weight.sym_sizes(), weight.options()),
          bias ? at::empty_symint(bias->sym_sizes(), bias->options()) : at::empty_symint({0}, x.options())};
}

/// Reaches forward and backward below autograd through the dispatcher, so that tracing sees the ops.
struct DispatchedCalls {
  static Tensor forward(const ConvolutionInputs& in) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return whole(in, Backend::native);
  }
  static ConvolutionGradients backward(const ConvolutionInputs& in, const Tensor& grad_out) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("hybridattn::causal_convolution_backward", "")
                               .typed<decltype(::backward)>();
    auto [x, weight, bias] = op.call(in.x, in.weight, in.bias, in.cu_seqlens, in.activates, grad_out);
    return {x, weight, in.bias ? bias : Tensor()};
  }
  static Tensor whole(const ConvolutionInputs& in, Backend wanted) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("hybridattn::causal_convolution", "")
                               .typed<decltype(::forward)>();
    return op.call(in.x, in.weight, in.bias, in.cu_seqlens, in.activates, std::string(name(wanted)));
  }
};

Tensor autograd(const Tensor& x, const Tensor& weight, const Optional& bias, const Optional& cu_seqlens, bool activates,
                const std::string& backend_name) {
  return convolution<DispatchedCalls>({x, weight, bias, cu_seqlens, activates}, backend(kOp, backend_name));
}

/// A composition around the op above, which tracing sees through.
Tensor with_state(const Tensor& x, const Tensor& weight, const Optional& bias, const Optional& state,
                  const Optional& cu_seqlens, bool activates, const std::string& backend_name) {
  const auto inner = [](const ConvolutionInputs& in, Backend wanted) { return DispatchedCalls::whole(in, wanted); };
  return short_convolution_by(inner, {x, weight, bias, cu_seqlens, activates}, state, backend(kOp, backend_name));
}

} // namespace

TORCH_LIBRARY_FRAGMENT(hybridattn, m) {
  m.def("causal_convolution(Tensor x, Tensor weight, Tensor? bias, Tensor? cu_seqlens, bool activates, str "
        "backend=\"auto\") -> Tensor");
  m.def("causal_convolution_backward(Tensor x, Tensor weight, Tensor? bias, Tensor? cu_seqlens, bool activates, Tensor "
        "grad_out) -> (Tensor, Tensor, Tensor)");
  m.def("short_convolution(Tensor x, Tensor weight, Tensor? bias, Tensor? state, Tensor? cu_seqlens, bool "
        "activates=False, str backend=\"auto\") -> Tensor");
}
TORCH_LIBRARY_IMPL(hybridattn, CompositeExplicitAutograd, m) {
  m.impl("causal_convolution", TORCH_FN(forward));
  m.impl("causal_convolution_backward", TORCH_FN(backward));
}
TORCH_LIBRARY_IMPL(hybridattn, CompositeImplicitAutograd, m) {
  m.impl(kOp, TORCH_FN(with_state));
}
TORCH_LIBRARY_IMPL(hybridattn, Meta, m) {
  m.impl("causal_convolution", TORCH_FN(forward_meta));
  m.impl("causal_convolution_backward", TORCH_FN(backward_meta));
}
TORCH_LIBRARY_IMPL(hybridattn, Autograd, m) {
  m.impl("causal_convolution", TORCH_FN(autograd));
  // Without this a second derivative would silently be wrong.
  m.impl("causal_convolution_backward", torch::autograd::autogradNotImplementedFallback());
}
