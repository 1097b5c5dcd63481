// JSON files.
#pragma once

#include <filesystem>
#include <fstream>
#include <string>

#include <nlohmann/json.hpp>

#include "hybridattn/core/check.h"
#include "hybridattn/io/atomic_file.h"

namespace hybridattn::io {

/// @throws c10::ValueError naming a file that cannot be read or is not JSON
inline nlohmann::json read_json(const std::filesystem::path& path) {
  std::ifstream file(path);
  HA_CHECK(file.good(), path.string(), ": cannot be read");
  auto json = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  HA_CHECK(!json.is_discarded(), path.string(), ": is not JSON");
  return json;
}

/// Writes atomically. @throws c10::Error with the system's reason; an older file is then intact
inline void write_json(const std::filesystem::path& path, const nlohmann::json& json) {
  AtomicFile file(path);
  file.write(json.dump(2) + "\n");
  file.commit();
}

} // namespace hybridattn::io
