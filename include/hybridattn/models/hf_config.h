// A Hugging Face config.json as a ModelConfig, and back.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "hybridattn/core/check.h"
#include "hybridattn/models/config.h"

namespace hybridattn::models {

namespace detail {

/// Fields of a config, with messages that name them.
class ConfigReader {
public:
  ConfigReader(const nlohmann::json& json, std::string where) : json_(json), where_(std::move(where)) {
    HA_CHECK(json.is_object(), where_, ": expected an object");
  }

  bool has(const char* name) const { return json_.contains(name) && !json_[name].is_null(); }

  template <class T>
  T get(const char* name) const {
    HA_CHECK(has(name), where_, ": ", name, " is missing");
    T value{};
    HA_CHECK(hybridattn::detail::read_field(json_[name], value), where_, ": ", name, " has the wrong type, got ",
             json_[name].dump());
    return value;
  }
  template <class T>
  T get(const char* name, T otherwise) const {
    return has(name) ? get<T>(name) : otherwise;
  }
  template <class T>
  void read(const char* name, T& field) const {
    if (has(name)) {
      field = get<T>(name);
    }
  }
  template <class T>
  void read(const char* name, std::optional<T>& field) const {
    if (has(name)) {
      field = get<T>(name);
    }
  }
  const nlohmann::json& json() const { return json_; }

private:
  const nlohmann::json& json_;
  std::string where_;
};

/// `rope_parameters` of Transformers 5, or `rope_theta` and `rope_scaling` of earlier versions.
inline ops::RotaryOptions read_rotary(const ConfigReader& config, int64_t head_dim, double default_theta) {
  ops::RotaryOptions rotary;
  rotary.head_dim = head_dim;
  rotary.max_position_embeddings = config.get<int64_t>("max_position_embeddings", 0);
  rotary.theta = config.get<double>("rope_theta", default_theta);
  config.read("partial_rotary_factor", rotary.partial);
  config.read("original_max_position_embeddings", rotary.original_max_position_embeddings);
  const char* key = config.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (!config.has(key)) {
    return rotary;
  }
  const ConfigReader rope(config.json()[key], key);
  rotary.type = rope.get<std::string>(rope.has("rope_type") ? "rope_type" : "type", "default");
  rope.read("rope_theta", rotary.theta);
  rope.read("partial_rotary_factor", rotary.partial);
  rope.read("factor", rotary.factor);
  rope.read("attention_factor", rotary.attention_factor);
  rope.read("mscale", rotary.mscale);
  rope.read("mscale_all_dim", rotary.mscale_all_dim);
  rope.read("beta_fast", rotary.beta_fast);
  rope.read("beta_slow", rotary.beta_slow);
  rope.read("truncate", rotary.truncate);
  rope.read("low_freq_factor", rotary.low_freq_factor);
  rope.read("high_freq_factor", rotary.high_freq_factor);
  rope.read("original_max_position_embeddings", rotary.original_max_position_embeddings);
  rope.read("short_factor", rotary.short_factor);
  rope.read("long_factor", rotary.long_factor);
  return rotary;
}

/// The window of each layer's attention, 0 = all positions.
inline std::vector<int64_t> read_windows(const ConfigReader& config, const std::string& family, int64_t num_layers) {
  std::vector<int64_t> windows(num_layers, 0);
  const int64_t window = config.get<int64_t>("sliding_window", 0);
  const bool used = family == "mistral" || config.get<bool>("use_sliding_window", false);
  if (window == 0 || !used || family == "llama") {
    return windows;
  }
  const int64_t first = config.get<int64_t>("max_window_layers", 0);
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    const bool slides = config.has("layer_types") ? config.json()["layer_types"].at(layer) == "sliding_attention"
                                                  : family == "mistral" || layer >= first;
    windows[layer] = slides ? window : 0;
  }
  return windows;
}

inline ModelConfig read_teacher_config(const nlohmann::json& json, const std::string& where) {
  const ConfigReader config(json, where);
  ModelConfig model;
  model.teacher = json;
  model.family = config.get<std::string>("model_type");
  const bool llama = model.family == "llama", qwen2 = model.family == "qwen2", qwen3 = model.family == "qwen3";
  HA_CHECK(llama || qwen2 || qwen3 || model.family == "mistral", where, ": model_type '", model.family,
           "' is not supported; supported are llama, qwen2, qwen3, mistral and hybridattn");
  const auto activation = config.get<std::string>("hidden_act", "silu");
  HA_CHECK(activation == "silu", where, ": hidden_act '", activation, "' is not supported; supported is silu");
  model.vocab_size = config.get<int64_t>("vocab_size");
  model.hidden_size = config.get<int64_t>("hidden_size");
  model.intermediate_size = config.get<int64_t>("intermediate_size");
  model.num_layers = config.get<int64_t>("num_hidden_layers");
  model.num_heads = config.get<int64_t>("num_attention_heads");
  model.num_kv_heads = config.get<int64_t>("num_key_value_heads", model.num_heads);
  HA_CHECK(model.num_heads > 0 && model.num_layers > 0, where,
           ": num_attention_heads and num_hidden_layers must be > 0");
  model.head_dim = config.get<int64_t>("head_dim", qwen3 ? 128 : model.hidden_size / model.num_heads);
  model.norm_eps = config.get<double>("rms_norm_eps", 1e-6);
  const bool attention_bias = config.get<bool>("attention_bias", false);
  model.qkv_bias = qwen2 || ((llama || qwen3) && attention_bias);
  model.output_bias = (llama || qwen3) && attention_bias;
  model.mlp_bias = llama && config.get<bool>("mlp_bias", false);
  model.qk_norm = qwen3;
  model.tie_word_embeddings = config.get<bool>("tie_word_embeddings", false);
  model.rotary = read_rotary(config, model.head_dim, 10000.0);
  model.window = read_windows(config, model.family, model.num_layers);
  return model;
}

} // namespace detail

