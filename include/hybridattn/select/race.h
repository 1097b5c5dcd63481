// Race: ask / tell over the layers of a model. Owns no model; says what to train next and keeps the score.
#pragma once

#include <limits>
#include <span>
#include <tuple>
#include <utility>

#include <hybridattn/select/agreement.h>
#include <hybridattn/select/race_options.h>

namespace hybridattn::select {

/// Finds the K most important layers from held-out losses of one candidate model per layer.
///
/// `next()` names a candidate's next piece of training, the caller does it and records one loss per held-out sequence;
/// all candidates must see the same training batches and be scored on the same sequences. When racing, candidates
/// advance in rounds, and after each round those that are surely in or surely out of the best K stop.
///
/// Error guarantee: with probability at least `confidence` over the draw of the held-out sequences, no verdict
/// contradicts the order by expected loss of the candidates that were compared, at the steps at which they were
/// compared. It says nothing of curves that cross after a candidate was stopped; `min_rounds` is the guard against
/// that. A growing race compares untrained candidates on more and more sequences; its verdicts are about their expected
/// loss, whatever the number of looks. A jaccard race that stops early has no such guarantee: rounds may agree on a
/// wrong best K, and its verdicts carry the reason "settled".
///
/// Example:
///   Race race({.num_layers = 30, .keep = 8, .steps_per_round = 50, .max_steps = 400});
///   while (auto task = race.next()) race.record(task->layer, train_and_evaluate(*task));
///   for (const LayerScore& score : race.ranking()) fmt::print("{} {}\n", score.layer, score.score);
class Race {
public:
  struct Point {
    int64_t step;
    double loss;
    bool operator==(const Point&) const = default;
  };

  /// One layer's candidate: how far it is and what it scored.
  struct Candidate {
    int64_t layer;
    int64_t steps = 0;
    int64_t rounds = 0;              ///< scorings so far
    std::vector<double> losses = {}; ///< held-out losses of the last scoring; empty when none or not finite
    std::vector<Point> history = {}; ///< mean held-out loss after each round
    Verdict verdict = Verdict::open;
    std::string reason = {};
    bool operator==(const Candidate&) const = default;
  };

  /// @throws std::invalid_argument naming the option that is out of range
  explicit Race(RaceOptions options) : options_(validated(std::move(options))) {
    for (int64_t layer : options_.candidates)
      candidates_.push_back({.layer = layer});
    cost_.exhaustive_steps = options_.max_steps * static_cast<int64_t>(candidates_.size());
    settle_without_comparison();
  }

  /// A race as it stood: its options, candidates and cost as `options()`, `candidates()` and `cost()` gave them.
  /// @throws std::invalid_argument if the candidates are not those of the options
  static Race restore(RaceOptions options, std::vector<Candidate> candidates, Cost cost) {
    Race race(std::move(options));
    detail::race_check(std::equal(candidates.begin(), candidates.end(), race.candidates_.begin(),
                                  race.candidates_.end(),
                                  [](const Candidate& a, const Candidate& b) { return a.layer == b.layer; }),
                       "the saved candidates are not the layers of the saved options");
    race.candidates_ = std::move(candidates);
    race.cost_ = cost;
    return race;
  }

  /// The next task, the same one until its losses are recorded; nothing when the race is over.
  std::optional<Task> next() const {
    const Candidate* chosen = nullptr;
    for (const Candidate& candidate : candidates_) {
      if (!running(candidate))
        continue;
      // Exhaustive: one candidate after the other, so that only one is in memory. Otherwise all advance together.
      if (!chosen || (options_.mode != RaceMode::exhaustive && candidate.rounds < chosen->rounds))
        chosen = &candidate;
    }
    if (!chosen)
      return std::nullopt;
    return Task{chosen->layer, chosen->steps, std::min(chosen->steps + options_.steps_per_round, options_.max_steps)};
  }

  bool done() const { return !next(); }

  /// Records the held-out losses of the candidate that `next()` named, at its task's `to_step`.
  /// A loss that is not finite puts the candidate out, with the reason.
  /// @throws std::invalid_argument if another layer's turn it is, or the sequences are not as many as before or too few
  void record(int64_t layer, std::span<const double> held_out_losses) {
    const std::optional<Task> task = next();
    detail::race_check(task && task->layer == layer,
                       task ? fmt::format("losses recorded for layer {}, expected layer {}", layer, task->layer)
                            : fmt::format("losses recorded for layer {} after the end", layer));
    Candidate& candidate = of(layer);
    if (options_.growing)
      check_growth(candidate, static_cast<int64_t>(held_out_losses.size()));
    else
      check_sequences(static_cast<int64_t>(held_out_losses.size()));
    cost_.steps += task->to_step - task->from_step;
    candidate.steps = task->to_step;
    ++candidate.rounds;
    if (std::all_of(held_out_losses.begin(), held_out_losses.end(), [](double loss) { return std::isfinite(loss); })) {
      candidate.losses.assign(held_out_losses.begin(), held_out_losses.end());
      candidate.history.push_back({candidate.steps, row(candidate).mean()});
    } else {
      candidate.losses.clear();
      candidate.verdict = Verdict::out;
      candidate.reason = options_.growing
                             ? "the held-out loss is not finite"
                             : fmt::format("diverged: held-out loss not finite after {} steps", candidate.steps);
    }
    judge();
  }

