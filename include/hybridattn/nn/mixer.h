// Mixer: what stands in the place of a decoder layer's attention.
// Letters: B batch, T tokens, D hidden size, R rotary width, N documents.
#pragma once

#include <torch/nn/module.h>

#include <optional>
#include <string>
#include <utility>

#include <nlohmann/json.hpp>

#include "hybridattn/core/check.h"
#include "hybridattn/nn/linear.h"
#include "hybridattn/nn/mixer_state.h"
#include "hybridattn/nn/options.h"

namespace hybridattn::nn {

/// What a mixer is told besides the hidden states.
struct MixerContext {
  std::optional<std::pair<at::Tensor, at::Tensor>> rotary; ///< (cos, sin), each [B or 1, T, R]
  std::optional<at::Tensor> padding_mask; ///< [B, T] (or all seen so far), true = token; padding is left
  std::optional<at::Tensor>
      cu_seqlens; ///< [N + 1] int64, borders of documents over the flattened B * T, row ends included
  /// For mixers with a value residual: where the first of a forward pass puts its values [B, T, H, V] and later ones
  /// find them. The first one is the lowest layer with such a mixer. Null: this mixer is the first.
  at::Tensor* first_value = nullptr;
};

/// Base of every mixer.
class Mixer : public torch::nn::Module {
public:
  /// @param hidden_states [B, T, D]
  /// @param state  continues from it and updates it in place; null keeps nothing
  /// @returns [B, T, D]; padded positions have no meaning
  /// @throws c10::ValueError: shapes disagree, rotary is missing, or cu_seqlens and state are both given
  virtual at::Tensor forward(const at::Tensor& hidden_states, const MixerContext& context = {},
                             MixerState* state = nullptr) = 0;

  /// Registered name, as in config.json and recipes.
  virtual std::string kind() const = 0;
  /// True when memory per sequence does not grow with its length.
  virtual bool is_linear() const = 0;
  virtual const MixerOptions& shape() const = 0;
  /// Every option with its resolved value.
  virtual nlohmann::json options_json() const = 0;

  void pretty_print(std::ostream& stream) const override {
    stream << kind() << "(heads=" << shape().num_heads << "/" << shape().num_kv_heads
           << ", head_dim=" << shape().head_dim << ", rotary=" << shape().rotary << ")";
  }

protected:
  Linear linear(const char* name, int64_t in, int64_t out, bool bias) {
    return register_module(name, Linear(torch::nn::LinearOptions(in, out).bias(bias)));
  }

  void check(const at::Tensor& hidden_states, const MixerContext& context, const MixerState* state) const {
    HA_CHECK(hidden_states.dim() == 3 && hidden_states.size(2) == shape().hidden_size, kind(),
             ": hidden_states must be [B, T, ", shape().hidden_size, "], got ", hidden_states.sizes());
    HA_CHECK(context.rotary || shape().rotary == "drop", kind(),
             ": rotary (cos, sin) is missing; pass it or build the mixer with rotary \"drop\"");
    HA_CHECK(!context.cu_seqlens || state == nullptr, kind(),
             ": cu_seqlens (whole documents) and a state (one continued sequence) exclude each other");
    HA_CHECK(!context.padding_mask ||
                 (context.padding_mask->dim() == 2 && context.padding_mask->size(0) == hidden_states.size(0) &&
                  context.padding_mask->size(1) >= hidden_states.size(1)),
             kind(), ": padding_mask must be [", hidden_states.size(0), ", ", hidden_states.size(1),
             "] (or cover earlier positions too), got ",
             context.padding_mask ? context.padding_mask->sizes() : at::IntArrayRef{});
  }
};

/// [B, T, ...] as one row [1, B * T, ...]: how documents are packed for the ops.
inline at::Tensor one_row(const at::Tensor& x) {
  return x.flatten(0, 1).unsqueeze(0);
}

} // namespace hybridattn::nn
