// What a model must offer to be distilled. models/decoder.h does; so may a model of your own.
#pragma once

#include <ATen/core/Tensor.h>

#include <concepts>
#include <type_traits>

#include "hybridattn/nn/forward_options.h"

namespace hybridattn::distill {

/// A decoder whose layers mix tokens by an nn::Mixer each.
///   num_layers()                 number of layers
///   mixer(layer)                 the mixer of a layer
///   hidden_states(ids, options)  [B, T] -> [B, T, D] after the final norm; calls options.on_mixer in every layer
///   head_weight()                [V, D], hidden states to logits
template <class M>
concept DecoderModel = requires(M& model, int64_t layer, const at::Tensor& ids, const nn::ForwardOptions& options) {
  { model.num_layers() } -> std::convertible_to<int64_t>;
  { model.mixer(layer) } -> std::same_as<nn::Mixer&>;
  { model.hidden_states(ids, options) } -> std::convertible_to<at::Tensor>;
  { model.head_weight() } -> std::convertible_to<at::Tensor>;
  {model.named_parameters()};
};

/// A model or a module holder of one (`models::Decoder`).
template <class M>
auto& model_of(M& model) {
  if constexpr (DecoderModel<M>) {
    return model;
  } else {
    return *model;
  }
}

template <class M>
concept Decodable = DecoderModel<std::remove_reference_t<decltype(model_of(std::declval<M&>()))>>;

} // namespace hybridattn::distill
