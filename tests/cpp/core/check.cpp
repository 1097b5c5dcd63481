// HA_CHECK: silent when the condition holds, a ValueError with the whole message when not.
#include "hybridattn/core/check.h"
#include "catch.h"

#include <string>

TEST_CASE("HA_CHECK/passes and evaluates its condition once") {
  int evaluated = 0;
  HA_CHECK(++evaluated == 1, "never shown");
  CHECK(evaluated == 1);
}

TEST_CASE("HA_CHECK/throws a ValueError with all parts of the message") {
  try {
    HA_CHECK(8 == 16, "chunk_delta_rule: k has head dimension ", 8, ", q has ", 16);
    FAIL("no exception");
  } catch (const c10::ValueError& error) {
    CHECK(std::string(error.what_without_backtrace()) == "chunk_delta_rule: k has head dimension 8, q has 16");
  }
}