/// A decoder's or a hybrid's config.json.
/// @param where  begins the messages, e.g. the file's name
/// @throws c10::ValueError naming the field, or the family and the supported ones
inline ModelConfig read_model_config(const nlohmann::json& json, const std::string& where = "config.json") {
  const detail::ConfigReader config(json, where);
  if (config.get<std::string>("model_type") != "hybridattn") {
    return detail::read_teacher_config(json, where);
  }
  HA_CHECK(config.has("teacher_config"), where, ": teacher_config is missing");
  auto model = detail::read_teacher_config(json["teacher_config"], where + ", teacher_config");
  const auto kinds = config.get<std::vector<std::string>>("layer_types");
  HA_CHECK(static_cast<int64_t>(kinds.size()) == model.num_layers, where, ": layer_types has ", kinds.size(),
           " entries, the teacher ", model.num_layers, " layers");
  for (const auto& kind : kinds) {
    HA_CHECK(kind == "full_attention" || kind == "linear_attention", where,
             ": layer_types: expected full_attention or linear_attention, got '", kind, "'");
    model.linear.push_back(kind == "linear_attention");
  }
  if (model.is_hybrid()) {
    model.mixer = config.get<std::string>("mixer");
    HA_CHECK(config.has("mixer_options"), where, ": mixer_options is missing");
    model.mixer_options = json["mixer_options"];
  }
  config.read("tie_word_embeddings", model.tie_word_embeddings);
  return model;
}

/// The config.json that Python's `AutoModelForCausalLM` and `read_model_config` read: the teacher's own where no layer
/// was replaced, otherwise that of a hybrid.
inline nlohmann::json model_config_json(const ModelConfig& model) {
  if (!model.is_hybrid()) {
    auto json = model.teacher;
    json["tie_word_embeddings"] = model.tie_word_embeddings;
    return json;
  }
  std::vector<std::string> kinds;
  for (int64_t layer = 0; layer < model.num_layers; ++layer) {
    kinds.emplace_back(model.is_linear(layer) ? "linear_attention" : "full_attention");
  }
  return {{"model_type", "hybridattn"},
          {"architectures", {"HybridForCausalLM"}},
          {"teacher_config", model.teacher},
          {"layer_types", kinds},
          {"mixer", model.mixer},
          {"mixer_options", model.mixer_options},
          {"tie_word_embeddings", model.tie_word_embeddings}};
}

} // namespace hybridattn::models
