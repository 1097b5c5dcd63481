// Presets: the published values of every stage, each field with its source.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "hybridattn/distill/stage.h"

namespace hybridattn::distill {

/// A field of a preset. `source` says where the value was published, or why it is what it is.
struct PresetField {
  std::string field;
  nlohmann::json value;
  std::string source;
};

namespace detail {

using PresetFields = std::vector<PresetField>;

inline PresetFields from_source(const char* source, std::vector<std::pair<const char*, nlohmann::json>> values) {
  PresetFields fields;
  for (auto& [field, value] : values)
    fields.push_back({field, std::move(value), source});
  return fields;
}

inline PresetFields joined(std::vector<PresetFields> parts) {
  PresetFields all;
  for (auto& part : parts)
    all.insert(all.end(), part.begin(), part.end());
  return all;
}

/// "Distilling to Hybrid Attention Models via KL-Guided Layer Selection" (arXiv 2512.20569).
inline PresetFields paper_preset(const std::string& stage) {
  const char* code = "arXiv 2512.20569, published training configuration";
  const auto optimiser = from_source("arXiv 2512.20569, AdamW settings of all stages",
                                     {{"betas", {0.9, 0.95}}, {"eps", 1e-8}, {"grad_clip", 1.0}});
  const auto unstated = from_source("not stated in arXiv 2512.20569; AdamW without decay as in arXiv 2505.03005",
                                    {{"weight_decay", 0.0}});
  const auto kl =
      from_source("arXiv 2512.20569: forward KL over all positions", {{"loss", "forward"}, {"temperature", 1.0}});
  const auto rates =
      from_source(code, {{"lr", 7e-6}, {"mixer_lr", 1e-4}, {"schedule", "constant"}, {"warmup_steps", 0}});
  if (stage == "align") {
    return joined({from_source(code, {{"tokens", 100'000'000},
                                      {"seq_len", 512},
                                      {"batch_size", 96},
                                      {"lr", 1e-3},
                                      {"schedule", "cosine"},
                                      {"final_lr_ratio", 0.0},
                                      {"warmup_steps", 0}}),
                   from_source("arXiv 2512.20569: per-token L2 norm of the difference", {{"loss", "l2_norm"}}),
                   optimiser, unstated});
  }
  if (stage == "match") {
    return joined({from_source(code, {{"tokens", 600'000'000}, {"seq_len", 4096}, {"batch_size", 32}}), rates, kl,
                   optimiser, unstated});
  }
  if (stage == "score") {
    return joined({from_source("arXiv 2512.20569: 200M to 600M tokens per layer, the smallest",
                               {{"tokens", 200'000'000}, {"seq_len", 4096}, {"batch_size", 32}}),
                   rates, kl, optimiser, unstated});
  }
  return joined({from_source(code, {{"tokens", 100'000'000},
                                    {"seq_len", 16384},
                                    {"batch_size", 96},
                                    {"lr", 1e-5},
                                    {"schedule", "constant"},
                                    {"warmup_steps", 0}}),
                 from_source("arXiv 2512.20569: next-token cross-entropy", {{"loss", "cross_entropy"}}), optimiser,
                 unstated});
}

/// RADLADS (arXiv 2505.03005).
inline PresetFields radlads_preset(const std::string& stage) {
  const auto warmup = from_source("arXiv 2505.03005, published training configuration: 50 steps from 1 % of the rate",
                                  {{"warmup_steps", 50}, {"warmup_start", 0.01}, {"weight_decay", 0.0}});
  const auto optimiser = from_source("AdamW settings of arXiv 2512.20569, for both presets",
                                     {{"betas", {0.9, 0.95}}, {"eps", 1e-8}, {"grad_clip", 1.0}});
  const auto embeddings = from_source("arXiv 2505.03005: untie while distilling, tie again at the end",
                                      {{"untie_embeddings", true}, {"retie_embeddings", true}});
  const auto match = joined(
      {from_source("arXiv 2505.03005, step 2a: mixers annealed to the body's rate at 83.3 to 87.5 % of the tokens",
                   {{"seq_len", 4096},
                    {"batch_size", 32},
                    {"lr", 1e-5},
                    {"schedule", "constant"},
                    {"mixer_lr", 1e-4},
                    {"mixer_schedule", "s_cos_s"},
                    {"mixer_final_lr_ratio", 0.1},
                    {"anneal_start", 5.0 / 6},
                    {"anneal_end", 0.875}}),
       from_source("arXiv 2505.03005: KL from the teacher's to the student's distribution",
                   {{"loss", "forward"}, {"temperature", 1.0}}),
       warmup, optimiser});
  if (stage == "align") {
    return joined({from_source("arXiv 2505.03005, step 1: 1e-3 to 1e-5", {{"tokens", 100'000'000},
                                                                          {"seq_len", 512},
                                                                          {"batch_size", 32},
                                                                          {"lr", 1e-3},
                                                                          {"schedule", "quarter_cosine"},
                                                                          {"final_lr_ratio", 0.01}}),
                   from_source("arXiv 2505.03005, step 1: L2 distance of attention outputs", {{"loss", "l2_norm"}}),
                   warmup, optimiser});
  }
  if (stage == "match") {
    return joined({from_source("arXiv 2505.03005, step 2a, which replaces steps 2 and 3", {{"tokens", 600'000'000}}),
                   match, embeddings});
  }
  if (stage == "score") {
    // RADLADS converts every layer, so it scores none: its match settings at the published scoring budget.
    return joined(
        {from_source("arXiv 2512.20569: 200M to 600M tokens per layer, the smallest", {{"tokens", 200'000'000}}),
         match});
  }
  return joined({from_source("arXiv 2505.03005, step 3", {{"tokens", 100'000'000},
                                                          {"seq_len", 16384},
                                                          {"batch_size", 96},
                                                          {"lr", 1e-5},
                                                          {"schedule", "constant"},
                                                          {"loss", "cross_entropy"}}),
                 warmup, optimiser, embeddings});
}

} // namespace detail

/// The fields that preset `name` ("paper" or "radlads") sets for `stage` ("align", "match", "finetune" or "score").
/// @throws c10::ValueError for an unknown stage or name
inline std::vector<PresetField> preset_fields(const std::string& stage, const std::string& name) {
  HA_CHECK(stage == "align" || stage == "match" || stage == "finetune" || stage == "score", "preset: stage is '", stage,
           "', expected align, match, finetune or score");
  HA_CHECK(name == "paper" || name == "radlads", "preset: name is '", name, "', expected paper or radlads");
  return name == "paper" ? detail::paper_preset(stage) : detail::radlads_preset(stage);
}

/// Preset `name` of `stage` with the fields in `overrides` replaced.
///
/// Example:
///   Stage stage = preset("align", "paper", {{"tokens", 1'000'000}, {"lr", 2e-3}});
///
/// @throws c10::ValueError for an unknown stage, name or field, or a value out of range
inline Stage preset(const std::string& stage, const std::string& name,
                    const nlohmann::json& overrides = nlohmann::json::object()) {
  nlohmann::json fields = nlohmann::json::object();
  for (const PresetField& field : preset_fields(stage, name))
    fields[field.field] = field.value;
  return stage_from_json(overrides, stage_from_json(fields));
}

} // namespace hybridattn::distill
