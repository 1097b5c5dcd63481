// Safetensors files: a strict reader over a memory mapping, and an atomic writer.
// Format: 8 bytes little-endian length of the header, the header in JSON, the tensors' bytes without gaps.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "hybridattn/core/check.h"
#include "hybridattn/io/atomic_file.h"
#include "hybridattn/io/mapped_file.h"

namespace hybridattn::io {

using TensorMap = std::map<std::string, at::Tensor>;

namespace detail {

inline const std::vector<std::pair<std::string, at::ScalarType>>& safetensors_dtypes() {
  static const std::vector<std::pair<std::string, at::ScalarType>> dtypes = {{"F64", at::kDouble},
                                                                             {"F32", at::kFloat},
                                                                             {"F16", at::kHalf},
                                                                             {"BF16", at::kBFloat16},
                                                                             {"I64", at::kLong},
                                                                             {"I32", at::kInt},
                                                                             {"I16", at::kShort},
                                                                             {"I8", at::kChar},
                                                                             {"U8", at::kByte},
                                                                             {"BOOL", at::kBool},
                                                                             {"F8_E4M3", at::kFloat8_e4m3fn},
                                                                             {"F8_E5M2", at::kFloat8_e5m2}};
  return dtypes;
}

} // namespace detail

/// The tensors of one file. Opening it checks the whole header; tensors are views of the file's mapping, copied only
/// where their bytes are not aligned to their type. They keep the mapping alive.
class SafeTensors {
public:
  /// @throws c10::ValueError naming the file and what is wrong with it
  explicit SafeTensors(const std::filesystem::path& path)
      : path_(path.string()), file_(std::make_shared<MappedFile>(path)) {
    constexpr uint64_t prefix = sizeof(uint64_t);
    HA_CHECK(file_->size() >= prefix, path_, ": not a safetensors file, ", file_->size(), " bytes");
    uint64_t header_size = 0;
    std::memcpy(&header_size, file_->data(), prefix);
    HA_CHECK(header_size <= file_->size() - prefix, path_, ": not a safetensors file or cut off: a header of ",
             header_size, " bytes in a file of ", file_->size());
    const char* text = reinterpret_cast<const char*>(file_->data()) + prefix;
    const auto header = nlohmann::json::parse(text, text + header_size, nullptr, /*allow_exceptions=*/false);
    HA_CHECK(header.is_object(), path_, ": not a safetensors file, its header is no JSON object");
    begin_ = prefix + header_size;
    for (const auto& [name, entry] : header.items()) {
      if (name == "__metadata__") {
        read_metadata(entry);
      } else {
        read_entry(name, entry);
      }
    }
    check_layout();
  }

  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const auto& [name, entry] : entries_) {
      names.push_back(name);
    }
    return names;
  }
  bool contains(const std::string& name) const { return entries_.count(name) > 0; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  /// @throws c10::ValueError when there is no such tensor
  at::Tensor tensor(const std::string& name) const {
    const auto found = entries_.find(name);
    HA_CHECK(found != entries_.end(), path_, ": has no tensor ", name);
    const Entry& entry = found->second;
    const auto options = at::TensorOptions().dtype(entry.dtype);
    uint8_t* bytes = file_->data() + begin_ + entry.begin;
    if (entry.begin == entry.end) {
      return at::empty(entry.shape, options);
    }
    if (reinterpret_cast<uintptr_t>(bytes) % c10::elementSize(entry.dtype) != 0) {
      auto copy = at::empty(entry.shape, options);
      std::memcpy(copy.mutable_data_ptr(), bytes, entry.end - entry.begin);
      return copy;
    }
    return at::from_blob(
        bytes, entry.shape, [keep = file_](void*) {}, options);
  }

  TensorMap tensors() const {
    TensorMap all;
    for (const auto& [name, entry] : entries_) {
      all[name] = tensor(name);
    }
    return all;
  }

private:
  struct Entry {
    at::ScalarType dtype = at::kFloat;
    std::vector<int64_t> shape;
    uint64_t begin = 0, end = 0; ///< bytes after the header
  };

  void read_metadata(const nlohmann::json& entry) {
    HA_CHECK(entry.is_object(), path_, ": __metadata__ is no object");
    for (const auto& [key, value] : entry.items()) {
      HA_CHECK(value.is_string(), path_, ": __metadata__ has a value that is no string at ", key);
      metadata_[key] = value.get<std::string>();
    }
  }

  void read_entry(const std::string& name, const nlohmann::json& json) {
    const auto naturals = [&](const char* key) {
      std::vector<uint64_t> numbers;
      HA_CHECK(json.is_object() && json.contains(key) && json[key].is_array(), path_, ": tensor ", name, " has no ",
               key);
      for (const auto& number : json[key]) {
        HA_CHECK(number.is_number_unsigned(), path_, ": tensor ", name, " has ", key, " ", json[key].dump());
        numbers.push_back(number.get<uint64_t>());
      }
      return numbers;
    };
    const auto offsets = naturals("data_offsets");
    const uint64_t available = file_->size() - begin_;
    HA_CHECK(offsets.size() == 2 && offsets[0] <= offsets[1] && offsets[1] <= available, path_, ": tensor ", name,
             " has data_offsets ", json["data_offsets"].dump(), ", the file has ", available, " bytes of data");
    Entry entry;
    entry.begin = offsets[0];
    entry.end = offsets[1];
    const std::string dtype =
        json.contains("dtype") && json["dtype"].is_string() ? json["dtype"].get<std::string>() : "";
    const auto& known = detail::safetensors_dtypes();
    const auto found = std::find_if(known.begin(), known.end(), [&](const auto& row) { return row.first == dtype; });
    HA_CHECK(found != known.end(), path_, ": tensor ", name, " has the unknown dtype '", dtype, "'");
    entry.dtype = found->second;
    uint64_t bytes = c10::elementSize(entry.dtype);
    for (const uint64_t size : naturals("shape")) {
      // Multiplying would overflow for a hostile header; no tensor is larger than its file.
      HA_CHECK(size == 0 || bytes <= std::max<uint64_t>(available, 16) / size, path_, ": tensor ", name, " of shape ",
               json["shape"].dump(), " is larger than the file");
      bytes *= size;
      entry.shape.push_back(static_cast<int64_t>(size));
    }
    HA_CHECK(bytes == entry.end - entry.begin, path_, ": tensor ", name, " of shape ", json["shape"].dump(), " needs ",
             bytes, " bytes, its data_offsets span ", entry.end - entry.begin);
    entries_[name] = std::move(entry);
  }

  /// Tensors follow one another without gap or overlap and fill the file.
  void check_layout() const {
    std::vector<std::pair<uint64_t, uint64_t>> spans;
    for (const auto& [name, entry] : entries_) {
      spans.emplace_back(entry.begin, entry.end);
    }
    std::sort(spans.begin(), spans.end());
    uint64_t end = 0;
    for (const auto& span : spans) {
      HA_CHECK(span.first == end, path_, ": tensors overlap or leave a gap at byte ", end, " of the data");
      end = span.second;
    }
    HA_CHECK(end == file_->size() - begin_, path_, ": ", file_->size() - begin_ - end, " bytes after the last tensor");
  }

  std::string path_;
  std::shared_ptr<MappedFile> file_;
  uint64_t begin_ = 0;
  std::map<std::string, Entry> entries_;
  std::map<std::string, std::string> metadata_;
};

