// What a race is asked (RaceOptions), what it asks for (Task) and what it tells (LayerScore, Cost).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <hybridattn/select/verdicts.h>

namespace hybridattn::select {

/// exhaustive: every candidate trains to the end (the published procedure). racing: a candidate stops with its verdict.
/// jaccard: all candidates train in rounds and stop together once the best K hardly change from round to round (the
/// early stop of arXiv 2512.20569, which has no guarantee of error).
enum class RaceMode { exhaustive, racing, jaccard };

/// Which losses make a layer important: low ones when a candidate adds softmax to the layer, high ones when it takes it
/// away.
enum class Direction { lower_is_better, higher_is_better };

struct RaceOptions {
  int64_t num_layers = 0;           ///< layers of the model
  std::optional<int64_t> keep = {}; ///< K, how many are to be found; K >= candidates makes all of them "in".
                                    ///< An exhaustive race may leave it open and then gives no verdicts
  RaceMode mode = RaceMode::racing; ///< who stops when
  int64_t steps_per_round = 0;      ///< training steps between two scorings of a candidate; 0: max_steps at once
  int64_t max_steps = 0;            ///< training steps of a candidate at most; 0: scored once, untrained
  double confidence = 0.95;         ///< probability that no verdict of the whole race is wrong, in (0.5, 1)
  int64_t min_rounds = 1;           ///< no verdict before this many rounds
  double jaccard_threshold = 0.9;   ///< jaccard: stop at this similarity of the best K of successive rounds, in (0, 1]
  int64_t jaccard_window = 2;       ///< jaccard: of the mean of so many successive similarities
  bool growing = false; ///< a round scores on more sequences than the one before, instead of after more training; its
                        ///< steps then count blocks of sequences
  Direction direction = Direction::lower_is_better;
  std::vector<int64_t> candidates = {}; ///< the layers that compete; empty: all

  bool operator==(const RaceOptions&) const = default;
};

/// Train the candidate of `layer` from `from_step` to `to_step`, then record its held-out losses.
struct Task {
  int64_t layer;
  int64_t from_step;
  int64_t to_step;

  bool operator==(const Task&) const = default;
};

struct LayerScore {
  int64_t layer;
  double score; ///< mean held-out loss at the last recorded step; NaN when never scored or diverged
  double low;   ///< t interval of that mean at the race's confidence, for this layer alone; verdicts come from paired
  double high;  ///< differences, which are sharper
  Verdict verdict;
  int64_t steps;      ///< training steps done
  std::string reason; ///< why a verdict was not won by comparison; empty otherwise
};

/// What a race has spent so far.
struct Cost {
  double tokens = 0;
  double flops = 0;
  int64_t steps = 0;            ///< training steps of all candidates
  int64_t exhaustive_steps = 0; ///< what the exhaustive procedure takes

  bool operator==(const Cost&) const = default;
};

namespace detail {

inline void race_check(bool condition, const std::string& message) {
  if (!condition)
    throw std::invalid_argument("Race: " + message);
}

} // namespace detail

/// Checks and completes options: candidates listed, steps_per_round set.
/// @throws std::invalid_argument naming the field, what was expected and what came
inline RaceOptions validated(RaceOptions options) {
  using detail::race_check;
  race_check(options.num_layers >= 1, fmt::format("num_layers is {}, expected at least 1", options.num_layers));
  race_check(options.keep || options.mode == RaceMode::exhaustive,
             "keep is not set; racing and jaccard need to know how many to find");
  race_check(options.keep.value_or(0) >= 0, fmt::format("keep is {}, expected at least 0", options.keep.value_or(0)));
  race_check(options.max_steps >= 0, fmt::format("max_steps is {}, expected at least 0", options.max_steps));
  race_check(options.steps_per_round >= 0,
             fmt::format("steps_per_round is {}, expected at least 0", options.steps_per_round));
  race_check(options.confidence > 0.5 && options.confidence < 1,
             fmt::format("confidence is {}, expected a value in (0.5, 1)", options.confidence));
  race_check(options.min_rounds >= 1, fmt::format("min_rounds is {}, expected at least 1", options.min_rounds));
  race_check(options.jaccard_threshold > 0 && options.jaccard_threshold <= 1,
             fmt::format("jaccard_threshold is {}, expected a value in (0, 1]", options.jaccard_threshold));
  race_check(options.jaccard_window >= 1,
             fmt::format("jaccard_window is {}, expected at least 1", options.jaccard_window));
  if (options.steps_per_round == 0 || options.steps_per_round > options.max_steps)
    options.steps_per_round = options.max_steps;
  if (options.candidates.empty())
    for (int64_t layer = 0; layer < options.num_layers; ++layer)
      options.candidates.push_back(layer);
  const std::set<int64_t> distinct(options.candidates.begin(), options.candidates.end());
  race_check(distinct.size() == options.candidates.size(), "candidates name a layer twice");
  race_check(*distinct.begin() >= 0 && *distinct.rbegin() < options.num_layers,
             fmt::format("candidates reach from {} to {}, the model has layers 0 to {}", *distinct.begin(),
                         *distinct.rbegin(), options.num_layers - 1));
  return options;
}

/// Rounds that a candidate runs when nothing stops it.
inline int64_t num_rounds(const RaceOptions& options) {
  return options.max_steps == 0 ? 1 : (options.max_steps + options.steps_per_round - 1) / options.steps_per_round;
}

/// How often verdicts are won by comparison: after each round from min_rounds on when racing, once at the end
/// otherwise. Each of these looks may spend an equal share of the error 1 - confidence, so that all of them together
/// keep the race's confidence.
inline int64_t num_looks(const RaceOptions& options) {
  if (options.mode != RaceMode::racing)
    return 1;
  return std::max<int64_t>(1, num_rounds(options) - options.min_rounds + 1);
}

/// The level of each one-sided comparison in one look. `complete`: every candidate is still in the comparison.
inline double comparison_level(const RaceOptions& options, bool complete) {
  const auto n = static_cast<int64_t>(options.candidates.size());
  const int64_t places = std::min(options.keep.value_or(n), n);
  const double look = (1 - options.confidence) / static_cast<double>(num_looks(options));
  return look / static_cast<double>(harmful_comparisons(n, places, complete));
}

/// The fewest held-out sequences with which a race can reach verdicts: a difference of 1.5 standard deviations between
/// sequences must be significant after correction for all comparisons and looks.
inline int64_t minimum_sequences(const RaceOptions& options) {
  const double level = comparison_level(options, false);
  for (int64_t n = 3;; ++n)
    if (student_t_quantile(level, static_cast<double>(n - 1)) <= 1.5 * std::sqrt(static_cast<double>(n)))
      return n;
}

} // namespace hybridattn::select
