// Stage 2, match: the student's next-token distributions approach the teacher's. Also the held-out measure of a hybrid.
#pragma once

#include <ATen/core/grad_mode.h>

#include <span>
#include <vector>

#include "hybridattn/distill/model_concepts.h"
#include "hybridattn/distill/objective.h"
#include "hybridattn/distill/trainer.h"
#include "hybridattn/ops/linear_kl_divergence.h"

namespace hybridattn::distill {

/// KL between the teacher's and the student's distributions, a mean over tokens.
template <DecoderModel Student, DecoderModel Teacher>
class MatchObjective {
public:
  /// @throws c10::ValueError: student and teacher share a parameter, have different vocabularies, or an unknown loss
  MatchObjective(Student& student, Teacher& teacher, const Stage& stage)
      : student_(student), teacher_(teacher), precision_(stage), temperature_(stage.temperature),
        kind_(stage.loss == "auto" ? "forward" : stage.loss), training_(student, stage) {
    std::set<const void*> of_teacher;
    for (const auto& parameter : teacher.named_parameters()) {
      of_teacher.insert(parameter.value().const_data_ptr());
    }
    for (const auto& parameter : student.named_parameters()) {
      HA_CHECK(!of_teacher.count(parameter.value().const_data_ptr()), "match: student and teacher share ",
               parameter.key(), ": training the one would change the other");
    }
    HA_CHECK(student.head_weight().size(0) == teacher.head_weight().size(0), "match: the student's vocabulary has ",
             student.head_weight().size(0), " entries, the teacher's ", teacher.head_weight().size(0));
    HA_CHECK(kind_ == "forward" || kind_ == "reverse" || kind_ == "jsd", "match: unknown loss '", kind_,
             "', known are forward, reverse, jsd");
  }

  std::string name() const { return "match"; }
  std::vector<TrainedParameter> parameters() { return all_parameters(student_); }
  at::Tensor weights(const Batch& batch) const { return batch.counted(); }

  at::Tensor backward(const Batch& batch, const at::Tensor& weights, double total) {
    at::Tensor teacher_hidden, student_hidden;
    {
      const auto narrow = precision_.forward(weights);
      {
        at::NoGradGuard no_grad;
        teacher_hidden = teacher_.hidden_states(batch.input_ids, batch.forward_options());
      }
      student_hidden = student_.hidden_states(batch.input_ids, batch.forward_options());
    }
    const auto wide = precision_.backward(weights);
    const auto narrowed = [&](const at::Tensor& x) { return precision_.narrowed(x); };
    const auto share = ops::linear_kl_divergence(
                           narrowed(student_hidden), narrowed(student_.head_weight()), narrowed(teacher_hidden),
                           narrowed(teacher_.head_weight().detach()),
                           {.weights = weights, .temperature = temperature_, .kind = kind_, .reduction = "sum"}) /
                       total;
    share.backward();
    return share.detach().to(at::kFloat).reshape({1});
  }

private:
  Student& student_;
  Teacher& teacher_;
  Precision precision_;
  double temperature_;
  std::string kind_;
  WholeModelTraining<Student> training_;
};

/// Stage 2 (RADLADS, arXiv 2505.03005, step 2): trains the whole student in place, mixers at stage.mixer_lr, the rest
/// at lr. Parameters, result and errors as `align`.
template <Decodable Student, Decodable Teacher, BatchSource S>
StageResult match(Student& student, Teacher& teacher, S& source, const Stage& stage, const StageOptions& options = {}) {
  MatchObjective objective(model_of(student), model_of(teacher), stage);
  return run_stage(objective, source, stage, options);
}

/// KL(teacher || student) in nats per token, a mean for every sequence: what a race records and what is compared.
/// @throws c10::ValueError if vocabularies differ or a sequence has no token that counts
template <Decodable Student, Decodable Teacher>
std::vector<double> held_out_divergence(Student& student, Teacher& teacher, std::span<const Batch> batches) {
  at::NoGradGuard no_grad;
  std::vector<double> divergences;
  for (const auto& batch : batches) {
    const auto hidden = [&](auto& model) { return model.hidden_states(batch.input_ids, batch.forward_options()); };
    const auto divergence =
        ops::linear_kl_divergence(hidden(model_of(student)), model_of(student).head_weight(), hidden(model_of(teacher)),
                                  model_of(teacher).head_weight(), {.reduction = "none"})
            .to(at::kDouble);
    const auto counted = batch.counted().to(at::kDouble);
    const auto tokens = counted.sum(1);
    HA_CHECK(tokens.gt(0).all().template item<bool>(), "held_out_divergence: a sequence has no token that counts");
    const auto means = ((divergence * counted).sum(1) / tokens).to(at::kCPU).contiguous();
    divergences.insert(divergences.end(), means.template const_data_ptr<double>(),
                       means.template const_data_ptr<double>() + means.numel());
  }
  return divergences;
}

} // namespace hybridattn::distill
