// Registration of a linear-attention rule's ops: forward and backward with meta kernels, autograd through the
// dispatcher.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <fmt/format.h>
#include <hybridattn/ops/chunk_rule.h>
#include <hybridattn/ops/naive_rule.h>
#include <hybridattn/ops/step_rule.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

// Internal linkage: every file that includes this registers rules of its own.
namespace {

using namespace hybridattn::ops;
using at::Tensor;
using Optional = std::optional<Tensor>;
using BackwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class R>
std::string op_name(const char* form, const char* suffix = "") {
  return fmt::format("{}_{}{}", form, R::name, suffix);
}

template <class R>
ChunkForwardResult chunk(const Tensor& q, const Tensor& k, const Tensor& v, const Optional& g, const Optional& beta,
                         const Optional& a, const Optional& b, double scale, const Optional& initial_state,
                         const Optional& cu_seqlens, int64_t chunk_size, bool save_states,
                         const std::string& backend_name, int64_t state_interval) {
  return chunk_rule_forward<R>({q, k, v, g, beta, a, b}, scale, initial_state, cu_seqlens, chunk_size, save_states,
                               backend(op_name<R>("chunk"), backend_name), state_interval);
}

BackwardResult as_tuple(RuleGradients grad, const Tensor& q) {
  // An op's result must be defined; a gradient that a rule does not have is empty.
  const auto defined = [&](Tensor& x) { return x.defined() ? x : at::empty({0}, q.options()); };
  return {grad.q,
          grad.k,
          grad.v,
          defined(grad.g),
          defined(grad.beta),
          defined(grad.a),
          defined(grad.b),
          grad.initial_state};
}

template <class R>
BackwardResult chunk_backward(const Tensor& q, const Tensor& k, const Tensor& v, const Optional& g,
                              const Optional& beta, const Optional& a, const Optional& b, double scale,
                              const Optional& cu_seqlens, int64_t chunk_size, const Tensor& states,
                              const Tensor& grad_out, const Optional& grad_final_state, const std::string& backend_name,
                              int64_t state_interval) {
  return as_tuple(chunk_rule_backward<R>({q, k, v, g, beta, a, b}, scale, cu_seqlens, chunk_size, states, grad_out,
                                         grad_final_state, backend(op_name<R>("chunk", "_backward"), backend_name),
                                         state_interval),
                  q);
}

template <class R>
ChunkForwardResult chunk_meta(const Tensor& q, const Tensor& k, const Tensor& v, const Optional& g,
                              const Optional& beta, const Optional& a, const Optional& b, double,
                              const Optional& initial_state, const Optional& cu_seqlens, int64_t chunk_size,
                              bool save_states, const std::string&, int64_t state_interval) {
  const auto options = v.options().dtype(state_dtype(v));
  const auto documents = cu_seqlens ? cu_seqlens->sym_size(0) - 1 : v.sym_size(0);
  // With packed documents the number of chunks depends on data; every document has at most one short chunk more.
  const auto apart = chunk_size * state_interval;
  const auto chunks = (v.sym_size(1) + apart - 1) / apart;
  const c10::SymInt rows = !save_states ? c10::SymInt(0) : cu_seqlens ? chunks + documents : v.sym_size(0) * chunks;
  return {at::empty_symint(v.sym_sizes(), v.options()),
          at::empty_symint({documents, v.sym_size(2), k.sym_size(3), v.sym_size(3)}, options),
          at::empty_symint({rows, v.sym_size(2), k.sym_size(3), v.sym_size(3)}, options)};
}

template <class R>
BackwardResult chunk_backward_meta(const Tensor& q, const Tensor& k, const Tensor& v, const Optional& g,
                                   const Optional& beta, const Optional& a, const Optional& b, double,
                                   const Optional& cu_seqlens, int64_t, const Tensor&, const Tensor&, const Optional&,
                                   const std::string&, int64_t) {
  const auto like = [](const Tensor& x) { return at::empty_symint(x.sym_sizes(), x.options()); };
  const auto or_empty = [&](const Optional& x) { return x ? like(*x) : at::empty_symint({0}, q.options()); };
  const auto documents = cu_seqlens ? cu_seqlens->sym_size(0) - 1 : v.sym_size(0);
  const auto state =
      at::empty_symint({documents, v.sym_size(2), k.sym_size(3), v.sym_size(3)}, v.options().dtype(state_dtype(v)));
  return {like(q), like(k), like(v), or_empty(g), or_empty(beta), or_empty(a), or_empty(b), state};
}

/// Reaches forward and backward below autograd through the dispatcher, so that tracing sees the ops.
template <class R>
struct DispatchedCalls {
  static ChunkForwardResult forward(const RuleInputs& in, double scale, const Optional& initial_state,
                                    const Optional& cu_seqlens, int64_t chunk_size, bool save_states, Backend wanted,
                                    int64_t state_interval) {
    at::AutoDispatchBelowADInplaceOrView guard;
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow(("hybridattn::" + op_name<R>("chunk")).c_str(), "")
                               .template typed<decltype(chunk<R>)>();
    return op.call(in.q, in.k, in.v, in.g, in.beta, in.a, in.b, scale, initial_state, cu_seqlens, chunk_size,
                   save_states, std::string(name(wanted)), state_interval);
  }
  static RuleGradients backward(const RuleInputs& in, double scale, const Optional& cu_seqlens, int64_t chunk_size,
                                const Tensor& states, const Tensor& grad_out, const Optional& grad_final_state,
                                Backend wanted, int64_t state_interval) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow(("hybridattn::" + op_name<R>("chunk", "_backward")).c_str(), "")
                               .template typed<decltype(chunk_backward<R>)>();
    auto [q, k, v, g, beta, a, b, state] =
        op.call(in.q, in.k, in.v, in.g, in.beta, in.a, in.b, scale, cu_seqlens, chunk_size, states, grad_out,
                grad_final_state, std::string(name(wanted)), state_interval);
    const auto if_given = [](const Optional& x, const Tensor& grad) { return x ? grad : Tensor(); };
    return {q, k, v, if_given(in.g, g), if_given(in.beta, beta), if_given(in.a, a), if_given(in.b, b), state};
  }
};

