// The chunked form with gradients: one autograd function for C++ users and for the registered ops.
#pragma once

#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <hybridattn/ops/aten_channel_backward.h>
#include <hybridattn/ops/aten_channel_forward.h>
#include <hybridattn/ops/aten_chunk_backward.h>
#include <hybridattn/ops/aten_chunk_forward.h>
#include <hybridattn/ops/backend.h>
#include <hybridattn/ops/native_rule.h>
#include <torch/csrc/autograd/custom_function.h>

namespace hybridattn::ops {

namespace detail {

template <class R>
ChunkForwardResult aten_forward(const RuleInputs& in, double scale, const std::optional<at::Tensor>& initial_state,
                                const std::optional<at::Tensor>& cu_seqlens, int64_t chunk_size, bool save_states,
                                int64_t state_interval) {
  if constexpr (R::per_channel) {
    return aten_channel_forward<R>(in, scale, initial_state, cu_seqlens, chunk_size, save_states, state_interval);
  } else {
    return aten_chunk_forward<R>(in, scale, initial_state, cu_seqlens, chunk_size, save_states, state_interval);
  }
}

/// The states at every chunk's start, from those at every `state_interval`-th.
template <class R>
at::Tensor every_state(const RuleInputs& in, double scale, const std::optional<at::Tensor>& cu_seqlens,
                       int64_t chunk_size, const at::Tensor& states, int64_t state_interval) {
  if (state_interval == 1) {
    return states;
  }
  const auto spans = document_spans("chunk_" + std::string(R::name), in.v.size(0), in.v.size(1), cu_seqlens);
  const auto order = chunk_order(spans, chunk_size);
  auto initial =
      at::zeros({static_cast<int64_t>(spans.size()), states.size(1), states.size(2), states.size(3)}, states.options());
  const int64_t active = order.steps() > 0 ? order.active[0] : 0; // a document without tokens has no state
  const at::IntArrayRef documents(order.document.data(), active);
  initial.index_copy_(0, at::tensor(documents, at::kLong).to(states.device()), states.narrow(0, 0, active));
  return std::get<2>(aten_forward<R>(in, scale, initial, cu_seqlens, chunk_size, true, 1));
}

} // namespace detail

/// The chunked form, forward, on the backend that is asked for.
/// @param save_states  keep the states at chunks' starts, which the backward pass needs; K V floats each, per head
/// @param state_interval  chunks from one that is kept to the next; backward computes those between again
/// @throws c10::ValueError if shapes or dtypes disagree
template <class R>
ChunkForwardResult chunk_rule_forward(const RuleInputs& in, double scale,
                                      const std::optional<at::Tensor>& initial_state,
                                      const std::optional<at::Tensor>& cu_seqlens, int64_t chunk_size, bool save_states,
                                      Backend backend, int64_t state_interval = 1) {
  const WithoutAutocast without_autocast;
  const std::string op = "chunk_" + std::string(R::name);
  check_rule_inputs<R>(op, in, initial_state, cu_seqlens);
  HA_CHECK(chunk_size > 0, op, ": chunk_size must be positive, got ", chunk_size);
  HA_CHECK(state_interval > 0, op, ": state_interval must be positive, got ", state_interval);
  if (runs_native(op, backend, in.v)) {
    return native_chunk_forward<R>(in, scale, initial_state, cu_seqlens, chunk_size, save_states, state_interval);
  }
  return detail::aten_forward<R>(in, scale, initial_state, cu_seqlens, chunk_size, save_states, state_interval);
}

/// The chunked form, backward.
/// @param states    states at the chunks' starts, from the forward pass (of either backend)
/// @param grad_out  [B, T, HV, V]     @param grad_final_state  [B or N, HV, K, V]; absent means zero
/// @param state_interval  what forward was given
template <class R>
RuleGradients chunk_rule_backward(const RuleInputs& in, double scale, const std::optional<at::Tensor>& cu_seqlens,
                                  int64_t chunk_size, const at::Tensor& states, const at::Tensor& grad_out,
                                  const std::optional<at::Tensor>& grad_final_state, Backend backend,
                                  int64_t state_interval = 1) {
  const WithoutAutocast without_autocast;
  if (runs_native("chunk_" + std::string(R::name) + "_backward", backend, in.v)) {
    return native_chunk_backward<R>(in, scale, cu_seqlens, chunk_size, states, grad_out, grad_final_state,
                                    state_interval);
  }
  const auto starts = detail::every_state<R>(in, scale, cu_seqlens, chunk_size, states, state_interval);
  if constexpr (R::per_channel) {
    return aten_channel_backward<R>(in, scale, cu_seqlens, chunk_size, starts, grad_out, grad_final_state);
  } else {
    return aten_chunk_backward<R>(in, scale, cu_seqlens, chunk_size, starts, grad_out, grad_final_state);
  }
}

/// Calls the implementation itself: what C++ users get without any registration.
template <class R>
struct DirectCalls {
  static ChunkForwardResult forward(const RuleInputs& in, double scale, const std::optional<at::Tensor>& initial_state,
                                    const std::optional<at::Tensor>& cu_seqlens, int64_t chunk_size, bool save_states,
                                    Backend backend, int64_t state_interval) {
    return chunk_rule_forward<R>(in, scale, initial_state, cu_seqlens, chunk_size, save_states, backend,
                                 state_interval);
  }
  static RuleGradients backward(const RuleInputs& in, double scale, const std::optional<at::Tensor>& cu_seqlens,
                                int64_t chunk_size, const at::Tensor& states, const at::Tensor& grad_out,
                                const std::optional<at::Tensor>& grad_final_state, Backend backend,
                                int64_t state_interval) {
    return chunk_rule_backward<R>(in, scale, cu_seqlens, chunk_size, states, grad_out, grad_final_state, backend,
                                  state_interval);
  }
};

/// Autograd of the chunked form. `Calls` says how forward and backward are reached: directly, or through the
/// dispatcher.
template <class R, class Calls>
struct ChunkRuleFunction : torch::autograd::Function<ChunkRuleFunction<R, Calls>> {
  using List = torch::autograd::variable_list;
  using Optional = std::optional<at::Tensor>;

