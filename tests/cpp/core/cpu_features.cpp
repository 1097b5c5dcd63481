// The detected instruction sets are those that the kernel reports, and none is claimed that would not run.
#include "hybridattn/core/cpu_features.h"
#include "catch.h"

#include <fstream>
#include <iterator>
#include <set>
#include <sstream>
#include <string>

namespace {

/// The words of /proc/cpuinfo's line `name`.
std::set<std::string> kernel_says(const std::string& name) {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind(name, 0) == 0) {
      std::istringstream words(line.substr(line.find(':') + 1));
      return {std::istream_iterator<std::string>(words), {}};
    }
  }
  return {};
}

} // namespace

TEST_CASE("cpu_features/agrees with /proc/cpuinfo") {
  const auto flags = kernel_says("flags");
  if (flags.empty()) {
    WARN("no /proc/cpuinfo flags on this system: nothing to compare with");
    return;
  }
  for (const auto& [name, present] : hybridattn::cpu_features().named()) {
    INFO(name);
    CHECK(present == (flags.count(name) == 1));
  }
}

TEST_CASE("cpu_features/names are distinct and cover every field") {
  std::set<std::string> names;
  for (const auto& [name, present] : hybridattn::cpu_features().named()) {
    names.insert(name);
  }
  CHECK(names.size() == sizeof(hybridattn::CpuFeatures));
}

TEST_CASE("cpu_features/the maker is the one that the kernel reports") {
  CHECK(hybridattn::is_intel_cpu() == (kernel_says("vendor_id").count("GenuineIntel") == 1));
}
