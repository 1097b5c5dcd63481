// Mixers as C++ users meet them: names, casts, states, errors. Values are compared with Python's in tests/parity.
#include <ATen/ops/cat.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <hybridattn/nn/recompute.h>
#include <hybridattn/nn/registry.h>

#include "catch.h"
#include "tolerances.h"

using namespace hybridattn;
using namespace hybridattn::nn;

namespace {

GatedDeltaNetOptions gated_options() {
  GatedDeltaNetOptions options;
  options.hidden_size = 12;
  options.num_heads = 3;
  options.rotary = "drop";
  return options;
}

} // namespace

TEST_CASE("options are resolved and survive JSON") {
  auto options = gated_options();
  options.short_convolution = 4;
  const GatedDeltaNet mixer(options);
  CHECK(mixer->options.head_dim == 4);
  CHECK(mixer->options.value_head_dim == 4);
  CHECK(mixer->options.num_kv_heads == 3);
  const auto again = build_mixer(mixer->kind(), mixer->options_json());
  CHECK((again->options_json() == mixer->options_json()));
  CHECK(again->named_parameters().size() == mixer->named_parameters().size());
  CHECK_THROWS_WITH(build_mixer("mamba", {}), Catch::Contains("unknown mixer 'mamba' (known: gated_deltanet"));
  CHECK_THROWS_WITH(build_mixer("sliding_window", mixer->options_json()), Catch::Contains("unknown field"));
}

TEST_CASE("gates stay in fp32 when a model is cast, and keep their values") {
  GatedDeltaNet mixer(gated_options());
  const auto rate = mixer->A_log.detach().clone();
  mixer->to(at::kBFloat16);
  CHECK(mixer->q_proj->weight.scalar_type() == at::kBFloat16);
  CHECK(mixer->A_log.scalar_type() == at::kFloat);
  CHECK(mixer->A_log.equal(rate));
  CHECK(mixer->forward(at::randn({1, 5, 12}, at::kBFloat16)).scalar_type() == at::kBFloat16);
  mixer->to(at::kDouble);
  CHECK(mixer->A_log.scalar_type() == at::kDouble);
}

TEST_CASE("a state goes on where it stopped, whatever the pieces") {
  at::NoGradGuard no_grad;
  GatedDeltaNet mixer(gated_options());
  mixer->to(at::kDouble);
  const auto hidden = at::randn({2, 70, 12}, at::kDouble);
  const auto whole = mixer->forward(hidden);
  for (const int64_t piece : {1, 7, 64}) {
    MixerState state;
    std::vector<at::Tensor> outputs;
    for (int64_t begin = 0; begin < 70; begin += piece) {
      outputs.push_back(mixer->forward(hidden.narrow(1, begin, std::min(piece, 70 - begin)), {}, &state));
    }
    CHECK(state.seen == 70);
    CHECK(tolerances::relative_error(at::cat(outputs, 1), whole) <= tolerances::value(at::kDouble));
  }
}

TEST_CASE("errors name the mixer and what it got") {
  GatedDeltaNet mixer(gated_options());
  CHECK_THROWS_WITH(mixer->forward(at::randn({1, 5, 13})),
                    Catch::Contains("gated_deltanet: hidden_states must be [B, T, 12]"));
  MixerState state;
  const MixerContext packed{.cu_seqlens = at::ones({2}, at::kLong)};
  CHECK_THROWS_WITH(mixer->forward(at::randn({1, 5, 12}), packed, &state), Catch::Contains("exclude each other"));
  const MixerContext padded{.padding_mask = at::ones({1, 4}, at::kBool)};
  CHECK_THROWS_WITH(mixer->forward(at::randn({1, 5, 12}), padded), Catch::Contains("padding_mask must be [1, 5]"));
  auto options = gated_options();
  options.rotary = "keep";
  CHECK_THROWS_WITH(GatedDeltaNet(options)->forward(at::randn({1, 5, 12})),
                    Catch::Contains("rotary (cos, sin) is missing"));
  options.rotary = "sometimes";
  CHECK_THROWS_WITH(GatedDeltaNet(options), Catch::Contains("rotary must be keep or drop"));
}

TEST_CASE("token buffers grow without losing the past") {
  TokenBuffer buffer;
  std::vector<at::Tensor> parts;
  for (int64_t tokens : {3, 1, 1, 9, 1}) {
    parts.push_back(at::randn({2, tokens, 4}));
    buffer.append(parts.back());
    CHECK(buffer.all().equal(at::cat(parts, 1)));
  }
}

TEST_CASE("recomputed blocks have the gradients of kept ones") {
  torch::nn::Linear first(6, 6), second(6, 6);
  const auto x = at::randn({3, 6});
  const auto gradients = [&](bool again) {
    auto input = x.clone().requires_grad_(true);
    first->zero_grad();
    second->zero_grad();
    // The first block defines what is shared, the second one uses it, and so does its caller.
    const Block block = [&](const at::Tensor& y, at::Tensor& shared) {
      shared = shared.defined() ? shared : second->forward(y);
      return first->forward(y).tanh() * shared;
    };
    at::Tensor shared, out = input;
    for (int i = 0; i < 2; ++i) {
      out = again ? recomputed(block, out, shared) : block(out, shared);
    }
    (out + shared).square().sum().backward();
    return std::vector<at::Tensor>{input.grad().clone(), first->weight.grad().clone(), second->bias.grad().clone()};
  };
  const auto kept = gradients(false), again = gradients(true);
  for (size_t i = 0; i < kept.size(); ++i) {
    CHECK(kept[i].equal(again[i]));
  }
}
