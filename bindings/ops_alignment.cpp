// Registers the alignment loss: a composition that autograd and tracing see through.
#include <hybridattn/ops/alignment_loss.h>
#include <torch/library.h>

namespace {

using namespace hybridattn::ops;
using at::Tensor;

Tensor alignment(const Tensor& prediction, const Tensor& target, const std::optional<Tensor>& mask,
                 const std::string& kind, const std::string& reduction) {
  return alignment_loss(prediction, target, mask, kind, reduction);
}

} // namespace

TORCH_LIBRARY_FRAGMENT(hybridattn, m) {
  m.def("alignment_loss(Tensor prediction, Tensor target, Tensor? mask, str kind, str reduction) -> Tensor");
}

TORCH_LIBRARY_IMPL(hybridattn, CompositeImplicitAutograd, m) {
  m.impl("alignment_loss", TORCH_FN(alignment));
}
