// How far a mixer's output is from the teacher's attention output.
#pragma once

#include <ATen/ops/cosine_similarity.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
#include <ATen/TensorOperators.h>
#include <hybridattn/core/check.h>
#include <hybridattn/ops/squared_distance.h>

#include <cmath>
#include <string>

namespace hybridattn::ops {

/// Per token, in fp32 (fp64 for fp64): l2_norm |target - prediction|_2 D^-1/2 (RADLADS, arXiv 2505.03005, step 1);
/// squared: |target - prediction|_2^2 / D; cosine: 1 - cos(target, prediction).
/// @param prediction, target [..., D]  @param mask [...] bool, true where a token counts; undefined = all
/// @param reduction mean (over tokens that count), sum, or none [...]
/// @throws c10::ValueError if shapes disagree, a name is unknown, or the backend cannot compute on prediction
template <class Calls = DirectDistanceCalls>
at::Tensor alignment_loss(const at::Tensor& prediction, const at::Tensor& target,
                          const std::optional<at::Tensor>& mask = {}, const std::string& kind = "l2_norm",
                          const std::string& reduction = "mean", Backend backend = Backend::automatic) {
  HA_CHECK(prediction.sizes() == target.sizes() && prediction.dim() >= 1,
           "alignment_loss: target must have prediction's ", prediction.sizes(), ", got ", target.sizes());
  const auto token_shape = prediction.sizes().slice(0, prediction.dim() - 1);
  HA_CHECK(!mask || mask->sizes() == token_shape, "alignment_loss: mask must be ", token_shape, ", got ",
           mask ? mask->sizes() : at::IntArrayRef{});
  HA_CHECK(reduction == "mean" || reduction == "sum" || reduction == "none", "alignment_loss: unknown reduction '",
           reduction, "', known are mean, sum, none");
  at::Tensor loss;
  if (kind == "cosine") {
    const auto dtype = state_dtype(prediction);
    loss = 1 - at::cosine_similarity(prediction.to(dtype), target.to(dtype), -1);
  } else {
    HA_CHECK(kind == "l2_norm" || kind == "squared", "alignment_loss: unknown kind '", kind,
             "', known are l2_norm, squared, cosine");
    const auto squared = squared_distance<Calls>(prediction, target, backend);
    if (kind == "squared") {
      loss = squared / prediction.size(-1);
    } else {
      // The root's derivative at 0 is infinite; a perfect token has gradient 0.
      const auto perfect = squared.eq(0);
      loss = at::where(perfect, at::zeros_like(squared), squared.masked_fill(perfect, 1).sqrt()) *
             (1 / std::sqrt(static_cast<double>(prediction.size(-1))));
    }
  }
  if (mask) {
    loss = at::where(*mask, loss, at::zeros_like(loss));
  }
  if (reduction == "none") {
    return loss;
  }
  return reduction == "sum" ? loss.sum() : mask ? loss.sum() / mask->sum() : loss.mean();
}

} // namespace hybridattn::ops
