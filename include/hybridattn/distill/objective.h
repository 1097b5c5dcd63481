// Objective: what a stage trains, and how one micro-batch's gradient is computed. The loop (trainer.h) does the rest.
#pragma once

#include <ATen/core/grad_mode.h>
#include <ATen/core/Tensor.h>

#include <concepts>
#include <set>
#include <string>
#include <vector>

#include "hybridattn/core/check.h"
#include "hybridattn/distill/batch.h"
#include "hybridattn/distill/stage.h"
#include "hybridattn/nn/autocast.h"
#include "hybridattn/nn/mixer.h"

namespace hybridattn::distill {

/// A parameter that trains. `mixer`: it learns at the mixers' rate.
struct TrainedParameter {
  std::string name;
  at::Tensor tensor;
  bool mixer = false;
};

/// A loss that is a weighted mean over the tokens of an optimiser step.
///   name()                           of the stage
///   parameters()                     each once
///   weights(batch)                   [B, T] fp32, weight of each token in the mean
///   backward(batch, weights, total)  adds the gradient of sum(weights * loss) / total to the parameters and returns
///   that
///                                    value per part (layers in stage 1), fp32; the stage's loss is the parts' mean
template <class O>
concept Objective = requires(O& objective, const Batch& batch, const at::Tensor& weights, double total) {
  { objective.name() } -> std::convertible_to<std::string>;
  { objective.parameters() } -> std::convertible_to<std::vector<TrainedParameter>>;
  { objective.weights(batch) } -> std::convertible_to<at::Tensor>;
  { objective.backward(batch, weights, total) } -> std::convertible_to<at::Tensor>;
};

/// The dtype of a stage's matrix products; weights stay fp32.
class Precision {
public:
  explicit Precision(const Stage& stage) : narrow_(stage.dtype == "bfloat16") {}

  /// Scope of forward passes.
  nn::Autocast forward(const at::Tensor& like) const { return {like.device().type(), {narrow_, at::kBFloat16}}; }
  /// Scope of losses and backward passes: autocast would narrow the fp32 products in the backward formulas.
  nn::Autocast backward(const at::Tensor& like) const { return {like.device().type(), {false, at::kBFloat16}}; }
  at::Tensor narrowed(const at::Tensor& x) const { return narrow_ ? x.to(at::kBFloat16) : x; }
  bool narrow() const { return narrow_; }

private:
  bool narrow_;
};

/// The layers of `model` whose mixer is linear.
template <class M>
std::vector<int64_t> linear_layers(M& model) {
  std::vector<int64_t> layers;
  for (int64_t layer = 0; layer < model.num_layers(); ++layer) {
    if (model.mixer(layer).is_linear()) {
      layers.push_back(layer);
    }
  }
  return layers;
}

/// Every parameter of `model`, each once.
template <class M>
std::vector<TrainedParameter> all_parameters(M& model) {
  std::set<const c10::TensorImpl*> of_mixers, seen;
  for (const int64_t layer : linear_layers(model)) {
    for (const auto& parameter : model.mixer(layer).parameters()) {
      of_mixers.insert(parameter.unsafeGetTensorImpl());
    }
  }
  std::vector<TrainedParameter> all;
  for (const auto& item : model.named_parameters()) {
    const auto* identity = item.value().unsafeGetTensorImpl();
    if (seen.insert(identity).second) {
      all.push_back({item.key(), item.value(), of_mixers.count(identity) > 0});
    }
  }
  return all;
}

/// What match and finetune put a student in: as the stage says, and back as it was at the end.
template <class M>
class WholeModelTraining {
public:
  WholeModelTraining(M& student, const Stage& stage) : student_(student), retie_(stage.retie_embeddings) {
    if (stage.untie_embeddings) {
      if constexpr (requires { student.untie_embeddings(); }) {
        untied_ = student.untie_embeddings();
      } else {
        HA_CHECK(false, "Stage: untie_embeddings needs a model with untie_embeddings()");
      }
    }
    if constexpr (requires { student.gradient_checkpointing; }) {
      checkpointing_before_ = student.gradient_checkpointing;
      student.gradient_checkpointing = stage.gradient_checkpointing;
    } else {
      HA_CHECK(!stage.gradient_checkpointing, "Stage: gradient_checkpointing needs a model with such a member");
    }
  }
  ~WholeModelTraining() {
    if constexpr (requires { student_.gradient_checkpointing; }) {
      student_.gradient_checkpointing = checkpointing_before_;
    }
    if constexpr (requires { student_.retie_embeddings(); }) {
      if (untied_ && retie_) {
        student_.retie_embeddings();
      }
    }
  }
  WholeModelTraining(const WholeModelTraining&) = delete;
  WholeModelTraining& operator=(const WholeModelTraining&) = delete;

private:
  M& student_;
  bool retie_, untied_ = false, checkpointing_before_ = false;
};

} // namespace hybridattn::distill
