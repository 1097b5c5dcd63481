// Catch2, version 2 or 3, after c10's logging: c10 defines a CHECK of its own that would swallow ours.
#pragma once

#include <c10/util/Logging.h>

#undef CHECK

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
using Catch::Approx;
namespace Catch {
inline auto Contains(const std::string& part) {
  return Matchers::ContainsSubstring(part);
}
} // namespace Catch
#else
#include <catch2/catch.hpp>
#endif
