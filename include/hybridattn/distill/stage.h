// Stage: every number of one training stage, checked, to and from JSON.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "hybridattn/core/check.h"
#include "hybridattn/core/json_fields.h"
#include "hybridattn/distill/schedule.h"

namespace hybridattn::distill {

/// One training stage. The first four fields have no default; presets.h has the published values of all of them.
/// Field names are those of the recipes and of the Python class.
struct Stage {
  int64_t tokens = 0;                         ///< budget; the stage takes ceil(tokens / (batch_size * seq_len)) steps
  int64_t seq_len = 0;                        ///< tokens per sequence
  int64_t batch_size = 0;                     ///< sequences per optimiser step
  double lr = 0;                              ///< peak learning rate of everything that is not a mixer
  std::optional<double> mixer_lr;             ///< peak learning rate of the mixers; none = lr
  int64_t micro_batch_size = 0;               ///< sequences per forward pass; 0 = batch_size
  std::string schedule = "constant";          ///< a kind of Schedule
  std::optional<std::string> mixer_schedule;  ///< the mixers' kind; none = schedule
  double final_lr_ratio = 0;                  ///< the schedule's final multiplier
  std::optional<double> mixer_final_lr_ratio; ///< the mixers'; none = final_lr_ratio
  double anneal_start = 0;                    ///< s_cos_s: share of the steps before the descent
  double anneal_end = 1;                      ///< s_cos_s: share of the steps at its end
  int64_t warmup_steps = 0;                   ///< steps of linear warm-up
  double warmup_start = 0;                    ///< share of the rate at the first step of the warm-up
  std::array<double, 2> betas = {0.9, 0.95};  ///< AdamW
  double eps = 1e-8;                          ///< AdamW
  double weight_decay = 0;                    ///< AdamW, on matrices only (parameter_groups.h)
  double grad_clip = 1;                       ///< largest norm of the whole gradient; 0 = no clipping
  std::string dtype = "float32";              ///< of the computation, float32 or bfloat16; weights train in float32
  std::string loss = "auto";                  ///< align: l2_norm, squared, cosine; match: forward, reverse, jsd
  double temperature = 1;                     ///< of the KL in match, with the factor temperature^2
  bool gradient_checkpointing = false;        ///< recompute each layer's activations in the backward pass
  bool untie_embeddings = false;              ///< train input and output embeddings apart where they are tied
  bool retie_embeddings = false;              ///< after the stage, make both the mean of the two again
  int64_t seed = 0;                           ///< of the order of the data
  int64_t checkpoint_every = 100;             ///< steps between checkpoints; 0 = only at the end
  int64_t log_every = 10;                     ///< steps between log lines

  /// Calls visit(name, field) for every field.
  template <class Self, class Visit>
  static void each_field(Self& self, Visit&& visit) {
    visit("tokens", self.tokens);
    visit("seq_len", self.seq_len);
    visit("batch_size", self.batch_size);
    visit("lr", self.lr);
    visit("mixer_lr", self.mixer_lr);
    visit("micro_batch_size", self.micro_batch_size);
    visit("schedule", self.schedule);
    visit("mixer_schedule", self.mixer_schedule);
    visit("final_lr_ratio", self.final_lr_ratio);
    visit("mixer_final_lr_ratio", self.mixer_final_lr_ratio);
    visit("anneal_start", self.anneal_start);
    visit("anneal_end", self.anneal_end);
    visit("warmup_steps", self.warmup_steps);
    visit("warmup_start", self.warmup_start);
    visit("betas", self.betas);
    visit("eps", self.eps);
    visit("weight_decay", self.weight_decay);
    visit("grad_clip", self.grad_clip);
    visit("dtype", self.dtype);
    visit("loss", self.loss);
    visit("temperature", self.temperature);
    visit("gradient_checkpointing", self.gradient_checkpointing);
    visit("untie_embeddings", self.untie_embeddings);
    visit("retie_embeddings", self.retie_embeddings);
    visit("seed", self.seed);
    visit("checkpoint_every", self.checkpoint_every);
    visit("log_every", self.log_every);
  }

