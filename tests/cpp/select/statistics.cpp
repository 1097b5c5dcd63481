// Student t against values of 30 digits precision, intervals and paired differences against hand calculations.
#include "hybridattn/select/statistics.h"
#include "catch.h"

#include <random>

using namespace hybridattn::select;

namespace {

struct Reference {
  double dof, tail, quantile;
};

// Incomplete beta function with 30 digits (mpmath), bisected.
const Reference references[] = {
    {1, 0.025, 12.706204736174705},  {1, 1e-5, 31830.988607907092},  {2, 0.025, 4.3026527297494639},
    {2, 1e-9, 22360.679741456877},   {5, 0.025, 2.5705818356363155}, {5, 1e-5, 15.546854534954756},
    {15, 0.025, 2.1314495455597757}, {15, 1e-5, 6.1088678950254425}, {15, 1e-9, 12.692733381138856},
    {63, 0.001, 3.2247087385453938}, {63, 1e-9, 6.9998123204750717}, {500, 0.025, 1.9647198374673678},
    {500, 1e-9, 6.1104699508084925},
};

Eigen::VectorXd normal_sample(int64_t n, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  return Eigen::VectorXd::NullaryExpr(n, [&] { return normal(generator); });
}

} // namespace

TEST_CASE("student_t_quantile/agrees with tabulated values far into the tail") {
  for (const Reference& reference : references) {
    CAPTURE(reference.dof, reference.tail);
    CHECK(student_t_quantile(reference.tail, reference.dof) == Approx(reference.quantile).epsilon(1e-9));
    CHECK(student_t_tail(reference.quantile, reference.dof) == Approx(reference.tail).epsilon(1e-9));
  }
  CHECK(student_t_quantile(0.5, 7) == Approx(0).margin(1e-12));
}

TEST_CASE("student_t_tail/is symmetric and keeps its precision") {
  CHECK(student_t_tail(8, 30) == Approx(3.1329112378503795e-9).epsilon(1e-9));
  CHECK(student_t_tail(-2, 10) == Approx(1 - 0.036694017385370183));
  CHECK(student_t_tail(0, 3) == Approx(0.5));
  CHECK(student_t_tail(INFINITY, 3) == 0);
  CHECK(student_t_tail(-INFINITY, 3) == 1);
}

TEST_CASE("student_t_quantile/refuses what is no tail") {
  for (double tail : {0.0, 0.6, -1.0, std::nan("")})
    CHECK_THROWS_AS(student_t_quantile(tail, 5), std::invalid_argument);
  CHECK_THROWS_AS(student_t_quantile(0.1, 0.5), std::invalid_argument);
}

TEST_CASE("confidence_interval/mean 3, standard error sqrt(2.5 / 5), t(0.975, 4)") {
  const Eigen::VectorXd sample = Eigen::VectorXd::LinSpaced(5, 1, 5);
  const Interval interval = confidence_interval(mean_error(sample), 0.95);
  CHECK(interval.low == Approx(3 - 2.7764451051977987 * std::sqrt(0.5)));
  CHECK(interval.high == Approx(3 + 2.7764451051977987 * std::sqrt(0.5)));
  CHECK(std::isinf(confidence_interval(mean_error(sample.head(1)), 0.95).high));
  CHECK_THROWS_AS(mean_error(Eigen::VectorXd()), std::invalid_argument);
}

TEST_CASE("paired_difference/removes what the sequences have in common") {
  const Eigen::VectorXd difficulty = 100 * normal_sample(20, 1);
  const Eigen::VectorXd noise = 0.1 * normal_sample(20, 2);
  const Eigen::VectorXd better = difficulty + noise;
  const Eigen::VectorXd worse = difficulty + Eigen::VectorXd::Constant(20, 0.5);
  const PairedDifference difference = paired_difference(better, worse);
  const MeanError expected = mean_error(noise - Eigen::VectorXd::Constant(20, 0.5));
  CHECK(difference.mean == Approx(expected.mean));
  CHECK(difference.statistic == Approx(expected.mean / expected.error));
  CHECK(difference.tail < 1e-9);
  CHECK(paired_difference(worse, better).tail > 1 - 1e-9);
}

TEST_CASE("paired_difference/equal losses decide nothing, a constant difference everything") {
  const Eigen::VectorXd losses = normal_sample(8, 3);
  CHECK(paired_difference(losses, losses).statistic == 0);
  CHECK(paired_difference(losses, losses).tail == Approx(0.5));
  const Eigen::VectorXd zero = Eigen::VectorXd::Zero(8);
  const Eigen::VectorXd one = Eigen::VectorXd::Ones(8);
  CHECK(paired_difference(zero, one).tail == 0);
  CHECK(paired_difference(one, zero).tail == 1);
  CHECK_THROWS_AS(paired_difference(zero, one.head(7)), std::invalid_argument);
  CHECK_THROWS_AS(paired_difference(zero.head(1), one.head(1)), std::invalid_argument);
}
