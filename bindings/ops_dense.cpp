// Registers softmax attention and the alignment loss: compositions that
// autograd and tracing see through.
#include <hybridattn/ops/alignment_loss.h>
#include <hybridattn/ops/attention.h>
#include <torch/library.h>

namespace {

using namespace hybridattn::ops;
using at::Tensor;
using Optional = std::optional<Tensor>;

Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, std::optional<double> scale, bool causal,
                 int64_t window, int64_t sinks, const Optional& cu_seqlens, const Optional& padding_mask) {
  return softmax_attention(q, k, v, {scale, causal, window, sinks, cu_seqlens, padding_mask});
}

Tensor alignment(const Tensor& prediction, const Tensor& target, const Optional& mask, const std::string& kind,
                 const std::string& reduction) {
  return alignment_loss(prediction, target, mask, kind, reduction);
}

} // namespace

TORCH_LIBRARY_FRAGMENT(hybridattn, m) {
  m.def("softmax_attention(Tensor q, Tensor k, Tensor v, float? scale, bool causal, int window, int sinks, Tensor? "
        "cu_seqlens, Tensor? padding_mask) -> Tensor");
  m.def("alignment_loss(Tensor prediction, Tensor target, Tensor? mask, str kind, str reduction) -> Tensor");
}

TORCH_LIBRARY_IMPL(hybridattn, CompositeImplicitAutograd, m) {
  m.impl("softmax_attention", TORCH_FN(attention));
  m.impl("alignment_loss", TORCH_FN(alignment));
}
