// Trainer: the optimiser-step loop that every stage shares, with checkpoints it resumes from.
#pragma once

#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>
#include <torch/nn/utils/clip_grad.h>
#include <torch/optim/adamw.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "hybridattn/core/check.h"
#include "hybridattn/core/freed_memory.h"
#include "hybridattn/distill/batch.h"
#include "hybridattn/distill/objective.h"
#include "hybridattn/distill/parameter_groups.h"
#include "hybridattn/distill/stage.h"
#include "hybridattn/io/safetensors.h"

namespace hybridattn::distill {

/// One optimiser step. `step` counts the steps done, this one included.
struct StepRecord {
  int64_t step = 0;
  double loss = 0;
  std::vector<double> parts; ///< the loss of each layer in stage 1; one value elsewhere
  double lr = 0, mixer_lr = 0, grad_norm = 0;
};

struct StageResult {
  std::vector<double> losses; ///< one per step, earlier processes included
  std::vector<double> parts;  ///< the last step's
};

struct StageOptions {
  std::optional<std::filesystem::path>
      checkpoint; ///< a file to resume from where it exists, and to save to; none = neither
  std::function<void(const StepRecord&)> on_step = [](const StepRecord&) {};
};

/// Trains an objective's parameters with AdamW. Weights are those of the last finite step, also after an exception.
template <Objective O>
class Trainer {
public:
  /// @throws c10::ValueError for a stage out of range, no parameter, or parameters narrower than fp32
  Trainer(O& objective, const Stage& stage)
      : objective_(objective), stage_(stage), parameters_(objective.parameters()), optimizer_(groups(), defaults()) {
    stage_.check();
    keep_freed_memory();
  }
  ~Trainer() {
    for (size_t i = 0; i < parameters_.size(); ++i) {
      parameters_[i].tensor.mutable_grad().reset();
      parameters_[i].tensor.requires_grad_(required_before_[i]);
    }
  }
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  int64_t step() const { return static_cast<int64_t>(result_.losses.size()); }
  const StageResult& result() const { return result_; }

  /// Trains from where it stands to `to_step`.
  /// @throws c10::Error naming step and part when a loss or gradient is not finite
  template <BatchSource S>
  void run(S& source, int64_t to_step, const StageOptions& options = {}) {
    HA_CHECK(step() <= to_step && to_step <= stage_.total_steps(), objective_.name(), ": cannot run to step ", to_step,
             ": it stands at step ", step(), " of ", stage_.total_steps());
    while (step() < to_step) {
      const auto record = train_on(source.batch(step()));
      options.on_step(record);
      const bool last = step() == to_step;
      if (options.checkpoint && (last || (stage_.checkpoint_every > 0 && step() % stage_.checkpoint_every == 0))) {
        save(*options.checkpoint);
      }
    }
  }

  /// Writes weights, AdamW's state and losses atomically.
  void save(const std::filesystem::path& path) const {
    io::TensorMap tensors;
    nlohmann::json steps = nlohmann::json::object();
    for (const auto& parameter : parameters_) {
      tensors["weights." + parameter.name] = parameter.tensor;
      const auto found = optimizer_.state().find(parameter.tensor.unsafeGetTensorImpl());
      if (found != optimizer_.state().end()) {
        const auto& state = static_cast<const torch::optim::AdamWParamState&>(*found->second);
        tensors["exp_avg." + parameter.name] = state.exp_avg();
        tensors["exp_avg_sq." + parameter.name] = state.exp_avg_sq();
        steps[parameter.name] = state.step();
      }
    }
    const nlohmann::json state = {
        {"recipe", recipe()}, {"losses", result_.losses}, {"parts", result_.parts}, {"adam_steps", steps}};
    io::save_safetensors(path, tensors, {{"format", "pt"}, {"trainer", state.dump()}});
  }

