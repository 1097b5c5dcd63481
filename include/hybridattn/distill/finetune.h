// Stage 3, finetune: next-token cross-entropy on the whole hybrid, usually on longer sequences.
#pragma once

#include <ATen/ops/full_like.h>
#include <ATen/ops/where.h>

#include "hybridattn/distill/model_concepts.h"
#include "hybridattn/distill/objective.h"
#include "hybridattn/distill/trainer.h"
#include "hybridattn/ops/linear_cross_entropy.h"

namespace hybridattn::distill {

/// [B, T]: the next token of the same document, -100 where there is none or where the token itself does not count.
inline at::Tensor next_token_labels(const Batch& batch) {
  auto labels = at::full_like(batch.input_ids, ops::kIgnoredLabel);
  const int64_t pairs = batch.input_ids.size(1) - 1;
  if (pairs <= 0) {
    return labels;
  }
  auto next = batch.input_ids.narrow(1, 1, pairs);
  const auto ignored = at::full_like(next, ops::kIgnoredLabel);
  if (batch.position_ids) {
    next = at::where(batch.position_ids->narrow(1, 1, pairs).eq(0), ignored, next);
  }
  if (batch.loss_mask) {
    next = at::where(batch.loss_mask->narrow(1, 0, pairs), next, ignored);
  }
  labels.narrow(1, 0, pairs).copy_(next);
  return labels;
}

/// Cross-entropy of the next token of the same document, a mean over the tokens that have one.
template <DecoderModel Student>
class FinetuneObjective {
public:
  FinetuneObjective(Student& student, const Stage& stage)
      : student_(student), precision_(stage), training_(student, stage) {
    HA_CHECK(stage.loss == "auto" || stage.loss == "cross_entropy", "finetune: unknown loss '", stage.loss,
             "', known is cross_entropy");
  }

  std::string name() const { return "finetune"; }
  std::vector<TrainedParameter> parameters() { return all_parameters(student_); }
  at::Tensor weights(const Batch& batch) const {
    return next_token_labels(batch).ne(ops::kIgnoredLabel).to(at::kFloat);
  }

  at::Tensor backward(const Batch& batch, const at::Tensor& weights, double total) {
    at::Tensor hidden;
    {
      const auto narrow = precision_.forward(weights);
      hidden = student_.hidden_states(batch.input_ids, batch.forward_options());
    }
    const auto wide = precision_.backward(weights);
    const auto share =
        ops::linear_cross_entropy(precision_.narrowed(hidden), precision_.narrowed(student_.head_weight()),
                                  next_token_labels(batch), "sum") /
        total;
    share.backward();
    return share.detach().to(at::kFloat).reshape({1});
  }

private:
  Student& student_;
  Precision precision_;
  WholeModelTraining<Student> training_;
};

/// Stage 3: trains the whole student in place, from where stage 2 left it. Parameters, result and errors as `align`.
template <Decodable Student, BatchSource S>
StageResult finetune(Student& student, S& source, const Stage& stage, const StageOptions& options = {}) {
  FinetuneObjective objective(model_of(student), stage);
  return run_stage(objective, source, stage, options);
}

} // namespace hybridattn::distill
