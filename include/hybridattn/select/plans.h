// Plans that look at no model: which K of L layers keep softmax attention, uniformly, at random, first, last or listed.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <vector>

#include <fmt/format.h>

#include <hybridattn/select/random.h>

namespace hybridattn::select {

/// Sorted indices of the layers that keep softmax attention.
using Plan = std::vector<int64_t>;

/// @throws std::invalid_argument unless 1 <= layers and 0 <= keep <= layers
inline void check_keep(int64_t layers, int64_t keep) {
  if (layers < 1)
    throw std::invalid_argument(fmt::format("plan: the model has {} layers, expected at least 1", layers));
  if (keep < 0 || keep > layers)
    throw std::invalid_argument(fmt::format("plan: keep is {}, expected 0 to {} (the model's layers)", keep, layers));
}

/// How many of `layers` a `fraction` is, halves rounded up: 12.5 % of 36 are 5, of 28 are 4.
/// @throws std::invalid_argument unless 0 <= fraction <= 1
inline int64_t keep_of_fraction(int64_t layers, double fraction) {
  check_keep(layers, 0);
  if (!(fraction >= 0 && fraction <= 1))
    throw std::invalid_argument(fmt::format("plan: fraction is {}, expected 0 to 1", fraction));
  return static_cast<int64_t>(std::floor(fraction * static_cast<double>(layers) + 0.5));
}

/// Evenly interleaved: layer floor(i L / K) + offset for i < K, around the end. Offset 0 keeps the first of each group.
inline Plan uniform_plan(int64_t layers, int64_t keep, int64_t offset = 0) {
  check_keep(layers, keep);
  Plan plan;
  for (int64_t i = 0; i < keep; ++i)
    plan.push_back((((i * layers) / keep + offset) % layers + layers) % layers);
  std::sort(plan.begin(), plan.end());
  return plan;
}

/// The offsets after which `uniform_plan` starts to repeat itself: 0 to this number - 1 are its distinct variants.
inline int64_t uniform_offsets(int64_t layers, int64_t keep) {
  check_keep(layers, keep);
  return keep == 0 ? 1 : layers / std::gcd(layers, keep);
}

/// K layers at random; the same on every machine for a seed.
/// Source: selection sampling (Knuth, vol. 2, 3.4.2, algorithm S).
inline Plan random_plan(int64_t layers, int64_t keep, uint64_t seed) {
  check_keep(layers, keep);
  SplitMix64 random(seed);
  Plan plan;
  for (int64_t layer = 0; layer < layers; ++layer) {
    const auto wanted = static_cast<double>(keep - static_cast<int64_t>(plan.size()));
    if (random.uniform() * static_cast<double>(layers - layer) < wanted)
      plan.push_back(layer);
  }
  return plan;
}

inline Plan first_plan(int64_t layers, int64_t keep) {
  check_keep(layers, keep);
  Plan plan(static_cast<size_t>(keep));
  std::iota(plan.begin(), plan.end(), int64_t{0});
  return plan;
}

inline Plan last_plan(int64_t layers, int64_t keep) {
  check_keep(layers, keep);
  Plan plan(static_cast<size_t>(keep));
  std::iota(plan.begin(), plan.end(), layers - keep);
  return plan;
}

/// The listed layers, sorted.
/// @throws std::invalid_argument naming a layer that does not exist or is listed twice
inline Plan explicit_plan(int64_t layers, Plan listed) {
  check_keep(layers, 0);
  std::sort(listed.begin(), listed.end());
  for (size_t i = 0; i < listed.size(); ++i) {
    if (listed[i] < 0 || listed[i] >= layers)
      throw std::invalid_argument(
          fmt::format("plan: layer {} does not exist, the model has 0 to {}", listed[i], layers - 1));
    if (i > 0 && listed[i] == listed[i - 1])
      throw std::invalid_argument(fmt::format("plan: layer {} is listed twice", listed[i]));
  }
  return listed;
}

} // namespace hybridattn::select