  /// Continues where `save` was called.
  /// @throws c10::ValueError: another recipe (naming the fields), or a tensor that is missing, left over or misshapen
  void load(const std::filesystem::path& path) {
    const io::SafeTensors file(path);
    HA_CHECK(file.metadata().count("trainer"), path.string(), ": is no checkpoint of a stage");
    const auto state = nlohmann::json::parse(file.metadata().at("trainer"));
    check_recipe(path.string(), state.at("recipe"));
    std::map<std::string, const TrainedParameter*> expected;
    for (const auto& parameter : parameters_) {
      expected["weights." + parameter.name] = &parameter;
      if (state["adam_steps"].contains(parameter.name)) {
        expected["exp_avg." + parameter.name] = expected["exp_avg_sq." + parameter.name] = &parameter;
      }
    }
    for (const auto& name : file.names()) {
      HA_CHECK(expected.count(name), path.string(), ": has a tensor that the model does not: ", name);
    }
    for (const auto& [name, parameter] : expected) {
      HA_CHECK(file.contains(name), path.string(), ": lacks the tensor ", name);
      HA_CHECK(file.tensor(name).sizes() == parameter->tensor.sizes(), path.string(), ": ", name, " has shape ",
               file.tensor(name).sizes(), ", the model has ", parameter->tensor.sizes());
    }
    at::NoGradGuard no_grad;
    optimizer_.state().clear();
    for (const auto& parameter : parameters_) {
      parameter.tensor.copy_(file.tensor("weights." + parameter.name));
      if (state["adam_steps"].contains(parameter.name)) {
        auto adam = std::make_unique<torch::optim::AdamWParamState>();
        adam->step(state["adam_steps"][parameter.name].get<int64_t>());
        adam->exp_avg(file.tensor("exp_avg." + parameter.name)
                          .to(parameter.tensor.device(), parameter.tensor.scalar_type(), false, true));
        adam->exp_avg_sq(file.tensor("exp_avg_sq." + parameter.name)
                             .to(parameter.tensor.device(), parameter.tensor.scalar_type(), false, true));
        optimizer_.state()[parameter.tensor.unsafeGetTensorImpl()] = std::move(adam);
      }
    }
    result_ = {state["losses"].get<std::vector<double>>(), state["parts"].get<std::vector<double>>()};
  }

private:
  StepRecord train_on(const Batch& batch) {
    const double rates[] = {stage_.lr_at(step(), false), stage_.lr_at(step(), true)};
    for (size_t i = 0; i < optimizer_.param_groups().size(); ++i) {
      static_cast<torch::optim::AdamWOptions&>(optimizer_.param_groups()[i].options()).lr(rates[group_is_mixer_[i]]);
    }
    const auto [parts, norm] = gradient(batch);
    double loss = 0;
    for (const double part : parts) {
      loss += part / static_cast<double>(parts.size());
    }
    if (!std::isfinite(loss) || !std::isfinite(norm)) {
      stop(parts, loss, norm);
    }
    optimizer_.step();
    optimizer_.zero_grad(/*set_to_none=*/true);
    result_.losses.push_back(loss);
    result_.parts = parts;
    return {step(), loss, parts, rates[0], rates[1], norm};
  }

  /// Accumulates and clips the gradient; returns the losses per part and the norm before clipping.
  std::pair<std::vector<double>, double> gradient(const Batch& batch) {
    const int64_t rows = stage_.micro_batch();
    std::vector<std::pair<Batch, at::Tensor>> micro_batches;
    double total = 0;
    for (int64_t begin = 0; begin < batch.num_sequences(); begin += rows) {
      auto part = batch.rows(begin, std::min(rows, batch.num_sequences() - begin));
      auto weights = objective_.weights(part);
      total += weights.sum(at::kDouble).template item<double>();
      micro_batches.emplace_back(std::move(part), std::move(weights));
    }
    HA_CHECK(total > 0, objective_.name(), ": no token of step ", step(), "'s batch counts in the loss");
    at::Tensor parts;
    for (const auto& [part, weights] : micro_batches) {
      const auto losses = objective_.backward(part, weights, total);
      parts = parts.defined() ? parts + losses : losses;
    }
    std::vector<at::Tensor> tensors;
    for (const auto& parameter : parameters_) {
      tensors.push_back(parameter.tensor);
    }
    const double norm = torch::nn::utils::clip_grad_norm_(
        tensors, stage_.grad_clip > 0 ? stage_.grad_clip : std::numeric_limits<double>::infinity());
    const auto wide = parts.to(at::kCPU, at::kDouble).contiguous();
    return {{wide.template const_data_ptr<double>(), wide.template const_data_ptr<double>() + wide.numel()}, norm};
  }