template <class R>
ChunkForwardResult chunk_autograd(const Tensor& q, const Tensor& k, const Tensor& v, const Optional& g,
                                  const Optional& beta, const Optional& a, const Optional& b, double scale,
                                  const Optional& initial_state, const Optional& cu_seqlens, int64_t chunk_size,
                                  bool save_states, const std::string& backend_name, int64_t state_interval) {
  const auto wanted = backend(op_name<R>("chunk"), backend_name);
  const auto needs = [](const Optional& x) { return x && x->requires_grad(); };
  const bool grad =
      at::GradMode::is_enabled() && (q.requires_grad() || k.requires_grad() || v.requires_grad() || needs(g) ||
                                     needs(beta) || needs(a) || needs(b) || needs(initial_state));
  if (!grad) {
    return DispatchedCalls<R>::forward({q, k, v, g, beta, a, b}, scale, initial_state, cu_seqlens, chunk_size,
                                       save_states, wanted, state_interval);
  }
  auto results = ChunkRuleFunction<R, DispatchedCalls<R>>::apply(q, k, v, g, beta, a, b, scale, initial_state,
                                                                 cu_seqlens, chunk_size, wanted, state_interval);
  return {results[0], results[1], at::empty({0}, results[1].options().requires_grad(false))};
}

template <class R>
std::tuple<Tensor, Tensor> naive(const Tensor& q, const Tensor& k, const Tensor& v, const Optional& g,
                                 const Optional& beta, const Optional& a, const Optional& b, double scale,
                                 const Optional& initial_state, const Optional& cu_seqlens) {
  return naive_rule<R>({q, k, v, g, beta, a, b},
                       {.scale = scale, .initial_state = initial_state, .cu_seqlens = cu_seqlens});
}

template <class R>
Tensor step(const Tensor& q, const Tensor& k, const Tensor& v, const Optional& g, const Optional& beta,
            const Optional& a, const Optional& b, Tensor state, double scale, const std::string& backend_name) {
  return step_rule<R>({q, k, v, g, beta, a, b}, state, scale, backend(op_name<R>("step"), backend_name));
}

template <class R>
Tensor step_meta(const Tensor& q, const Tensor&, const Tensor& v, const Optional&, const Optional&, const Optional&,
                 const Optional&, Tensor, double, const std::string&) {
  return at::empty_symint(v.sym_sizes(), v.options());
}

constexpr const char* kInputs = "Tensor q, Tensor k, Tensor v, Tensor? g, Tensor? beta, Tensor? a, Tensor? b";

