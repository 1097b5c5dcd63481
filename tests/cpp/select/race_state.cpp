// A race saved and read at any event goes on exactly as if it had never stopped.
#include "hybridattn/select/race_state.h"
#include "catch.h"

#include <random>

using namespace hybridattn::select;
using nlohmann::json;

namespace {

std::vector<double> losses_of(const Task& task) {
  std::mt19937 generator(static_cast<uint32_t>(task.layer * 1000 + task.to_step));
  std::normal_distribution<double> normal(static_cast<double>(task.layer) * 0.03, 0.1);
  std::vector<double> losses;
  for (int i = 0; i < 24; ++i)
    losses.push_back(normal(generator));
  if (task.layer == 3 && task.to_step == 20)
    losses[0] = std::nan("");
  return losses;
}

void advance(Race& race, const Task& task) {
  race.record(task.layer, losses_of(task));
  race.add_cost(1000.0 / 3, 1e12 / 7);
}

Race saved_and_read(const Race& race) {
  return race_from_json(json::parse(to_json(race).dump()));
}

} // namespace

TEST_CASE("race state/read back at every event it continues to the same end") {
  const auto mode = GENERATE(RaceMode::racing, RaceMode::exhaustive);
  const RaceOptions options{.num_layers = 6, .keep = 2, .mode = mode, .steps_per_round = 10, .max_steps = 50};
  Race whole(options);
  Race interrupted(options);
  int events = 0;
  while (const auto task = whole.next()) {
    interrupted = saved_and_read(interrupted);
    REQUIRE((interrupted.next() == task));
    advance(whole, *task);
    advance(interrupted, *task);
    REQUIRE((to_json(interrupted) == to_json(whole)));
    ++events;
  }
  CHECK(events >= 12);
  const Race end = saved_and_read(interrupted);
  CHECK(end.done());
  CHECK((end.candidates() == whole.candidates()));
  CHECK((end.cost() == whole.cost()));
  CHECK((end.options() == whole.options()));
}

TEST_CASE("race state/a race without K survives") {
  const Race race({.num_layers = 3, .mode = RaceMode::exhaustive, .direction = Direction::higher_is_better});
  CHECK((saved_and_read(race).options() == race.options()));
}

TEST_CASE("race state/damaged or foreign state is refused and named") {
  Race race({.num_layers = 3, .keep = 1, .steps_per_round = 1, .max_steps = 2});
  const json good = to_json(race);
  auto refusal = [&](auto change) -> std::string {
    json state = good;
    change(state);
    try {
      race_from_json(state);
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "accepted";
  };
  CHECK((refusal([](json&) {}) == "accepted"));
  CHECK((refusal([](json& s) { s["format"] = 9; }) == "Race: saved state has format 9, expected 1"));
  CHECK((refusal([](json& s) { s["options"]["mode"] = "sprint"; }) == "Race: unknown mode \"sprint\""));
  CHECK(refusal([](json& s) { s["candidates"].erase(1); }).find("not the layers") != std::string::npos);
  CHECK(refusal([](json& s) { s["candidates"][0].erase("steps"); }).find("steps") != std::string::npos);
  CHECK(refusal([](json& s) { s["cost"].erase("flops"); }).find("flops") != std::string::npos);
  CHECK(refusal([](json& s) { s = json::array(); }).find("cannot be read") != std::string::npos);
}
