// Runs the C++ side on what a Python test wrote, so that it can compare: parity <command> <in.safetensors>
// <out.safetensors>
//   mixer     one mixer: outputs and gradients, whole or token by token
//   decoder   a model folder: logits and greedy continuations
//   stage     align, match or finetune over given batches: losses, and the trained student's folder
#include <ATen/ops/randn.h>
#include <hybridattn/distill/align.h>
#include <hybridattn/distill/finetune.h>
#include <hybridattn/distill/match.h>
#include <hybridattn/models/folder.h>
#include <hybridattn/models/generate.h>
#include <hybridattn/transfer/decoder.h>

#include <fmt/format.h>

#include <cstdio>
#include <exception>

using namespace hybridattn;

namespace {

struct Request {
  explicit Request(const std::string& path)
      : file(path), fields(nlohmann::json::parse(file.metadata().at("request"))) {}

  at::Tensor tensor(const std::string& name) const { return file.tensor(name); }
  std::optional<at::Tensor> optional(const std::string& name) const {
    return file.contains(name) ? std::optional(file.tensor(name)) : std::nullopt;
  }

  io::SafeTensors file;
  nlohmann::json fields;
};

io::TensorMap run_mixer(const Request& request) {
  auto mixer = nn::build_mixer(request.fields.at("kind"), request.fields.at("options"));
  auto hidden = request.tensor("hidden").clone();
  mixer->to(hidden.scalar_type());
  io::TensorMap results;
  {
    at::NoGradGuard no_grad;
    for (const auto& item : mixer->named_parameters()) {
      item.value().copy_(request.tensor("weights." + item.key()));
    }
  }
  nn::MixerContext context{.padding_mask = request.optional("padding_mask"),
                           .cu_seqlens = request.optional("cu_seqlens")};
  auto first = request.optional("first").value_or(at::Tensor());
  const auto cos = request.optional("cos"), sin = request.optional("sin");
  if (cos) {
    context.rotary = {*cos, *sin};
  }
  if (const int64_t prefill = request.fields.value("prefill", 0); prefill > 0) {
    at::NoGradGuard no_grad;
    nn::MixerState state;
    std::vector<at::Tensor> outputs;
    for (int64_t begin = 0, count = prefill; begin < hidden.size(1); begin += count, count = 1) {
      auto part = context;
      part.rotary =
          cos ? std::optional(std::pair(cos->narrow(1, begin, count), sin->narrow(1, begin, count))) : std::nullopt;
      if (context.padding_mask) {
        part.padding_mask = context.padding_mask->narrow(1, 0, begin + count);
      }
      auto first_part = first.defined() ? first.narrow(1, begin, count) : first;
      part.first_value = &first_part;
      outputs.push_back(mixer->forward(hidden.narrow(1, begin, count), part, &state));
    }
    results["out"] = at::cat(outputs, 1);
    return results;
  }
  hidden.requires_grad_(true);
  if (first.defined()) {
    first = first.clone().requires_grad_(true);
    context.first_value = &first;
  }
  const auto out = mixer->forward(hidden, context);
  out.backward(request.tensor("gradient"));
  results["out"] = out;
  results["gradient.hidden"] = hidden.grad();
  if (first.defined()) {
    results["gradient.first"] = first.grad();
  }
  for (const auto& item : mixer->named_parameters()) {
    results["gradient." + item.key()] = item.value().grad();
  }
  return results;
}

io::TensorMap run_decoder(const Request& request) {
  at::NoGradGuard no_grad;
  auto decoder = models::load_decoder(request.fields.at("model").get<std::string>());
  const auto ids = request.tensor("ids");
  const nn::ForwardOptions options{.padding_mask = request.optional("padding_mask"),
                                   .cu_seqlens = request.optional("cu_seqlens")};
  io::TensorMap results = {{"logits", decoder->logits(decoder->hidden_states(ids, options))}};
  if (const int64_t count = request.fields.value("generate", 0); count > 0) {
    for (const bool cached : {false, true}) {
      results[cached ? "cached" : "uncached"] = models::generate_greedy(
          decoder, ids, {.max_new_tokens = count, .padding_mask = options.padding_mask, .use_cache = cached});
    }
  }
  if (request.fields.contains("save")) {
    models::save_decoder(request.fields["save"].get<std::string>(), decoder);
  }
  return results;
}

/// The batches of a request, one per step.
struct GivenBatches {
  const Request& request;
  distill::Batch batch(int64_t step) const {
    const auto name = [&](const char* field) { return fmt::format("{}.{}", step, field); };
    return {.input_ids = request.tensor(name("input_ids")),
            .position_ids = request.optional(name("position_ids")),
            .cu_seqlens = request.optional(name("cu_seqlens")),
            .loss_mask = request.optional(name("loss_mask"))};
  }
};

io::TensorMap run_stage(const Request& request) {
  auto student = models::load_decoder(request.fields.at("student").get<std::string>());
  const auto stage = distill::stage_from_json(request.fields.at("stage"));
  const std::string name = request.fields.at("name");
  GivenBatches batches{request};
  distill::StageOptions options;
  if (request.fields.contains("checkpoint")) {
    options.checkpoint = request.fields["checkpoint"].get<std::string>();
  }
  distill::StageResult result;
  if (name == "finetune") {
    result = distill::finetune(student, batches, stage, options);
  } else {
    auto teacher = models::load_decoder(request.fields.at("teacher").get<std::string>());
    result = name == "align" ? distill::align(student, teacher, batches, stage, options)
                             : distill::match(student, teacher, batches, stage, options);
  }
  models::save_decoder(request.fields.at("save").get<std::string>(), student);
  return {{"losses", at::tensor(result.losses)}, {"parts", at::tensor(result.parts)}};
}

} // namespace

int main(int count, char** arguments) {
  if (count != 4) {
    std::fputs("usage: parity mixer|decoder|stage in.safetensors out.safetensors\n", stderr);
    return 2;
  }
  try {
    const std::string command = arguments[1];
    const Request request(arguments[2]);
    io::save_safetensors(arguments[3], command == "mixer"     ? run_mixer(request)
                                       : command == "decoder" ? run_decoder(request)
                                                              : run_stage(request));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
