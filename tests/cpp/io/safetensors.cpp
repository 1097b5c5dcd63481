// Safetensors: what is written is read, and every malformed header is refused with a message that names its fault.
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <hybridattn/io/json_file.h>
#include <hybridattn/io/safetensors.h>

#include <sys/resource.h>

#include <csignal>
#include <fstream>

#include "catch.h"

using namespace hybridattn::io;
namespace fs = std::filesystem;

namespace {

/// A folder that goes away with the test.
struct Folder {
  Folder() : path(fs::temp_directory_path() / ("hybridattn-" + std::to_string(::getpid()))) {
    fs::create_directories(path);
  }
  ~Folder() { fs::remove_all(path); }
  fs::path path;
};

fs::path written(const fs::path& path, const std::string& header, size_t data_bytes,
                 std::optional<uint64_t> size = {}) {
  std::ofstream file(path, std::ios::binary);
  const uint64_t prefix = size.value_or(header.size());
  file.write(reinterpret_cast<const char*>(&prefix), sizeof(prefix));
  file << header << std::string(data_bytes, '\1');
  return path;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

std::string message(const fs::path& path) {
  try {
    SafeTensors file(path);
    return "accepted";
  } catch (const c10::ValueError& error) {
    return error.what_without_backtrace();
  }
}

} // namespace

TEST_CASE("every dtype and shape comes back") {
  const Folder folder;
  TensorMap tensors;
  for (const auto dtype : {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kLong, at::kInt, at::kShort,
                           at::kChar, at::kByte, at::kBool}) {
    tensors[std::string("odd.") + c10::toString(dtype)] = at::arange(15, at::kFloat).view({3, 5}).to(dtype);
  }
  tensors["scalar"] = at::ones({}, at::kFloat);
  tensors["empty"] = at::empty({0, 4});
  tensors["transposed"] = at::randn({4, 6}).t();
  save_safetensors(folder.path / "a.safetensors", tensors, {{"format", "pt"}, {"note", "x"}});
  const SafeTensors file(folder.path / "a.safetensors");
  CHECK(file.names().size() == tensors.size());
  CHECK((file.metadata() == std::map<std::string, std::string>{{"format", "pt"}, {"note", "x"}}));
  for (const auto& [name, tensor] : tensors) {
    INFO(name);
    CHECK(file.tensor(name).scalar_type() == tensor.scalar_type());
    CHECK(file.tensor(name).equal(tensor));
  }
}

TEST_CASE("tensors outlive the reader, and writing to them leaves the file alone") {
  const Folder folder;
  const auto path = folder.path / "a.safetensors";
  save_safetensors(path, {{"x", at::ones({8})}});
  at::Tensor x;
  { x = SafeTensors(path).tensor("x"); }
  x.add_(1);
  CHECK(x.sum().item<float>() == 16);
  CHECK(SafeTensors(path).tensor("x").sum().item<float>() == 8);
}

TEST_CASE("bytes that are not aligned to their type are copied") {
  const Folder folder;
  const auto path = written(folder.path / "a",
                            R"({"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                            R"("f":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}})",
                            9);
  const auto f = SafeTensors(path).tensor("f");
  CHECK(reinterpret_cast<uintptr_t>(f.const_data_ptr()) % alignof(float) == 0);
  float expected = 0;
  std::memset(&expected, 1, sizeof(expected));
  CHECK(f[1].item<float>() == expected);
}

TEST_CASE("malformed files are refused") {
  const Folder folder;
  const auto path = folder.path / "bad";
  const auto fault = [&](const std::string& header, size_t bytes, std::optional<uint64_t> size = {}) {
    return message(written(path, header, bytes, size));
  };
  const std::string good = R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  CHECK(fault(good, 8) == "accepted");
  CHECK(contains(fault(good, 7), "data_offsets"));
  CHECK(contains(fault(good, 9), "1 bytes after the last tensor"));
  CHECK(contains(fault(good, 8, 1000), "cut off"));
  CHECK(contains(fault(good, 8, ~uint64_t{0}), "cut off"));
  CHECK(contains(fault("[1]", 0), "no JSON object"));
  CHECK(contains(fault("{", 0), "no JSON object"));
  CHECK(contains(fault(R"({"x":3})", 0), "x has no data_offsets"));
  CHECK(contains(fault(R"({"x":{"dtype":"F31","shape":[2],"data_offsets":[0,8]}})", 8), "unknown dtype 'F31'"));
  CHECK(contains(fault(R"({"x":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8), "needs 12 bytes"));
  CHECK(contains(fault(R"({"x":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", 8), "has shape"));
  CHECK(contains(fault(R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", 8), "data_offsets"));
  CHECK(contains(fault(R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0]}})", 8), "data_offsets"));
  CHECK(contains(fault(R"({"x":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,8]}})", 8),
                 "larger than"));
  CHECK(contains(fault(R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"y":{"dtype":"F32","shape":[2],)"
                       R"("data_offsets":[4,12]}})",
                       12),
                 "overlap"));
  CHECK(contains(fault(R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", 12), "gap"));
  CHECK(contains(fault(R"({"__metadata__":{"a":1}})", 0), "no string at a"));
  std::ofstream(path, std::ios::binary) << "abc";
  CHECK(contains(message(path), "3 bytes"));
  std::ofstream(path, std::ios::binary | std::ios::trunc).close();
  CHECK(contains(message(path), "0 bytes"));
  CHECK(contains(message(folder.path / "absent"), "No such file"));
  CHECK(contains(message(folder.path), "not a regular file"));
}

TEST_CASE("a write that the system refuses leaves the older file intact") {
  const Folder folder;
  const auto path = folder.path / "weights.safetensors";
  save_safetensors(path, {{"x", at::ones({8})}});
  // As on a full disk: no file may grow beyond 4 KiB for the rest of this scope.
  struct rlimit before {};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const struct rlimit small { 4096, before.rlim_max };
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &small) == 0);
  std::string what;
  try {
    save_safetensors(path, {{"x", at::ones({4096})}});
  } catch (const c10::Error& error) {
    what = error.what_without_backtrace();
  }
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  CHECK(contains(what, "cannot be written: File too large"));
  CHECK(SafeTensors(path).tensor("x").sum().item<float>() == 8);
  CHECK(std::distance(fs::directory_iterator(folder.path), fs::directory_iterator()) == 1);
}

TEST_CASE("a file appears whole or not at all") {
  const Folder folder;
  const auto path = folder.path / "state.json";
  write_json(path, {{"a", 1}});
  {
    AtomicFile unfinished(path);
    unfinished.write("half");
  }
  CHECK(read_json(path)["a"] == 1);
  CHECK(std::distance(fs::directory_iterator(folder.path), fs::directory_iterator()) == 1);
  CHECK_THROWS_WITH(write_json(folder.path / "no" / "such" / "folder.json", {}), Catch::Contains("No such file"));
  std::ofstream(folder.path / "text") << "not json";
  CHECK_THROWS_WITH(read_json(folder.path / "text"), Catch::Contains("is not JSON"));
}
