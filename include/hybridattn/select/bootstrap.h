// Scores that are functions of several means (mean ranks, ratios): their intervals and verdicts by the bootstrap.
#pragma once

#include <concepts>
#include <limits>
#include <span>

#include <hybridattn/select/race_options.h>
#include <hybridattn/select/random.h>

namespace hybridattn::select {

/// One loss per set of layers and held-out sequence: `losses[set][sequence]`.
using LossTable = std::vector<std::vector<double>>;

/// From the mean of each table per layer to a score per layer.
template <class S>
concept LayerStatistic = requires(const S& statistic, std::span<const Eigen::VectorXd> means) {
  { statistic(means) } -> std::convertible_to<Eigen::VectorXd>;
};

struct BootstrapOptions {
  std::optional<int64_t> keep = {}; ///< K; without it there are no verdicts
  Direction direction = Direction::lower_is_better;
  double confidence = 0.95; ///< of each interval, and that no verdict is wrong (Bonferroni over the layers)
  bool paired = true;       ///< the tables' columns are the same sequences, so they are drawn together
  int64_t resamples = 2000;
  uint64_t seed = 0;
};

namespace detail {

inline Eigen::MatrixXd as_matrix(const LossTable& table) {
  const auto rows = static_cast<Eigen::Index>(table.size());
  const auto columns = static_cast<Eigen::Index>(table.empty() ? 0 : table.front().size());
  race_check(rows >= 1 && columns >= 2,
             fmt::format("bootstrap: a table of {} layers and {} sequences; expected at least "
                         "1 and 2",
                         rows, columns));
  Eigen::MatrixXd matrix(rows, columns);
  for (Eigen::Index i = 0; i < rows; ++i) {
    const auto& row = table[static_cast<size_t>(i)];
    race_check(static_cast<Eigen::Index>(row.size()) == columns,
               fmt::format("bootstrap: layer {} has {} values, layer 0 has {}", i, row.size(), columns));
    matrix.row(i) = Eigen::Map<const Eigen::RowVectorXd>(row.data(), columns);
  }
  return matrix;
}

/// Layers from most to least important; the lower layer first on a tie, values that are not finite last.
inline std::vector<int64_t> order_of(const Eigen::VectorXd& scores, Direction direction) {
  const double sign = direction == Direction::lower_is_better ? 1 : -1;
  auto key = [&](int64_t layer) {
    const double score = scores[layer];
    return std::isfinite(score) ? sign * score : std::numeric_limits<double>::infinity();
  };
  std::vector<int64_t> order(static_cast<size_t>(scores.size()));
  for (size_t i = 0; i < order.size(); ++i)
    order[i] = static_cast<int64_t>(i);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return key(a) < key(b); });
  return order;
}

/// How many other layers score better, and how many as well.
inline std::pair<int64_t, int64_t> others(const Eigen::VectorXd& scores, Eigen::Index layer, Direction direction) {
  const double sign = direction == Direction::lower_is_better ? 1 : -1;
  const auto better = (sign * scores.array() < sign * scores[layer]).count();
  return {better, (scores.array() == scores[layer]).count() - 1};
}

/// Weighted sums of the rows, each added up in the same order: equal rows have equal sums, to the bit.
inline Eigen::VectorXd weighted_sums(const Eigen::MatrixXd& sample, const Eigen::VectorXd& weights) {
  Eigen::VectorXd sums = Eigen::VectorXd::Zero(sample.rows());
  for (Eigen::Index column = 0; column < sample.cols(); ++column)
    for (Eigen::Index row = 0; row < sample.rows(); ++row)
      sums[row] += weights[column] * sample(row, column);
  return sums;
}