  static List forward(torch::autograd::AutogradContext* ctx, const at::Tensor& q, const at::Tensor& k,
                      const at::Tensor& v, const Optional& g, const Optional& beta, const Optional& a,
                      const Optional& b, double scale, const Optional& initial_state, const Optional& cu_seqlens,
                      int64_t chunk_size, Backend backend, int64_t state_interval) {
    const RuleInputs in{q, k, v, g, beta, a, b};
    auto [out, final_state, states] =
        Calls::forward(in, scale, initial_state, cu_seqlens, chunk_size, true, backend, state_interval);
    const auto or_undefined = [](const Optional& x) { return x.value_or(at::Tensor()); };
    ctx->save_for_backward({q, k, v, or_undefined(g), or_undefined(beta), or_undefined(a), or_undefined(b),
                            or_undefined(cu_seqlens), states});
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["chunk_size"] = chunk_size;
    ctx->saved_data["state_interval"] = state_interval;
    ctx->saved_data["backend"] = static_cast<int64_t>(backend);
    ctx->saved_data["state_dtype"] = initial_state ? static_cast<int64_t>(initial_state->scalar_type()) : int64_t{-1};
    ctx->set_materialize_grads(false);
    return {out, final_state};
  }

  static List backward(torch::autograd::AutogradContext* ctx, List grads) {
    const auto saved = ctx->get_saved_variables();
    const auto optional = [](const at::Tensor& x) { return x.defined() ? Optional(x) : std::nullopt; };
    const RuleInputs in{saved[0],           saved[1],           saved[2],          optional(saved[3]),
                        optional(saved[4]), optional(saved[5]), optional(saved[6])};
    const auto grad_out = grads[0].defined() ? grads[0] : at::zeros_like(in.v);
    auto grad = Calls::backward(in, ctx->saved_data["scale"].toDouble(), optional(saved[7]),
                                ctx->saved_data["chunk_size"].toInt(), saved[8], grad_out, optional(grads[1]),
                                static_cast<Backend>(ctx->saved_data["backend"].toInt()),
                                ctx->saved_data["state_interval"].toInt());
    const int64_t dtype = ctx->saved_data["state_dtype"].toInt();
    const auto grad_initial =
        dtype < 0 ? at::Tensor() : grad.initial_state.to(static_cast<at::ScalarType>(static_cast<int8_t>(dtype)));
    return {grad.q,       grad.k,       grad.v,       grad.g,       grad.beta,    grad.a,      grad.b,
            at::Tensor(), grad_initial, at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

/// @returns {out [B, T, HV, V] in v's dtype, state after the last token [B or N, HV, K, V]}; differentiable
/// @throws c10::ValueError if shapes or dtypes disagree
template <class R>
std::tuple<at::Tensor, at::Tensor> chunk_rule(const RuleInputs& in, const RuleOptions& options = {}) {
  check_rule_inputs<R>("chunk_" + std::string(R::name), in, options.initial_state, options.cu_seqlens);
  auto results = ChunkRuleFunction<R, DirectCalls<R>>::apply(
      in.q, in.k, in.v, in.g, in.beta, in.a, in.b, scale_or_default(options.scale, in.k), options.initial_state,
      options.cu_seqlens, options.chunk_size, options.backend, options.state_interval);
  return {results[0], results[1]};
}

} // namespace hybridattn::ops
