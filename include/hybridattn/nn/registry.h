// The mixers by name.
#pragma once

#include <memory>
#include <string>

#include "hybridattn/nn/deltanet.h"
#include "hybridattn/nn/gated_deltanet.h"
#include "hybridattn/nn/gated_linear_attention.h"
#include "hybridattn/nn/kimi_delta_attention.h"
#include "hybridattn/nn/lightning.h"
#include "hybridattn/nn/rwkv.h"
#include "hybridattn/nn/softmax_attention.h"

namespace hybridattn::nn {

/// Builds a mixer from its kind and its options by name.
/// @throws c10::ValueError: unknown kind (listing the known ones), unknown option, value of the wrong type or range
inline std::shared_ptr<Mixer> build_mixer(const std::string& kind, const nlohmann::json& options) {
  std::shared_ptr<Mixer> mixer;
  const auto built_as = [&]<class Impl, class Options>() {
    if (kind == Options::kind) {
      mixer = std::make_shared<Impl>(fields_from_json<Options>(kind, options));
    }
  };
  built_as.template operator()<GatedDeltaNetImpl, GatedDeltaNetOptions>();
  built_as.template operator()<DeltaNetImpl, DeltaNetOptions>();
  built_as.template operator()<KimiDeltaAttentionImpl, KimiDeltaAttentionOptions>();
  built_as.template operator()<GatedLinearAttentionImpl, GatedLinearAttentionOptions>();
  built_as.template operator()<Rwkv6Impl, Rwkv6Options>();
  built_as.template operator()<Rwkv7Impl, Rwkv7Options>();
  built_as.template operator()<LightningImpl, LightningOptions>();
  if (kind == "softmax_attention" || kind == "sliding_window") {
    const auto softmax = fields_from_json<SoftmaxAttentionOptions>(kind, options);
    HA_CHECK(kind != "sliding_window" || softmax.window > 0, "sliding_window: window must be positive, got 0");
    mixer = std::make_shared<SoftmaxAttentionImpl>(softmax);
  }
  HA_CHECK(mixer, "unknown mixer '", kind,
           "' (known: gated_deltanet, deltanet, kda, gla, rwkv6, rwkv7, lightning, softmax_attention, sliding_window)");
  return mixer;
}

} // namespace hybridattn::nn
