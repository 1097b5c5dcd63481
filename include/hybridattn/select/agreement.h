// How much the best K change from round to round: the published rule for when training candidates tells nothing new.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <numeric>
#include <span>
#include <vector>

namespace hybridattn::select {

/// |A and B| / |A or B| of two ascending lists without repetitions; 1 when both are empty.
inline double jaccard_similarity(const std::vector<int64_t>& a, const std::vector<int64_t>& b) {
  std::vector<int64_t> common;
  std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(common));
  const size_t together = a.size() + b.size() - common.size();
  return together == 0 ? 1.0 : static_cast<double>(common.size()) / static_cast<double>(together);
}

/// Whether the mean of the last `window` similarities reaches `threshold`; not when there are fewer.
inline bool has_settled(std::span<const double> similarities, int64_t window, double threshold) {
  if (static_cast<int64_t>(similarities.size()) < window)
    return false;
  const auto last = similarities.last(static_cast<size_t>(window));
  const double sum = std::accumulate(last.begin(), last.end(), 0.0);
  return sum >= threshold * static_cast<double>(window) - 1e-12; // 0.9 has no exact double
}

} // namespace hybridattn::select