template <class R>
void define(torch::Library& m) {
  m.def(fmt::format("{}({}, float scale, Tensor? initial_state, Tensor? cu_seqlens, int chunk_size, bool save_states, "
                    "str backend=\"auto\", int state_interval=1) -> (Tensor, Tensor, Tensor)",
                    op_name<R>("chunk"), kInputs)
            .c_str());
  m.def(fmt::format("{}({}, float scale, Tensor? cu_seqlens, int chunk_size, Tensor states, Tensor grad_out, Tensor? "
                    "grad_final_state, str backend=\"auto\", int state_interval=1) -> (Tensor, Tensor, Tensor, Tensor, "
                    "Tensor, Tensor, Tensor, Tensor)",
                    op_name<R>("chunk", "_backward"), kInputs)
            .c_str());
  m.def(fmt::format("{}({}, float scale, Tensor? initial_state, Tensor? cu_seqlens) -> (Tensor, Tensor)",
                    op_name<R>("naive"), kInputs)
            .c_str());
  m.def(
      fmt::format("{}({}, Tensor(a!) state, float scale, str backend=\"auto\") -> Tensor", op_name<R>("step"), kInputs)
          .c_str());
}

template <class R>
void implement(torch::Library& m) {
  m.impl(op_name<R>("chunk").c_str(), TORCH_FN(chunk<R>));
  m.impl(op_name<R>("chunk", "_backward").c_str(), TORCH_FN(chunk_backward<R>));
  m.impl(op_name<R>("step").c_str(), TORCH_FN(step<R>));
}

template <class R>
void implement_meta(torch::Library& m) {
  m.impl(op_name<R>("chunk").c_str(), TORCH_FN(chunk_meta<R>));
  m.impl(op_name<R>("chunk", "_backward").c_str(), TORCH_FN(chunk_backward_meta<R>));
  m.impl(op_name<R>("step").c_str(), TORCH_FN(step_meta<R>));
}

template <class R>
void implement_autograd(torch::Library& m) {
  m.impl(op_name<R>("chunk").c_str(), TORCH_FN(chunk_autograd<R>));
  // Without this a second derivative would silently be wrong.
  m.impl(op_name<R>("chunk", "_backward").c_str(), torch::autograd::autogradNotImplementedFallback());
  m.impl(op_name<R>("step").c_str(), torch::autograd::autogradNotImplementedFallback());
}

template <class R>
void implement_naive(torch::Library& m) {
  m.impl(op_name<R>("naive").c_str(), TORCH_FN(naive<R>));
}

} // namespace

/// Registers the ops of rules, once per file; rules are spread over files that compile side by side.
#define HYBRIDATTN_REGISTER_RULES(...)                                                                                 \
  namespace {                                                                                                          \
  template <class... Rules>                                                                                            \
  struct Registered {                                                                                                  \
    static void define_all(torch::Library& m) { (define<Rules>(m), ...); }                                             \
    static void implement_all(torch::Library& m) { (implement<Rules>(m), ...); }                                       \
    static void implement_meta_all(torch::Library& m) { (implement_meta<Rules>(m), ...); }                             \
    static void implement_autograd_all(torch::Library& m) { (implement_autograd<Rules>(m), ...); }                     \
    static void implement_naive_all(torch::Library& m) { (implement_naive<Rules>(m), ...); }                           \
  };                                                                                                                   \
  using RulesOfThisFile = Registered<__VA_ARGS__>;                                                                     \
  }                                                                                                                    \
  TORCH_LIBRARY_FRAGMENT(hybridattn, m) {                                                                              \
    RulesOfThisFile::define_all(m);                                                                                    \
  }                                                                                                                    \
  TORCH_LIBRARY_IMPL(hybridattn, CompositeExplicitAutograd, m) {                                                       \
    RulesOfThisFile::implement_all(m);                                                                                 \
  }                                                                                                                    \
  TORCH_LIBRARY_IMPL(hybridattn, Meta, m) {                                                                            \
    RulesOfThisFile::implement_meta_all(m);                                                                            \
  }                                                                                                                    \
  TORCH_LIBRARY_IMPL(hybridattn, Autograd, m) {                                                                        \
    RulesOfThisFile::implement_autograd_all(m);                                                                        \
  }                                                                                                                    \
  TORCH_LIBRARY_IMPL(hybridattn, CompositeImplicitAutograd, m) {                                                       \
    RulesOfThisFile::implement_naive_all(m);                                                                           \
  }
