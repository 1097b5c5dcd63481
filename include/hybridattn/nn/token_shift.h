// TokenShift: projections that read a mixture of a token and the one before it.
// Letters: B batch, T tokens, D hidden size.
#pragma once

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/isin.h>
#include <ATen/ops/zeros.h>
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "hybridattn/nn/low_rank.h"
#include "hybridattn/nn/mixer.h"

namespace hybridattn::nn {

/// What each projection of a mixer reads, by the projection's name: the hidden states unless it has its own mixture.
struct ProjectionInputs {
  at::Tensor hidden_states; ///< [B, T, D]
  std::map<std::string, at::Tensor> shifted;

  const at::Tensor& operator[](const std::string& projection) const {
    const auto found = shifted.find(projection);
    return found == shifted.end() ? hidden_states : found->second;
  }
};

/// [B, T, D] at each position the token before it in its document: zero before the first one and for padding.
/// @param padded      [B, T, 1], true where a position is padding
/// @param cu_seqlens  [N + 1], borders of documents over the flattened tokens, row ends included
/// @param state       has the last token of an earlier call and takes that of this one
inline at::Tensor previous_tokens(at::Tensor hidden_states, const std::optional<at::Tensor>& padded,
                                  const std::optional<at::Tensor>& cu_seqlens, MixerState* state) {
  if (padded) {
    hidden_states = hidden_states.masked_fill(*padded, 0);
  }
  const int64_t batch = hidden_states.size(0), tokens = hidden_states.size(1);
  const auto before = state != nullptr && state->previous.defined()
                          ? state->previous.to(hidden_states.scalar_type())
                          : at::zeros({batch, 1, hidden_states.size(2)}, hidden_states.options());
  auto previous = at::cat({before, hidden_states.narrow(1, 0, tokens - 1)}, 1);
  if (state != nullptr) {
    state->previous = hidden_states.narrow(1, tokens - 1, 1).detach().clone();
  }
  if (cu_seqlens) {
    const auto starts = at::isin(at::arange(batch * tokens, cu_seqlens->options()), *cu_seqlens);
    previous = previous.masked_fill(starts.view({batch, tokens, 1}), 0);
  }
  return previous;
}

/// x + (previous x - x) * m for each projection, m per channel; m starts at 0, which shifts nothing.
/// "lerp": m = mix (RWKV-7, arXiv 2503.14456). "ddlerp": m = mix + lora(x + (previous x - x) * base), a mixture that
/// depends on the data (RWKV-6, arXiv 2404.05892).
class TokenShiftImpl : public torch::nn::Module {
public:
  TokenShiftImpl(const std::string& kind, int64_t hidden_size, int64_t rank, const std::vector<std::string>& names) {
    auto mixes = register_module("mix", std::make_shared<torch::nn::Module>());
    for (const auto& name : names) {
      mix[name] = mixes->register_parameter(name, at::zeros({hidden_size}));
    }
    if (kind == "ddlerp") {
      base = register_parameter("base", at::zeros({hidden_size}));
      auto loras = register_module("lora", std::make_shared<torch::nn::Module>());
      for (const auto& name : names) {
        lora.emplace(name,
                     loras->register_module(name, low_rank_from_zero(hidden_size, rank, hidden_size, Middle::tanh)));
      }
    }
  }

  /// What each projection reads, given [B, T, D] and the tokens before them.
  ProjectionInputs forward(const at::Tensor& hidden_states, const at::Tensor& previous) {
    const auto back = previous - hidden_states;
    const auto middle = base.defined() ? hidden_states + back * base : hidden_states;
    ProjectionInputs inputs{hidden_states, {}};
    for (auto& [name, fixed] : mix) {
      const auto share = base.defined() ? fixed + lora.at(name)(middle) : fixed;
      inputs.shifted[name] = (hidden_states + back * share).to(hidden_states.scalar_type());
    }
    return inputs;
  }

  std::map<std::string, at::Tensor> mix; ///< [D] by projection
  at::Tensor base;                       ///< [D]; undefined without ddlerp
  std::map<std::string, LowRank> lora;   ///< by projection; empty without ddlerp
};
TORCH_MODULE(TokenShift);

} // namespace hybridattn::nn
