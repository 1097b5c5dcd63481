// Stage 1, align: each mixer learns to reproduce the attention output of the teacher's layer from the teacher's input.
#pragma once

#include <ATen/ops/stack.h>

#include <algorithm>

#include "hybridattn/distill/model_concepts.h"
#include "hybridattn/distill/objective.h"
#include "hybridattn/distill/trainer.h"
#include "hybridattn/ops/alignment_loss.h"

namespace hybridattn::distill {

/// The alignment loss of every linear layer, averaged over layers.
///
/// The teacher runs without gradient. Where one of its mixers has run, the student's mixer of that layer runs on the
/// same input and its loss is back-propagated at once: memory holds one layer's activations at a time.
template <DecoderModel Student, DecoderModel Teacher>
class AlignObjective {
public:
  /// @throws c10::ValueError: the student has no linear mixer, the models' depths differ, or an unknown loss
  AlignObjective(Student& student, Teacher& teacher, const Stage& stage)
      : student_(student), teacher_(teacher), precision_(stage), kind_(stage.loss == "auto" ? "l2_norm" : stage.loss),
        layers_(linear_layers(student)) {
    HA_CHECK(!layers_.empty(), "align: the student has no linear mixer to train");
    HA_CHECK(student.num_layers() == teacher.num_layers(), "align: the student has ", student.num_layers(),
             " layers, the teacher ", teacher.num_layers());
    HA_CHECK(kind_ == "l2_norm" || kind_ == "squared" || kind_ == "cosine", "align: unknown loss '", kind_,
             "', known are l2_norm, squared, cosine");
  }

  std::string name() const { return "align"; }

  std::vector<TrainedParameter> parameters() {
    std::vector<TrainedParameter> parameters;
    for (const int64_t layer : layers_) {
      for (const auto& item : student_.mixer(layer).named_parameters()) {
        parameters.push_back({"layers." + std::to_string(layer) + "." + item.key(), item.value(), true});
      }
    }
    return parameters;
  }

  at::Tensor weights(const Batch& batch) const { return batch.counted(); }

  at::Tensor backward(const Batch& batch, const at::Tensor& weights, double total) {
    at::NoGradGuard no_grad;
    std::vector<at::Tensor> losses;
    at::Tensor first_value;
    const auto mask = weights.to(at::kBool);
    auto options = batch.forward_options();
    options.on_mixer = [&](int64_t layer, const at::Tensor& input, const at::Tensor& target,
                           const nn::MixerContext& context) {
      if (std::find(layers_.begin(), layers_.end(), layer) != layers_.end()) {
        auto own = context;
        own.first_value = &first_value;
        losses.push_back(at_layer(layer, input, target, own, mask, total));
        // The first mixer's graph is gone by now: later ones take its values as they are.
        first_value = first_value.defined() ? first_value.detach() : first_value;
      }
    };
    const auto narrow = precision_.forward(weights);
    teacher_.hidden_states(batch.input_ids, options);
    return at::stack(losses);
  }

private:
  /// Loss and gradient of one layer.
  at::Tensor at_layer(int64_t layer, const at::Tensor& input, const at::Tensor& target, const nn::MixerContext& context,
                      const at::Tensor& mask, double total) {
    at::AutoGradMode enable(true);
    auto& mixer = student_.mixer(layer);
    const auto prediction =
        mixer.forward(precision_.narrow() ? input : input.to(mixer.parameters().front().scalar_type()), context);
    const auto wide = precision_.backward(target);
    const auto distance = ops::alignment_loss(prediction, target, mask, kind_, "sum") / total;
    (distance / static_cast<double>(layers_.size())).backward();
    return distance.detach().to(at::kFloat);
  }

  Student& student_;
  Teacher& teacher_;
  Precision precision_;
  std::string kind_;
  std::vector<int64_t> layers_;
};

/// Stage 1 (RADLADS, arXiv 2505.03005, step 1): trains the student's linear mixers in place, nothing else.
/// @param student, teacher  decoders of equal depth (models::Decoder or a model of your own)
/// @returns the loss of every step, and of every linear layer at the last
/// @throws c10::ValueError for what does not fit; c10::Error when a loss is not finite or a checkpoint cannot be
/// written
template <Decodable Student, Decodable Teacher, BatchSource S>
StageResult align(Student& student, Teacher& teacher, S& source, const Stage& stage, const StageOptions& options = {}) {
  AlignObjective objective(model_of(student), model_of(teacher), stage);
  return run_stage(objective, source, stage, options);
}

} // namespace hybridattn::distill
