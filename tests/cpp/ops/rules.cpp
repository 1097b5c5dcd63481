// Rules from C++ without any registration: chunked against token by token, value and every gradient, and the single
// step.
#include <ATen/ops/cat.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <hybridattn/ops/delta_rule.h>
#include <hybridattn/ops/dplr_delta_rule.h>
#include <hybridattn/ops/gated_delta_rule.h>
#include <hybridattn/ops/gla.h>
#include <hybridattn/ops/kda.h>
#include <hybridattn/ops/lightning.h>
#include <hybridattn/ops/linear_attention.h>

#include "catch.h"
#include "tolerances.h"

using namespace hybridattn::ops;

namespace {

template <class R>
RuleInputs random_inputs(int64_t batch, int64_t tokens) {
  const auto leaf = [](at::Tensor x) { return x.requires_grad_(true); };
  RuleInputs in{leaf(at::randn({batch, tokens, 2, 5}, at::kDouble)),
                leaf(at::randn({batch, tokens, 2, 5}, at::kDouble) * 0.4),
                leaf(at::randn({batch, tokens, 4, 3}, at::kDouble)),
                {},
                {}};
  if constexpr (R::gated) {
    in.g = leaf(
        -at::rand(R::per_channel ? std::vector<int64_t>{batch, tokens, 4, 5} : std::vector<int64_t>{batch, tokens, 4},
                  at::kDouble));
  }
  if constexpr (R::corrects) {
    in.beta = leaf(at::rand({batch, tokens, 4}, at::kDouble));
  }
  if constexpr (R::generalised) {
    in.a = leaf(at::randn({batch, tokens, 2, 5}, at::kDouble) * 0.4);
    in.b = leaf(at::randn({batch, tokens, 2, 5}, at::kDouble) * 0.4);
  }
  return in;
}

template <class Results>
std::vector<at::Tensor> with_gradients(const Results& results, const RuleInputs& in, const at::Tensor& state) {
  const auto& [out, final_state] = results;
  std::vector<at::Tensor> leaves = {in.q, in.k, in.v, state};
  for (const auto& gate : {in.g, in.beta, in.a, in.b}) {
    if (gate) {
      leaves.push_back(*gate);
    }
  }
  for (auto& leaf : leaves) {
    leaf.mutable_grad().reset();
  }
  (out.sin().sum() + final_state.square().sum()).backward();
  std::vector<at::Tensor> all = {out, final_state};
  for (const auto& leaf : leaves) {
    all.push_back(leaf.grad().clone());
  }
  return all;
}

} // namespace

TEMPLATE_TEST_CASE("the chunked form is the recurrence", "", LinearAttentionRule, LightningRule, DeltaRule,
                   GatedDeltaRule, GatedLinearAttentionRule, KimiDeltaRule, DplrDeltaRule) {
  const bool packed = GENERATE(false, true);
  const auto backend = GENERATE(Backend::native, Backend::aten);
  const int64_t tokens = GENERATE(1, 16, 75);
  const auto in = random_inputs<TestType>(packed ? 1 : 2, tokens);
  const auto borders = at::tensor({int64_t{0}, tokens / 3, tokens}, at::kLong);
  const auto state = at::randn({2, 4, 5, 3}, at::kDouble).requires_grad_(true);
  const int64_t state_interval = GENERATE(1, 3);
  RuleOptions options{.initial_state = state, .chunk_size = 16, .backend = backend, .state_interval = state_interval};
  if (packed) {
    options.cu_seqlens = borders;
  }
  const auto expected = with_gradients(naive_rule<TestType>(in, options), in, state);
  const auto actual = with_gradients(chunk_rule<TestType>(in, options), in, state);
  for (size_t i = 0; i < expected.size(); ++i) {
    INFO("tensor " << i);
    CHECK(tolerances::relative_error(actual[i], expected[i]) <= tolerances::gradient(at::kDouble));
  }
}

TEMPLATE_TEST_CASE("steps are the recurrence, in place", "", LinearAttentionRule, LightningRule, DeltaRule,
                   GatedDeltaRule, GatedLinearAttentionRule, KimiDeltaRule, DplrDeltaRule) {
  at::NoGradGuard no_grad;
  const auto backend = GENERATE(Backend::native, Backend::aten);
  const auto in = random_inputs<TestType>(2, 9);
  auto state = at::randn({2, 4, 5, 3}, at::kDouble);
  const auto [out, final_state] = naive_rule<TestType>(in, {.initial_state = state.clone()});
  std::vector<at::Tensor> outputs;
  for (int64_t t = 0; t < 9; ++t) {
    const auto at_token = [&](const at::Tensor& x) { return x.narrow(1, t, 1); };
    RuleInputs token{at_token(in.q), at_token(in.k), at_token(in.v), {}, {}};
    if (in.g) {
      token.g = at_token(*in.g);
    }
    if (in.beta) {
      token.beta = at_token(*in.beta);
    }
    if (in.a) {
      token.a = at_token(*in.a);
      token.b = at_token(*in.b);
    }
    outputs.push_back(step_rule<TestType>(token, state, {}, backend));
  }
  CHECK(tolerances::relative_error(at::cat(outputs, 1), out) <= tolerances::value(at::kDouble));
  CHECK(tolerances::relative_error(state, final_state) <= tolerances::value(at::kDouble));
}

TEST_CASE("errors name the op and the argument") {
  const auto in = random_inputs<GatedDeltaRule>(1, 4);
  CHECK_THROWS_WITH(chunk_gated_delta_rule(in.q, in.k.narrow(3, 0, 4), in.v, *in.g, *in.beta),
                    Catch::Contains("chunk_gated_delta_rule: k has head dimension 4, q has 5"));
  CHECK_THROWS_WITH(naive_rule<DeltaRule>(in), Catch::Contains("naive_delta_rule: g is not used by this rule"));
}