/// Writes `tensors` to `path` atomically.
/// @param metadata  Transformers wants {"format", "pt"}
/// @throws c10::Error with the system's reason; an older file is then intact
inline void save_safetensors(const std::filesystem::path& path, const TensorMap& tensors,
                             const std::map<std::string, std::string>& metadata = {{"format", "pt"}}) {
  nlohmann::json header = nlohmann::json::object();
  header["__metadata__"] = metadata;
  // Wide types first: then every tensor is aligned to its type.
  std::vector<std::pair<std::string, at::Tensor>> order(tensors.begin(), tensors.end());
  std::stable_sort(order.begin(), order.end(),
                   [](const auto& a, const auto& b) { return a.second.element_size() > b.second.element_size(); });
  uint64_t offset = 0;
  for (const auto& [name, tensor] : order) {
    const auto& known = detail::safetensors_dtypes();
    const auto found =
        std::find_if(known.begin(), known.end(), [&](const auto& row) { return row.second == tensor.scalar_type(); });
    HA_CHECK(found != known.end(), path.string(), ": tensor ", name, " has dtype ", tensor.scalar_type(),
             ", which safetensors does not have");
    const uint64_t end = offset + tensor.nbytes();
    header[name] = {{"dtype", found->first}, {"shape", tensor.sizes().vec()}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  AtomicFile file(path);
  const uint64_t size = text.size();
  file.write(&size, sizeof(size));
  file.write(text);
  for (const auto& [name, tensor] : order) {
    const auto plain = tensor.detach().to(at::kCPU).contiguous();
    file.write(plain.const_data_ptr(), plain.nbytes());
  }
  file.commit();
}

} // namespace hybridattn::io
