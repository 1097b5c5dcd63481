// HA_CHECK: argument checks whose message names the op, the argument, what was expected and what came.
#pragma once

#include <c10/util/Exception.h>

/// Throws c10::ValueError (Python: ValueError) with the concatenated message when `condition` is false.
/// Example: HA_CHECK(k.size(3) == q.size(3), "chunk_delta_rule: k has head dimension ", k.size(3), ", q has ",
/// q.size(3));
#define HA_CHECK(condition, ...) TORCH_CHECK_VALUE(condition, __VA_ARGS__)
