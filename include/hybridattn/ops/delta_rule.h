// The delta rule (Yang et al., arXiv 2406.06484) in its three forms.
#pragma once

#include <hybridattn/ops/chunk_rule.h>
#include <hybridattn/ops/naive_rule.h>
#include <hybridattn/ops/step_rule.h>

namespace hybridattn::ops {

/// Token by token: S = S + k_t (beta_t (v_t - S^T k_t))^T;  o_t = scale S^T q_t
/// @param q, k  [B, T, H, K]       @param v  [B, T, HV, V], HV a multiple of H
/// @param beta  [B, T, HV], in [0, 2]
/// @returns {out [B, T, HV, V] in v's dtype, final state [B or N, HV, K, V] in fp32 (fp64 for fp64 inputs)}
/// @throws c10::ValueError if shapes disagree
inline std::tuple<at::Tensor, at::Tensor> naive_delta_rule(const at::Tensor& q, const at::Tensor& k,
                                                           const at::Tensor& v, const at::Tensor& beta,
                                                           const RuleOptions& options = {}) {
  return naive_rule<DeltaRule>({q, k, v, {}, beta}, options);
}

/// The same in chunks: for training and prefill. Differentiable in every floating input and in the initial state.
inline std::tuple<at::Tensor, at::Tensor> chunk_delta_rule(const at::Tensor& q, const at::Tensor& k,
                                                           const at::Tensor& v, const at::Tensor& beta,
                                                           const RuleOptions& options = {}) {
  return chunk_rule<DeltaRule>({q, k, v, {}, beta}, options);
}

/// One token (T = 1), the state [B, HV, K, V] updated in place: for decoding. @returns out [B, 1, HV, V]
inline at::Tensor step_delta_rule(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& beta,
                                  at::Tensor& state, std::optional<double> scale = {}) {
  return step_rule<DeltaRule>({q, k, v, {}, beta}, state, scale);
}

} // namespace hybridattn::ops
