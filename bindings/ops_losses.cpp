// Registers the losses from hidden states: one op each that computes value and gradients, a meta kernel, autograd.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <hybridattn/ops/linear_cross_entropy.h>
#include <hybridattn/ops/linear_kl_divergence.h>
#include <torch/library.h>

namespace {

using namespace hybridattn::ops;
using at::Tensor;
using Optional = std::optional<Tensor>;

LinearLossResult kl(const Tensor& student_hidden, const Tensor& student_head, const Tensor& teacher_hidden,
                    const Tensor& teacher_head, const Optional& weights, double temperature, const std::string& kind,
                    double jsd_beta, int64_t chunk_size, bool hidden_grad, bool head_grad,
                    const std::string& backend_name) {
  const LinearKlOptions options{
      weights, temperature, kind, jsd_beta, "sum", chunk_size, backend("linear_kl_divergence", backend_name)};
  return linear_kl_divergence_forward(student_hidden, student_head, teacher_hidden, teacher_head, options, hidden_grad,
                                      head_grad);
}

LinearLossResult cross_entropy(const Tensor& hidden, const Tensor& head, const Tensor& labels, int64_t chunk_size,
                               bool hidden_grad, bool head_grad) {
  return linear_cross_entropy_forward(hidden, head, labels, chunk_size, hidden_grad, head_grad);
}

LinearLossResult shapes(const Tensor& hidden, const Tensor& head, bool hidden_grad, bool head_grad) {
  const auto options = hidden.options().dtype(state_dtype(hidden));
  c10::SymInt tokens = 1;
  for (int64_t i = 0; i + 1 < hidden.dim(); ++i) {
    tokens = tokens * hidden.sym_size(i);
  }
  const auto none = at::empty({0}, options);
  return {at::empty({}, options), at::empty_symint({tokens}, options),
          hidden_grad ? at::empty_symint({tokens, hidden.sym_size(-1)}, options) : none,
          head_grad ? at::empty_symint(head.sym_sizes(), options) : at::empty({0}, options)};
}

LinearLossResult kl_meta(const Tensor& student_hidden, const Tensor& student_head, const Tensor&, const Tensor&,
                         const Optional&, double, const std::string&, double, int64_t, bool hidden_grad, bool head_grad,
                         const std::string&) {
  return shapes(student_hidden, student_head, hidden_grad, head_grad);
}

LinearLossResult cross_entropy_meta(const Tensor& hidden, const Tensor& head, const Tensor&, int64_t, bool hidden_grad,
                                    bool head_grad) {
  return shapes(hidden, head, hidden_grad, head_grad);
}

/// With gradients, {total, loss} from the autograd function and empty gradients; otherwise the op itself.
template <class Below>
LinearLossResult tracked(const Tensor& hidden, const Tensor& head, const Below& below) {
  const LinearLossFunction::Compute compute = [&](bool hidden_grad, bool head_grad) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return below(hidden_grad, head_grad);
  };
  if (!at::GradMode::is_enabled() || !(hidden.requires_grad() || head.requires_grad())) {
    return compute(false, false);
  }
  const auto result = LinearLossFunction::apply(hidden, head, compute);
  const auto none = at::empty({0}, result[1].options());
  return {result[0], result[1], none, at::empty({0}, result[1].options())};
}

LinearLossResult kl_autograd(const Tensor& student_hidden, const Tensor& student_head, const Tensor& teacher_hidden,
                             const Tensor& teacher_head, const Optional& weights, double temperature,
                             const std::string& kind, double jsd_beta, int64_t chunk_size, bool, bool,
                             const std::string& backend_name) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("hybridattn::linear_kl_divergence", "").typed<decltype(kl_meta)>();
  return tracked(student_hidden, student_head, [&](bool hidden_grad, bool head_grad) {
    return op.call(student_hidden, student_head, teacher_hidden, teacher_head, weights, temperature, kind, jsd_beta,
                   chunk_size, hidden_grad, head_grad, backend_name);
  });
}

LinearLossResult cross_entropy_autograd(const Tensor& hidden, const Tensor& head, const Tensor& labels,
                                        int64_t chunk_size, bool, bool) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("hybridattn::linear_cross_entropy", "")
                             .typed<decltype(cross_entropy_meta)>();
  return tracked(hidden, head, [&](bool hidden_grad, bool head_grad) {
    return op.call(hidden, head, labels, chunk_size, hidden_grad, head_grad);
  });
}

} // namespace

TORCH_LIBRARY_FRAGMENT(hybridattn, m) {
  m.def("linear_kl_divergence(Tensor student_hidden, Tensor student_head, Tensor teacher_hidden, Tensor teacher_head, "
        "Tensor? weights, float temperature, str kind, float jsd_beta, int chunk_size, bool hidden_grad=False, bool "
        "head_grad=False, str backend=\"auto\") -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("linear_cross_entropy(Tensor hidden, Tensor head, Tensor labels, int chunk_size, bool hidden_grad=False, bool "
        "head_grad=False) -> (Tensor, Tensor, Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(hybridattn, CompositeExplicitAutograd, m) {
  m.impl("linear_kl_divergence", TORCH_FN(kl));
  m.impl("linear_cross_entropy", TORCH_FN(cross_entropy));
}
TORCH_LIBRARY_IMPL(hybridattn, Meta, m) {
  m.impl("linear_kl_divergence", TORCH_FN(kl_meta));
  m.impl("linear_cross_entropy", TORCH_FN(cross_entropy_meta));
}
TORCH_LIBRARY_IMPL(hybridattn, Autograd, m) {
  m.impl("linear_kl_divergence", TORCH_FN(kl_autograd));
  m.impl("linear_cross_entropy", TORCH_FN(cross_entropy_autograd));
}
