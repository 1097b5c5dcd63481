// Registers softmax attention: native forward and backward ops with their meta kernels and autograd, and the whole,
// which tracing sees through.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <hybridattn/ops/attention.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

namespace {

using namespace hybridattn::ops;
using at::Tensor;
using Optional = std::optional<Tensor>;
using Results = std::tuple<Tensor, Tensor>;
using Gradients = std::tuple<Tensor, Tensor, Tensor>;

Results forward(const Tensor& q, const Tensor& k, const Tensor& v, std::optional<double> scale, bool causal,
                int64_t window, int64_t sinks, const Optional& cu_seqlens, const Optional& padding_mask) {
  const AttentionOptions options{scale, causal, window, sinks, cu_seqlens, padding_mask};
  check_attention(q, k, v, options);
  attention_runs_native(Backend::native, {q, k, v, options});
  return native_attention({q, k, v, options});
}

Gradients backward(const Tensor& q, const Tensor& k, const Tensor& v, std::optional<double> scale, bool causal,
                   int64_t window, int64_t sinks, const Optional& cu_seqlens, const Optional& padding_mask,
                   const Tensor& out, const Tensor& log_sum, const Tensor& grad_out) {
  return native_attention_backward({q, k, v, {scale, causal, window, sinks, cu_seqlens, padding_mask}}, {out, log_sum},
                                   grad_out);
}

Results forward_meta(const Tensor& q, const Tensor&, const Tensor& v, std::optional<double>, bool, int64_t, int64_t,
                     const Optional&, const Optional&) {
  return {at::empty_symint({q.sym_size(0), q.sym_size(1), q.sym_size(2), v.sym_size(3)}, q.options()),
          at::empty_symint({q.sym_size(0), q.sym_size(2), q.sym_size(1)}, q.options().dtype(state_dtype(q)))};
}

Gradients backward_meta(const Tensor& q, const Tensor& k, const Tensor& v, std::optional<double>, bool, int64_t,
                        int64_t, const Optional&, const Optional&, const Tensor&, const Tensor&, const Tensor&) {
  const auto like = [](const Tensor& x) { return at::empty_symint(x.sym_sizes(), x.options()); };
  return {like(q), like(k), like(v)};
}

/// Reaches forward and backward below autograd through the dispatcher, so that tracing sees the ops.
struct DispatchedCalls {
  static AttentionResults forward(const AttentionInputs& in) {
    at::AutoDispatchBelowADInplaceOrView guard;
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow("hybridattn::native_attention", "").typed<decltype(::forward)>();
    const auto& o = in.options;
    return op.call(in.q, in.k, in.v, o.scale, o.causal, o.window, o.sinks, o.cu_seqlens, o.padding_mask);
  }
  static AttentionGradients backward(const AttentionInputs& in, const AttentionResults& results,
                                     const Tensor& grad_out) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("hybridattn::native_attention_backward", "")
                               .typed<decltype(::backward)>();
    const auto& o = in.options;
    return op.call(in.q, in.k, in.v, o.scale, o.causal, o.window, o.sinks, o.cu_seqlens, o.padding_mask,
                   std::get<0>(results), std::get<1>(results), grad_out);
  }
};

Results autograd(const Tensor& q, const Tensor& k, const Tensor& v, std::optional<double> scale, bool causal,
                 int64_t window, int64_t sinks, const Optional& cu_seqlens, const Optional& padding_mask) {
  const auto results =
      AttentionFunction<DispatchedCalls>::apply(q, k, v, scale, causal, window, sinks, cu_seqlens, padding_mask);
  return {results[0], results[1]};
}

Tensor whole(const Tensor& q, const Tensor& k, const Tensor& v, std::optional<double> scale, bool causal,
             int64_t window, int64_t sinks, const Optional& cu_seqlens, const Optional& padding_mask,
             const std::string& backend_name) {
  return softmax_attention<DispatchedCalls>(q, k, v, {scale, causal, window, sinks, cu_seqlens, padding_mask},
                                            backend("softmax_attention", backend_name));
}

bool runs_native_by_name(const Tensor& q, const Tensor& k, const Tensor& v, int64_t window, const Optional& cu_seqlens,
                         const Optional& padding_mask, const std::string& backend_name) {
  const AttentionOptions options{.window = window, .cu_seqlens = cu_seqlens, .padding_mask = padding_mask};
  return attention_runs_native(backend("softmax_attention", backend_name), {q, k, v, options});
}

} // namespace

TORCH_LIBRARY_FRAGMENT(hybridattn, m) {
  m.def("native_attention(Tensor q, Tensor k, Tensor v, float? scale, bool causal, int window, int sinks, Tensor? "
        "cu_seqlens, Tensor? padding_mask) -> (Tensor, Tensor)");
  m.def("native_attention_backward(Tensor q, Tensor k, Tensor v, float? scale, bool causal, int window, int sinks, "
        "Tensor? cu_seqlens, Tensor? padding_mask, Tensor out, Tensor log_sum, Tensor grad_out) -> (Tensor, Tensor, "
        "Tensor)");
  m.def("softmax_attention(Tensor q, Tensor k, Tensor v, float? scale, bool causal, int window, int sinks, Tensor? "
        "cu_seqlens, Tensor? padding_mask, str backend=\"auto\") -> Tensor");
  m.def("softmax_attention_runs_native(Tensor q, Tensor k, Tensor v, int window, Tensor? cu_seqlens, Tensor? "
        "padding_mask, str backend=\"auto\") -> bool");
}
TORCH_LIBRARY_IMPL(hybridattn, CompositeExplicitAutograd, m) {
  m.impl("native_attention", TORCH_FN(forward));
  m.impl("native_attention_backward", TORCH_FN(backward));
}
TORCH_LIBRARY_IMPL(hybridattn, CompositeImplicitAutograd, m) {
  m.impl("softmax_attention", TORCH_FN(whole));
  m.impl("softmax_attention_runs_native", TORCH_FN(runs_native_by_name));
}
TORCH_LIBRARY_IMPL(hybridattn, Meta, m) {
  m.impl("native_attention", TORCH_FN(forward_meta));
  m.impl("native_attention_backward", TORCH_FN(backward_meta));
}
TORCH_LIBRARY_IMPL(hybridattn, Autograd, m) {
  m.impl("native_attention", TORCH_FN(autograd));
  // Without this a second derivative would silently be wrong.
  m.impl("native_attention_backward", torch::autograd::autogradNotImplementedFallback());
}
