// The decoder's structure: exchange of mixers, tied embeddings, gradient checkpointing, folders.
// Logits are compared with Transformers' in tests/parity.
#include "models/small_decoder.h"

#include <ATen/ops/randint.h>
#include <hybridattn/models/folder.h>
#include <hybridattn/models/generate.h>
#include <hybridattn/transfer/decoder.h>

#include "catch.h"
#include "tolerances.h"

using namespace hybridattn;

namespace {

at::Tensor some_ids() {
  return at::randint(31, {2, 12}, at::kLong);
}

} // namespace

TEST_CASE("mixers are exchanged and the config follows") {
  auto teacher = small_decoder();
  const auto [student, plan] = transfer::convert(teacher, "gated_deltanet");
  CHECK(plan.size() == 3);
  auto hybrid = transfer::keep_softmax(student, teacher, {0, 1, 2});
  const auto ids = some_ids();
  CHECK(hybrid->hidden_states(ids).equal(teacher->hidden_states(ids)));
  hybrid->replace_mixer(1, student->shared_mixer(1));
  CHECK((hybrid->config.linear == std::vector<bool>{false, true, false}));
  CHECK_FALSE(hybrid->hidden_states(ids).equal(teacher->hidden_states(ids)));
  hybrid->replace_mixer(1, teacher->shared_mixer(1));
  CHECK_FALSE(hybrid->config.is_hybrid());
  CHECK(hybrid->hidden_states(ids).equal(teacher->hidden_states(ids)));
  CHECK_THROWS_WITH(hybrid->mixer(3), Catch::Contains("layer 3 does not exist"));
  hybrid->replace_mixer(0, student->shared_mixer(0));
  const auto other = transfer::convert(teacher, "lightning").student;
  CHECK_THROWS_WITH(hybrid->replace_mixer(1, other->shared_mixer(1)),
                    Catch::Contains("one kind beside its own attention"));
  CHECK_THROWS_WITH(transfer::convert(student), Catch::Contains("a hybrid already"));
  CHECK_THROWS_WITH(transfer::keep_softmax(hybrid, teacher, {0}), Catch::Contains("no mixer in layer 1"));
}

TEST_CASE("untied embeddings start equal and tie again to their mean") {
  auto decoder = small_decoder();
  const auto before = decoder->head_weight().detach().clone();
  CHECK(decoder->untie_embeddings());
  CHECK_FALSE(decoder->untie_embeddings());
  CHECK(decoder->head_weight().equal(before));
  CHECK(decoder->named_parameters().contains("lm_head.weight"));
  {
    at::NoGradGuard no_grad;
    decoder->lm_head->weight.add_(2);
  }
  decoder->retie_embeddings();
  CHECK_FALSE(decoder->named_parameters().contains("lm_head.weight"));
  CHECK(tolerances::relative_error(decoder->head_weight(), before + 1) <= tolerances::value(at::kFloat));
}

TEST_CASE("gradient checkpointing changes no gradient") {
  auto teacher = small_decoder();
  auto decoder = transfer::keep_softmax(transfer::convert(teacher).student, teacher, {1});
  const auto ids = some_ids();
  const auto gradients = [&](bool checkpointing) {
    decoder->zero_grad();
    decoder->gradient_checkpointing = checkpointing;
    decoder->hidden_states(ids).square().sum().backward();
    std::vector<at::Tensor> all;
    for (const auto& parameter : decoder->parameters()) {
      all.push_back(parameter.grad().defined() ? parameter.grad().clone() : at::Tensor());
    }
    return all;
  };
  const auto kept = gradients(false), again = gradients(true);
  for (size_t i = 0; i < kept.size(); ++i) {
    REQUIRE(kept[i].defined());
    CHECK(kept[i].equal(again[i]));
  }
}

TEST_CASE("greedy generation ends where every row has ended") {
  auto decoder = small_decoder();
  const auto ids = some_ids();
  const auto longest = models::generate_greedy(decoder, ids, {.max_new_tokens = 10});
  CHECK(longest.size(1) == 22);
  const int64_t eos = longest[0][12].item<int64_t>();
  const auto ended = models::generate_greedy(decoder, ids.narrow(0, 0, 1), {.max_new_tokens = 10, .eos_token_id = eos});
  CHECK(ended.size(1) == 13);
}

TEST_CASE("a folder that does not fit leaves the decoder as it was") {
  auto decoder = small_decoder();
  const auto before = decoder->head_weight().detach().clone();
  auto tensors = transfer::detail::parameters_of(*small_decoder());
  tensors["model.layers.0.mlp.up_proj.weight"] = at::randn({3, 3});
  CHECK_THROWS_WITH(models::load_weights(*decoder, tensors, "here"),
                    Catch::Contains("here: model.layers.0.mlp.up_proj.weight has shape [3, 3]"));
  CHECK(decoder->head_weight().equal(before));
}
