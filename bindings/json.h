// JSON values between nlohmann::json and Python objects, through text: both sides read doubles back to the same bits.
#pragma once

#include "bindings.h"

#include <nlohmann/json.hpp>

namespace hybridattn {

inline py::object to_python(const nlohmann::json& json) {
  return py::module_::import("json").attr("loads")(json.dump());
}

/// @throws TypeError (Python) if `object` is not made of dicts, lists, strings, numbers, booleans and None
inline nlohmann::json from_python(const py::object& object) {
  return nlohmann::json::parse(py::module_::import("json").attr("dumps")(object).cast<std::string>());
}

} // namespace hybridattn
