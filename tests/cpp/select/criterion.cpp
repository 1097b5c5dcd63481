// Criteria and searches over losses in which two layers help only together, over ties, one layer and divergence.
#include "hybridattn/select/criterion.h"
#include "catch.h"
#include "hybridattn/select/search.h"

#include <functional>
#include <set>

using namespace hybridattn::select;

namespace {

/// Losses by formula; noise per sequence is the same for all sets, so differences are exact, as on a quiet model.
struct Formula {
  int64_t layers = 8;
  std::function<double(const std::set<int64_t>&)> loss;
  int64_t asked = 0;

  int64_t num_layers() const { return layers; }
  LossTable losses(const std::vector<Plan>& sets) {
    LossTable table;
    for (const Plan& kept : sets) {
      SplitMix64 noise(7);
      std::vector<double> row;
      for (int i = 0; i < 16; ++i)
        row.push_back(loss(std::set<int64_t>(kept.begin(), kept.end())) + 0.1 * noise.uniform());
      table.push_back(row);
      ++asked;
    }
    return table;
  }
};

/// 2 and 3 together carry 2.5 nats, 2 alone carries 0.5, layer 0 a little.
Formula pair() {
  return {8, [](const std::set<int64_t>& kept) {
            const double both = kept.count(2) && kept.count(3) ? 2.5 : 0;
            return 4 - 0.02 * static_cast<double>(kept.size()) - 0.5 * static_cast<double>(kept.count(2)) -
                   0.03 * static_cast<double>(kept.count(0)) - both;
          }};
}

Plan top(const std::vector<LayerScore>& scores, size_t count) {
  Plan plan;
  for (size_t i = 0; i < count; ++i)
    plan.push_back(scores[i].layer);
  std::sort(plan.begin(), plan.end());
  return plan;
}

template <class C>
void check_counts(const C& criterion) {
  for (int64_t layers : {1, 5}) {
    for (int64_t keep : {int64_t{0}, int64_t{1}, layers}) {
      Formula equal{layers, [](const std::set<int64_t>&) { return 1.0; }};
      const auto scores = criterion(equal, keep);
      REQUIRE(static_cast<int64_t>(scores.size()) == layers);
      for (size_t i = 0; i < scores.size(); ++i)
        CHECK(scores[i].layer == static_cast<int64_t>(i)); // all equal: the lower layer first
    }
  }
}

} // namespace

static_assert(LayerSetEvaluator<Formula>);
static_assert(!LayerSetEvaluator<int>);
static_assert(Criterion<Addition, Formula> && Criterion<Removal, Formula> && Criterion<AverageRank, Formula>);

TEST_CASE("criterion/addition misses a pair that removal finds") {
  Formula losses = pair();
  CHECK(top(Addition{}(losses, 2), 2) == Plan{0, 2});
  CHECK(top(Removal{}(losses, 2), 2) == Plan{2, 3});
  CHECK(losses.asked == 16);
  for (const LayerScore& score : Removal{}(losses, 2))
    CHECK(score.verdict == (score.layer == 2 || score.layer == 3 ? Verdict::in : Verdict::out));
}

TEST_CASE("criterion/the mean of ranks lies between, with an interval around it") {
  Formula losses = pair();
  const auto scores = AverageRank{}(losses, 1);
  CHECK(scores.front().layer == 2);
  CHECK(scores.front().score == 1); // first by both
  CHECK(scores.front().verdict == Verdict::in);
  for (const LayerScore& score : scores) {
    CHECK(score.low <= score.score);
    CHECK(score.high >= score.score);
  }
}

TEST_CASE("criterion/all layers equal, one layer, K = 0 and K = L") {
  check_counts(Addition{});
  check_counts(Removal{});
  check_counts(AverageRank{});
  Formula equal{6, [](const std::set<int64_t>&) { return 1.0; }};
  for (const LayerScore& score : Removal{}(equal, 2))
    CHECK(score.verdict == Verdict::open); // nobody may be told from anybody
  for (const LayerScore& score : AverageRank{}(equal, 2)) {
    CHECK(score.score == 3.5);
    CHECK(score.verdict == Verdict::open);
  }
}

