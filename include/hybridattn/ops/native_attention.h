// Softmax attention by this library's CPU kernels, and its autograd. Letters: B batch, Tq queries, Tk keys, H query
// heads, HKV key/value heads, K and V head dims.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <hybridattn/core/fresh_tensor.h>
#include <hybridattn/kernels/cpu/sets.h>
#include <hybridattn/ops/attention_options.h>
#include <hybridattn/ops/documents.h>
#include <hybridattn/ops/rule.h>
#include <hybridattn/ops/tensor_rows.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <tuple>
#include <utility>
#include <vector>

namespace hybridattn::ops {

struct AttentionInputs {
  at::Tensor q, k, v; ///< [B, Tq, H, K], [B, Tk, HKV, K], [B, Tk, HKV, V] of one dtype; the queries come last
  AttentionOptions options;
};

/// What backward needs of forward: out [B, Tq, H, V], and of each query the log of the sum over its keys of exp(scale q
/// k), [B, H, Tq] in fp32 (fp64 for fp64 inputs).
using AttentionResults = std::tuple<at::Tensor, at::Tensor>;

/// Gradients of q, k and v.
using AttentionGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

namespace detail {

/// Sequences and heads as the kernels see them: heads of one query each that share keys are queries of one head.
template <class T>
class NativeAttention {
public:
  explicit NativeAttention(const AttentionInputs& inputs) : in_(inputs), folded_(folds_heads(in_.q, in_.k)) {
    const auto& options = in_.options;
    if (options.padding_mask) {
      const auto mask = options.padding_mask->to(at::kBool).contiguous();
      tokens_ = mask.all().template item<bool>() ? at::Tensor() : mask;
    }
    spans_ = document_spans("softmax_attention", in_.q.size(0), in_.k.size(1), options.cu_seqlens);
    kernels_ = kernels::cpu::attention_kernels<T>(kernels::cpu::chosen_instruction_set(),
                                                  in_.q.scalar_type() == at::kBFloat16);
  }

  const kernels::cpu::AttentionKernels<T>& kernels() const { return kernels_; }
  int64_t heads() const { return folded_ ? in_.k.size(2) : in_.q.size(2); }
  /// Query heads, or queries of one head, that have the same keys and values.
  int64_t group() const { return in_.q.size(2) / in_.k.size(2); }

  /// Queries of one head of one sequence, in blocks of kAttentionBlock.
  struct Work {
    int64_t sequence, head, first, queries;
  };

  /// All blocks of queries, those of a sequence's head together; or all queries of such a head at once.
  std::vector<Work> work(bool in_blocks) const {
    std::vector<Work> all;
    for (int64_t sequence = 0; sequence < static_cast<int64_t>(spans_.size()); ++sequence) {
      const int64_t queries = folded_ ? group() : queries_of(sequence);
      const int64_t block = in_blocks ? kernels::cpu::kAttentionBlock : std::max<int64_t>(1, queries);
      const int64_t blocks = (queries + block - 1) / block;
      for (int64_t head = 0; head < heads(); ++head) {
        for (int64_t number = 0; number < blocks; ++number) {
          // Late blocks see more keys: they take turns with early ones, so that equal parts are equal work.
          const int64_t first = block * (number % 2 == 0 ? number / 2 : blocks - 1 - number / 2);
          all.push_back({sequence, head, first, std::min(block, queries - first)});
        }
      }
    }
    return all;
  }

  int64_t keys_of(int64_t sequence) const { return spans_[sequence].second - spans_[sequence].first; }
  /// In the flattened [B * Tk].
  int64_t first_key(int64_t sequence) const { return spans_[sequence].first; }

  /// The queries and keys of a kernel's task.
  void set(const Work& work, kernels::cpu::AttentionInputs<T>& task) const {
    const auto& options = in_.options;
    const auto first_token = spans_[work.sequence].first;
    const int64_t key_head = folded_ ? work.head : work.head / group(), keys = keys_of(work.sequence);
    task.queries = work.queries;
    task.keys = keys;
    task.key_dim = static_cast<int>(in_.k.size(3));
    task.value_dim = static_cast<int>(in_.v.size(3));
    task.scale = static_cast<T>(options.scale_of(in_.q));
    task.causal = options.causal;
    task.first_position = keys - queries_of(work.sequence) + (folded_ ? 0 : work.first);
    task.position_step = folded_ ? 0 : 1;
    task.window = options.window < keys ? options.window : 0;
    task.sink_end = options.sinks;
    if (tokens_.defined()) {
      task.tokens = tokens_.template const_data_ptr<bool>() + first_token;
      task.sink_end += std::find(task.tokens, task.tokens + keys, true) - task.tokens;
    }
    task.sink_end = std::min(task.sink_end, keys);
    task.q = query_rows(in_.q, work);
    task.k = head_rows<T>(in_.k, first_token, key_head);
    task.v = head_rows<T>(in_.v, first_token, key_head);
  }

