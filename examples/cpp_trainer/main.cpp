// Turns a teacher into a hybrid without a line of Python: convert, align, race, match, save.
//   trainer <teacher folder> <tokens.safetensors: train [N, T], held_out [M, T]> <output folder> [layers to keep]
//   [steps]
// Python loads the result: import hybridattn; AutoModelForCausalLM.from_pretrained("<output folder>")
#include <ATen/Context.h>
#include <hybridattn/distill/align.h>
#include <hybridattn/distill/match.h>
#include <hybridattn/distill/presets.h>
#include <hybridattn/models/folder.h>
#include <hybridattn/select/race.h>
#include <hybridattn/transfer/decoder.h>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <numeric>

using namespace hybridattn;

namespace {

double mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

/// The published numbers of a stage, scaled to what a small model and a few minutes allow.
distill::Stage small_stage(const std::string& name, int64_t steps, int64_t batch_size, int64_t seq_len) {
  return distill::preset(name, "paper",
                         {{"tokens", steps * batch_size * seq_len},
                          {"batch_size", batch_size},
                          {"seq_len", seq_len},
                          {"lr", name == "align" ? 2e-3 : 1e-4},
                          {"mixer_lr", name == "align" ? 2e-3 : 1e-3}});
}

distill::StageOptions printing(const std::string& name, int64_t steps) {
  distill::StageOptions options;
  options.on_step = [name, steps](const distill::StepRecord& record) {
    if (record.step % std::max<int64_t>(1, steps / 5) == 0 || record.step == steps) {
      fmt::print("{}  step {:4}/{}  loss {:.4f}\n", name, record.step, steps, record.loss);
    }
  };
  return options;
}

/// The `keep` layers whose loss of softmax hurts the teacher most (removal, GR-S2 without training).
std::vector<int64_t> race(models::Decoder& student, models::Decoder& teacher, std::span<const distill::Batch> held_out,
                          int64_t keep) {
  // Layers are exchanged in a copy of the teacher, so that no weight moves.
  auto candidate = transfer::keep_softmax(student, teacher, [&] {
    std::vector<int64_t> all(teacher->num_layers());
    std::iota(all.begin(), all.end(), 0);
    return all;
  }());
  select::Race race({.num_layers = teacher->num_layers(),
                     .keep = keep,
                     .mode = select::RaceMode::exhaustive,
                     .direction = select::Direction::higher_is_better});
  while (const auto task = race.next()) {
    const auto own = candidate->shared_mixer(task->layer);
    candidate->replace_mixer(task->layer, student->shared_mixer(task->layer));
    race.record(task->layer, distill::held_out_divergence(candidate, teacher, held_out));
    candidate->replace_mixer(task->layer, own);
  }
  std::vector<int64_t> kept;
  for (const auto& row : race.ranking()) {
    fmt::print("layer {}  KL without its softmax {:.4f}  [{:.4f}, {:.4f}]\n", row.layer, row.score, row.low, row.high);
    if (static_cast<int64_t>(kept.size()) < keep) {
      kept.push_back(row.layer);
    }
  }
  return kept;
}

} // namespace

int main(int count, char** arguments) try {
  if (count < 4) {
    fmt::print(stderr, "usage: trainer teacher tokens.safetensors output [layers to keep = 2] [steps = 100]\n");
    return 2;
  }
  const int64_t keep = count > 4 ? std::stoll(arguments[4]) : 2, steps = count > 5 ? std::stoll(arguments[5]) : 100;
  constexpr int64_t batch_size = 8;
  at::manual_seed(0); // of the mixers' new parameters
  auto teacher = models::load_decoder(arguments[1]);
  const io::SafeTensors tokens(arguments[2]);
  const auto train = tokens.tensor("train");
  distill::TokenBatches batches(train, batch_size);
  const std::vector<distill::Batch> held_out = {{.input_ids = tokens.tensor("held_out")}};

  auto [student, plan] = transfer::convert(teacher, "gated_deltanet");
  fmt::print("layer 0 of {}:\n{}", plan.size(), transfer::plan_text({plan.front()}));
  distill::align(student, teacher, batches, small_stage("align", steps, batch_size, train.size(1)),
                 printing("align", steps));

  const auto kept = race(student, teacher, held_out, keep);
  auto hybrid = transfer::keep_softmax(student, teacher, kept);
  const double before = mean(distill::held_out_divergence(hybrid, teacher, held_out));
  distill::match(hybrid, teacher, batches, small_stage("match", steps, batch_size, train.size(1)),
                 printing("match", steps));
  const double after = mean(distill::held_out_divergence(hybrid, teacher, held_out));

  models::save_decoder(arguments[3], hybrid);
  io::write_json(std::filesystem::path(arguments[3]) / "result.json",
                 {{"softmax_layers", kept}, {"kl_before_match", before}, {"kl", after}});
  fmt::print("softmax in layers {}  held-out KL {:.4f} -> {:.4f} nats/token  saved to {}\n", fmt::join(kept, ", "),
             before, after, arguments[3]);
} catch (const std::exception& error) {
  fmt::print(stderr, "{}\n", error.what());
  return 1;
}
