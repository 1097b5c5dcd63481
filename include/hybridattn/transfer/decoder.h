// A whole decoder into a student: every layer linear (`convert`), or some with the teacher's attention
// (`keep_softmax`).
#pragma once

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "hybridattn/core/check.h"
#include "hybridattn/models/decoder.h"
#include "hybridattn/transfer/attention.h"

namespace hybridattn::transfer {

/// Where the tensors of one layer went or came from.
struct LayerPlan {
  int64_t layer = 0;
  std::vector<TransferEntry> entries;
};

/// One line per tensor, for people.
inline std::string plan_text(const std::vector<LayerPlan>& plan) {
  std::string text;
  for (const auto& layer : plan) {
    for (const auto& entry : layer.entries) {
      const auto arrow =
          fmt::format("{} -> {}", entry.source.empty() ? "-" : entry.source, entry.target.empty() ? "-" : entry.target);
      text += fmt::format("layer {:3}  {:12} {:36} {}\n", layer.layer, entry.action, arrow, entry.note);
    }
  }
  return text;
}

struct Conversion {
  models::Decoder student;
  std::vector<LayerPlan> plan;
};

namespace detail {

inline std::map<std::string, at::Tensor> parameters_of(const torch::nn::Module& module) {
  std::map<std::string, at::Tensor> named;
  for (const auto& item : module.named_parameters()) {
    named[item.key()] = item.value();
  }
  return named;
}

/// A decoder of `config` on the teacher's device, with its weights wherever it has its modules.
inline models::Decoder with_teacher_weights(models::ModelConfig config, const models::Decoder& teacher) {
  models::Decoder decoder(std::move(config));
  const auto like = teacher->head_weight();
  decoder->to(like.device(), like.scalar_type());
  const auto weights = parameters_of(*teacher);
  for (const auto& item : decoder->named_parameters()) {
    const auto layer = item.key().find(".self_attn.");
    const bool replaced = layer != std::string::npos &&
                          decoder->config.is_linear(std::stoll(item.key().substr(std::string("model.layers.").size())));
    if (!replaced) {
      item.value().copy_(weights.at(item.key()));
    }
  }
  decoder->eval();
  return decoder;
}

} // namespace detail

/// The student: the teacher with its attention replaced by mixers that carry the attention's weights. It shares no
/// memory with the teacher.
/// @param mixer    kind (nn/registry.h)
/// @param options  mixer options beyond the teacher's shape, e.g. {{"short_convolution", 4}}
/// @throws c10::ValueError: the teacher is a hybrid already, an unknown mixer or option, or a tensor that does not fit
inline Conversion convert(const models::Decoder& teacher, const std::string& mixer = "gated_deltanet",
                          const nlohmann::json& options = nlohmann::json::object()) {
  HA_CHECK(!teacher->config.is_hybrid(), "convert: the teacher is a hybrid already");
  at::NoGradGuard no_grad;
  auto config = teacher->config;
  const auto shape = config.attention_shape();
  config.linear.assign(config.num_layers, true);
  config.mixer = mixer;
  config.mixer_options = fields_to_json(shape);
  config.mixer_options.update(options);
  config.mixer_options = nn::build_mixer(mixer, config.mixer_options)->options_json();
  Conversion result{detail::with_teacher_weights(config, teacher), {}};
  const AttentionSpec spec{shape.num_heads, shape.num_kv_heads, shape.head_dim};
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const auto target = detail::parameters_of(result.student->mixer(layer));
    const auto moved = transfer_attention(detail::parameters_of(teacher->mixer(layer)), spec, target);
    for (const auto& [name, tensor] : moved.weights) {
      target.at(name).copy_(tensor);
    }
    result.plan.push_back({layer, moved.entries});
  }
  return result;
}

/// A hybrid with the teacher's softmax attention in `layers` and the student's mixers elsewhere. Everything that is not
/// a mixer is the teacher's, bit for bit; nothing is shared with either.
/// @throws c10::ValueError: a layer does not exist, or the student has no mixer where one is needed
inline models::Decoder keep_softmax(const models::Decoder& student, const models::Decoder& teacher,
                                    const std::vector<int64_t>& layers) {
  at::NoGradGuard no_grad;
  auto config = student->config;
  config.tie_word_embeddings = teacher->config.tie_word_embeddings;
  for (const int64_t layer : layers) {
    HA_CHECK(0 <= layer && layer < config.num_layers, "keep_softmax: layer ", layer,
             " does not exist; layers are 0 to ", config.num_layers - 1);
  }
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const bool kept = std::find(layers.begin(), layers.end(), layer) != layers.end();
    HA_CHECK(kept || student->config.is_linear(layer), "keep_softmax: the student has no mixer in layer ", layer);
    config.linear[layer] = !kept;
  }
  auto hybrid = detail::with_teacher_weights(config, teacher);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    if (config.linear[layer]) {
      const auto source = detail::parameters_of(student->mixer(layer));
      for (const auto& item : hybrid->mixer(layer).named_parameters()) {
        item.value().copy_(source.at(item.key()));
      }
    }
  }
  return hybrid;
}

} // namespace hybridattn::transfer
