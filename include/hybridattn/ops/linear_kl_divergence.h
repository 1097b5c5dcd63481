// Divergence between two models' next-token distributions, from hidden states, without [tokens, vocabulary].
#pragma once

#include <ATen/ops/log_softmax.h>
#include <ATen/ops/logaddexp.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/Parallel.h>
#include <hybridattn/kernels/cpu/sets.h>
#include <hybridattn/ops/backend.h>
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
  Backend backend = Backend::automatic; ///< native computes forward and reverse; jsd is composed of ATen ops
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

/// Replaces the student's logits with the gradient, composed of ATen ops.
inline at::Tensor aten_divergence(at::Tensor& logits, at::Tensor& teacher_logits, const LinearKlOptions& options,
                                  const LossChunk& part) {
  const double tau = options.temperature;
  const auto tempered = [&](at::Tensor& x) { return tau == 1 ? x : x.div_(tau); };
  const auto log_p = at::log_softmax(tempered(teacher_logits), -1).to(logits.scalar_type());
  auto log_q = at::log_softmax(tempered(logits), -1);
  const auto loss =
      divergence_rows(log_q, log_p, options.kind, options.jsd_beta, part.wants_gradient ? &logits : nullptr);
  if (part.wants_gradient) {
    if (tau != 1) {
      logits.mul_(tau);
    }
    part.weigh(logits);
  }
  return loss * (tau * tau);
}

/// The same by this library's kernels, in the memory of both logits.
inline at::Tensor native_divergence(at::Tensor& logits, at::Tensor& teacher_logits, const LinearKlOptions& options,
                                    const LossChunk& part) {
  const auto compute = [&]<class T>(T) {
    const bool reverse = options.kind == "reverse";
    const auto set = kernels::cpu::chosen_instruction_set();
    const auto divergence =
        reverse ? kernels::cpu::divergence_of_rows<T, true>(set) : kernels::cpu::divergence_of_rows<T, false>(set);
    const int64_t vocabulary = logits.size(1);
    auto loss = at::empty({part.count}, logits.options());
    T *student = logits.mutable_data_ptr<T>(), *teacher = teacher_logits.mutable_data_ptr<T>();
    T* result = loss.mutable_data_ptr<T>();
    const auto weights = part.weights.defined() ? part.weights.contiguous() : part.weights;
    const T* weight = weights.defined() ? weights.const_data_ptr<T>() : nullptr;
    at::parallel_for(0, part.count, 1, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) {
        T *own = student + row * vocabulary, *other = teacher + row * vocabulary;
        result[row] =
            static_cast<T>(divergence(reverse ? own : other, reverse ? other : own, vocabulary, options.temperature,
                                      weight != nullptr ? weight[row] : 1.0, part.wants_gradient));
      }
    });
    return loss;
  };
  return logits.scalar_type() == at::kDouble ? compute(double{}) : compute(float{});
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
  const LinearHead teacher(teacher_hidden, teacher_head, options.backend);
  const auto weights = options.weights ? options.weights->reshape({-1}).to(state_dtype(student_hidden)) : at::Tensor();
  const int64_t chunk = linear_loss_chunk(options.chunk_size, teacher.hidden.size(0), student_head);
  const auto buffer =
      fresh_tensor({chunk, teacher_head.size(0)}, teacher_head.options().dtype(state_dtype(teacher_hidden)));
  const bool native = options.kind != "jsd" && runs_native(op, options.backend, buffer);
  return linear_loss(student_hidden, student_head, weights, options.chunk_size, options.backend, hidden_grad, head_grad,
                     [&](const LossChunk& part, at::Tensor& logits) {
                       auto teacher_logits = teacher.logits(part.begin, part.count, buffer);
                       return native ? detail::native_divergence(logits, teacher_logits, options, part)
                                     : detail::aten_divergence(logits, teacher_logits, options, part);
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
