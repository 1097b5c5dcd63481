// What a decoder is told besides the token ids.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>

#include "hybridattn/nn/mixer.h"

namespace hybridattn::nn {

/// Called where a layer's mixer has run: (layer, its input [B, T, D], its output [B, T, D], what it was told).
using MixerObserver = std::function<void(int64_t, const at::Tensor&, const at::Tensor&, const MixerContext&)>;

struct ForwardOptions {
  std::optional<at::Tensor> position_ids; ///< [B, T]; default: counted from the first token that is not padding
  std::optional<at::Tensor> padding_mask; ///< [B, T so far], true = token; padding stands on the left
  std::optional<at::Tensor> cu_seqlens;   ///< [N + 1], borders of documents over the flattened B * T, row ends included
  MixerObserver on_mixer;
};

} // namespace hybridattn::nn