inline double quantile(std::vector<double> sorted, double q) {
  const double place = q * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(place);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (place - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

} // namespace detail

/// Layers by `statistic` of the tables' means, most important first, with percentile intervals over resampled
/// sequences.
///
/// A layer is "in" if it is among the best K in all resamples but a share of (1 - confidence) / layers, "out" if it is
/// not so in as many, else "open"; a resample in which it ties for the last place counts for neither.
/// Source: Efron, "Bootstrap methods", Annals of Statistics 7 (1979); percentile intervals.
/// @throws std::invalid_argument if the tables' shapes disagree or an option is out of range
template <LayerStatistic S>
std::vector<LayerScore> bootstrap_scores(std::span<const LossTable> tables, const S& statistic,
                                         const BootstrapOptions& options = {}) {
  detail::race_check(!tables.empty(), "bootstrap: no table");
  detail::race_check(options.confidence > 0.5 && options.confidence < 1,
                     fmt::format("bootstrap: confidence is {}, expected in (0.5, 1)", options.confidence));
  std::vector<Eigen::MatrixXd> samples;
  for (const LossTable& table : tables) {
    samples.push_back(detail::as_matrix(table));
    detail::race_check(samples.back().rows() == samples.front().rows() &&
                           (!options.paired || samples.back().cols() == samples.front().cols()),
                       "bootstrap: the tables must have the same layers, and the same sequences when paired");
  }
  const Eigen::Index layers = samples.front().rows();
  const int64_t keep = options.keep.value_or(0);
  detail::race_check(keep >= 0 && keep <= layers, fmt::format("bootstrap: keep is {}, expected 0 to {}", keep, layers));

  std::vector<Eigen::VectorXd> means;
  for (const Eigen::MatrixXd& sample : samples)
    means.push_back(detail::weighted_sums(
        sample, Eigen::VectorXd::Constant(sample.cols(), 1.0 / static_cast<double>(sample.cols()))));
  const Eigen::VectorXd score = statistic(std::span<const Eigen::VectorXd>(means));

  std::vector<std::vector<double>> drawn(static_cast<size_t>(layers));
  std::vector<int64_t> among(static_cast<size_t>(layers), 0);
  std::vector<int64_t> outside(static_cast<size_t>(layers), 0);
  SplitMix64 random(options.seed);
  for (int64_t resample = 0; resample < options.resamples; ++resample) {
    Eigen::VectorXd weights;
    for (size_t t = 0; t < samples.size(); ++t) {
      const Eigen::Index columns = samples[t].cols();
      if (t == 0 || !options.paired) {
        weights = Eigen::VectorXd::Zero(columns);
        for (Eigen::Index i = 0; i < columns; ++i)
          weights[random.below(columns)] += 1.0 / static_cast<double>(columns);
      }
      means[t] = detail::weighted_sums(samples[t], weights);
    }
    const Eigen::VectorXd scores = statistic(std::span<const Eigen::VectorXd>(means));
    for (Eigen::Index layer = 0; layer < layers; ++layer)
      drawn[static_cast<size_t>(layer)].push_back(scores[layer]);
    for (Eigen::Index layer = 0; layer < layers; ++layer) {
      const auto [better, as_good] = detail::others(scores, layer, options.direction);
      among[static_cast<size_t>(layer)] += better + as_good < keep;
      outside[static_cast<size_t>(layer)] += better >= keep;
    }
  }

  const double tail = (1 - options.confidence) / 2;
  const double wrong = (1 - options.confidence) / static_cast<double>(layers);
  std::vector<LayerScore> result;
  for (int64_t layer : detail::order_of(score, options.direction)) {
    std::vector<double>& values = drawn[static_cast<size_t>(layer)];
    std::sort(values.begin(), values.end());
    const auto enough = [&](int64_t count) {
      return static_cast<double>(count) >= (1 - wrong) * static_cast<double>(options.resamples);
    };
    Verdict verdict = Verdict::open;
    if (options.keep && enough(among[static_cast<size_t>(layer)]))
      verdict = Verdict::in;
    else if (options.keep && enough(outside[static_cast<size_t>(layer)]))
      verdict = Verdict::out;
    result.push_back(
        {layer, score[layer], detail::quantile(values, tail), detail::quantile(values, 1 - tail), verdict, 0, ""});
  }
  return result;
}

/// Ranks from 1, equal values sharing the mean of their places.
inline Eigen::VectorXd fractional_ranks(const Eigen::VectorXd& values) {
  Eigen::VectorXd ranks(values.size());
  for (Eigen::Index i = 0; i < values.size(); ++i) {
    const auto lower = (values.array() < values[i]).count();
    const auto equal = (values.array() == values[i]).count();
    ranks[i] = static_cast<double>(lower) + 0.5 * (static_cast<double>(equal) + 1);
  }
  return ranks;
}

/// Mean of the ranks by addition (low losses first) and by removal (high losses first).
/// Source: AVG-S1 and AVG-S2 of arXiv 2512.20569.
struct MeanRank {
  Eigen::VectorXd operator()(std::span<const Eigen::VectorXd> means) const {
    return 0.5 * (fractional_ranks(means[0]) + fractional_ranks(-means[1]));
  }
};

} // namespace hybridattn::select
