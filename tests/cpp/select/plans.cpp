// Plans keep exactly K distinct layers of the model; costs agree with counts by hand.
#include "hybridattn/select/plans.h"
#include "catch.h"
#include "hybridattn/select/cost.h"

#include <functional>
#include <set>

using namespace hybridattn::select;

namespace {

std::string refusal(const std::function<void()>& action) {
  try {
    action();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "accepted";
}

} // namespace

TEST_CASE("plans/each keeps K distinct sorted layers") {
  for (int64_t layers : {1, 8, 30}) {
    for (int64_t keep = 0; keep <= layers; ++keep) {
      for (const Plan& plan :
           {uniform_plan(layers, keep), uniform_plan(layers, keep, 3), uniform_plan(layers, keep, -1),
            random_plan(layers, keep, 7), first_plan(layers, keep), last_plan(layers, keep)}) {
        CHECK(std::set<int64_t>(plan.begin(), plan.end()).size() == static_cast<size_t>(keep));
        CHECK(explicit_plan(layers, plan) == plan);
      }
    }
  }
}

TEST_CASE("plans/uniform, first, last and explicit") {
  CHECK(uniform_plan(8, 2) == Plan{0, 4});
  CHECK(uniform_plan(8, 2, 3) == Plan{3, 7});
  CHECK(uniform_plan(8, 2, 5) == Plan{1, 5});
  CHECK(uniform_plan(8, 3) == Plan{0, 2, 5});
  CHECK(uniform_offsets(8, 2) == 4);
  CHECK(uniform_offsets(8, 3) == 8);
  CHECK(first_plan(8, 3) == Plan{0, 1, 2});
  CHECK(last_plan(8, 3) == Plan{5, 6, 7});
  CHECK(explicit_plan(8, {5, 1, 3}) == Plan{1, 3, 5});
}

TEST_CASE("plans/random is fixed by its seed and fair") {
  CHECK(random_plan(30, 8, 1) == random_plan(30, 8, 1));
  CHECK(random_plan(30, 8, 1) != random_plan(30, 8, 2));
  std::vector<int> chosen(10, 0);
  for (uint64_t seed = 0; seed < 2000; ++seed)
    for (int64_t layer : random_plan(10, 3, seed))
      ++chosen[static_cast<size_t>(layer)];
  for (int count : chosen)
    CHECK(std::abs(count - 600) < 100); // five standard deviations
}

TEST_CASE("plans/a fraction rounds halves up, as the published budgets do") {
  CHECK(keep_of_fraction(36, 0.125) == 5);
  CHECK(keep_of_fraction(28, 0.125) == 4);
  CHECK(keep_of_fraction(28, 0.25) == 7);
  CHECK(keep_of_fraction(36, 0.25) == 9);
  CHECK(keep_of_fraction(8, 1.0) == 8);
}

TEST_CASE("plans/K and layers out of range are named") {
  CHECK(refusal([] { uniform_plan(8, 9); }) == "plan: keep is 9, expected 0 to 8 (the model's layers)");
  CHECK(refusal([] { random_plan(8, -1, 0); }) == "plan: keep is -1, expected 0 to 8 (the model's layers)");
  CHECK(refusal([] { first_plan(0, 0); }) == "plan: the model has 0 layers, expected at least 1");
  CHECK(refusal([] { explicit_plan(8, {1, 8}); }) == "plan: layer 8 does not exist, the model has 0 to 7");
  CHECK(refusal([] { explicit_plan(8, {-1}); }) == "plan: layer -1 does not exist, the model has 0 to 7");
  CHECK(refusal([] { explicit_plan(8, {2, 1, 2}); }) == "plan: layer 2 is listed twice");
  CHECK(refusal([] { keep_of_fraction(8, 1.5); }) == "plan: fraction is 1.5, expected 0 to 1");
}

TEST_CASE("cost/agrees with a count by hand") {
  const ModelShape shape{2, 8, 16, 2, 1, 4, 32};
  const TokenFlops part = token_flops(shape, 5);
  CHECK(part.softmax_mixer == 2 * 8 * (8 + 4 + 4 + 8) + 2 * 8 * 2 * 3); // q k v o; scores and mixing over 3 tokens
  CHECK(part.linear_mixer == 2 * 8 * (8 * 5 + 2 + 2) + 6 * 8 * 4);
  CHECK(part.mlp == 3 * 2 * 8 * 16);
  CHECK(part.head == 2 * 8 * 32);
  CHECK(forward_flops(shape, 1, 5) == part.softmax_mixer + part.linear_mixer + 2 * part.mlp + part.head);
  CHECK(distillation_flops(shape, 1, 5) == 3 * forward_flops(shape, 1, 5) + forward_flops(shape, 2, 5));
  CHECK(refusal([&] { forward_flops(shape, 3, 5); }) == "forward_flops: 3 softmax layers, expected 0 to 2");
  CHECK(refusal([&] { token_flops(shape, 0); }).find("seq_len 0") != std::string::npos);
}

TEST_CASE("cost/softmax grows with context, linear attention does not") {
  const ModelShape shape{30, 576, 1536, 9, 3, 64, 49152};
  CHECK(token_flops(shape, 8192).softmax_mixer > 4 * token_flops(shape, 512).softmax_mixer);
  CHECK(token_flops(shape, 8192).linear_mixer == token_flops(shape, 512).linear_mixer);
}
