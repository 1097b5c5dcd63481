// Parameter groups of the optimiser: mixers and the rest, each with and without weight decay.
#pragma once

#include <algorithm>
#include <array>
#include <string>
#include <string_view>

namespace hybridattn::distill {

/// Whether weight decay applies to the parameter `name` with `dimensions` dimensions.
/// Norm weights, biases, gates' A_log and dt_bias and anything else below a matrix are left alone: pulling them to zero
/// changes what they mean (a decay rate, a scale of 1) instead of regularising.
inline bool decays(std::string_view name, int64_t dimensions) {
  constexpr std::array<std::string_view, 3> never = {"A_log", "dt_bias", "bias"};
  const std::string_view leaf = name.substr(name.rfind('.') + 1);
  return dimensions >= 2 && std::find(never.begin(), never.end(), leaf) == never.end();
}

} // namespace hybridattn::distill