  /// Makes sure that `count` held-out sequences are enough, before anything is trained.
  /// @throws std::invalid_argument naming how many the asked confidence needs, or if other candidates had another
  /// number
  void check_sequences(int64_t count) const {
    const bool racing = options_.mode == RaceMode::racing && num_rounds(options_) > 1;
    const int64_t least = racing ? minimum_sequences(options_) : 2;
    detail::race_check(count >= least,
                       fmt::format("{} held-out sequences were scored; {} at confidence {} need at least {} (hold out "
                                   "more, use a longer corpus, or lower the confidence)",
                                   count, racing ? "the verdicts of this race" : "scores", options_.confidence, least));
    for (const Candidate& other : candidates_)
      detail::race_check(other.losses.empty() || static_cast<int64_t>(other.losses.size()) == count,
                         fmt::format("{} held-out losses, layer {} has {}; all candidates must be scored on the same "
                                     "sequences",
                                     count, other.layer, other.losses.size()));
  }

  /// Adds to the ledger what a task cost.
  void add_cost(double tokens, double flops) {
    detail::race_check(tokens >= 0 && flops >= 0,
                       fmt::format("cost is {} tokens, {} FLOPs; expected >= 0", tokens, flops));
    cost_.tokens += tokens;
    cost_.flops += flops;
  }

  const Cost& cost() const { return cost_; }
  const RaceOptions& options() const { return options_; }
  const std::vector<Candidate>& candidates() const { return candidates_; }

  /// Jaccard similarity of the best K after each round with those after the round before, over all rounds that every
  /// candidate has finished; diverged candidates are not among the best. Nothing when K is left open.
  std::vector<double> agreement() const {
    std::vector<double> similarities;
    if (!options_.keep)
      return similarities;
    const int64_t rounds = finished_rounds();
    for (int64_t round = 1; round < rounds; ++round)
      similarities.push_back(jaccard_similarity(best_after(round - 1), best_after(round)));
    return similarities;
  }

  /// Most important layer first; the lower layer first on a tie, diverged and unscored layers last. By score unless
  /// racing. When racing "in" comes before "open" before "out", since scores of different rounds do not compare.
  std::vector<LayerScore> ranking() const {
    std::vector<LayerScore> scores;
    for (const Candidate& candidate : candidates_)
      scores.push_back(score(candidate));
    auto group = [this](const LayerScore& s) {
      if (options_.mode != RaceMode::racing || s.verdict == Verdict::open)
        return 1;
      return s.verdict == Verdict::in ? 0 : 2;
    };
    auto value = [sign = sign()](const LayerScore& s) {
      return std::isnan(s.score) ? std::numeric_limits<double>::infinity() : sign * s.score;
    };
    std::sort(scores.begin(), scores.end(), [&](const LayerScore& a, const LayerScore& b) {
      return std::tuple(group(a), value(a), a.layer) < std::tuple(group(b), value(b), b.layer);
    });
    return scores;
  }

private:
  /// A round of a growing race: more sequences than in the round before, as many as the others have in this one.
  void check_growth(const Candidate& candidate, int64_t count) const {
    const auto before = static_cast<int64_t>(candidate.losses.size());
    detail::race_check(count > std::max<int64_t>(before, 1),
                       fmt::format("{} held-out losses for layer {} after {}; each round of a growing race needs more",
                                   count, candidate.layer, before));
    for (const Candidate& other : candidates_)
      detail::race_check(other.rounds != candidate.rounds + 1 || other.losses.empty() ||
                             static_cast<int64_t>(other.losses.size()) == count,
                         fmt::format("{} held-out losses, layer {} has {}; all candidates must be scored on the same "
                                     "sequences",
                                     count, other.layer, other.losses.size()));
  }

  bool running(const Candidate& candidate) const {
    if (candidate.rounds > 0 && (candidate.steps >= options_.max_steps || candidate.losses.empty()))
      return false;
    return candidate.verdict == Verdict::open;
  }

  Candidate& of(int64_t layer) {
    return *std::find_if(candidates_.begin(), candidates_.end(), [=](const Candidate& c) { return c.layer == layer; });
  }

  static Eigen::Map<const Eigen::VectorXd> row(const Candidate& candidate) {
    return {candidate.losses.data(), static_cast<Eigen::Index>(candidate.losses.size())};
  }

