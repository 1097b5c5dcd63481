// Schedule: the learning rate's multiplier at a step, with linear warm-up.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>
#include <string>

#include "hybridattn/core/check.h"

namespace hybridattn::distill {

/// A multiplier of the learning rate over a stage. With f = `final_ratio` and p = step / total in [0, 1):
///   constant        1
///   linear          1 + (f - 1) p
///   cosine          f + (1 - f) (1 + cos(pi p)) / 2
///   quarter_cosine  f + (1 - f) cos(pi p / 2)            (RADLADS, arXiv 2505.03005, step 1)
///   s_cos_s         1 until p = anneal_start, a half cosine down to f at p = anneal_end, then f (RADLADS, step 2a)
/// During the first `warmup_steps` steps it is multiplied by a line from `warmup_start` to 1.
/// p never reaches 1: a schedule that falls to 0 spends no step on a rate of 0.
///
/// Example:
///   Schedule schedule{.kind = "cosine", .warmup_steps = 50, .warmup_start = 0.01};
///   const double lr = 1e-3 * schedule.at(step, total_steps);
struct Schedule {
  std::string kind = "constant"; ///< constant, linear, cosine, quarter_cosine or s_cos_s
  int64_t warmup_steps = 0;      ///< steps of the warm-up; 0 = none
  double warmup_start = 0;       ///< share of the rate at step 0 of the warm-up, in [0, 1]
  double final_ratio = 0;        ///< f, the multiplier at the end
  double anneal_start = 0;       ///< s_cos_s: p where the descent begins
  double anneal_end = 1;         ///< s_cos_s: p where it ends

  /// @throws c10::ValueError naming the field that is out of range
  void check() const {
    HA_CHECK(kind == "constant" || kind == "linear" || kind == "cosine" || kind == "quarter_cosine" ||
                 kind == "s_cos_s",
             "Schedule: kind is '", kind, "', expected constant, linear, cosine, quarter_cosine or s_cos_s");
    HA_CHECK(warmup_steps >= 0, "Schedule: warmup_steps is ", warmup_steps, ", expected >= 0");
    HA_CHECK(warmup_start >= 0 && warmup_start <= 1, "Schedule: warmup_start is ", warmup_start, ", expected 0 to 1");
    HA_CHECK(final_ratio >= 0, "Schedule: final_ratio is ", final_ratio, ", expected >= 0");
    HA_CHECK(0 <= anneal_start && anneal_start <= anneal_end && anneal_end <= 1, "Schedule: anneal_start ",
             anneal_start, " and anneal_end ", anneal_end, " must satisfy 0 <= start <= end <= 1");
  }

  /// The multiplier for step `step` (from 0) of `total`.
  /// @throws c10::ValueError unless 0 <= step <= total and total >= 1, or for a field out of range
  double at(int64_t step, int64_t total) const {
    check();
    HA_CHECK(total >= 1 && 0 <= step && step <= total, "Schedule: step ", step, " is not in 0 to total ", total);
    const double p = static_cast<double>(step) / static_cast<double>(total);
    const double warmup = step < warmup_steps ? warmup_start + (1 - warmup_start) * static_cast<double>(step) /
                                                                   static_cast<double>(warmup_steps)
                                              : 1;
    return warmup * (final_ratio + (1 - final_ratio) * height(p));
  }

private:
  /// 1 at the start, 0 where the schedule has come down to `final_ratio`.
  double height(double p) const {
    constexpr double pi = std::numbers::pi;
    if (kind == "linear")
      return 1 - p;
    if (kind == "cosine")
      return (1 + std::cos(pi * p)) / 2;
    if (kind == "quarter_cosine")
      return std::cos(pi * p / 2);
    if (kind == "s_cos_s") {
      if (p < anneal_start)
        return 1;
      if (p >= anneal_end)
        return 0;
      return (1 + std::cos(pi * (p - anneal_start) / (anneal_end - anneal_start))) / 2;
    }
    return 1;
  }
};

} // namespace hybridattn::distill
