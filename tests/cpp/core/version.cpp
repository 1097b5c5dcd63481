// The version string agrees with its parts.
#include "hybridattn/version.h"
#include "catch.h"

#include <string>

TEST_CASE("version/string is built from the three numbers") {
  CHECK(std::string(hybridattn::version) == std::to_string(HYBRIDATTN_VERSION_MAJOR) + "." +
                                                std::to_string(HYBRIDATTN_VERSION_MINOR) + "." +
                                                std::to_string(HYBRIDATTN_VERSION_PATCH));
}