  /// The rows that belong to `work` of x [B, Tq, H, K or V].
  kernels::cpu::Rows<T> query_rows(const at::Tensor& x, const Work& work) const {
    if (folded_) {
      return tensor_rows<T>(x, work.sequence * x.stride(0) + (work.head * group() + work.first) * x.stride(2),
                            x.stride(2), x.stride(3));
    }
    return head_rows<T>(x, first_query(work), work.head);
  }
  /// The entries that belong to `work` of x [B, H, Tq], contiguous.
  template <class E>
  E* query_entries(E* x, const Work& work) const {
    const int64_t length = in_.q.size(1), query = first_query(work);
    return folded_ ? x + work.sequence * in_.q.size(2) + work.head * group() + work.first
                   : x + (query / length * in_.q.size(2) + work.head) * length + query % length;
  }

private:
  int64_t queries_of(int64_t sequence) const { return in_.options.cu_seqlens ? keys_of(sequence) : in_.q.size(1); }
  /// In the flattened [B * Tq].
  int64_t first_query(const Work& work) const {
    const int64_t start = in_.options.cu_seqlens ? spans_[work.sequence].first : work.sequence * in_.q.size(1);
    return start + work.first;
  }

  const AttentionInputs& in_;
  const bool folded_;
  at::Tensor tokens_;                              // [B, Tk], undefined if there is no padding
  std::vector<std::pair<int64_t, int64_t>> spans_; // keys of each sequence in the flattened [B * Tk]
  kernels::cpu::AttentionKernels<T> kernels_;
};

template <class T>
AttentionResults native_attention(const AttentionInputs& in) {
  const NativeAttention<T> attention(in);
  const int64_t batch = in.q.size(0), queries = in.q.size(1), heads = in.q.size(2);
  auto out = fresh_tensor({batch, queries, heads, in.v.size(3)}, in.q.options());
  auto log_sum = at::empty({batch, heads, queries}, in.q.options().dtype(state_dtype(in.q)));
  const auto work = attention.work(true);
  at::parallel_for(0, static_cast<int64_t>(work.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t number = begin; number < end; ++number) {
      kernels::cpu::AttentionTask<T> task;
      attention.set(work[number], task);
      task.out = attention.query_rows(out, work[number]);
      task.log_sum = attention.query_entries(log_sum.template mutable_data_ptr<T>(), work[number]);
      attention.kernels().forward(task);
    }
  });
  return {out, log_sum};
}

/// What heads with the same keys and values add to the gradients of those: of each its own sums, so that these do not
/// depend on who computes when.
template <class T>
class SharedGradient {
public:
  /// @param like [B, Tk, HKV, D]
  SharedGradient(const at::Tensor& like, int64_t heads)
      : like_(like), stride_((like.size(3) + kernels::cpu::kAttentionColumns - 1) / kernels::cpu::kAttentionColumns *
                             kernels::cpu::kAttentionColumns),
        sums_(at::zeros({like.size(2), heads / like.size(2), like.size(0), like.size(1), stride_},
                        like.options().dtype(c10::CppTypeToScalarType<T>::value))) {}

