// Scores by the bootstrap and searches over sets of layers for Python: one implementation for both languages.
#include "select.h"

#include <hybridattn/select/search.h>

#include <pybind11/eigen.h>
#include <pybind11/functional.h>
#include <pybind11/stl.h>

namespace hybridattn {

namespace {

using select::LossTable;
using select::Plan;

/// A Python evaluator, or any object with `num_layers` and `losses(sets)`.
class PythonEvaluator {
public:
  explicit PythonEvaluator(py::object evaluator) : evaluator_(std::move(evaluator)) {}
  int64_t num_layers() const { return evaluator_.attr("num_layers").cast<int64_t>(); }
  LossTable losses(const std::vector<Plan>& sets) const { return evaluator_.attr("losses")(sets).cast<LossTable>(); }

private:
  py::object evaluator_;
};

static_assert(select::LayerSetEvaluator<PythonEvaluator>);

py::list score_list(const std::vector<select::LayerScore>& scores) {
  py::list result;
  for (const auto& score : scores) {
    result.append(score_dict(score));
  }
  return result;
}

py::tuple search_tuple(const select::SearchResult& found) {
  py::list history;
  for (const auto& step : found.history) {
    history.append(py::dict(py::arg("what") = step.what, py::arg("loss") = step.loss));
  }
  return py::make_tuple(found.layers, history);
}

select::BootstrapOptions options_of(std::optional<int64_t> keep, const std::string& direction, double confidence,
                                    bool paired, uint64_t seed) {
  const auto better = direction == "higher" ? select::Direction::higher_is_better : select::Direction::lower_is_better;
  return {.keep = keep, .direction = better, .confidence = confidence, .paired = paired, .seed = seed};
}

} // namespace

void bind_select_scores(py::module_& select) {
  select.def(
      "bootstrap_scores",
      [](const std::vector<LossTable>& tables,
         const std::function<Eigen::VectorXd(std::vector<Eigen::VectorXd>)>& statistic, std::optional<int64_t> keep,
         const std::string& direction, double confidence, bool paired, uint64_t seed) {
        auto unpacked = [&](std::span<const Eigen::VectorXd> means) -> Eigen::VectorXd {
          return statistic({means.begin(), means.end()});
        };
        return score_list(select::bootstrap_scores(std::span<const LossTable>(tables), unpacked,
                                                   options_of(keep, direction, confidence, paired, seed)));
      },
      py::arg("tables"), py::arg("statistic"), py::kw_only(), py::arg("keep") = std::nullopt,
      py::arg("direction") = "lower", py::arg("confidence") = 0.95, py::arg("paired") = true, py::arg("seed") = 0,
      "Rows as of `Race.ranking` by a function of the tables' means per layer; see hybridattn/select/bootstrap.h.");
  select.def(
      "mean_ranks",
      [](const LossTable& addition, const LossTable& removal, std::optional<int64_t> keep, double confidence) {
        const std::vector<LossTable> tables{addition, removal};
        return score_list(select::bootstrap_scores(std::span<const LossTable>(tables), select::MeanRank{},
                                                   {.keep = keep, .confidence = confidence}));
      },
      py::arg("addition"), py::arg("removal"), py::kw_only(), py::arg("keep") = std::nullopt,
      py::arg("confidence") = 0.95, "Mean of the ranks by addition (low first) and by removal (high first).");
  select.def(
      "sequential_addition",
      [](py::object evaluator, int64_t keep) {
        PythonEvaluator losses(std::move(evaluator));
        return search_tuple(select::sequential_addition(losses, keep));
      },
      py::arg("evaluator"), py::arg("keep"), "(layers, decisions) of an object with `num_layers` and `losses(sets)`.");
  select.def(
      "swap_refinement",
      [](py::object evaluator, const Plan& layers, double confidence) {
        PythonEvaluator losses(std::move(evaluator));
        return search_tuple(select::swap_refinement(losses, layers, confidence));
      },
      py::arg("evaluator"), py::arg("layers"), py::arg("confidence") = 0.95, "As `sequential_addition`.");
}

} // namespace hybridattn
