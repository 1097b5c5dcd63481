// Divergence between two models' next-token distributions, from hidden states, without [tokens, vocabulary].
#pragma once

#include <ATen/ops/log_softmax.h>
#include <ATen/ops/logaddexp.h>
#include <ATen/ops/scalar_tensor.h>
#include <hybridattn/ops/linear_loss.h>

#include <cmath>

namespace hybridattn::ops {

struct LinearKlOptions {
  std::optional<at::Tensor>
      weights;                    ///< per token, shaped as the hidden states without their last dimension; 0 = ignored
  double temperature = 1;         ///< divides the logits; the loss gets the factor temperature^2
  std::string kind = "forward";   ///< forward: KL(teacher || student); reverse: KL(student || teacher); jsd
  double jsd_beta = 0.5;          ///< b of jsd, in (0, 1)
  std::string reduction = "mean"; ///< mean over the sum of weights, sum, or none (per token, no gradient)
  int64_t chunk_size = 0;         ///< tokens whose logits exist at a time; 0 chooses
};

namespace detail {

/// Divergence per row from log-probabilities [n, V], whose memory it uses; `gradient` (if any) receives that with
/// respect to the student's logits over its temperature. jsd is b KL(teacher || m) + (1 - b) KL(student || m), with m =
/// b teacher + (1 - b) student (Agarwal et al., arXiv 2306.13649).
inline at::Tensor divergence_rows(at::Tensor student, at::Tensor teacher, const std::string& kind, double b,
                                  at::Tensor* gradient) {
  if (kind == "forward") {
    auto difference = teacher - student;
    const auto p_teacher = teacher.exp_();
    const auto loss = difference.mul_(p_teacher).sum(-1);
    if (gradient != nullptr) {
      *gradient = student.exp_().sub_(p_teacher);
    }
    return loss;
  }
  const auto p_student = student.exp();
  const bool reverse = kind == "reverse";
  const auto mixture = reverse ? teacher : at::logaddexp(teacher + std::log(b), student + std::log1p(-b));
  auto ratio = student.sub_(mixture);
  const auto own = (p_student * ratio).sum(-1);
  const double share = reverse ? 1 : 1 - b;
  if (gradient != nullptr) {
    *gradient = ratio.sub_(own.unsqueeze(-1)).mul_(p_student).mul_(share);
  }
  return reverse ? own : own * share + (teacher - mixture).mul_(teacher.exp()).sum(-1) * b;
}

} // namespace detail

/// The op below autograd. @throws c10::ValueError if shapes or vocabularies disagree, or an option is out of range
inline LinearLossResult linear_kl_divergence_forward(const at::Tensor& student_hidden, const at::Tensor& student_head,
                                                     const at::Tensor& teacher_hidden, const at::Tensor& teacher_head,
                                                     const LinearKlOptions& options, bool hidden_grad, bool head_grad) {
  const std::string op = "linear_kl_divergence";
  check_linear(op, "student_", student_hidden, student_head);
  check_linear(op, "teacher_", teacher_hidden, teacher_head);
  const auto token_shape = student_hidden.sizes().slice(0, student_hidden.dim() - 1);
  HA_CHECK(student_head.size(0) == teacher_head.size(0), op, ": student_head has a vocabulary of ",
           student_head.size(0), ", teacher_head of ", teacher_head.size(0));
  HA_CHECK(teacher_hidden.sizes().slice(0, teacher_hidden.dim() - 1) == token_shape, op,
           ": teacher_hidden must have the tokens of student_hidden ", student_hidden.sizes(), ", got ",
           teacher_hidden.sizes());
  HA_CHECK(!options.weights || options.weights->sizes() == token_shape, op, ": weights must be ", token_shape);
  HA_CHECK(options.kind == "forward" || options.kind == "reverse" || options.kind == "jsd", op, ": unknown kind '",
           options.kind, "', known are forward, reverse, jsd");
  HA_CHECK(options.temperature > 0, op, ": temperature must be positive, got ", options.temperature);
  HA_CHECK(options.jsd_beta > 0 && options.jsd_beta < 1, op, ": jsd_beta must be in (0, 1), got ", options.jsd_beta);
  const LinearHead teacher(teacher_hidden, teacher_head);
  const auto dtype = state_dtype(student_hidden);
  const double tau = options.temperature;
  const auto weights = options.weights ? options.weights->reshape({-1}).to(dtype) : at::Tensor();
  return linear_loss(student_hidden, student_head, weights, options.chunk_size, hidden_grad, head_grad,
                     [&](int64_t begin, int64_t count, at::Tensor& logits, bool wants_gradient) {
                       const auto tempered = [&](at::Tensor x) { return tau == 1 ? x : x.div_(tau); };
                       const auto log_p = at::log_softmax(tempered(teacher.logits(begin, count)), -1).to(dtype);
                       auto log_q = at::log_softmax(tempered(logits), -1);
                       logits.reset();
                       const auto loss = detail::divergence_rows(log_q, log_p, options.kind, options.jsd_beta,
                                                                 wants_gradient ? &logits : nullptr);
                       if (wants_gradient && tau != 1) {
                         logits.mul_(tau);
                       }
                       return loss * (tau * tau);
                     });
}

/// Divergence of the student's from the teacher's next-token distribution, in nats.
/// @param student_hidden [..., D]  @param student_head [V, D]  @param teacher_hidden [..., D']  @param teacher_head [V,
/// D']
/// @returns a scalar (mean, sum) with gradients for student_hidden and student_head, or [...] per token (none)
inline at::Tensor linear_kl_divergence(const at::Tensor& student_hidden, const at::Tensor& student_head,
                                       const at::Tensor& teacher_hidden, const at::Tensor& teacher_head,
                                       const LinearKlOptions& options = {}) {
  check_reduction("linear_kl_divergence", options.reduction);
  const LinearLossFunction::Compute compute = [&](bool hidden_grad, bool head_grad) {
    const bool grads = options.reduction != "none";
    return linear_kl_divergence_forward(student_hidden.detach(), student_head.detach(), teacher_hidden.detach(),
                                        teacher_head.detach(), options, grads && hidden_grad, grads && head_grad);
  };
  const auto result = LinearLossFunction::apply(student_hidden, student_head, compute);
  const auto weight = options.weights ? options.weights->to(result[0].scalar_type()).sum()
                                      : at::scalar_tensor(result[1].numel(), result[0].options());
  return reduced(options.reduction, result[0], result[1], weight, student_hidden);
}

} // namespace hybridattn::ops
