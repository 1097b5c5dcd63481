// What a chunk kernel is asked to do: one document (or sequence) of one value head. Letters: T tokens, K key dim, V
// value dim, C chunk. Matrices of a state are [K, V] with rows `state_stride` apart.
#pragma once

#include <hybridattn/kernels/cpu/arrays.h>

namespace hybridattn::kernels::cpu {

/// What forward and backward both read. T: what is computed in; gates and states are T as well.
template <class T>
struct ChunkInputs {
  int64_t tokens = 0;
  int key_dim = 0, value_dim = 0, chunk = 64;
  T scale = 1;                           ///< multiplies q
  Rows<T> q, k, v;                       ///< [T, K], [T, K], [T, V]
  const T *g = nullptr, *beta = nullptr; ///< [T], `gate_stride` apart; g is the log decay, <= 0
  int64_t gate_stride = 1, state_stride = 0;
  Rows<T> channel_g; ///< [T, K], the log decay of rules with one per channel
  Rows<T> a, b;      ///< [T, K], of generalised rules

  int64_t chunks() const { return (tokens + chunk - 1) / chunk; }

  /// The inputs of tokens [begin, begin + count).
  ChunkInputs part(int64_t begin, int64_t count) const {
    ChunkInputs result = *this;
    result.tokens = count;
    for (Rows<T>* rows : {&result.q, &result.k, &result.v, &result.channel_g, &result.a, &result.b}) {
      *rows = rows->from(begin);
    }
    result.g = g == nullptr ? nullptr : g + begin * gate_stride;
    result.beta = beta == nullptr ? nullptr : beta + begin * gate_stride;
    return result;
  }
};

template <class T>
struct ForwardTask : ChunkInputs<T> {
  const T* initial_state = nullptr; ///< zero if null
  T* final_state = nullptr;
  T* const* starts = nullptr; ///< per chunk, where the state at its start goes; null (all or one) if nobody asks
  Rows<T> out;                ///< [T, V], step 1; null if only states are asked for
};

template <class T>
struct BackwardTask : ChunkInputs<T> {
  const T* const* starts = nullptr;    ///< per chunk, the state at its start
  const T* grad_final_state = nullptr; ///< zero if null
  T* grad_initial_state = nullptr;
  Rows<T> grad_out;                          ///< [T, V]
  Rows<T> grad_q, grad_k, grad_v;            ///< [T, K], [T, K], [T, V], step 1
  T *grad_g = nullptr, *grad_beta = nullptr; ///< [T], `grad_gate_stride` apart
  int64_t grad_gate_stride = 1;
  Rows<T> grad_channel_g, grad_a, grad_b; ///< [T, K], step 1

  /// The task of tokens [begin, begin + count), with this one's `starts` and gradients of states.
  BackwardTask part_backward(int64_t begin, int64_t count) const {
    BackwardTask result = *this;
    static_cast<ChunkInputs<T>&>(result) = this->part(begin, count);
    for (Rows<T>* rows : {&result.grad_out, &result.grad_q, &result.grad_k, &result.grad_v, &result.grad_channel_g,
                          &result.grad_a, &result.grad_b}) {
      *rows = rows->from(begin);
    }
    result.grad_g = grad_g == nullptr ? nullptr : grad_g + begin * grad_gate_stride;
    result.grad_beta = grad_beta == nullptr ? nullptr : grad_beta + begin * grad_gate_stride;
    return result;
  }
};

/// One token of one value head, the state updated in place.
template <class T>
struct StepTask {
  int key_dim = 0, value_dim = 0;
  T scale = 1;
  Rows<T> q, k, v; ///< one row each, step 1
  T g = 0, beta = 1;
  Rows<T> channel_g, a, b; ///< one row each, step 1, where the rule has them
  T* state = nullptr;      ///< [K, V], contiguous
  Rows<T> out;             ///< one row, step 1
};

/// The kernels of one rule and type of arithmetic, of one set.
template <class T>
struct RuleKernels {
  void (*chunk_forward)(const ForwardTask<T>&);
  void (*chunk_backward)(const BackwardTask<T>&);
  void (*step)(const StepTask<T>&);
};

} // namespace hybridattn::kernels::cpu
