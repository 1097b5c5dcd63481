// Schedules, stage fields, presets and the weight-decay rule for Python: one set of numbers for both languages.
#include "json.h"

#include <hybridattn/distill/parameter_groups.h>
#include <hybridattn/distill/presets.h>

namespace hybridattn {

namespace {

py::dict described(const std::vector<distill::PresetField>& fields) {
  py::dict result;
  for (const auto& field : fields) {
    result[py::str(field.field)] =
        py::dict(py::arg("value") = to_python(field.value), py::arg("source") = field.source);
  }
  return result;
}

} // namespace

void bind_distill(py::module_& module) {
  using distill::Schedule;
  auto distill = module.def_submodule("distill", "Numbers of the training stages.");
  py::class_<Schedule>(distill, "Schedule", "The learning rate's multiplier over a stage.")
      .def(py::init([](std::string kind, int64_t warmup_steps, double warmup_start, double final_ratio,
                       double anneal_start, double anneal_end) {
             Schedule schedule{kind, warmup_steps, warmup_start, final_ratio, anneal_start, anneal_end};
             schedule.check();
             return schedule;
           }),
           py::arg("kind") = "constant", py::kw_only(), py::arg("warmup_steps") = 0, py::arg("warmup_start") = 0.0,
           py::arg("final_ratio") = 0.0, py::arg("anneal_start") = 0.0, py::arg("anneal_end") = 1.0)
      .def("at", &Schedule::at, py::arg("step"), py::arg("total"),
           "The multiplier for step `step` (from 0) of `total`.")
      .def_readonly("kind", &Schedule::kind)
      .def_readonly("warmup_steps", &Schedule::warmup_steps)
      .def_readonly("warmup_start", &Schedule::warmup_start)
      .def_readonly("final_ratio", &Schedule::final_ratio)
      .def_readonly("anneal_start", &Schedule::anneal_start)
      .def_readonly("anneal_end", &Schedule::anneal_end);

  distill.def(
      "preset",
      [](const std::string& stage, const std::string& name) { return described(distill::preset_fields(stage, name)); },
      py::arg("stage"), py::arg("name"), "Field -> {value, source} of a preset.");
  distill.def(
      "stage_defaults", [] { return to_python(distill::to_json(distill::Stage{})); }, "Every field's default.");
  distill.def(
      "check_stage", [](const py::dict& fields) { distill::stage_from_json(from_python(fields)); }, py::arg("fields"),
      "Raises ValueError naming a field that is unknown or out of range.");
  distill.def(
      "schedule_of",
      [](const py::dict& fields, bool mixer) {
        return distill::stage_from_json(from_python(fields)).schedule_of(mixer);
      },
      py::arg("fields"), py::arg("mixer"), "Schedule of the mixers' or of the other parameters' learning rate.");
  distill.def("decays", &distill::decays, py::arg("name"), py::arg("dimensions"),
              "Whether weight decay applies to a parameter of this name and number of dimensions.");
}

} // namespace hybridattn
