// The published early stop: all candidates train in rounds until the best K hardly change.
#include "catch.h"
#include "hybridattn/select/race_state.h"

#include <cmath>

using namespace hybridattn::select;
using nlohmann::json;

namespace {

/// Mean loss of each layer after each round; candidate 0 is the best where losses are low.
using Means = std::vector<std::vector<double>>;

std::vector<double> around(double mean) {
  return {mean - 0.1, mean + 0.1, mean - 0.05, mean + 0.05};
}

RaceOptions jaccard(int64_t layers, int64_t keep, int64_t window) {
  return {.num_layers = layers,
          .keep = keep,
          .mode = RaceMode::jaccard,
          .steps_per_round = 10,
          .max_steps = 60,
          .jaccard_window = window};
}

void advance(Race& race, const Means& means) {
  const auto task = race.next();
  REQUIRE(task);
  race.record(task->layer,
              around(means[static_cast<size_t>(task->to_step / 10 - 1)][static_cast<size_t>(task->layer)]));
}

std::vector<Task> run(Race& race, const Means& means) {
  std::vector<Task> tasks;
  while (const auto task = race.next()) {
    tasks.push_back(*task);
    advance(race, means);
  }
  return tasks;
}

std::vector<int64_t> with(const Race& race, Verdict verdict) {
  std::vector<int64_t> layers;
  for (const auto& candidate : race.candidates())
    if (candidate.verdict == verdict)
      layers.push_back(candidate.layer);
  return layers;
}

/// Layers 0 and 1 lead from round 3 on; before, others do.
const Means settling{{4, 3, 2, 1}, {1, 3, 2, 4}, {1, 2, 3, 4}, {1, 2, 3, 4}, {2, 1, 4, 3}, {4, 3, 2, 1}};

} // namespace

TEST_CASE("agreement/Jaccard similarity of sets") {
  CHECK((jaccard_similarity({1, 2, 3}, {1, 2, 3}) == 1));
  CHECK((jaccard_similarity({1, 2, 3}, {2, 3, 4}) == 0.5));
  CHECK((jaccard_similarity({1, 2}, {3, 4}) == 0));
  CHECK((jaccard_similarity({}, {}) == 1));
  CHECK((jaccard_similarity({}, {1}) == 0));
}

TEST_CASE("agreement/settled is a mean over the window that reaches the threshold") {
  const std::vector<double> similarities{0, 0.8, 1.0};
  CHECK(has_settled(similarities, 1, 1.0));
  CHECK(has_settled(similarities, 2, 0.9));
  CHECK(!has_settled(similarities, 2, 0.95));
  CHECK(!has_settled(similarities, 3, 0.9));
  CHECK(!has_settled(similarities, 4, 0.1));
}

TEST_CASE("agreement/all stop together when the best K hardly change") {
  Race race(jaccard(4, 2, 1));
  const std::vector<Task> tasks = run(race, settling);
  REQUIRE((tasks.size() == 16));
  CHECK((tasks[3] == Task{3, 0, 10})); // all advance together
  CHECK((tasks[4] == Task{0, 10, 20}));
  CHECK((race.agreement() == std::vector<double>{1.0 / 3, 1.0 / 3, 1.0}));
  CHECK((with(race, Verdict::in) == std::vector<int64_t>{0, 1}));
  CHECK((with(race, Verdict::out) == std::vector<int64_t>{2, 3}));
  CHECK((race.candidates()[2].reason == "settled: the best 2 hardly changed up to round 4"));
  CHECK((race.cost().steps == 160));
  CHECK((race.cost().exhaustive_steps == 240));

  Race longer(jaccard(4, 2, 2));
  CHECK((run(longer, settling).size() == 20)); // two similarities in a row
  RaceOptions guarded = jaccard(4, 2, 1);
  guarded.min_rounds = 5;
  Race late(guarded);
  CHECK((run(late, settling).size() == 20));
  RaceOptions low = jaccard(4, 2, 1);
  low.jaccard_threshold = 0.3;
  Race early(low);
  CHECK((run(early, settling).size() == 8));
}

TEST_CASE("agreement/high losses matter when candidates take softmax away") {
  RaceOptions options = jaccard(4, 2, 1);
  options.direction = Direction::higher_is_better;
  Race race(options);
  CHECK((run(race, settling).size() == 16));
  CHECK((with(race, Verdict::in) == std::vector<int64_t>{2, 3}));
  CHECK((race.ranking().front().layer == 3));
}