  void stop(const std::vector<double>& parts, double loss, double norm) {
    optimizer_.zero_grad(/*set_to_none=*/true);
    std::string place;
    for (size_t i = 0; i < parts.size() && parts.size() > 1; ++i) {
      if (!std::isfinite(parts[i])) {
        place += (place.empty() ? " in part " : ", ") + std::to_string(i);
      }
    }
    const auto what =
        std::isfinite(loss) ? "the gradient's norm is " + std::to_string(norm) : "the loss is " + std::to_string(loss);
    TORCH_CHECK(
        false, objective_.name(), ": ", what, " at step ", step(), place,
        "; the weights are those before it and the last checkpoint is untouched; lower lr or mixer_lr, or raise "
        "warmup_steps");
  }

  std::vector<torch::optim::OptimizerParamGroup> groups() {
    HA_CHECK(!parameters_.empty(), objective_.name(), ": nothing to train");
    std::map<std::pair<bool, bool>, std::vector<at::Tensor>> members;
    for (const auto& parameter : parameters_) {
      const auto dtype = parameter.tensor.scalar_type();
      HA_CHECK(dtype == at::kFloat || dtype == at::kDouble, objective_.name(), ": ", parameter.name, " is ", dtype,
               "; weights train in float32, load the student so");
      required_before_.push_back(parameter.tensor.requires_grad());
      parameter.tensor.requires_grad_(true);
      members[{parameter.mixer, decays(parameter.name, parameter.tensor.dim())}].push_back(parameter.tensor);
    }
    std::vector<torch::optim::OptimizerParamGroup> groups;
    for (const auto& [kind, tensors] : members) {
      auto options = std::make_unique<torch::optim::AdamWOptions>(defaults());
      options->weight_decay(kind.second ? stage_.weight_decay : 0);
      groups.emplace_back(tensors, std::move(options));
      group_is_mixer_.push_back(kind.first);
    }
    return groups;
  }

  torch::optim::AdamWOptions defaults() const {
    return torch::optim::AdamWOptions(stage_.lr)
        .betas({stage_.betas[0], stage_.betas[1]})
        .eps(stage_.eps)
        .weight_decay(0);
  }

  /// What makes a run's result; two runs with equal recipes are the same run.
  nlohmann::json recipe() const {
    auto fields = to_json(stage_);
    fields.erase("checkpoint_every");
    fields.erase("log_every");
    fields["name"] = objective_.name();
    return fields;
  }

  void check_recipe(const std::string& where, const nlohmann::json& saved) const {
    const auto now = recipe();
    std::string differences;
    for (const auto& item : now.items()) {
      if (!saved.contains(item.key()) || saved[item.key()] != item.value()) {
        differences += (differences.empty() ? "" : "; ") + item.key() + " was " +
                       saved.value(item.key(), nlohmann::json()).dump() + ", is " + item.value().dump();
      }
    }
    HA_CHECK(differences.empty(), where, ": belongs to another recipe (", differences,
             "); choose another file or remove it");
  }

  O& objective_;
  Stage stage_;
  std::vector<TrainedParameter> parameters_;
  std::vector<bool> required_before_, group_is_mixer_;
  torch::optim::AdamW optimizer_;
  StageResult result_;
};

/// One whole stage: resumes from options.checkpoint where it exists, trains to the stage's end.
template <Objective O, BatchSource S>
StageResult run_stage(O& objective, S& source, const Stage& stage, const StageOptions& options) {
  Trainer<O> trainer(objective, stage);
  if (options.checkpoint && std::filesystem::exists(*options.checkpoint)) {
    trainer.load(*options.checkpoint);
  }
  trainer.run(source, stage.total_steps(), options);
  return trainer.result();
}

} // namespace hybridattn::distill
