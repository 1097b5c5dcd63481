// A race as JSON: everything that the next run needs to go on from any event.
#pragma once

#include <nlohmann/json.hpp>

#include <hybridattn/select/race.h>

namespace hybridattn::select {

NLOHMANN_JSON_SERIALIZE_ENUM(Verdict, {{Verdict::open, "open"}, {Verdict::in, "in"}, {Verdict::out, "out"}})
NLOHMANN_JSON_SERIALIZE_ENUM(RaceMode, {{RaceMode::exhaustive, "exhaustive"},
                                        {RaceMode::racing, "racing"},
                                        {RaceMode::jaccard, "jaccard"}})
NLOHMANN_JSON_SERIALIZE_ENUM(Direction,
                             {{Direction::lower_is_better, "lower"}, {Direction::higher_is_better, "higher"}})

namespace detail {

inline constexpr int race_format = 1;

/// nlohmann's enum reader takes the first value for unknown text; a race must not guess.
template <class Enum>
Enum enum_from_json(const nlohmann::json& json, const char* name) {
  const auto value = json.at(name).get<Enum>();
  race_check(nlohmann::json(value) == json.at(name), fmt::format("unknown {} {}", name, json.at(name).dump()));
  return value;
}

inline nlohmann::json candidate_json(const Race::Candidate& candidate) {
  nlohmann::json history = nlohmann::json::array();
  for (const Race::Point& point : candidate.history)
    history.push_back({point.step, point.loss});
  return {{"layer", candidate.layer},   {"steps", candidate.steps},      {"rounds", candidate.rounds},
          {"losses", candidate.losses}, {"history", std::move(history)}, {"verdict", candidate.verdict},
          {"reason", candidate.reason}};
}

inline Race::Candidate candidate_from_json(const nlohmann::json& json) {
  Race::Candidate candidate;
  json.at("layer").get_to(candidate.layer);
  json.at("steps").get_to(candidate.steps);
  json.at("rounds").get_to(candidate.rounds);
  json.at("losses").get_to(candidate.losses);
  for (const nlohmann::json& point : json.at("history"))
    candidate.history.push_back({point.at(0).get<int64_t>(), point.at(1).get<double>()});
  candidate.verdict = enum_from_json<Verdict>(json, "verdict");
  json.at("reason").get_to(candidate.reason);
  return candidate;
}

} // namespace detail

inline nlohmann::json to_json(const RaceOptions& options) {
  return {{"num_layers", options.num_layers},
          {"keep", options.keep ? nlohmann::json(*options.keep) : nlohmann::json()},
          {"mode", options.mode},
          {"steps_per_round", options.steps_per_round},
          {"max_steps", options.max_steps},
          {"confidence", options.confidence},
          {"min_rounds", options.min_rounds},
          {"jaccard_threshold", options.jaccard_threshold},
          {"jaccard_window", options.jaccard_window},
          {"growing", options.growing},
          {"direction", options.direction},
          {"candidates", options.candidates}};
}

/// The jaccard fields may be missing, as they are in states of races without them.
/// @throws nlohmann::json::exception for a missing field, std::invalid_argument for an unknown value
inline RaceOptions race_options_from_json(const nlohmann::json& json) {
  RaceOptions options;
  json.at("num_layers").get_to(options.num_layers);
  if (!json.at("keep").is_null())
    options.keep = json.at("keep").get<int64_t>();
  options.mode = detail::enum_from_json<RaceMode>(json, "mode");
  json.at("steps_per_round").get_to(options.steps_per_round);
  json.at("max_steps").get_to(options.max_steps);
  json.at("confidence").get_to(options.confidence);
  json.at("min_rounds").get_to(options.min_rounds);
  options.jaccard_threshold = json.value("jaccard_threshold", options.jaccard_threshold);
  options.jaccard_window = json.value("jaccard_window", options.jaccard_window);
  json.at("growing").get_to(options.growing);
  options.direction = detail::enum_from_json<Direction>(json, "direction");
  json.at("candidates").get_to(options.candidates);
  return options;
}

inline nlohmann::json to_json(const Cost& cost) {
  return {{"tokens", cost.tokens},
          {"flops", cost.flops},
          {"steps", cost.steps},
          {"exhaustive_steps", cost.exhaustive_steps}};
}

/// The whole state; doubles are written so that they read back to the same bits.
inline nlohmann::json to_json(const Race& race) {
  nlohmann::json candidates = nlohmann::json::array();
  for (const Race::Candidate& candidate : race.candidates())
    candidates.push_back(detail::candidate_json(candidate));
  return {{"format", detail::race_format},
          {"options", to_json(race.options())},
          {"candidates", std::move(candidates)},
          {"cost", to_json(race.cost())}};
}

/// The race that `to_json` wrote.
/// @throws std::invalid_argument if the state is of another format, incomplete or contradicts itself
inline Race race_from_json(const nlohmann::json& json) {
  try {
    detail::race_check(
        json.at("format") == detail::race_format,
        fmt::format("saved state has format {}, expected {}", json.at("format").dump(), detail::race_format));
    std::vector<Race::Candidate> candidates;
    for (const nlohmann::json& candidate : json.at("candidates"))
      candidates.push_back(detail::candidate_from_json(candidate));
    const nlohmann::json& cost = json.at("cost");
    return Race::restore(race_options_from_json(json.at("options")), std::move(candidates),
                         {cost.at("tokens"), cost.at("flops"), cost.at("steps"), cost.at("exhaustive_steps")});
  } catch (const nlohmann::json::exception& error) {
    throw std::invalid_argument(fmt::format("Race: the saved state cannot be read: {}", error.what()));
  }
}

} // namespace hybridattn::select