TEST_CASE("agreement/a race that never settles ends with the exhaustive verdicts") {
  const Means restless{{1, 2, 3, 4}, {4, 3, 2, 1}, {1, 2, 3, 4}, {4, 3, 2, 1}, {1, 2, 3, 4}, {9, 8, 2, 1}};
  Race race(jaccard(4, 2, 1));
  CHECK((run(race, restless).size() == 24));
  RaceOptions options = jaccard(4, 2, 1);
  options.mode = RaceMode::exhaustive;
  Race exhaustive(options);
  run(exhaustive, restless);
  CHECK((with(race, Verdict::in) == std::vector<int64_t>{2, 3}));
  CHECK((with(race, Verdict::in) == with(exhaustive, Verdict::in)));
  CHECK(race.candidates()[3].reason.empty());
}

TEST_CASE("agreement/equal candidates settle on the lower layers") {
  const Means equal(6, std::vector<double>(5, 1.0));
  Race race(jaccard(5, 2, 2));
  CHECK((run(race, equal).size() == 15));
  CHECK((with(race, Verdict::in) == std::vector<int64_t>{0, 1}));
  CHECK((race.ranking().front().layer == 0));
}

TEST_CASE("agreement/places for all or for none need no training") {
  for (int64_t keep : {0, 4, 9}) {
    Race race(jaccard(4, keep, 1));
    CHECK(race.done());
    CHECK((with(race, keep == 0 ? Verdict::out : Verdict::in).size() == 4));
  }
}

TEST_CASE("agreement/a candidate that diverges leaves the best K and the others go on") {
  Means means = settling;
  for (size_t round = 3; round < means.size(); ++round)
    means[round] = {std::nan(""), 2, 3, 4};
  Race race(jaccard(4, 2, 1));
  CHECK((run(race, means).size() == 4 * 4 + 3)); // {0, 1} after round 3, {1, 2} from round 4 on
  CHECK((race.agreement().back() == 1));
  CHECK((with(race, Verdict::in) == std::vector<int64_t>{1, 2}));
  CHECK((race.candidates()[0].reason == "diverged: held-out loss not finite after 40 steps"));
  CHECK((race.ranking().back().layer == 0));
}

TEST_CASE("agreement/read back at every event it continues to the same end") {
  Race whole(jaccard(4, 2, 2));
  Race interrupted(jaccard(4, 2, 2));
  int events = 0;
  while (!whole.done()) {
    interrupted = race_from_json(json::parse(to_json(interrupted).dump()));
    advance(whole, settling);
    advance(interrupted, settling);
    REQUIRE((to_json(interrupted) == to_json(whole)));
    ++events;
  }
  CHECK((events == 20));
  CHECK((race_from_json(to_json(whole)).done()));
  CHECK((interrupted.agreement() == whole.agreement()));
}

TEST_CASE("agreement/a state without its options reads as one of their defaults") {
  json state = to_json(Race({.num_layers = 3, .keep = 1, .steps_per_round = 1, .max_steps = 2}));
  state["options"].erase("jaccard_threshold");
  state["options"].erase("jaccard_window");
  CHECK((race_from_json(state).options().jaccard_threshold == RaceOptions{}.jaccard_threshold));
}

TEST_CASE("agreement/bad options are named") {
  auto refusal = [](auto change) -> std::string {
    RaceOptions options = jaccard(4, 2, 1);
    change(options);
    try {
      Race race(options);
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "accepted";
  };
  CHECK((refusal([](RaceOptions&) {}) == "accepted"));
  CHECK((refusal([](RaceOptions& o) { o.jaccard_threshold = 0; }) ==
         "Race: jaccard_threshold is 0, expected a value in (0, 1]"));
  CHECK((refusal([](RaceOptions& o) { o.jaccard_threshold = 1.1; }).find("jaccard_threshold is 1.1") == 6));
  CHECK((refusal([](RaceOptions& o) { o.jaccard_window = 0; }) == "Race: jaccard_window is 0, expected at least 1"));
  CHECK((refusal([](RaceOptions& o) { o.keep.reset(); }) ==
         "Race: keep is not set; racing and jaccard need to know how many to find"));
}

TEST_CASE("agreement/few sequences are enough, since nothing is compared on the way") {
  Race race(jaccard(4, 2, 1));
  race.check_sequences(2);
  CHECK_THROWS_AS(race.check_sequences(1), std::invalid_argument);
}
