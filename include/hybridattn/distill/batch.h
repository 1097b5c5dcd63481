// Batch: B packed sequences of T tokens and where their documents begin; and sources of batches.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/nonzero.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/randperm.h>
#include <ATen/TensorOperators.h>

#include <concepts>
#include <optional>
#include <utility>

#include "hybridattn/core/check.h"
#include "hybridattn/nn/forward_options.h"

namespace hybridattn::distill {

/// Packed sequences. Attention and recurrent state do not cross a document's border.
struct Batch {
  at::Tensor input_ids;                   ///< [B, T] int64
  std::optional<at::Tensor> position_ids; ///< [B, T] int64, 0 at each document's first token; none = a document per row
  std::optional<at::Tensor> cu_seqlens; ///< [N + 1] int64 borders over the flattened B * T, row ends included; or none
  std::optional<at::Tensor> loss_mask;  ///< [B, T] bool, true where a token counts; none = all count

  int64_t num_sequences() const { return input_ids.size(0); }
  int64_t num_tokens() const { return input_ids.numel(); }

  /// [B, T] fp32: 1 where a token counts in the loss, 0 elsewhere.
  at::Tensor counted() const {
    return loss_mask ? loss_mask->to(at::kFloat) : at::ones_like(input_ids, input_ids.options().dtype(at::kFloat));
  }

  nn::ForwardOptions forward_options() const { return {.position_ids = position_ids, .cu_seqlens = cu_seqlens}; }

  /// Rows [begin, begin + count) as a batch of their own.
  Batch rows(int64_t begin, int64_t count) const {
    const auto part = [&](const at::Tensor& x) { return x.narrow(0, begin, count); };
    Batch batch{.input_ids = part(input_ids)};
    if (position_ids) {
      const auto positions = part(*position_ids);
      const auto starts = positions.reshape({-1}).eq(0).nonzero().reshape({-1});
      if (starts.numel() > count) {
        batch.position_ids = positions;
        batch.cu_seqlens = at::cat({starts, at::full({1}, positions.numel(), starts.options())});
      }
    }
    if (loss_mask) {
      batch.loss_mask = part(*loss_mask);
    }
    return batch;
  }
};

/// Gives the batch of an optimiser step, which depends on nothing but the step: then a stage resumes anywhere.
template <class S>
concept BatchSource = requires(S& source, int64_t step) {
  { source.batch(step) } -> std::convertible_to<Batch>;
};

/// Batches of rows of one tensor, each epoch in a new order that only the seed decides.
class TokenBatches {
public:
  /// @param sequences [N, T] int64, a document per row  @throws c10::ValueError when it has fewer rows than a batch
  TokenBatches(at::Tensor sequences, int64_t batch_size, uint64_t seed = 0)
      : sequences_(std::move(sequences)), batch_size_(batch_size), seed_(seed) {
    HA_CHECK(sequences_.dim() == 2 && sequences_.scalar_type() == at::kLong,
             "TokenBatches: sequences must be int64 [N, T], ", "got ", sequences_.scalar_type(), " ",
             sequences_.sizes());
    HA_CHECK(batch_size_ > 0 && sequences_.size(0) >= batch_size_, "TokenBatches: ", sequences_.size(0),
             " sequences are fewer than a batch of ", batch_size_);
  }

  Batch batch(int64_t step) const {
    const int64_t per_epoch = sequences_.size(0) / batch_size_, epoch = step / per_epoch;
    if (epoch != epoch_) {
      auto generator = at::detail::createCPUGenerator(seed_ * 0x9E3779B97F4A7C15ULL + static_cast<uint64_t>(epoch));
      order_ = at::randperm(sequences_.size(0), generator, at::TensorOptions().dtype(at::kLong));
      epoch_ = epoch;
    }
    const auto rows = order_.narrow(0, (step % per_epoch) * batch_size_, batch_size_).to(sequences_.device());
    return {.input_ids = sequences_.index_select(0, rows)};
  }

private:
  at::Tensor sequences_;
  int64_t batch_size_;
  uint64_t seed_;
  mutable int64_t epoch_ = -1;
  mutable at::Tensor order_;
};

} // namespace hybridattn::distill