  int64_t total_steps() const { return (tokens + tokens_per_step() - 1) / tokens_per_step(); }
  int64_t tokens_per_step() const { return batch_size * seq_len; }
  int64_t micro_batch() const { return micro_batch_size > 0 ? micro_batch_size : batch_size; }
  double peak_lr(bool mixer) const { return mixer ? mixer_lr.value_or(lr) : lr; }

  /// The schedule of the mixers' or of the other parameters' learning rate.
  Schedule schedule_of(bool mixer) const {
    return {.kind = mixer ? mixer_schedule.value_or(schedule) : schedule,
            .warmup_steps = warmup_steps,
            .warmup_start = warmup_start,
            .final_ratio = mixer ? mixer_final_lr_ratio.value_or(final_lr_ratio) : final_lr_ratio,
            .anneal_start = anneal_start,
            .anneal_end = anneal_end};
  }

  double lr_at(int64_t step, bool mixer) const { return peak_lr(mixer) * schedule_of(mixer).at(step, total_steps()); }

  /// @throws c10::ValueError naming the field, its value and what is expected
  void check() const;
};

inline void Stage::check() const {
  const auto in_range = [](const char* name, double value, bool good, const char* expected) {
    HA_CHECK(good, "Stage: ", name, " is ", value, ", expected ", expected);
  };
  in_range("tokens", static_cast<double>(tokens), tokens > 0, "> 0");
  in_range("seq_len", static_cast<double>(seq_len), seq_len > 0, "> 0");
  in_range("batch_size", static_cast<double>(batch_size), batch_size > 0, "> 0");
  in_range("micro_batch_size", static_cast<double>(micro_batch_size), micro_batch_size >= 0, ">= 0");
  in_range("lr", lr, std::isfinite(lr) && lr >= 0, "a finite number >= 0");
  in_range("mixer_lr", peak_lr(true), std::isfinite(peak_lr(true)) && peak_lr(true) >= 0, "a finite number >= 0");
  for (double beta : betas)
    in_range("betas", beta, 0 <= beta && beta < 1, "two numbers in [0, 1)");
  in_range("eps", eps, eps > 0, "> 0");
  in_range("weight_decay", weight_decay, weight_decay >= 0, ">= 0");
  in_range("grad_clip", grad_clip, grad_clip >= 0, ">= 0 (0 = no clipping)");
  in_range("temperature", temperature, temperature > 0, "> 0");
  in_range("seed", static_cast<double>(seed), seed >= 0, ">= 0");
  in_range("checkpoint_every", static_cast<double>(checkpoint_every), checkpoint_every >= 0, ">= 0");
  in_range("log_every", static_cast<double>(log_every), log_every >= 1, ">= 1");
  HA_CHECK(dtype == "float32" || dtype == "bfloat16", "Stage: dtype is '", dtype, "', expected float32 or bfloat16");
  HA_CHECK(!retie_embeddings || untie_embeddings, "Stage: retie_embeddings is true, which needs untie_embeddings");
  for (bool mixer : {false, true})
    schedule_of(mixer).check();
}

inline std::vector<std::string> stage_field_names() {
  return field_names<Stage>();
}

/// Every field with its value; an optional without one is null.
inline nlohmann::json to_json(const Stage& stage) {
  return fields_to_json(stage);
}

/// `stage` with the fields that `json` has, checked.
/// @throws c10::ValueError naming an unknown field and the nearest known one, or a value of the wrong type or range
inline Stage stage_from_json(const nlohmann::json& json, const Stage& stage = {}) {
  Stage read = fields_from_json("Stage", json, stage);
  read.check();
  return read;
}

} // namespace hybridattn::distill
