// Criteria over anything that can score sets of layers: addition, removal and the mean of their ranks.
#pragma once

#include <string_view>

#include <hybridattn/select/bootstrap.h>
#include <hybridattn/select/plans.h>
#include <hybridattn/select/race.h>

namespace hybridattn::select {

/// What criteria and searches measure with; it owns the models.
/// Requires: `num_layers()`, and `losses(sets)`: for each set of layers that keep softmax one held-out loss per
/// sequence, lower being better, the same sequences for all sets. A hybrid that diverged has NaN.
template <class E>
concept LayerSetEvaluator = requires(E& evaluator, const std::vector<Plan>& sets) {
  { evaluator.num_layers() } -> std::convertible_to<int64_t>;
  { evaluator.losses(sets) } -> std::convertible_to<LossTable>;
};

/// What gives every layer a number that says how much its softmax attention matters.
/// Requires: `name`, and a call with an evaluator and K (or nothing) that ranks the layers, most important first.
template <class C, class E>
concept Criterion = LayerSetEvaluator<E> && requires(const C& criterion, E& evaluator, std::optional<int64_t> keep) {
  { C::name } -> std::convertible_to<std::string_view>;
  { criterion(evaluator, keep) } -> std::same_as<std::vector<LayerScore>>;
};

/// Per layer, the set that keeps softmax there alone.
inline std::vector<Plan> addition_sets(int64_t layers) {
  std::vector<Plan> sets;
  for (int64_t layer = 0; layer < layers; ++layer)
    sets.push_back({layer});
  return sets;
}

/// Per layer, the set that keeps softmax everywhere else.
inline std::vector<Plan> removal_sets(int64_t layers) {
  std::vector<Plan> sets(static_cast<size_t>(layers));
  for (int64_t layer = 0; layer < layers; ++layer)
    for (int64_t other = 0; other < layers; ++other)
      if (other != layer)
        sets[static_cast<size_t>(layer)].push_back(other);
  return sets;
}

namespace detail {

/// Ranks and judges layers by the losses of one candidate each, as an exhaustive race does after its only round.
inline std::vector<LayerScore> ranked(const LossTable& losses, Direction direction, std::optional<int64_t> keep,
                                      double confidence) {
  Race race({.num_layers = static_cast<int64_t>(losses.size()),
             .keep = keep,
             .mode = RaceMode::exhaustive,
             .confidence = confidence,
             .direction = direction});
  for (size_t layer = 0; layer < losses.size(); ++layer)
    race.record(static_cast<int64_t>(layer), losses[layer]);
  return race.ranking();
}

} // namespace detail

/// Restore softmax in one layer of the all-linear student; important layers leave the lowest loss.
/// Source: GA-S2 of arXiv 2512.20569, here on whatever losses the evaluator gives.
struct Addition {
  static constexpr std::string_view name = "addition";
  double confidence = 0.95;

  template <LayerSetEvaluator E>
  std::vector<LayerScore> operator()(E& evaluator, std::optional<int64_t> keep = {}) const {
    return detail::ranked(evaluator.losses(addition_sets(evaluator.num_layers())), Direction::lower_is_better, keep,
                          confidence);
  }
};

/// Linearise one layer of the teacher; important layers leave the highest loss.
/// Source: GR-S2 of arXiv 2512.20569.
struct Removal {
  static constexpr std::string_view name = "removal";
  double confidence = 0.95;

  template <LayerSetEvaluator E>
  std::vector<LayerScore> operator()(E& evaluator, std::optional<int64_t> keep = {}) const {
    return detail::ranked(evaluator.losses(removal_sets(evaluator.num_layers())), Direction::higher_is_better, keep,
                          confidence);
  }
};

/// The mean of the ranks by addition and by removal, with bootstrap intervals; the lowest rank is the most important.
/// Source: AVG-S2 of arXiv 2512.20569.
struct AverageRank {
  static constexpr std::string_view name = "average";
  double confidence = 0.95;
  uint64_t seed = 0;

  template <LayerSetEvaluator E>
  std::vector<LayerScore> operator()(E& evaluator, std::optional<int64_t> keep = {}) const {
    const int64_t layers = evaluator.num_layers();
    const std::vector<LossTable> tables{evaluator.losses(addition_sets(layers)),
                                        evaluator.losses(removal_sets(layers))};
    return bootstrap_scores(std::span<const LossTable>(tables), MeanRank{},
                            {.keep = keep, .confidence = confidence, .seed = seed});
  }
};

} // namespace hybridattn::select
