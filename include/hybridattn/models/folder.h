// A decoder from and to a Hugging Face folder: config.json and one or several safetensors files.
#pragma once

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "hybridattn/io/json_file.h"
#include "hybridattn/io/safetensors.h"
#include "hybridattn/models/decoder.h"
#include "hybridattn/models/hf_config.h"

namespace hybridattn::models {

/// All tensors of a folder: model.safetensors, or the shards that model.safetensors.index.json names.
/// @throws c10::ValueError naming a file that is missing or damaged, or a tensor that is not where the index says
inline io::TensorMap read_weights(const std::filesystem::path& folder) {
  const auto index_path = folder / "model.safetensors.index.json";
  if (!std::filesystem::exists(index_path)) {
    HA_CHECK(std::filesystem::exists(folder / "model.safetensors"), folder.string(),
             ": has neither model.safetensors nor model.safetensors.index.json");
    return io::SafeTensors(folder / "model.safetensors").tensors();
  }
  const auto index = io::read_json(index_path);
  HA_CHECK(index.contains("weight_map") && index["weight_map"].is_object(), index_path.string(), ": has no weight_map");
  std::map<std::string, io::SafeTensors> shards;
  io::TensorMap tensors;
  for (const auto& [name, file] : index["weight_map"].items()) {
    HA_CHECK(file.is_string() && std::filesystem::path(file.get<std::string>()).filename() == file.get<std::string>(),
             index_path.string(), ": weight_map of ", name, " is no file name: ", file.dump());
    const auto shard = shards.try_emplace(file.get<std::string>(), folder / file.get<std::string>()).first;
    tensors[name] = shard->second.tensor(name);
  }
  return tensors;
}

/// Copies `tensors` into the decoder's parameters, converting to their dtype. Strict.
/// @throws c10::ValueError naming what is missing, left over or of another shape; the decoder is then untouched
inline void load_weights(DecoderImpl& decoder, const io::TensorMap& tensors, const std::string& where) {
  at::NoGradGuard no_grad;
  const auto parameters = decoder.named_parameters();
  std::vector<std::string> missing, left_over;
  for (const auto& item : parameters) {
    if (tensors.count(item.key()) == 0) {
      missing.push_back(item.key());
    }
  }
  for (const auto& [name, tensor] : tensors) {
    // A tied head may be stored a second time, a rotary table is computed.
    const bool redundant =
        (name == "lm_head.weight" && decoder.config.tie_word_embeddings) || name.ends_with("rotary_emb.inv_freq");
    if (!parameters.contains(name) && !redundant) {
      left_over.push_back(name);
    }
  }
  const auto listed = [](std::vector<std::string> names) {
    const size_t more = names.size() > 8 ? names.size() - 8 : 0;
    names.resize(names.size() - more);
    return fmt::format("{}{}", fmt::join(names, ", "), more > 0 ? fmt::format(" and {} more", more) : "");
  };
  HA_CHECK(missing.empty(), where, ": tensors are missing: ", listed(missing));
  HA_CHECK(left_over.empty(), where, ": tensors that the model does not have: ", listed(left_over));
  for (const auto& item : parameters) {
    const auto& tensor = tensors.at(item.key());
    HA_CHECK(tensor.sizes() == item.value().sizes(), where, ": ", item.key(), " has shape ", tensor.sizes(),
             ", the config says ", item.value().sizes());
  }
  for (const auto& item : parameters) {
    item.value().copy_(tensors.at(item.key()));
  }
}

struct LoadOptions {
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;
};

/// The model in a folder that Transformers or `save_decoder` wrote, in evaluation mode.
/// @throws c10::ValueError naming the file, and the field or tensor, that is wrong
inline Decoder load_decoder(const std::filesystem::path& folder, const LoadOptions& options = {}) {
  const auto path = folder / "config.json";
  Decoder decoder(read_model_config(io::read_json(path), path.string()));
  const auto tensors = read_weights(folder);
  decoder->to(options.device, options.dtype);
  load_weights(*decoder, tensors, folder.string());
  decoder->eval();
  return decoder;
}

/// Writes config.json and model.safetensors, each atomically; Transformers loads the folder after `import hybridattn`.
/// Tokenizer files are not touched. @throws c10::Error with the system's reason; files that were there are then intact
inline void save_decoder(const std::filesystem::path& folder, const Decoder& decoder) {
  std::filesystem::create_directories(folder);
  io::TensorMap tensors;
  for (const auto& item : decoder->named_parameters()) {
    tensors[item.key()] = item.value();
  }
  io::save_safetensors(folder / "model.safetensors", tensors);
  auto config = model_config_json(decoder->config);
  const auto dtype = decoder->head_weight().scalar_type();
  config["dtype"] = dtype == at::kBFloat16 ? "bfloat16"
                    : dtype == at::kHalf   ? "float16"
                    : dtype == at::kDouble ? "float64"
                                           : "float32";
  io::write_json(folder / "config.json", config);
}

} // namespace hybridattn::models
