// Race, plans, costs and the paired test for Python: selection is decided by the same code in both languages.
#include "select.h"

#include <hybridattn/select/cost.h>
#include <hybridattn/select/plans.h>

#include <pybind11/stl.h>

namespace hybridattn {

namespace {

using select::Race;
using select::RaceOptions;

Race make_race(int64_t num_layers, std::optional<int64_t> keep, const std::string& mode, int64_t steps_per_round,
               int64_t max_steps, double confidence, int64_t min_rounds, double jaccard_threshold,
               int64_t jaccard_window, bool growing, const std::string& direction,
               const std::vector<int64_t>& candidates) {
  const nlohmann::json options{{"num_layers", num_layers},
                               {"keep", keep ? nlohmann::json(*keep) : nlohmann::json()},
                               {"mode", mode},
                               {"steps_per_round", steps_per_round},
                               {"max_steps", max_steps},
                               {"confidence", confidence},
                               {"min_rounds", min_rounds},
                               {"jaccard_threshold", jaccard_threshold},
                               {"jaccard_window", jaccard_window},
                               {"growing", growing},
                               {"direction", direction},
                               {"candidates", candidates}};
  return Race(select::race_options_from_json(options));
}

void bind_race(py::module_& module) {
  py::class_<Race>(module, "Race", "Ask / tell race over layers; see hybridattn/select/race.h.")
      .def(py::init(&make_race), py::kw_only(), py::arg("num_layers"), py::arg("keep") = std::nullopt,
           py::arg("mode") = "racing", py::arg("steps_per_round") = 0, py::arg("max_steps") = 0,
           py::arg("confidence") = 0.95, py::arg("min_rounds") = 1,
           py::arg("jaccard_threshold") = RaceOptions{}.jaccard_threshold,
           py::arg("jaccard_window") = RaceOptions{}.jaccard_window, py::arg("growing") = false,
           py::arg("direction") = "lower", py::arg("candidates") = std::vector<int64_t>{})
      .def(
          "next",
          [](const Race& race) -> std::optional<std::tuple<int64_t, int64_t, int64_t>> {
            const auto task = race.next();
            if (!task) {
              return std::nullopt;
            }
            return std::tuple(task->layer, task->from_step, task->to_step);
          },
          "(layer, from_step, to_step) of the next task, or None when the race is over.")
      .def(
          "record", [](Race& race, int64_t layer, const std::vector<double>& losses) { race.record(layer, losses); },
          py::arg("layer"), py::arg("held_out_losses"), "Records one loss per held-out sequence.")
      .def("add_cost", &Race::add_cost, py::arg("tokens"), py::arg("flops"))
      .def("done", &Race::done)
      .def("agreement", &Race::agreement,
           "Jaccard similarity of the best K of successive rounds, over the rounds that all have finished.")
      .def(
          "ranking",
          [](const Race& race) {
            py::list result;
            for (const auto& score : race.ranking()) {
              result.append(score_dict(score));
            }
            return result;
          },
          "One dict per layer, most important first: layer, score, low, high, verdict, steps, reason.")
      .def("cost", [](const Race& race) { return to_python(select::to_json(race.cost())); })
      .def("check_sequences", &Race::check_sequences, py::arg("count"))
      .def("minimum_sequences", [](const Race& race) { return select::minimum_sequences(race.options()); })
      .def("to_json", [](const Race& race) { return to_python(select::to_json(race)); })
      .def_static("from_json", [](const py::dict& state) { return select::race_from_json(from_python(state)); });
}

} // namespace

void bind_select(py::module_& module) {
  auto select = module.def_submodule("select", "Layer selection: race, plans, costs, the paired test.");
  bind_race(select);
  bind_select_scores(select);
  select.def("keep_of_fraction", &select::keep_of_fraction, py::arg("layers"), py::arg("fraction"));
  select.def("uniform_plan", &select::uniform_plan, py::arg("layers"), py::arg("keep"), py::arg("offset") = 0);
  select.def("uniform_offsets", &select::uniform_offsets, py::arg("layers"), py::arg("keep"));
  select.def("random_plan", &select::random_plan, py::arg("layers"), py::arg("keep"), py::arg("seed"));
  select.def("first_plan", &select::first_plan, py::arg("layers"), py::arg("keep"));
  select.def("last_plan", &select::last_plan, py::arg("layers"), py::arg("keep"));
  select.def("explicit_plan", &select::explicit_plan, py::arg("layers"), py::arg("listed"));
  select.def(
      "paired_difference",
      [](const std::vector<double>& first, const std::vector<double>& second) {
        auto vector = [](const std::vector<double>& values) {
          return Eigen::Map<const Eigen::VectorXd>(values.data(), static_cast<Eigen::Index>(values.size()));
        };
        const auto difference = select::paired_difference(vector(first), vector(second));
        return std::tuple(difference.mean, difference.statistic, difference.tail);
      },
      py::arg("first"), py::arg("second"), "(mean of first - second, t statistic, one-sided p of 'first is lower').");

  py::class_<select::ModelShape>(select, "ModelShape", "The shapes that decide a decoder's cost.")
      .def(py::init<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>(), py::kw_only(),
           py::arg("num_layers"), py::arg("hidden_size"), py::arg("intermediate_size"), py::arg("num_heads"),
           py::arg("num_kv_heads"), py::arg("head_dim"), py::arg("vocab_size"));
  select.def("forward_flops", &select::forward_flops, py::arg("shape"), py::arg("softmax_layers"), py::arg("seq_len"),
             "Floating-point operations per token, forward.");
  select.def("distillation_flops", &select::distillation_flops, py::arg("shape"), py::arg("softmax_layers"),
             py::arg("seq_len"), "Floating-point operations per token of student forward + backward and teacher.");
}

} // namespace hybridattn
