// Decoder: Llama-like decoders whose layers mix tokens by softmax attention or by a linear mixer.
// Letters: B batch, T tokens, D hidden size, V vocabulary.
#pragma once

#include <ATen/ops/arange.h>
#include <ATen/ops/cumsum.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/searchsorted.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/pimpl.h>

#include <memory>
#include <vector>

#include "hybridattn/models/config.h"
#include "hybridattn/nn/forward_options.h"
#include "hybridattn/nn/linear.h"
#include "hybridattn/nn/mlp.h"
#include "hybridattn/nn/recompute.h"
#include "hybridattn/nn/registry.h"

namespace hybridattn::models {

/// One state per layer. An empty one starts sequences; `Decoder::hidden_states` updates it in place.
struct Cache {
  explicit Cache(int64_t num_layers) : layers(num_layers) {}

  /// Positions processed so far, padding included.
  int64_t seen() const { return layers.empty() ? 0 : layers.front().seen; }

  std::vector<nn::MixerState> layers;
};

/// x + mixer(norm x), then x + mlp(norm x).
class DecoderLayerImpl : public torch::nn::Module {
public:
  DecoderLayerImpl(const ModelConfig& config, int64_t layer)
      : input_layernorm(register_module("input_layernorm", nn::RMSNorm(config.hidden_size, config.norm_eps))),
        post_attention_layernorm(
            register_module("post_attention_layernorm", nn::RMSNorm(config.hidden_size, config.norm_eps))),
        mlp(register_module("mlp", nn::MLP(config.hidden_size, config.intermediate_size, config.mlp_bias))),
        self_attn_(config.is_linear(layer)
                       ? nn::build_mixer(config.mixer, config.mixer_options)
                       : std::make_shared<nn::SoftmaxAttentionImpl>(config.attention_options(layer))) {
    register_module("self_attn", self_attn_);
  }

  at::Tensor forward(const at::Tensor& hidden, const nn::MixerContext& context, nn::MixerState* state, int64_t layer,
                     const nn::MixerObserver& on_mixer) {
    const auto input = input_layernorm(hidden);
    const auto mixed = self_attn_->forward(input, context, state);
    if (on_mixer) {
      on_mixer(layer, input, mixed, context);
    }
    const auto between = hidden + mixed;
    return between + mlp(post_attention_layernorm(between));
  }

  nn::Mixer& mixer() { return *self_attn_; }
  std::shared_ptr<nn::Mixer> shared_mixer() const { return self_attn_; }
  void replace_mixer(std::shared_ptr<nn::Mixer> mixer) { self_attn_ = replace_module("self_attn", std::move(mixer)); }

  nn::RMSNorm input_layernorm, post_attention_layernorm;
  nn::MLP mlp;

private:
  std::shared_ptr<nn::Mixer> self_attn_;
};
TORCH_MODULE(DecoderLayer);

/// Embedding, layers and final norm: `model.*` of the parameter names.
class DecoderBodyImpl : public torch::nn::Module {
public:
  explicit DecoderBodyImpl(const ModelConfig& config)
      : embed_tokens(register_module("embed_tokens", torch::nn::Embedding(config.vocab_size, config.hidden_size))),
        norm(register_module("norm", nn::RMSNorm(config.hidden_size, config.norm_eps))) {
    torch::nn::ModuleList list;
    for (int64_t layer = 0; layer < config.num_layers; ++layer) {
      layers.push_back(DecoderLayer(config, layer));
      list->push_back(layers.back());
    }
    register_module("layers", list);
  }

  torch::nn::Embedding embed_tokens;
  nn::RMSNorm norm;
  std::vector<DecoderLayer> layers;
};
TORCH_MODULE(DecoderBody);

/// A causal language model. Parameter names are those of Transformers, mixers under `model.layers.N.self_attn`.
///
/// Example:
///   Decoder teacher = load_decoder("SmolLM2-135M"); // models/folder.h
///   auto hidden = teacher->hidden_states(ids);   // [B, T] -> [B, T, D]
///   auto logits = teacher->logits(hidden);       // [B, T, V]
class DecoderImpl : public torch::nn::Module {
public:
  explicit DecoderImpl(ModelConfig given)
      : config(std::move(given)), body(register_module("model", DecoderBody(config))) {
    if (!config.tie_word_embeddings) {
      lm_head = register_module(
          "lm_head", nn::Linear(torch::nn::LinearOptions(config.hidden_size, config.vocab_size).bias(false)));
    }
  }

  int64_t num_layers() const { return config.num_layers; }
  nn::Mixer& mixer(int64_t layer) { return body->layers[index(layer)]->mixer(); }
  const nn::Mixer& mixer(int64_t layer) const { return *shared_mixer(layer); }
  std::shared_ptr<nn::Mixer> shared_mixer(int64_t layer) const { return body->layers[index(layer)]->shared_mixer(); }

  /// Puts `mixer` in the place of the layer's own; the config follows.
  /// @throws c10::ValueError: no such layer, a mixer of another width, or of another kind than the ones put in before
  void replace_mixer(int64_t layer, std::shared_ptr<nn::Mixer> mixer) {
    HA_CHECK(mixer->shape().hidden_size == config.hidden_size, "replace_mixer: the mixer has hidden_size ",
             mixer->shape().hidden_size, ", the decoder ", config.hidden_size);
    auto own = config.attention_options(index(layer));
    own.resolve("SoftmaxAttention");
    config.linear.resize(config.num_layers, false);
    config.linear[layer] = false;
    if (mixer->options_json() != fields_to_json(own)) {
      HA_CHECK(!config.is_hybrid() || (config.mixer == mixer->kind() && config.mixer_options == mixer->options_json()),
               "replace_mixer: another layer has the mixer ", config.mixer, " ", config.mixer_options.dump(),
               ", this one is ", mixer->kind(), " ", mixer->options_json().dump(),
               "; a decoder has one kind beside its own attention");
      config.linear[layer] = true;
      config.mixer = mixer->kind();
      config.mixer_options = mixer->options_json();
    }
    body->layers[layer]->replace_mixer(std::move(mixer));
  }

