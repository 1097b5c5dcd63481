// The rules on this library's CPU kernels: tensors in, tasks for the kernels out. A task is one document (or sequence)
// of one value head; threads take tasks one after another, longest first.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/Parallel.h>
#include <hybridattn/core/fresh_tensor.h>
#include <hybridattn/kernels/cpu/saved_states.h>
#include <hybridattn/kernels/cpu/sets.h>
#include <hybridattn/ops/chunk_results.h>
#include <hybridattn/ops/documents.h>
#include <hybridattn/ops/rule.h>
#include <hybridattn/ops/tensor_rows.h>

#include <atomic>

namespace hybridattn::ops {

namespace detail {

/// Calls f with a number of the arithmetic's type.
template <class F>
auto with_arithmetic(const at::Tensor& x, F&& f) {
  return x.scalar_type() == at::kDouble ? f(double{}) : f(float{});
}

template <class E>
E* data(const at::Tensor& x) {
  return static_cast<E*>(x.data_ptr());
}
template <class E>
const E* const_data(const at::Tensor& x) {
  return static_cast<const E*>(x.const_data_ptr());
}

/// The columns [first, first + size) of a value head that one task computes.
struct Columns {
  int64_t first, size;
};

/// All columns at once if there are tasks for every thread, otherwise in parts. A column's arithmetic does not depend
/// on the part it is in.
inline std::vector<Columns> column_parts(int64_t value_dim, int64_t tasks, int64_t threads) {
  constexpr int64_t kGrain = 32; // a register tile
  const int64_t wanted = tasks > 0 ? (threads + tasks - 1) / tasks : 1;
  const int64_t parts = std::clamp<int64_t>(wanted, 1, (value_dim + kGrain - 1) / kGrain);
  const int64_t size = ((value_dim + parts - 1) / parts + kGrain - 1) / kGrain * kGrain;
  std::vector<Columns> result;
  for (int64_t first = 0; first < value_dim; first += size) {
    result.push_back({first, std::min(size, value_dim - first)});
  }
  return result;
}

/// f(i) for i < tasks on all threads. Tasks are handed out in order, so unequal ones balance.
template <class F>
void for_each_task(int64_t tasks, F&& f) {
  std::atomic<int64_t> next{0};
  at::parallel_for(0, std::min<int64_t>(at::get_num_threads(), tasks), 1, [&](int64_t first, int64_t last) {
    for (int64_t worker = first; worker < last; ++worker) {
      for (int64_t task = next.fetch_add(1); task < tasks; task = next.fetch_add(1)) {
        f(task);
      }
    }
  });
}

/// The chunked form's inputs as the kernels see them.
template <class T>
struct NativeInputs {
  const RuleInputs& in;
  double scale;
  int64_t length, heads, groups, key_dim, value_dim;
  std::vector<std::pair<int64_t, int64_t>> spans;
  ChunkOrder order;
  at::Tensor g, beta;   // [tokens, HV] in the arithmetic's dtype, contiguous
  at::Tensor channel_g; // [B, T, HV, K] in the arithmetic's dtype or bf16

  NativeInputs(const std::string& op, const RuleInputs& inputs, double scale_of_q,
               const std::optional<at::Tensor>& cu_seqlens, int64_t chunk_size)
      : in(inputs), scale(scale_of_q), length(in.v.size(1)), heads(in.v.size(2)), groups(heads / in.q.size(2)),
        key_dim(in.k.size(3)), value_dim(in.v.size(3)), spans(document_spans(op, in.v.size(0), length, cu_seqlens)),
        order(chunk_order(spans, chunk_size)) {
    const auto gate = [&](const std::optional<at::Tensor>& x) {
      return x ? x->to(state_dtype(in.v)).contiguous() : at::Tensor();
    };
    if (in.g && in.g->dim() == 4) {
      const bool readable = native_can_run(*in.g) && state_dtype(*in.g) == state_dtype(in.v);
      channel_g = readable ? *in.g : in.g->to(state_dtype(in.v));
    } else {
      g = gate(in.g);
    }
    beta = gate(in.beta);
  }

