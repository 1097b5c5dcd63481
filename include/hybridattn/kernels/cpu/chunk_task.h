// What a chunk kernel is asked to do: one document (or sequence) of one value head. Letters: T tokens, K key dim, V value
// dim, C chunk. Matrices of a state are [K, V] with rows `state_stride` apart.
#pragma once

#include <hybridattn/kernels/cpu/arrays.h>

namespace hybridattn::kernels::cpu {

/// What forward and backward both read. E: element type of q, k, v; arithmetic, gates and states are Arithmetic<E>.
template <class E>
struct ChunkInputs {
  using Number = Arithmetic<E>;

  int64_t tokens = 0;
  int key_dim = 0, value_dim = 0, chunk = 64;
  Number scale = 1;                              ///< multiplies q
  Rows<const E> q, k, v;                         ///< [T, K], [T, K], [T, V]
  const Number *g = nullptr, *beta = nullptr;    ///< [T], `gate_stride` apart; g is the log decay, <= 0
  int64_t gate_stride = 1, state_stride = 0;

  int64_t chunks() const { return (tokens + chunk - 1) / chunk; }
};

template <class E>
struct ForwardTask : ChunkInputs<E> {
  using Number = Arithmetic<E>;

  const Number* initial_state = nullptr; ///< zero if null
  Number* final_state = nullptr;
  Number* const* starts = nullptr;       ///< per chunk, where the state at its start goes; null if nobody asks
  Rows<E> out;                           ///< [T, V], step 1
};

template <class E>
struct BackwardTask : ChunkInputs<E> {
  using Number = Arithmetic<E>;

  const Number* const* starts = nullptr;      ///< per chunk, the state at its start
  const Number* grad_final_state = nullptr;   ///< zero if null
  Number* grad_initial_state = nullptr;
  Rows<const E> grad_out;                     ///< [T, V]
  Rows<Number> grad_q, grad_k, grad_v;        ///< [T, K], [T, K], [T, V], step 1
  Number *grad_g = nullptr, *grad_beta = nullptr; ///< [T], `grad_gate_stride` apart
  int64_t grad_gate_stride = 1;
};

/// One token of one value head, the state updated in place.
template <class E>
struct StepTask {
  using Number = Arithmetic<E>;

  int key_dim = 0, value_dim = 0;
  Number scale = 1;
  const E *q = nullptr, *k = nullptr, *v = nullptr;
  Number g = 0, beta = 1;
  Number* state = nullptr; ///< [K, V], contiguous
  E* out = nullptr;        ///< [V]
};

} // namespace hybridattn::kernels::cpu