  /// Hidden states after the final norm. @param ids [B, T] int64  @returns [B, T, D]
  /// @throws c10::ValueError: ids outside the vocabulary, or shapes that disagree
  at::Tensor hidden_states(const at::Tensor& ids, const nn::ForwardOptions& options = {}, Cache* cache = nullptr) {
    HA_CHECK(ids.dim() == 2 && ids.scalar_type() == at::kLong, "decoder: ids must be int64 [B, T], got ",
             ids.scalar_type(), " ", ids.sizes());
    HA_CHECK(ids.numel() == 0 || (ids.min().item<int64_t>() >= 0 && ids.max().item<int64_t>() < config.vocab_size),
             "decoder: ids must be in [0, ", config.vocab_size, "); is this the model's own tokenizer?");
    const auto positions = position_ids(ids, options, cache);
    auto hidden = body->embed_tokens(ids);
    nn::MixerContext context{.padding_mask = options.padding_mask, .cu_seqlens = options.cu_seqlens};
    const auto frequencies = ops::rotary_frequencies(config.rotary, (cache ? cache->seen() : 0) + ids.size(1));
    context.rotary = ops::rotary_cos_sin(frequencies, positions, hidden.scalar_type());
    at::Tensor first_value;
    for (int64_t layer = 0; layer < num_layers(); ++layer) {
      const auto block = as_block(layer, context, options.on_mixer, cache ? &cache->layers[layer] : nullptr);
      hidden =
          gradient_checkpointing && !cache ? nn::recomputed(block, hidden, first_value) : block(hidden, first_value);
    }
    return body->norm(hidden);
  }

  /// [V, D]: hidden states to logits.
  at::Tensor head_weight() const { return config.tie_word_embeddings ? body->embed_tokens->weight : lm_head->weight; }
  /// [..., D] -> [..., V].
  at::Tensor logits(const at::Tensor& hidden) const { return ops::linear(hidden, head_weight()); }

  /// Gives a tied model a head of its own, equal to the embedding; returns whether it was tied.
  bool untie_embeddings() {
    if (!config.tie_word_embeddings) {
      return false;
    }
    lm_head = nn::Linear(torch::nn::LinearOptions(1, 1).bias(false));
    lm_head->weight.set_data(body->embed_tokens->weight.detach().clone());
    register_module("lm_head", lm_head);
    config.tie_word_embeddings = false;
    return true;
  }

  /// Makes both matrices one: their mean, the single matrix nearest to the two (least squares).
  void retie_embeddings() {
    if (config.tie_word_embeddings) {
      return;
    }
    at::NoGradGuard no_grad;
    body->embed_tokens->weight.lerp_(lm_head->weight, 0.5);
    unregister_module("lm_head");
    lm_head = nullptr;
    config.tie_word_embeddings = true;
  }

  ModelConfig config;
  DecoderBody body;
  nn::Linear lm_head{nullptr};         ///< empty when the head is the embedding
  bool gradient_checkpointing = false; ///< recompute each layer's activations in the backward pass

private:
  int64_t index(int64_t layer) const {
    HA_CHECK(0 <= layer && layer < num_layers(), "decoder: layer ", layer, " does not exist; layers are 0 to ",
             num_layers() - 1);
    return layer;
  }

  /// A layer as a block, which without a state outlives this call; the blocks share the first mixer's values.
  nn::Block as_block(int64_t layer, const nn::MixerContext& context, const nn::MixerObserver& on_mixer,
                     nn::MixerState* state) {
    return [module = body->layers[layer], layer, mixer_context = nn::MixerContext(context), on_mixer,
            state](const at::Tensor& x, at::Tensor& first_value) mutable {
      mixer_context.first_value = &first_value;
      return module->forward(x, mixer_context, state, layer, on_mixer);
    };
  }

  at::Tensor position_ids(const at::Tensor& ids, const nn::ForwardOptions& options, const Cache* cache) const {
    if (options.position_ids) {
      HA_CHECK(options.position_ids->sizes() == ids.sizes(), "decoder: position_ids must be ", ids.sizes(), ", got ",
               options.position_ids->sizes());
      return *options.position_ids;
    }
    const int64_t tokens = ids.size(1), begin = cache ? cache->seen() : 0;
    if (options.padding_mask) {
      const auto& mask = *options.padding_mask;
      HA_CHECK(mask.size(1) == begin + tokens, "decoder: padding_mask must cover the ", begin + tokens,
               " positions so far, got ", mask.sizes());
      return (mask.to(at::kLong).cumsum(1) - 1).clamp_min(0).narrow(1, begin, tokens);
    }
    const auto flat = at::arange(ids.numel(), ids.options());
    if (options.cu_seqlens) {
      const auto starts = options.cu_seqlens->to(at::kLong);
      const auto document = at::searchsorted(starts, flat, false, true) - 1;
      return (flat - starts.index_select(0, document)).view_as(ids);
    }
    return at::arange(begin, begin + tokens, ids.options()).unsqueeze(0).expand_as(ids);
  }
};
TORCH_MODULE(Decoder);

} // namespace hybridattn::models
