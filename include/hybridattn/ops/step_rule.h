// One token: the decoding form, which updates the state in place.
#pragma once

#include <ATen/ops/bmm.h>
#include <ATen/TensorOperators.h>
#include <hybridattn/ops/backend.h>
#include <hybridattn/ops/native_rule.h>
#include <hybridattn/ops/rule.h>

namespace hybridattn::ops {

/// One token, composed of ATen ops; arguments as in step_rule, checked there.
template <class R>
at::Tensor aten_step(const RuleInputs& in, at::Tensor& state, double scale) {
  const auto dtype = state.scalar_type();
  const int64_t batch = in.v.size(0), heads = in.v.size(2), groups = heads / in.q.size(2);
  const auto row = [&](const at::Tensor& x) { return x.to(dtype).reshape({batch, x.size(2), -1}); };
  const auto per_head = [&](const at::Tensor& x) {
    return row(x).repeat_interleave(groups, 1).reshape({batch * heads, 1, -1});
  };
  const auto q = per_head(in.q), k = per_head(in.k);
  auto flat_state = state.view({batch * heads, state.size(2), state.size(3)});
  auto write = row(in.v).reshape({batch * heads, 1, -1});
  at::Tensor found; // a^T S
  if constexpr (R::generalised) {
    found = at::bmm(per_head(*in.a), flat_state);
  }
  if constexpr (R::gated) {
    flat_state.mul_(row(*in.g).exp().reshape({batch * heads, -1, 1}));
  }
  if constexpr (R::corrects) {
    write = row(*in.beta).reshape({batch * heads, 1, 1}) * (write - at::bmm(k, flat_state));
  }
  flat_state.baddbmm_(k.transpose(1, 2), write);
  if constexpr (R::generalised) {
    flat_state.baddbmm_(per_head(*in.b).transpose(1, 2), found);
  }
  return (at::bmm(q, flat_state) * scale).view({batch, 1, heads, -1}).to(in.v.scalar_type());
}

/// The recurrence of naive_rule for T = 1.
/// @param state [B, HV, K, V] fp32 (fp64 for fp64 inputs), contiguous; holds the state after the token on return
/// @returns out [B, 1, HV, V] in v's dtype
/// @throws c10::ValueError for shapes that disagree, T != 1, or a state of another dtype
template <class R>
at::Tensor step_rule(const RuleInputs& in, at::Tensor& state, std::optional<double> scale = {},
                     Backend backend = Backend::automatic) {
  const WithoutAutocast without_autocast;
  const std::string op = "step_" + std::string(R::name);
  check_rule_inputs<R>(op, in, state, {});
  HA_CHECK(in.v.size(1) == 1, op, ": takes one token, got T = ", in.v.size(1));
  const auto dtype = state_dtype(in.v);
  HA_CHECK(state.scalar_type() == dtype, op, ": state must be ", dtype, ", got ", state.scalar_type());
  HA_CHECK(state.is_contiguous(), op, ": state must be contiguous, since it is updated in place");
  const double factor = scale_or_default(scale, in.k);
  return runs_native(op, backend, in.v) ? native_step<R>(in, state, factor) : aten_step<R>(in, state, factor);
}

} // namespace hybridattn::ops
