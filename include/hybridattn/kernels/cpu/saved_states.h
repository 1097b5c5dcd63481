// Backward from states that forward saved at some chunks only: those between are computed again.
#pragma once

#include <hybridattn/kernels/cpu/chunk_task.h>

#include <algorithm>
#include <memory>
#include <vector>

namespace hybridattn::kernels::cpu {

/// Backward of a task whose `starts` are there for every `interval`-th chunk. One group of so many chunks after the
/// other, the last one first, has its states computed from its saved one: `interval` states of scratch memory, and
/// forward without its outputs once more.
template <class T>
void backward_between_states(const RuleKernels<T>& kernels, const BackwardTask<T>& task, int64_t interval) {
  const int64_t chunks = task.chunks();
  if (interval == 1 || chunks <= 1) {
    kernels.chunk_backward(task);
    return;
  }
  const int64_t state_size = task.key_dim * task.state_stride;
  const auto states = std::make_unique_for_overwrite<T[]>(std::min(interval, chunks) * state_size);
  std::vector<T*> starts;
  for (int64_t first = (chunks - 1) / interval * interval; first >= 0; first -= interval) {
    const int64_t count = std::min(interval, chunks - first), begin = first * task.chunk;
    starts.clear();
    for (int64_t n = 0; n < count; ++n) {
      starts.push_back(states.get() + n * state_size);
    }
    ForwardTask<T> again{task.part(begin, (count - 1) * task.chunk)};
    again.initial_state = task.starts[first];
    again.final_state = starts.back();
    again.starts = starts.data();
    kernels.chunk_forward(again);
    BackwardTask<T> group = task.part_backward(begin, std::min<int64_t>(task.tokens - begin, count * task.chunk));
    group.starts = starts.data();
    if (first + count < chunks) {
      group.grad_final_state = task.grad_initial_state; // what the group behind left there
    }
    kernels.chunk_backward(group);
  }
}

} // namespace hybridattn::kernels::cpu
