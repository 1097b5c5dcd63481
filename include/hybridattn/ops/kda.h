// Kimi delta attention (Kimi Linear, arXiv 2510.26692) in its three forms.
#pragma once

#include <hybridattn/ops/chunk_rule.h>
#include <hybridattn/ops/naive_rule.h>
#include <hybridattn/ops/step_rule.h>

namespace hybridattn::ops {

/// Token by token: S' = diag(exp(g_t)) S;  S = S' + k_t (beta_t (v_t - S'^T k_t))^T;
/// o_t = scale S^T q_t
/// @param q, k  [B, T, H, K]       @param v  [B, T, HV, V], HV a multiple of H
/// @param g     [B, T, HV, K] log decay, <= 0
/// @param beta  [B, T, HV], in [0, 2]
/// @returns {out [B, T, HV, V] in v's dtype, final state [B or N, HV, K, V] in fp32 (fp64 for fp64 inputs)}
/// @throws c10::ValueError if shapes disagree
inline std::tuple<at::Tensor, at::Tensor> naive_kda(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                    const at::Tensor& g, const at::Tensor& beta,
                                                    const RuleOptions& options = {}) {
  return naive_rule<KimiDeltaRule>({q, k, v, g, beta}, options);
}

/// The same in chunks: for training and prefill. Differentiable in every floating input and in the initial state.
inline std::tuple<at::Tensor, at::Tensor> chunk_kda(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                    const at::Tensor& g, const at::Tensor& beta,
                                                    const RuleOptions& options = {}) {
  return chunk_rule<KimiDeltaRule>({q, k, v, g, beta}, options);
}

/// One token (T = 1), the state [B, HV, K, V] updated in place: for decoding. @returns out [B, 1, HV, V]
inline at::Tensor step_kda(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& g,
                           const at::Tensor& beta, at::Tensor& state, std::optional<double> scale = {}) {
  return step_rule<KimiDeltaRule>({q, k, v, g, beta}, state, scale);
}

} // namespace hybridattn::ops
