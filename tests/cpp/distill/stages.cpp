// Stages on small decoders: exact zeros, independence of the split, refusals. Values are compared with Python's in
// tests/parity.
#include "models/small_decoder.h"

#include <ATen/ops/randint.h>
#include <hybridattn/distill/align.h>
#include <hybridattn/distill/finetune.h>
#include <hybridattn/distill/match.h>
#include <hybridattn/transfer/decoder.h>

#include "catch.h"
#include "tolerances.h"

using namespace hybridattn;
using namespace hybridattn::distill;

namespace {

Stage small_stage() {
  Stage stage;
  stage.seq_len = 10;
  stage.batch_size = 6;
  stage.tokens = 3 * 60;
  stage.lr = 1e-3;
  return stage;
}

TokenBatches batches() {
  return {at::randint(31, {18, 10}, at::kLong), 6, 1};
}

/// A linear mixer's place taken by the teacher's own attention, so that every target is met exactly.
class Echo : public nn::Mixer {
public:
  explicit Echo(std::shared_ptr<nn::Mixer> inner) : inner_(register_module("inner", std::move(inner))) {}
  at::Tensor forward(const at::Tensor& x, const nn::MixerContext& context, nn::MixerState* state) override {
    return inner_->forward(x, context, state);
  }
  std::string kind() const override { return "echo"; }
  bool is_linear() const override { return true; }
  const nn::MixerOptions& shape() const override { return inner_->shape(); }
  nlohmann::json options_json() const override { return {{"echo", true}}; }

private:
  std::shared_ptr<nn::Mixer> inner_;
};

} // namespace

TEST_CASE("a student that is the teacher has loss exactly 0 in every stage that compares") {
  auto teacher = small_decoder();
  auto student = transfer::keep_softmax(transfer::convert(teacher).student, teacher, {0, 1, 2});
  for (int64_t layer = 0; layer < 3; ++layer) {
    student->replace_mixer(layer, std::make_shared<Echo>(student->shared_mixer(layer)));
  }
  auto source = batches();
  for (const double loss : align(student, teacher, source, small_stage()).losses) {
    CHECK(loss == 0);
  }
  for (const double loss : match(student, teacher, source, small_stage()).losses) {
    CHECK(loss == 0);
  }
  const std::vector<Batch> held_out = {source.batch(0)};
  for (const double divergence : held_out_divergence(student, teacher, held_out)) {
    CHECK(divergence == 0);
  }
}

TEST_CASE("losses and gradients do not depend on how a step is split") {
  auto teacher = small_decoder();
  const auto student = transfer::convert(teacher).student;
  auto source = batches();
  const auto trained = [&](const std::string& name, int64_t micro_batch) {
    auto copy = transfer::keep_softmax(student, teacher, {});
    auto stage = small_stage();
    stage.micro_batch_size = micro_batch;
    return name == "align"   ? align(copy, teacher, source, stage).losses
           : name == "match" ? match(copy, teacher, source, stage).losses
                             : finetune(copy, source, stage).losses;
  };
  for (const std::string name : {"align", "match", "finetune"}) {
    const auto whole = trained(name, 0);
    for (const int64_t micro_batch : {1, 4}) {
      const auto split = trained(name, micro_batch);
      for (size_t i = 0; i < whole.size(); ++i) {
        CHECK(split[i] == Approx(whole[i]).epsilon(1e-5));
      }
    }
  }
}

TEST_CASE("align trains mixers only; training leaves requires_grad and gradients as it found them") {
  auto teacher = small_decoder();
  auto student = transfer::convert(teacher).student;
  for (auto& parameter : student->parameters()) {
    parameter.requires_grad_(false);
  }
  const auto before = transfer::detail::parameters_of(*transfer::keep_softmax(student, teacher, {}));
  auto source = batches();
  align(student, teacher, source, small_stage());
  int64_t moved = 0;
  for (const auto& item : student->named_parameters()) {
    const bool in_mixer = item.key().find("self_attn") != std::string::npos;
    const bool equal = item.value().equal(before.at(item.key()));
    CHECK((in_mixer || equal));
    moved += equal ? 0 : 1;
    CHECK_FALSE(item.value().requires_grad());
    CHECK_FALSE(item.value().grad().defined());
  }
  CHECK(moved > 20);
}

TEST_CASE("what cannot be trained is refused before anything moves") {
  auto teacher = small_decoder();
  auto source = batches();
  CHECK_THROWS_WITH(align(teacher, teacher, source, small_stage()), Catch::Contains("no linear mixer"));
  CHECK_THROWS_WITH(match(teacher, teacher, source, small_stage()), Catch::Contains("student and teacher share"));
  auto student = transfer::convert(teacher).student;
  auto stage = small_stage();
  stage.loss = "cosin";
  CHECK_THROWS_WITH(align(student, teacher, source, stage), Catch::Contains("unknown loss 'cosin'"));
  student->to(at::kBFloat16);
  CHECK_THROWS_WITH(align(student, teacher, source, small_stage()), Catch::Contains("weights train in float32"));
  CHECK_THROWS_WITH(TokenBatches(at::randint(5, {2, 10}, at::kLong), 3), Catch::Contains("fewer than a batch"));
}

TEST_CASE("batches depend on the step alone and an epoch shows every sequence once") {
  const auto sequences = at::arange(18, at::kLong).view({18, 1});
  const TokenBatches forward(sequences, 6, 1), backward(sequences, 6, 1), other(sequences, 6, 2);
  std::vector<at::Tensor> epoch, steps(6);
  for (int64_t step = 5; step >= 0; --step) {
    steps[step] = backward.batch(step).input_ids;
  }
  for (int64_t step = 0; step < 6; ++step) {
    CHECK(forward.batch(step).input_ids.equal(steps[step]));
  }
  CHECK(std::get<0>(at::cat({steps[0], steps[1], steps[2]}).sort(0)).equal(sequences));
  CHECK_FALSE(at::cat({steps[0], steps[1], steps[2]}).equal(at::cat({steps[3], steps[4], steps[5]})));
  CHECK_FALSE(other.batch(0).input_ids.equal(steps[0]));
}