  int64_t documents() const { return static_cast<int64_t>(spans.size()); }

  /// The part of a task that forward and backward share.
  void fill(kernels::cpu::ChunkInputs<T>& task, int64_t document, int64_t head, Columns columns) const {
    const auto [first, last] = spans[document];
    task.tokens = last - first;
    task.key_dim = static_cast<int>(key_dim);
    task.value_dim = static_cast<int>(columns.size);
    task.chunk = static_cast<int>(order.chunk);
    task.scale = static_cast<T>(scale);
    if (task.tokens > 0) {
      task.q = head_rows<T>(in.q, first, head / groups);
      task.k = head_rows<T>(in.k, first, head / groups);
      task.v = head_rows<T>(in.v.narrow(3, columns.first, columns.size), first, head);
      if (channel_g.defined()) {
        task.channel_g = head_rows<T>(channel_g, first, head);
      }
      if (in.a) {
        task.a = head_rows<T>(*in.a, first, head / groups);
        task.b = head_rows<T>(*in.b, first, head / groups);
      }
    }
    task.g = g.defined() ? const_data<T>(g) + first * heads + head : nullptr;
    task.beta = beta.defined() ? const_data<T>(beta) + first * heads + head : nullptr;
    task.gate_stride = heads;
    task.state_stride = value_dim;
  }

  /// Where [K, V] of (number, head) begins in states [N, HV, K, V].
  int64_t state_offset(int64_t number, int64_t head, Columns columns) const {
    return (number * heads + head) * key_dim * value_dim + columns.first;
  }

