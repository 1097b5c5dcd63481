// What a kernel of softmax attention is asked to do: queries of one head against the keys and values of one sequence.
// Letters: K key dim, V value dim.
#pragma once

#include <hybridattn/kernels/cpu/arrays.h>

namespace hybridattn::kernels::cpu {

/// Queries and keys are taken in blocks of so many: whole tiles of every set.
inline constexpr int kAttentionBlock = 128;

/// Query i stands at position `first_position + i * position_step` of the keys. It sees the keys up to its own position
/// (causal) or all, of these the last `window` (0 = all) and those before `sink_end`, of these the tokens.
template <class T>
struct AttentionInputs {
  int64_t queries = 0, keys = 0;
  int key_dim = 0, value_dim = 0;
  T scale = 1; ///< multiplies q
  bool causal = true;
  int64_t first_position = 0, position_step = 1, window = 0, sink_end = 0;
  const bool* tokens = nullptr; ///< [keys], false = padding, which only the query at its position sees; null: all true
  Rows<T> q, k, v;              ///< [queries, K], [keys, K], [keys, V]

  int64_t position(int64_t query) const { return first_position + query * position_step; }
};

template <class T>
struct AttentionTask : AttentionInputs<T> {
  Rows<T> out;          ///< [queries, V], step 1
  T* log_sum = nullptr; ///< [queries] log of the sum of exp(scale q k) over the keys that the query sees
};

/// Gradients of the queries, and what they add to those of the keys and values.
template <class T>
struct AttentionBackwardTask : AttentionInputs<T> {
  Rows<T> out, grad_out;                        ///< [queries, V]
  const T* log_sum = nullptr;                   ///< [queries], of forward
  int64_t first_key = 0, end_key = 0;           ///< keys that are looked at; the first starts a block
  Rows<T> grad_q;                               ///< [queries, K], step 1; null if not wanted
  T *grad_k = nullptr, *grad_v = nullptr;       ///< [keys, padded K], [keys, padded V], added to; null if not wanted
  int64_t grad_k_stride = 0, grad_v_stride = 0; ///< K and V rounded up to whole blocks of kAttentionColumns
};

/// What the columns of gradients that are added to are rounded up to: whole tiles of every set.
inline constexpr int64_t kAttentionColumns = 32;

template <class T>
struct AttentionKernels {
  void (*forward)(const AttentionTask<T>&);
  void (*backward)(const AttentionBackwardTask<T>&);
};

} // namespace hybridattn::kernels::cpu
