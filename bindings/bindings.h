// What each binding file offers: one function that adds its classes to the Python module.
#pragma once

#include <torch/csrc/utils/pybind.h>

namespace hybridattn {

// Weak: module.cpp calls those that are linked in.
[[gnu::weak]] void bind_core(py::module_& module);
[[gnu::weak]] void bind_transfer(py::module_& module);
[[gnu::weak]] void bind_distill(py::module_& module);
[[gnu::weak]] void bind_select(py::module_& module);

} // namespace hybridattn