  /// Where the states at the chunks' starts of the document at `position` lie in `states` [rows, HV, K, V]; null of the
  /// chunks whose state is not saved.
  template <class Pointer>
  std::vector<Pointer> starts(const SavedStates& saved, Pointer states, int64_t position, int64_t chunks, int64_t head,
                              Columns columns) const {
    std::vector<Pointer> result(chunks);
    for (int64_t n = 0; n < chunks; n += saved.interval) {
      result[n] = states + state_offset(saved.first_row[n] + position, head, columns);
    }
    return result;
  }
};

} // namespace detail

/// The chunked form, forward. Arguments as in aten_chunk_forward.
template <class R>
ChunkForwardResult native_chunk_forward(const RuleInputs& in, double scale,
                                        const std::optional<at::Tensor>& initial_state,
                                        const std::optional<at::Tensor>& cu_seqlens, int64_t chunk_size,
                                        bool save_states, int64_t state_interval) {
  return detail::with_arithmetic(in.v, [&]<class T>(T) -> ChunkForwardResult {
    const detail::NativeInputs<T> inputs("chunk_" + std::string(R::name), in, scale, cu_seqlens, chunk_size);
    const auto options = in.v.options().dtype(state_dtype(in.v));
    const int64_t heads = inputs.heads, documents = inputs.documents();
    auto out = fresh_tensor(in.v.sizes(), in.v.options());
    auto final_state = at::empty({documents, heads, inputs.key_dim, inputs.value_dim}, options);
    const SavedStates layout(inputs.order, state_interval);
    auto saved = fresh_tensor({save_states ? layout.rows : 0, heads, inputs.key_dim, inputs.value_dim}, options);
    const auto initial = initial_state ? initial_state->to(options.dtype()).contiguous() : at::Tensor();
    const auto kernels = kernels::cpu::rule_kernels<R, T>(kernels::cpu::chosen_instruction_set());
    const auto parts = detail::column_parts(inputs.value_dim, documents * heads, at::get_num_threads());
    const auto per_document = heads * static_cast<int64_t>(parts.size());
    detail::for_each_task(documents * per_document, [&](int64_t number) {
      const int64_t position = number / per_document, document = inputs.order.document[position];
      const int64_t head = number % heads;
      const auto columns = parts[number % per_document / heads];
      kernels::cpu::ForwardTask<T> task;
      inputs.fill(task, document, head, columns);
      const int64_t state = inputs.state_offset(document, head, columns);
      task.initial_state = initial.defined() ? detail::const_data<T>(initial) + state : nullptr;
      task.final_state = detail::data<T>(final_state) + state;
      std::vector<T*> starts;
      if (save_states) {
        starts = inputs.starts(layout, detail::data<T>(saved), position, task.chunks(), head, columns);
        task.starts = starts.data();
      }
      if (task.tokens > 0) {
        task.out = detail::head_rows<T>(out.narrow(3, columns.first, columns.size), inputs.spans[document].first, head);
      }
      kernels.chunk_forward(task);
    });
    return {out, final_state, saved};
  });
}

/// The chunked form, backward. Arguments as in aten_chunk_backward.
template <class R>
RuleGradients native_chunk_backward(const RuleInputs& in, double scale, const std::optional<at::Tensor>& cu_seqlens,
                                    int64_t chunk_size, const at::Tensor& states, const at::Tensor& grad_out,
                                    const std::optional<at::Tensor>& grad_final_state, int64_t state_interval) {
  return detail::with_arithmetic(in.v, [&]<class T>(T) {
    const std::string op = "chunk_" + std::string(R::name) + "_backward";
    const detail::NativeInputs<T> inputs(op, in, scale, cu_seqlens, chunk_size);
    const auto options = in.v.options().dtype(state_dtype(in.v));
    const int64_t heads = inputs.heads, documents = inputs.documents(), tokens = in.v.size(0) * inputs.length;
    // Of rows of x. Rounded to bf16 as they are written, where no sum over the heads of a group comes after that.
    const auto per_row = [&](const at::Tensor& x) {
      const bool narrow = detail::is_narrow<T>(x) && x.size(2) == heads;
      return fresh_tensor({tokens, heads, x.size(3)}, narrow ? x.options() : options);
    };
    const auto per_gate = [&] { return fresh_tensor({tokens, heads, 1}, options); };
    auto grad_q = per_row(in.q), grad_k = per_row(in.k), grad_v = per_row(in.v);
    auto grad_g = !R::gated ? at::Tensor() : R::per_channel ? per_row(*in.g) : per_gate();
    auto grad_beta = R::corrects ? per_gate() : at::Tensor();
    auto grad_a = R::generalised ? per_row(*in.a) : at::Tensor();
    auto grad_b = R::generalised ? per_row(*in.b) : at::Tensor();
    auto grad_initial = at::empty({documents, heads, inputs.key_dim, inputs.value_dim}, options);
    const auto grad_final = grad_final_state ? grad_final_state->to(options.dtype()).contiguous() : at::Tensor();
    const auto grad_output = grad_out.to(in.v.scalar_type());
    const auto kernels = kernels::cpu::rule_kernels<R, T>(kernels::cpu::chosen_instruction_set());
    const SavedStates layout(inputs.order, state_interval);
    detail::for_each_task(documents * heads, [&](int64_t number) {
      const int64_t position = number / heads, document = inputs.order.document[position], head = number % heads;
      const detail::Columns columns{0, inputs.value_dim};
      kernels::cpu::BackwardTask<T> task;
      inputs.fill(task, document, head, columns);
      const auto starts = inputs.starts(layout, detail::const_data<T>(states), position, task.chunks(), head, columns);
      task.starts = starts.data();
      const int64_t state = inputs.state_offset(document, head, columns);
      task.grad_final_state = grad_final.defined() ? detail::const_data<T>(grad_final) + state : nullptr;
      task.grad_initial_state = detail::data<T>(grad_initial) + state;
      const int64_t first = inputs.spans[document].first;
      if (task.tokens > 0) {
        task.grad_out = detail::head_rows<T>(grad_output, first, head);
      }
      const auto rows = [&](const at::Tensor& x) {
        const int64_t dim = x.size(2);
        return detail::tensor_rows<T>(x, (first * heads + head) * dim, heads * dim);
      };
      const auto gates = [&](const at::Tensor& x) { return detail::data<T>(x) + first * heads + head; };
      task.grad_q = rows(grad_q);
      task.grad_k = rows(grad_k);
      task.grad_v = rows(grad_v);
      if constexpr (R::per_channel) {
        task.grad_channel_g = rows(grad_g);
      } else if constexpr (R::gated) {
        task.grad_g = gates(grad_g);
      }
      if constexpr (R::generalised) {
        task.grad_a = rows(grad_a);
        task.grad_b = rows(grad_b);
      }
      task.grad_beta = R::corrects ? gates(grad_beta) : nullptr;
      task.grad_gate_stride = heads;
      kernels::cpu::backward_between_states(kernels, task, state_interval);
    });
    RuleGradients result{.q = like_input(grad_q, in.q),
                         .k = like_input(grad_k, in.k),
                         .v = like_input(grad_v, in.v),
                         .initial_state = grad_initial};
    if constexpr (R::per_channel) {
      result.g = like_input(grad_g, *in.g);
    } else if constexpr (R::gated) {
      result.g = like_input(grad_g, in.g->unsqueeze(-1)).squeeze(-1);
    }
    if constexpr (R::generalised) {
      result.a = like_input(grad_a, *in.a);
      result.b = like_input(grad_b, *in.b);
    }
    if constexpr (R::corrects) {
      result.beta = like_input(grad_beta, in.beta->unsqueeze(-1)).squeeze(-1);
    }
    return result;
  });
}

/// One token; arguments as in aten_step.
template <class R>
at::Tensor native_step(const RuleInputs& in, at::Tensor& state, double scale) {
  return detail::with_arithmetic(in.v, [&]<class T>(T) {
    const int64_t batch = in.v.size(0), heads = in.v.size(2), groups = heads / in.q.size(2);
    const int64_t key_dim = in.k.size(3), value_dim = in.v.size(3);
    const auto contiguous = [](const std::optional<at::Tensor>& x) { return x ? x->contiguous() : at::Tensor(); };
    const auto gate = [&](const std::optional<at::Tensor>& x) {
      return x ? x->to(state.scalar_type()).contiguous() : at::Tensor();
    };
    const auto q = in.q.contiguous(), k = in.k.contiguous(), v = in.v.contiguous();
    const auto g = gate(in.g), beta = gate(in.beta), a = contiguous(in.a), b = contiguous(in.b);
    auto out = at::empty(in.v.sizes(), in.v.options());
    const auto kernels = kernels::cpu::rule_kernels<R, T>(kernels::cpu::chosen_instruction_set());
    constexpr int64_t kWorthAThread = 1 << 16; // elements of states
    const int64_t grain = std::max<int64_t>(1, kWorthAThread / std::max<int64_t>(1, key_dim * value_dim));
    at::parallel_for(0, batch * heads, grain, [&](int64_t first, int64_t last) {
      for (int64_t number = first; number < last; ++number) {
        const int64_t query_head = number / heads * (heads / groups) + number % heads / groups;
        const auto row = [](const at::Tensor& x, int64_t index, int64_t dim) {
          auto* first_element = static_cast<char*>(const_cast<void*>(x.const_data_ptr()));
          return kernels::cpu::Rows<T>{first_element + index * dim * x.element_size(),
                                       x.scalar_type() == at::kBFloat16};
        };
        kernels::cpu::StepTask<T> task{.key_dim = static_cast<int>(key_dim),
                                       .value_dim = static_cast<int>(value_dim),
                                       .scale = static_cast<T>(scale),
                                       .q = row(q, query_head, key_dim),
                                       .k = row(k, query_head, key_dim),
                                       .v = row(v, number, value_dim),
                                       .state = detail::data<T>(state) + number * key_dim * value_dim,
                                       .out = row(out, number, value_dim)};
        if constexpr (R::per_channel) {
          task.channel_g = row(g, number, key_dim);
        } else if constexpr (R::gated) {
          task.g = detail::const_data<T>(g)[number];
        }
        if constexpr (R::corrects) {
          task.beta = detail::const_data<T>(beta)[number];
        }
        if constexpr (R::generalised) {
          task.a = row(a, query_head, key_dim);
          task.b = row(b, query_head, key_dim);
        }
        kernels.step(task);
      }
    });
    return out;
  });
}

} // namespace hybridattn::ops
