// Who is surely among the best K: verdicts from paired losses, and how much error each comparison may spend.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include <hybridattn/select/statistics.h>

namespace hybridattn::select {

enum class Verdict { open, in, out };

/// How many one-sided comparisons can make a verdict wrong when the best `places` of `candidates` are sought.
///
/// A wrong "in" needs one candidate of the true best K to be found surely worse than one that is not of them, and so
/// does a wrong "out" (the others alone are too few). So only K (n - K) comparisons can do harm, whichever the true
/// best are. That holds while all candidates still run (`complete`). Once some were stopped, who is left depends on the
/// data, and only the family of all n (n - 1) / 2 pairs, of which each can be wrong in one direction, covers every set
/// that may be left.
inline int64_t harmful_comparisons(int64_t candidates, int64_t places, bool complete) {
  const int64_t boundary = places * (candidates - places);
  return std::max<int64_t>(1, complete ? boundary : candidates * (candidates - 1) / 2);
}

/// Verdicts for the rows of `losses [candidates, sequences]`, lower being better: "in" if surely better than all but
/// fewer than `places` others, "out" if at least `places` others are surely better, otherwise "open".
///
/// "Surely" is a one-sided paired t test at level `tail`. With `tail` = error / harmful_comparisons the chance that any
/// verdict contradicts the ranking by expected loss is at most `error` (Bonferroni: valid under any dependence between
/// the comparisons; exact t distribution for normal differences).
/// @throws std::invalid_argument for fewer than two sequences
inline std::vector<Verdict> top_k_verdicts(const Eigen::MatrixXd& losses, int64_t places, double tail) {
  const Eigen::Index n = losses.rows();
  std::vector<Verdict> verdicts(static_cast<size_t>(n), Verdict::open);
  std::vector<int64_t> better(verdicts.size(), 0); // how many others are surely better
  std::vector<int64_t> worse(verdicts.size(), 0);  // how many others are surely worse
  const double critical = student_t_quantile(tail, static_cast<double>(losses.cols() - 1));
  for (Eigen::Index i = 0; i < n; ++i) {
    for (Eigen::Index j = i + 1; j < n; ++j) {
      const double statistic = paired_difference(losses.row(i).transpose(), losses.row(j).transpose()).statistic;
      if (std::abs(statistic) <= critical)
        continue;
      ++worse[static_cast<size_t>(statistic < 0 ? i : j)];
      ++better[static_cast<size_t>(statistic < 0 ? j : i)];
    }
  }
  for (size_t i = 0; i < verdicts.size(); ++i) {
    if (better[i] >= places)
      verdicts[i] = Verdict::out;
    else if (worse[i] >= static_cast<int64_t>(n) - places)
      verdicts[i] = Verdict::in;
  }
  return verdicts;
}

} // namespace hybridattn::select
