// Weight transfer: grouped heads are repeated as blocks, nothing is lost silently.
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <hybridattn/transfer/attention.h>

#include "catch.h"

using namespace hybridattn::transfer;

namespace {

std::map<std::string, at::Tensor> teacher_weights() {
  const auto rows = [](int64_t n) { return at::arange(n * 5, at::kFloat).view({n, 5}); };
  return {
      {"q_proj.weight", rows(12)}, {"k_proj.weight", rows(4)}, {"v_proj.weight", rows(4)}, {"o_proj.weight", rows(5)}};
}

} // namespace

TEST_CASE("query head i reads KV head i / groups") {
  const auto teacher = teacher_weights();
  auto mixer = teacher;
  mixer["k_proj.weight"] = mixer["v_proj.weight"] = at::empty({12, 5});
  mixer["A_log"] = at::empty({6});
  const auto result = transfer_attention(teacher, {.num_heads = 6, .num_kv_heads = 2, .head_dim = 2}, mixer);
  const auto heads = teacher.at("k_proj.weight").view({2, 2, 5});
  const auto expected = at::cat({heads[0], heads[0], heads[0], heads[1], heads[1], heads[1]});
  CHECK(result.weights.at("k_proj.weight").equal(expected));
  CHECK(result.weights.at("q_proj.weight").equal(teacher.at("q_proj.weight")));
  CHECK(result.weights.count("A_log") == 0);
  CHECK(result.entries.size() == 5);
}

TEST_CASE("what does not fit is named") {
  const AttentionSpec spec{.num_heads = 6, .num_kv_heads = 2, .head_dim = 2};
  auto teacher = teacher_weights();
  const auto mixer = teacher;
  teacher["q_proj.bias"] = at::empty({12});
  CHECK_THROWS_WITH(transfer_attention(teacher, spec, mixer), Catch::Contains("the mixer has no q_proj.bias"));
  teacher.erase("q_proj.bias");
  teacher["rotary"] = at::empty({1});
  CHECK_THROWS_WITH(transfer_attention(teacher, spec, mixer), Catch::Contains("unknown tensor rotary"));
  teacher.erase("rotary");
  teacher.erase("o_proj.weight");
  CHECK_THROWS_WITH(transfer_attention(teacher, spec, mixer), Catch::Contains("no o_proj.weight"));
  CHECK_THROWS_WITH(transfer_attention(mixer, {.num_heads = 6, .num_kv_heads = 3, .head_dim = 2}, mixer),
                    Catch::Contains("k_proj.weight has 4 rows, expected 6"));
}