TEST_CASE("criterion/a candidate that diverges is out with the reason") {
  Formula losses{4, [](const std::set<int64_t>& kept) { return kept.count(1) ? std::nan("") : 1.0; }};
  const auto scores = Addition{}(losses, 2);
  CHECK(scores.back().layer == 1);
  CHECK(scores.back().verdict == Verdict::out);
  CHECK(scores.back().reason.find("not finite") != std::string::npos);
}

TEST_CASE("criterion/ranks share the mean of equal places") {
  Eigen::VectorXd values(5);
  values << 3, 1, 3, 0, 3;
  Eigen::VectorXd expected(5);
  expected << 4, 2, 4, 1, 4;
  CHECK(fractional_ranks(values) == expected);
}

TEST_CASE("criterion/bootstrap intervals cover the mean of a population as often as they say") {
  // The statistic is the mean itself, so that the truth is known; 20 values of a normal sum.
  int covered = 0;
  constexpr int runs = 400;
  for (int run = 0; run < runs; ++run) {
    SplitMix64 noise(static_cast<uint64_t>(run));
    LossTable table(1);
    for (int i = 0; i < 40; ++i) {
      double sum = 0;
      for (int j = 0; j < 12; ++j)
        sum += noise.uniform();
      table[0].push_back(sum - 6);
    }
    auto mean = [](std::span<const Eigen::VectorXd> means) { return means[0]; };
    const auto score = bootstrap_scores(std::span<const LossTable>(&table, 1), mean, {.resamples = 500}).front();
    covered += score.low <= 0 && 0 <= score.high;
  }
  CHECK(std::abs(covered - 0.95 * runs) < 0.04 * runs);
}

TEST_CASE("criterion/tables that do not fit are named") {
  auto refusal = [](const std::vector<LossTable>& tables, const BootstrapOptions& options) -> std::string {
    try {
      bootstrap_scores(std::span<const LossTable>(tables), MeanRank{}, options);
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "accepted";
  };
  const LossTable two{{1, 2}, {3, 4}};
  CHECK(refusal({two, {{1, 2}}}, {}).find("the same layers") != std::string::npos);
  CHECK(refusal({two, {{1, 2, 3}, {1, 2, 3}}}, {}).find("the same sequences") != std::string::npos);
  CHECK(refusal({{{1}, {2}}}, {}).find("2 layers and 1 sequences") != std::string::npos);
  CHECK(refusal({two, two}, {.keep = 3}).find("keep is 3, expected 0 to 2") != std::string::npos);
}

TEST_CASE("search/sequential addition finds the pair and swaps repair a wrong start") {
  Formula losses = pair();
  CHECK(sequential_addition(losses, 2).layers == Plan{2, 3});
  CHECK(sequential_addition(losses, 2).history.at(1).what == "add layer 3");
  CHECK(swap_refinement(losses, {0, 2}).layers == Plan{2, 3});
  CHECK(swap_refinement(losses, {2, 3}).history.size() == 1);
  for (int64_t keep : {0, 8}) {
    CHECK(sequential_addition(losses, keep).layers == first_plan(8, keep));
    CHECK(swap_refinement(losses, first_plan(8, keep)).layers == first_plan(8, keep));
  }
}

TEST_CASE("search/candidates that diverge are never chosen") {
  Formula losses{4, [](const std::set<int64_t>& kept) {
                   return kept.count(3) ? std::nan("") : 4.0 - static_cast<double>(kept.count(1));
                 }};
  CHECK(sequential_addition(losses, 3).layers == Plan{0, 1, 2});
  CHECK(swap_refinement(losses, {0}).layers == Plan{1});
  Formula none{2, [](const std::set<int64_t>&) { return std::nan(""); }};
  CHECK_THROWS_AS(sequential_addition(none, 1), std::invalid_argument);
}
