// Searches over sets of layers, because layers work together: sequential addition and swap refinement.
#pragma once

#include <fmt/ranges.h>

#include <hybridattn/select/criterion.h>

namespace hybridattn::select {

/// A decision on the way of a search, and the mean loss after it.
struct SearchStep {
  std::string what;
  double loss;
};

struct SearchResult {
  Plan layers; ///< ascending
  std::vector<SearchStep> history;
};

namespace detail {

inline double mean_loss(const std::vector<double>& losses) {
  return Eigen::Map<const Eigen::VectorXd>(losses.data(), static_cast<Eigen::Index>(losses.size())).mean();
}

/// `layers` with `added` and without `removed`, ascending.
inline Plan exchanged(Plan layers, std::optional<int64_t> added, std::optional<int64_t> removed = {}) {
  if (removed)
    std::erase(layers, *removed);
  if (added)
    layers.push_back(*added);
  std::sort(layers.begin(), layers.end());
  return layers;
}

inline Plan outside_of(const Plan& chosen, int64_t layers) {
  Plan outside;
  for (int64_t layer = 0; layer < layers; ++layer)
    if (!std::binary_search(chosen.begin(), chosen.end(), layer))
      outside.push_back(layer);
  return outside;
}

/// Index of the lowest finite mean, the first one on a tie; nothing when no row is finite.
inline std::optional<size_t> lowest(const LossTable& losses) {
  std::optional<size_t> best;
  for (size_t i = 0; i < losses.size(); ++i) {
    const double loss = mean_loss(losses[i]);
    if (std::isfinite(loss) && (!best || loss < mean_loss(losses[*best])))
      best = i;
  }
  return best;
}

} // namespace detail

/// Adds the layer that helps most, then scores the rest again beside it, until `keep` layers are chosen.
/// @throws std::invalid_argument unless 0 <= keep <= layers, or if every candidate diverged
template <LayerSetEvaluator E>
SearchResult sequential_addition(E& evaluator, int64_t keep) {
  check_keep(evaluator.num_layers(), keep);
  SearchResult result;
  while (static_cast<int64_t>(result.layers.size()) < keep) {
    const Plan open = detail::outside_of(result.layers, evaluator.num_layers());
    std::vector<Plan> candidates;
    for (int64_t layer : open)
      candidates.push_back(detail::exchanged(result.layers, layer));
    const LossTable losses = evaluator.losses(candidates);
    const std::optional<size_t> best = detail::lowest(losses);
    detail::race_check(best.has_value(), "sequential_addition: the losses of all candidates are not finite");
    result.layers = candidates[*best];
    result.history.push_back({fmt::format("add layer {}", open[*best]), detail::mean_loss(losses[*best])});
  }
  return result;
}

/// Exchanges a kept for a left-out layer while the held-out loss falls significantly.
///
/// Each round tries all exchanges and makes the best one if the paired one-sided t test, corrected for their number
/// (Bonferroni), rejects "not better" at `confidence`. Losses fall at each exchange, so the search ends.
/// @throws std::invalid_argument if a layer does not exist or is listed twice
template <LayerSetEvaluator E>
SearchResult swap_refinement(E& evaluator, const Plan& start, double confidence = 0.95) {
  auto vector = [](const std::vector<double>& values) {
    return Eigen::Map<const Eigen::VectorXd>(values.data(), static_cast<Eigen::Index>(values.size()));
  };
  SearchResult result{explicit_plan(evaluator.num_layers(), start), {}};
  std::vector<double> current = LossTable(evaluator.losses({result.layers})).at(0);
  result.history.push_back(
      {fmt::format("start from [{}]", fmt::join(result.layers, ", ")), detail::mean_loss(current)});
  while (true) {
    std::vector<Plan> candidates;
    std::vector<std::pair<int64_t, int64_t>> swaps;
    for (int64_t out : result.layers) {
      for (int64_t into : detail::outside_of(result.layers, evaluator.num_layers())) {
        swaps.emplace_back(out, into);
        candidates.push_back(detail::exchanged(result.layers, into, out));
      }
    }
    if (swaps.empty())
      return result;
    const LossTable losses = evaluator.losses(candidates);
    const std::optional<size_t> best = detail::lowest(losses);
    if (!best)
      return result;
    const PairedDifference difference = paired_difference(vector(losses[*best]), vector(current));
    if (!(difference.mean < 0 && difference.tail * static_cast<double>(swaps.size()) <= 1 - confidence))
      return result;
    result.layers = candidates[*best];
    current = losses[*best];
    const auto [out, into] = swaps[*best];
    result.history.push_back({fmt::format("exchange layer {} for {}", out, into), detail::mean_loss(current)});
  }
}

} // namespace hybridattn::select
