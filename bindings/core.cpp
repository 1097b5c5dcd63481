// Binds what is not mathematics: version, processor features, how this module was compiled.
#include "bindings.h"

#include "hybridattn/core/cpu_features.h"
#include "hybridattn/core/freed_memory.h"
#include "hybridattn/kernels/cpu/instruction_set.h"
#include "hybridattn/version.h"

#include <Eigen/Core>
#include <fmt/core.h>
#include <nlohmann/json.hpp>
#include <pybind11/stl.h>

namespace hybridattn {

namespace {

py::dict build_info() {
  py::dict info;
  info["cxx_standard"] = __cplusplus / 100 % 100;
#ifdef _OPENMP
  info["openmp"] = _OPENMP;
#else
  info["openmp"] = 0;
#endif
  info["eigen"] = fmt::format("{}.{}.{}", EIGEN_WORLD_VERSION, EIGEN_MAJOR_VERSION, EIGEN_MINOR_VERSION);
  info["fmt"] = fmt::format("{}.{}.{}", FMT_VERSION / 10000, FMT_VERSION / 100 % 100, FMT_VERSION % 100);
  info["nlohmann_json"] =
      fmt::format("{}.{}.{}", NLOHMANN_JSON_VERSION_MAJOR, NLOHMANN_JSON_VERSION_MINOR, NLOHMANN_JSON_VERSION_PATCH);
  return info;
}

} // namespace

void bind_core(py::module_& module) {
  module.attr("__version__") = version;
  auto core = module.def_submodule("core", "Processor features and facts about the build.");
  core.def(
      "cpu_features",
      [] {
        py::dict features;
        for (const auto& [name, present] : cpu_features().named()) {
          features[py::str(name)] = present;
        }
        return features;
      },
      "Instruction sets by name: True where the processor has it and the operating system lets programs use it.");
  core.def(
      "kernel_instruction_sets",
      [] {
        std::vector<std::string> names;
        for (const auto& [set, its_name] : kernels::cpu::kInstructionSets) {
          if (kernels::cpu::is_available(set)) {
            names.emplace_back(its_name);
          }
        }
        return names;
      },
      "Instruction sets that kernels can use here, the best one last.");
  core.def(
      "kernel_instruction_set", [] { return std::string(name(kernels::cpu::chosen_instruction_set())); },
      "The instruction set that kernels use.");
  core.def(
      "force_instruction_set",
      [](const std::optional<std::string>& wanted) {
        using kernels::cpu::InstructionSet;
        const auto before = kernels::cpu::forced_instruction_set();
        kernels::cpu::force_instruction_set(
            wanted ? std::optional(kernels::cpu::instruction_set(*wanted, "force_instruction_set")) : std::nullopt);
        return before ? std::optional(std::string(name(*before))) : std::nullopt;
      },
      "Makes kernels use one instruction set, or with None the best one; returns the one forced before.");
  core.def(
      "keep_freed_memory", &keep_freed_memory,
      "Lets the process keep freed memory for its next allocation (glibc); see core/freed_memory.h. Returns whether "
      "it does.");
  core.def("build_info", &build_info, "C++ standard, OpenMP version and the versions of the header libraries.");
}

} // namespace hybridattn