  int64_t stride() const { return stride_; }
  /// Rows of a head from a key of the flattened [B * Tk] on.
  T* rows(int64_t head, int64_t key) const {
    return sums_.template mutable_data_ptr<T>() + (head * like_.size(0) * like_.size(1) + key) * stride_;
  }
  at::Tensor total() const {
    const auto one = sums_.size(1) == 1 ? sums_.squeeze(1) : sums_.sum(1);
    return one.narrow(3, 0, like_.size(3)).permute({1, 2, 0, 3}).to(like_.scalar_type()).contiguous();
  }

private:
  at::Tensor like_;
  int64_t stride_;
  at::Tensor sums_; // [HKV, heads that share, B, Tk, stride]
};

template <class T>
AttentionGradients native_attention_backward(const AttentionInputs& in, const AttentionResults& results,
                                             const at::Tensor& given_grad_out) {
  using Work = typename NativeAttention<T>::Work;
  const NativeAttention<T> attention(in);
  const auto& [out, log_sum] = results;
  const auto grad_out = given_grad_out.to(out.scalar_type());
  auto grad_q = fresh_tensor(in.q.sizes(), in.q.options());
  const SharedGradient<T> grad_k(in.k, attention.heads()), grad_v(in.v, attention.heads());
  // A task is a head of a sequence. Where there are too few of them for all threads, its gradients of queries are
  // formed by blocks of queries, those of keys by blocks of keys: the scores twice, every sum in the same order.
  const auto whole = attention.work(false);
  const bool splits = static_cast<int64_t>(whole.size()) < at::get_num_threads();
  struct Task {
    Work work;
    int64_t first_key, end_key;
    bool for_queries, for_keys;
  };
  std::vector<Task> tasks;
  for (const Work& work : splits ? attention.work(true) : whole) {
    tasks.push_back({work, 0, attention.keys_of(work.sequence), true, !splits});
  }
  for (size_t number = 0; splits && number < whole.size(); ++number) {
    const int64_t keys = attention.keys_of(whole[number].sequence);
    for (int64_t key = 0; key < keys; key += kernels::cpu::kAttentionBlock) {
      tasks.push_back({whole[number], key, std::min<int64_t>(keys, key + kernels::cpu::kAttentionBlock), false, true});
    }
  }
  at::parallel_for(0, static_cast<int64_t>(tasks.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t number = begin; number < end; ++number) {
      const Task& part = tasks[number];
      kernels::cpu::AttentionBackwardTask<T> task;
      attention.set(part.work, task);
      task.out = attention.query_rows(out, part.work);
      task.grad_out = attention.query_rows(grad_out, part.work);
      task.log_sum = attention.query_entries(log_sum.template const_data_ptr<T>(), part.work);
      task.first_key = part.first_key;
      task.end_key = part.end_key;
      if (part.for_queries) {
        task.grad_q = attention.query_rows(grad_q, part.work);
      }
      if (part.for_keys) {
        const int64_t first = attention.first_key(part.work.sequence);
        task.grad_k = grad_k.rows(part.work.head, first);
        task.grad_v = grad_v.rows(part.work.head, first);
        task.grad_k_stride = grad_k.stride();
        task.grad_v_stride = grad_v.stride();
      }
      attention.kernels().backward(task);
    }
  });
  return {grad_q, grad_k.total(), grad_v.total()};
}

} // namespace detail

/// Below autograd.
inline AttentionResults native_attention(const AttentionInputs& in) {
  return in.q.scalar_type() == at::kDouble ? detail::native_attention<double>(in) : detail::native_attention<float>(in);
}
inline AttentionGradients native_attention_backward(const AttentionInputs& in, const AttentionResults& results,
                                                    const at::Tensor& grad_out) {
  return in.q.scalar_type() == at::kDouble ? detail::native_attention_backward<double>(in, results, grad_out)
                                           : detail::native_attention_backward<float>(in, results, grad_out);
}

/// Calls the kernels themselves: what C++ users get without any registration.
struct DirectAttentionCalls {
  static AttentionResults forward(const AttentionInputs& in) { return native_attention(in); }
  static AttentionGradients backward(const AttentionInputs& in, const AttentionResults& results,
                                     const at::Tensor& grad_out) {
    return native_attention_backward(in, results, grad_out);
  }
};

/// Autograd of the native op. `Calls` says how forward and backward are reached: directly, or through the dispatcher.
/// The second output is not differentiable.
template <class Calls>
struct AttentionFunction : torch::autograd::Function<AttentionFunction<Calls>> {
  using List = torch::autograd::variable_list;
  using Optional = std::optional<at::Tensor>;

  static List forward(torch::autograd::AutogradContext* ctx, const at::Tensor& q, const at::Tensor& k,
                      const at::Tensor& v, std::optional<double> scale, bool causal, int64_t window, int64_t sinks,
                      const Optional& cu_seqlens, const Optional& padding_mask) {
    const auto [out, log_sum] = Calls::forward({q, k, v, {scale, causal, window, sinks, cu_seqlens, padding_mask}});
    ctx->save_for_backward(
        {q, k, v, out, log_sum, cu_seqlens.value_or(at::Tensor()), padding_mask.value_or(at::Tensor())});
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["causal"] = causal;
    ctx->saved_data["window"] = window;
    ctx->saved_data["sinks"] = sinks;
    ctx->mark_non_differentiable({log_sum});
    return {out, log_sum};
  }

  static List backward(torch::autograd::AutogradContext* ctx, List grads) {
    const auto saved = ctx->get_saved_variables();
    const auto optional = [](const at::Tensor& x) { return x.defined() ? Optional(x) : std::nullopt; };
    auto& data = ctx->saved_data;
    const AttentionOptions options{data["scale"].toOptional<double>(),
                                   data["causal"].toBool(),
                                   data["window"].toInt(),
                                   data["sinks"].toInt(),
                                   optional(saved[5]),
                                   optional(saved[6])};
    auto [q, k, v] = Calls::backward({saved[0], saved[1], saved[2], options}, {saved[3], saved[4]}, grads[0]);
    const at::Tensor none;
    return {q, k, v, none, none, none, none, none, none};
  }
};

} // namespace hybridattn::ops
