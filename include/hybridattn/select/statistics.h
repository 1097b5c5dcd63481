// Student-t tails and quantiles, the interval of a mean, and paired differences of held-out losses.
#pragma once

#include <cmath>
#include <limits>
#include <stdexcept>

#include <Eigen/Core>
#include <fmt/format.h>

namespace hybridattn::select {

namespace detail {

/// Continued fraction of the incomplete beta function, by the modified Lentz method.
/// Source: DLMF 8.17.22; converges fast for x < (a + 1) / (a + b + 2).
inline double beta_fraction(double a, double b, double x) {
  constexpr double tiny = 1e-300;
  constexpr double precision = 1e-15;
  auto away_from_zero = [](double value) { return std::abs(value) < tiny ? tiny : value; };
  double c = 1;
  double d = 1 / away_from_zero(1 - (a + b) * x / (a + 1));
  double fraction = d;
  for (int m = 1; m < 10000; ++m) {
    const double even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
    const double odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
    double change = 1;
    for (double coefficient : {even, odd}) {
      d = 1 / away_from_zero(1 + coefficient * d);
      c = away_from_zero(1 + coefficient / c);
      change = c * d;
      fraction *= change;
    }
    if (std::abs(change - 1) < precision)
      break;
  }
  return fraction;
}

/// Regularised incomplete beta function I_x(a, b).
inline double incomplete_beta(double a, double b, double x) {
  if (x <= 0)
    return 0;
  if (x >= 1)
    return 1;
  const double log_front = std::lgamma(a + b) - std::lgamma(a) - std::lgamma(b) + a * std::log(x) + b * std::log1p(-x);
  if (x < (a + 1) / (a + b + 2))
    return std::exp(log_front) * beta_fraction(a, b, x) / a;
  return 1 - std::exp(log_front) * beta_fraction(b, a, 1 - x) / b;
}

} // namespace detail

/// P(T > t) of Student's t with `dof` degrees of freedom; keeps its relative precision far out in the tail.
inline double student_t_tail(double t, double dof) {
  if (std::isinf(t))
    return t > 0 ? 0 : 1;
  const double half = 0.5 * detail::incomplete_beta(dof / 2, 0.5, dof / (dof + t * t));
  return t >= 0 ? half : 1 - half;
}

/// The t that Student's t with `dof` degrees of freedom exceeds with probability `tail`.
/// @throws std::invalid_argument unless 0 < tail <= 0.5 and dof >= 1
inline double student_t_quantile(double tail, double dof) {
  if (!(tail > 0 && tail <= 0.5 && dof >= 1))
    throw std::invalid_argument(
        fmt::format("student_t_quantile: tail is {}, dof {}; expected 0 < tail <= 0.5 and dof >= 1", tail, dof));
  double low = 0;
  double high = 1;
  while (student_t_tail(high, dof) > tail) {
    low = high;
    high *= 2;
  }
  // Bisection to the last bit: a hundred tails cost less than one training step, and nothing can fail to converge.
  while (true) {
    const double middle = 0.5 * (low + high);
    if (middle <= low || middle >= high)
      return middle;
    (student_t_tail(middle, dof) > tail ? low : high) = middle;
  }
}

/// A sample's mean and the standard error of that mean.
struct MeanError {
  double mean;
  double error;
  Eigen::Index count;
};

/// @throws std::invalid_argument for an empty sample. A single value has an infinite error.
inline MeanError mean_error(const Eigen::Ref<const Eigen::VectorXd>& sample) {
  const Eigen::Index n = sample.size();
  if (n == 0)
    throw std::invalid_argument("mean_error: the sample is empty");
  const double mean = sample.mean();
  if (n == 1)
    return {mean, std::numeric_limits<double>::infinity(), n};
  const double variance = (sample.array() - mean).square().sum() / static_cast<double>(n - 1);
  return {mean, std::sqrt(variance / static_cast<double>(n)), n};
}

struct Interval {
  double low;
  double high;
};

/// Two-sided t interval of a mean at `confidence`.
inline Interval confidence_interval(const MeanError& sample, double confidence) {
  if (sample.count < 2)
    return {-std::numeric_limits<double>::infinity(), std::numeric_limits<double>::infinity()};
  const double half = student_t_quantile((1 - confidence) / 2, static_cast<double>(sample.count - 1)) * sample.error;
  return {sample.mean - half, sample.mean + half};
}

/// How far the losses `first` lie below `second`, sequence by sequence.
struct PairedDifference {
  double mean;      ///< of first - second; negative when `first` is lower
  double statistic; ///< t: mean over its standard error; infinite when all differences are equal and not zero
  double tail;      ///< one-sided p value of "first is lower": P(T > -statistic)
};

/// One-sided paired t test on losses of the same sequences. Pairing removes what makes a sequence hard for everyone.
/// @throws std::invalid_argument if the sizes differ or are below 2
inline PairedDifference paired_difference(const Eigen::Ref<const Eigen::VectorXd>& first,
                                          const Eigen::Ref<const Eigen::VectorXd>& second) {
  if (first.size() != second.size() || first.size() < 2)
    throw std::invalid_argument(
        fmt::format("paired_difference: samples have {} and {} losses; expected the same sequences, at least 2",
                    first.size(), second.size()));
  const MeanError difference = mean_error(first - second);
  double statistic = 0;
  if (difference.error > 0)
    statistic = difference.mean / difference.error;
  else if (difference.mean != 0)
    statistic = std::copysign(std::numeric_limits<double>::infinity(), difference.mean);
  return {difference.mean, statistic, student_t_tail(-statistic, static_cast<double>(first.size() - 1))};
}

} // namespace hybridattn::select
