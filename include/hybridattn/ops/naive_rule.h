// The recurrence, token by token: the specification that every other form is tested against. Differentiable, slow.
#pragma once

#include <ATen/ops/cat.h>
#include <ATen/ops/einsum.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <ATen/TensorOperators.h>
#include <hybridattn/ops/documents.h>
#include <hybridattn/ops/rule.h>

namespace hybridattn::ops {

/// For each document and head, with S the state before token t:
///   S' = exp(g_t) S (gated rules);  d = v_t, or beta_t (v_t - S'^T k_t) (correcting rules);
///   S = S' + k_t d^T, plus b_t (a_t^T S) of the state before (generalised rules);  o_t = scale S^T q_t
/// @returns {out [B, T, HV, V] in v's dtype, state after the last token [B or N, HV, K, V] in fp32 or fp64}
template <class R>
std::tuple<at::Tensor, at::Tensor> naive_rule(const RuleInputs& in, const RuleOptions& options = {}) {
  const WithoutAutocast without_autocast;
  const std::string op = "naive_" + std::string(R::name);
  check_rule_inputs<R>(op, in, options.initial_state, options.cu_seqlens);
  const auto dtype = state_dtype(in.v);
  const int64_t tokens = in.v.size(0) * in.v.size(1), heads = in.v.size(2), groups = heads / in.q.size(2);
  const double scale = scale_or_default(options.scale, in.k);
  const auto flat = [&](const at::Tensor& x) {
    return x.reshape({tokens, x.size(2), x.dim() == 4 ? x.size(3) : 1}).to(dtype);
  };
  const auto q = flat(in.q).repeat_interleave(groups, 1) * scale, k = flat(in.k).repeat_interleave(groups, 1);
  const auto v = flat(in.v);
  at::Tensor a, b;
  if constexpr (R::generalised) {
    a = flat(*in.a).repeat_interleave(groups, 1);
    b = flat(*in.b).repeat_interleave(groups, 1);
  }
  std::vector<at::Tensor> outputs, states;
  const auto spans = document_spans(op, in.v.size(0), options.cu_seqlens ? tokens : in.v.size(1), options.cu_seqlens);
  for (size_t n = 0; n < spans.size(); ++n) {
    auto state = options.initial_state ? options.initial_state->select(0, static_cast<int64_t>(n)).to(dtype)
                                       : at::zeros({heads, q.size(2), v.size(2)}, v.options());
    for (int64_t t = spans[n].first; t < spans[n].second; ++t) {
      at::Tensor found; // a^T S
      if constexpr (R::generalised) {
        found = at::einsum("hkv,hk->hv", {state, a.select(0, t)});
      }
      if constexpr (R::gated) {
        state = state * flat(*in.g).select(0, t).exp().unsqueeze(-1);
      }
      auto write = v.select(0, t);
      if constexpr (R::corrects) {
        write = flat(*in.beta).select(0, t) * (write - at::einsum("hkv,hk->hv", {state, k.select(0, t)}));
      }
      state = state + k.select(0, t).unsqueeze(-1) * write.unsqueeze(-2);
      if constexpr (R::generalised) {
        state = state + b.select(0, t).unsqueeze(-1) * found.unsqueeze(-2);
      }
      outputs.push_back(at::einsum("hkv,hk->hv", {state, q.select(0, t)}));
    }
    states.push_back(state);
  }
  const auto out = outputs.empty() ? at::zeros(in.v.sizes(), v.options()) : at::stack(outputs).view(in.v.sizes());
  const auto final_state =
      states.empty() ? at::zeros({0, heads, q.size(2), v.size(2)}, v.options()) : at::stack(states);
  return {out.to(in.v.scalar_type()), final_state};
}

} // namespace hybridattn::ops
