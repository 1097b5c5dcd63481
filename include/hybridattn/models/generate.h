// Greedy generation.
#pragma once

#include <ATen/core/grad_mode.h>
#include <ATen/ops/argmax.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/ones_like.h>

#include <optional>

#include "hybridattn/models/decoder.h"

namespace hybridattn::models {

struct GenerateOptions {
  int64_t max_new_tokens = 32;
  std::optional<int64_t> eos_token_id;    ///< a row that has produced it goes on with it; generation ends when all have
  std::optional<at::Tensor> padding_mask; ///< [B, T] of the prompt, true = token; padding stands on the left
  bool use_cache = true;                  ///< false computes everything again for each token
};

/// The most likely continuation, token by token. @param ids [B, T]  @returns [B, T + new tokens]
inline at::Tensor generate_greedy(Decoder& decoder, at::Tensor ids, const GenerateOptions& options = {}) {
  at::NoGradGuard no_grad;
  HA_CHECK(ids.dim() == 2 && ids.size(1) > 0, "generate_greedy: ids must be [B, T] with T > 0, got ", ids.sizes());
  Cache cache(decoder->num_layers());
  nn::ForwardOptions forward{.padding_mask = options.padding_mask};
  at::Tensor finished;
  auto next = ids;
  for (int64_t count = 0; count < options.max_new_tokens; ++count) {
    const auto hidden =
        options.use_cache ? decoder->hidden_states(next, forward, &cache) : decoder->hidden_states(ids, forward);
    next = decoder->logits(hidden.narrow(1, hidden.size(1) - 1, 1)).argmax(-1);
    if (options.eos_token_id) {
      next = finished.defined() ? next.masked_fill(finished, *options.eos_token_id) : next;
      finished = next.eq(*options.eos_token_id);
    }
    ids = at::cat({ids, next}, 1);
    if (forward.padding_mask) {
      forward.padding_mask = at::cat({*forward.padding_mask, at::ones_like(next, forward.padding_mask->options())}, 1);
    }
    if (finished.defined() && finished.all().item<bool>()) {
      break;
    }
  }
  return ids;
}

} // namespace hybridattn::models
