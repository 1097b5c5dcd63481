// A linear-attention rule: how a state forgets (Decay) times how it is written (Update).
// Letters: B batch, T tokens, H query/key heads, HV value heads, K key dim, V value dim, C chunk, N documents.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <hybridattn/core/check.h>
#include <hybridattn/ops/backend.h>

#include <cmath>
#include <concepts>
#include <optional>
#include <string>
#include <string_view>

namespace hybridattn::ops {

/// How a state forgets.
/// Requires: `gated` (a log gate g is given) and `per_channel` (g is [B, T, HV, K] rather than [B, T, HV]).
template <class D>
concept Decay = requires {
  { D::gated } -> std::convertible_to<bool>;
  { D::per_channel } -> std::convertible_to<bool>;
};

/// How a state is written.
/// Requires: `corrects` (what the state already answers for the key is subtracted first) and `generalised` (a row of
/// its own is read from the state, and what it finds is written to another). Either makes a chunk a triangular system.
template <class U>
concept Update = requires {
  { U::corrects } -> std::convertible_to<bool>;
  { U::generalised } -> std::convertible_to<bool>;
};

/// The state never forgets.
struct NoDecay {
  static constexpr bool gated = false, per_channel = false;
};
/// One gate per head: S' = exp(g_t) S.
struct ScalarDecay {
  static constexpr bool gated = true, per_channel = false;
};
/// One gate per row of the state: S' = diag(exp(g_t)) S.
struct ChannelDecay {
  static constexpr bool gated = true, per_channel = true;
};
/// S = S' + k v^T.
struct AdditiveUpdate {
  static constexpr bool corrects = false, generalised = false;
};
/// S = S' + k (beta (v - S'^T k))^T.
struct DeltaUpdate {
  static constexpr bool corrects = true, generalised = false;
};
/// S = S' + b (a^T S_{t-1}) + k v^T, with S_{t-1} the state before it forgets.
struct GeneralisedDeltaUpdate {
  static constexpr bool corrects = false, generalised = true;
};

template <Decay D, Update U>
struct Rule {
  using decay = D;
  using update = U;
  static constexpr bool gated = D::gated, per_channel = D::per_channel;
  static constexpr bool corrects = U::corrects, generalised = U::generalised;
  static constexpr bool solves = corrects || generalised; ///< a chunk is a triangular system
};

/// S = S + k v^T (Katharopoulos et al., arXiv 2006.16236, without its feature map and normaliser).
struct LinearAttentionRule : Rule<NoDecay, AdditiveUpdate> {
  static constexpr std::string_view name = "linear_attention";
};
/// S = exp(g) S + k v^T (Lightning, RetNet, Mamba-2 style).
struct LightningRule : Rule<ScalarDecay, AdditiveUpdate> {
  static constexpr std::string_view name = "lightning";
};
/// S = S + k (beta (v - S^T k))^T (Yang et al., arXiv 2406.06484).
struct DeltaRule : Rule<NoDecay, DeltaUpdate> {
  static constexpr std::string_view name = "delta_rule";
};
/// S' = exp(g) S; S = S' + k (beta (v - S'^T k))^T (Yang et al., "Gated Delta Networks", arXiv 2412.06464, eq. 10).
struct GatedDeltaRule : Rule<ScalarDecay, DeltaUpdate> {
  static constexpr std::string_view name = "gated_delta_rule";
};

/// S = diag(exp(g)) S + k v^T (gated linear attention: Yang et al., arXiv 2312.06635, eq. 3).
struct GatedLinearAttentionRule : Rule<ChannelDecay, AdditiveUpdate> {
  static constexpr std::string_view name = "gla";
};
/// S' = diag(exp(g)) S; S = S' + k (beta (v - S'^T k))^T (Kimi delta attention: Kimi Linear, arXiv 2510.26692).
struct KimiDeltaRule : Rule<ChannelDecay, DeltaUpdate> {
  static constexpr std::string_view name = "kda";
};
/// S = diag(exp(g)) S + b (a^T S) + k v^T: diagonal plus low rank (RWKV-7, Peng et al., arXiv 2503.14456, eq. 16).
struct DplrDeltaRule : Rule<ChannelDecay, GeneralisedDeltaUpdate> {
  static constexpr std::string_view name = "dplr_delta_rule";
};

/// What a rule reads: q, k [B, T, H, K], v [B, T, HV, V] and, where the rule has them, the log decay g [B, T, HV] (per
/// channel [B, T, HV, K]), beta [B, T, HV], and a, b [B, T, H, K].
struct RuleInputs {
  at::Tensor q, k, v;
  std::optional<at::Tensor> g, beta, a, b;
};

/// Choices of a call that every rule shares.
struct RuleOptions {
  std::optional<double> scale;             ///< multiplies q; K^-1/2 when absent
  std::optional<at::Tensor> initial_state; ///< [B or N, HV, K, V]; zero when absent
  std::optional<at::Tensor> cu_seqlens;    ///< [N + 1] integer offsets of documents packed into a batch of one
  int64_t chunk_size = 64;                 ///< tokens per chunk of the chunked form
  Backend backend = Backend::automatic;    ///< what computes the chunked form
  int64_t state_interval = 1;              ///< chunks from one state that is saved for backward to the next
};

inline double scale_or_default(const std::optional<double>& scale, const at::Tensor& k) {
  return scale.value_or(1.0 / std::sqrt(static_cast<double>(k.size(-1))));
}

/// Scope in which autocast narrows nothing: a rule's arithmetic has the state's dtype, whatever surrounds the call.
struct WithoutAutocast {
  c10::impl::ExcludeDispatchKeyGuard guard{c10::autocast_dispatch_keyset};
};

/// fp64 for fp64 inputs, otherwise fp32: the dtype of states and of all arithmetic inside a rule.
inline at::ScalarType state_dtype(const at::Tensor& v) {
  return v.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

/// Number of states: documents when packed, sequences otherwise.
inline int64_t num_documents(const RuleInputs& in, const std::optional<at::Tensor>& cu_seqlens) {
  return cu_seqlens ? cu_seqlens->size(0) - 1 : in.v.size(0);
}

/// @throws c10::ValueError naming the op, the argument, what was expected and what came.
template <class R>
void check_rule_inputs(const std::string& op, const RuleInputs& in, const std::optional<at::Tensor>& initial_state,
                       const std::optional<at::Tensor>& cu_seqlens) {
  const auto &q = in.q, &k = in.k, &v = in.v;
  HA_CHECK(q.dim() == 4, op, ": q must be [B, T, H, K], got ", q.sizes());
  HA_CHECK(k.dim() == 4, op, ": k must be [B, T, H, K], got ", k.sizes());
  HA_CHECK(v.dim() == 4, op, ": v must be [B, T, HV, V], got ", v.sizes());
  HA_CHECK(k.size(3) == q.size(3), op, ": k has head dimension ", k.size(3), ", q has ", q.size(3));
  HA_CHECK(k.sizes() == q.sizes(), op, ": k must have q's shape ", q.sizes(), ", got ", k.sizes());
  HA_CHECK(v.size(0) == q.size(0) && v.size(1) == q.size(1), op, ": v must have q's batch and tokens [", q.size(0),
           ", ", q.size(1), "], got ", v.sizes());
  HA_CHECK(q.size(2) > 0 && v.size(2) % q.size(2) == 0, op, ": v's heads must be a multiple of q's ", q.size(2),
           ", got ", v.size(2));
  HA_CHECK(q.size(3) > 0 && v.size(3) > 0, op, ": head dimensions must not be 0");
  const auto check_one = [&](const std::optional<at::Tensor>& x, bool wanted, const char* name, const char* letters,
                             at::IntArrayRef shape) {
    HA_CHECK(x.has_value() == wanted, op, ": ", name, wanted ? " is required" : " is not used by this rule");
    HA_CHECK(!wanted || x->sizes() == shape, op, ": ", name, " must be ", letters, " ", shape, ", got ", x->sizes());
  };
  const auto per_head = v.sizes().slice(0, 3);
  const auto per_channel = std::array<int64_t, 4>{v.size(0), v.size(1), v.size(2), q.size(3)};
  check_one(in.g, R::gated, "g", R::per_channel ? "[B, T, HV, K]" : "[B, T, HV]",
            R::per_channel ? at::IntArrayRef(per_channel) : per_head);
  check_one(in.beta, R::corrects, "beta", "[B, T, HV]", per_head);
  check_one(in.a, R::generalised, "a", "[B, T, H, K]", q.sizes());
  check_one(in.b, R::generalised, "b", "[B, T, H, K]", q.sizes());
  HA_CHECK(at::isFloatingType(v.scalar_type()) && q.scalar_type() == v.scalar_type() &&
               k.scalar_type() == v.scalar_type(),
           op, ": q, k and v must have one floating dtype, got ", q.scalar_type(), ", ", k.scalar_type(), ", ",
           v.scalar_type());
  for (const auto& x : {in.a, in.b}) {
    HA_CHECK(!x || x->scalar_type() == v.scalar_type(), op, ": a and b must have the dtype of v ", v.scalar_type(),
             ", got ", x->scalar_type());
  }
  if (cu_seqlens) {
    HA_CHECK(cu_seqlens->dim() == 1 && cu_seqlens->size(0) >= 1 && at::isIntegralType(cu_seqlens->scalar_type(), false),
             op, ": cu_seqlens must be integer offsets [N + 1], got ", cu_seqlens->scalar_type(), " ",
             cu_seqlens->sizes());
    HA_CHECK(q.size(0) == 1, op, ": cu_seqlens needs all documents packed into a batch of 1, got batch ", q.size(0));
  }
  if (initial_state) {
    const int64_t n = num_documents(in, cu_seqlens);
    const auto wanted = std::array<int64_t, 4>{n, v.size(2), q.size(3), v.size(3)};
    HA_CHECK(initial_state->sizes() == at::IntArrayRef(wanted), op, ": initial_state must be ", at::IntArrayRef(wanted),
             ", got ", initial_state->sizes());
  }
}

} // namespace hybridattn::ops