  int64_t count(Verdict verdict) const {
    return std::count_if(candidates_.begin(), candidates_.end(),
                         [=](const Candidate& c) { return c.verdict == verdict; });
  }

  double sign() const { return options_.direction == Direction::lower_is_better ? 1 : -1; }

  /// Rounds after which the last candidate that did not diverge was scored, or 0.
  int64_t finished_rounds() const {
    int64_t rounds = std::numeric_limits<int64_t>::max();
    for (const Candidate& candidate : candidates_)
      if (candidate.rounds == 0 || !candidate.losses.empty())
        rounds = std::min(rounds, candidate.rounds);
    return rounds == std::numeric_limits<int64_t>::max() ? 0 : rounds;
  }

  /// The K best layers by their mean losses after round number `round` (from 0), ascending; the lower layer on a tie.
  std::vector<int64_t> best_after(int64_t round) const {
    std::vector<std::pair<double, int64_t>> ranked;
    for (const Candidate& candidate : candidates_)
      if (round < static_cast<int64_t>(candidate.history.size()))
        ranked.emplace_back(sign() * candidate.history[static_cast<size_t>(round)].loss, candidate.layer);
    std::sort(ranked.begin(), ranked.end());
    ranked.resize(std::min(ranked.size(), static_cast<size_t>(*options_.keep)));
    std::vector<int64_t> best;
    for (const auto& [loss, layer] : ranked)
      best.push_back(layer);
    std::sort(best.begin(), best.end());
    return best;
  }

  /// All stop when the best K hardly changed: these are in, the others out.
  bool settle_by_agreement(int64_t rounds) {
    if (rounds < options_.min_rounds || !has_settled(agreement(), options_.jaccard_window, options_.jaccard_threshold))
      return false;
    const std::vector<int64_t> best = best_after(rounds - 1);
    for (Candidate& candidate : candidates_) {
      if (candidate.verdict != Verdict::open)
        continue;
      candidate.verdict = std::binary_search(best.begin(), best.end(), candidate.layer) ? Verdict::in : Verdict::out;
      candidate.reason = fmt::format("settled: the best {} hardly changed up to round {}", *options_.keep, rounds);
    }
    return true;
  }

  int64_t free_places() const { return *options_.keep - count(Verdict::in); }

  /// No places left, or places for all that are left: nothing to compare. Only a race stops for it; the exhaustive
  /// procedure scores every layer whatever K is.
  void settle_without_comparison() {
    if (!options_.keep || (options_.mode == RaceMode::exhaustive && next()))
      return;
    const int64_t places = free_places();
    const int64_t open = count(Verdict::open);
    if (places > 0 && places < open)
      return;
    for (Candidate& candidate : candidates_) {
      if (candidate.verdict != Verdict::open)
        continue;
      candidate.verdict = places > 0 ? Verdict::in : Verdict::out;
      candidate.reason = places > 0 ? "places for all that were left" : "no place left";
    }
  }

  /// Verdicts after a round that all open candidates have finished.
  void judge() {
    if (!options_.keep)
      return;
    std::vector<Candidate*> open;
    for (Candidate& candidate : candidates_)
      if (candidate.verdict == Verdict::open)
        open.push_back(&candidate);
    settle_without_comparison();
    if (open.empty() || count(Verdict::open) == 0)
      return;
    const int64_t rounds = open.front()->rounds;
    for (const Candidate* candidate : open)
      if (candidate->rounds != rounds)
        return;
    if (options_.mode == RaceMode::jaccard && rounds < num_rounds(options_) && settle_by_agreement(rounds))
      return;
    if (options_.mode == RaceMode::racing ? rounds < options_.min_rounds : rounds < num_rounds(options_))
      return;

    Eigen::MatrixXd losses(static_cast<Eigen::Index>(open.size()),
                           static_cast<Eigen::Index>(open.front()->losses.size()));
    for (size_t i = 0; i < open.size(); ++i)
      losses.row(static_cast<Eigen::Index>(i)) = sign() * row(*open[i]).transpose();
    const double level = comparison_level(options_, open.size() == candidates_.size());
    const std::vector<Verdict> verdicts = top_k_verdicts(losses, free_places(), level);
    for (size_t i = 0; i < open.size(); ++i)
      open[i]->verdict = verdicts[i];
    settle_without_comparison();
  }

  LayerScore score(const Candidate& candidate) const {
    constexpr double none = std::numeric_limits<double>::quiet_NaN();
    LayerScore result{candidate.layer, none, none, none, candidate.verdict, candidate.steps, candidate.reason};
    if (candidate.losses.empty())
      return result;
    const MeanError sample = mean_error(row(candidate));
    const Interval interval = confidence_interval(sample, options_.confidence);
    result.score = sample.mean;
    result.low = interval.low;
    result.high = interval.high;
    return result;
  }

  RaceOptions options_;
  std::vector<Candidate> candidates_;
  Cost cost_;
};

} // namespace hybridattn::select
