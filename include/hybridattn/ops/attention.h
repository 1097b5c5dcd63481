// Softmax attention: grouped heads, causal, sliding window with sinks, padding, packed documents. This library's CPU
// kernels, or a composition over PyTorch's SDPA.
// Letters: B batch, Tq queries, Tk keys, H query heads, HKV key/value heads, K and V head dims.
#pragma once

#include <ATen/autocast_mode.h>
#include <hybridattn/ops/aten_attention.h>
#include <hybridattn/ops/backend.h>
#include <hybridattn/ops/native_attention.h>

namespace hybridattn::ops {

/// The dtype in which SDPA, and so this op, takes x: under autocast that of autocast.
inline at::ScalarType attention_dtype(const at::Tensor& x) {
  const auto device = x.device().type();
  const bool converts = at::isFloatingType(x.scalar_type()) && x.scalar_type() != at::kDouble &&
                        at::autocast::is_autocast_available(device) && at::autocast::is_autocast_enabled(device);
  return converts ? at::autocast::get_autocast_dtype(device) : x.scalar_type();
}

/// Whether kernels are to compute. On AMX, where PyTorch's SDPA multiplies bf16 numbers in its tiles too, that remains
/// the choice for what it computes without a mask. @throws c10::ValueError if they are asked for and cannot
inline bool attention_runs_native(Backend wanted, const AttentionInputs& in) {
  const auto& o = in.options;
  const auto type = attention_dtype(in.q);
  const bool same = attention_dtype(in.k) == type && attention_dtype(in.v) == type;
  HA_CHECK(same || wanted != Backend::native,
           "softmax_attention: the native backend needs q, k and v of one dtype, got ", in.q.scalar_type(), ", ",
           in.k.scalar_type(), " and ", in.v.scalar_type(), "; choose backend aten");
  const bool left_to_sdpa = wanted == Backend::automatic && type == at::kBFloat16 && o.window == 0 && !o.cu_seqlens &&
                            !o.padding_mask &&
                            kernels::cpu::chosen_instruction_set() == kernels::cpu::InstructionSet::amx;
  return runs_native("softmax_attention", wanted, in.q.device(), type) && same && !left_to_sdpa;
}

/// Under autocast the inputs are converted to its dtype, as SDPA's are.
/// @param q [B, Tq, H, K]  @param k [B, Tk, HKV, K]  @param v [B, Tk, HKV, V]; the queries are the last Tq positions
/// @returns [B, Tq, H, V]; differentiable. Memory is O(T) on the native backend, O(T (window + sinks)) over SDPA.
/// @throws c10::ValueError if shapes disagree, or the backend cannot compute on q
template <class Calls = DirectAttentionCalls>
at::Tensor softmax_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                             const AttentionOptions& options = {}, Backend backend = Backend::automatic) {
  check_attention(q, k, v, options);
  if (!attention_runs_native(backend, {q, k, v, options})) {
    return aten_attention(q, k, v, options);
  }
  const auto type = attention_dtype(q);
  return AttentionFunction<Calls>::apply(q.to(type), k.to(type), v.to(type), options.scale, options.causal,
                                         options.window, options.sinks, options.cu_seqlens, options.padding_mask)[0];
}

} // namespace hybridattn::ops
