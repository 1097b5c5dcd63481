// Structs whose fields have names: to and from JSON, strictly.
// A struct takes part by a static `each_field(self, visit)` that calls visit("name", self.name) for every field.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include <nlohmann/json.hpp>

#include "hybridattn/core/check.h"
#include "hybridattn/core/nearest.h"

namespace hybridattn {

namespace detail {

/// False where `value` is not what the field holds: nlohmann would turn 1.5 into 1, and true into 1.
template <class T>
bool read_field(const nlohmann::json& value, T& field) {
  if constexpr (std::is_same_v<T, bool>) {
    if (!value.is_boolean())
      return false;
  } else if constexpr (std::is_integral_v<T>) {
    if (!value.is_number_integer())
      return false;
  } else if constexpr (std::is_floating_point_v<T>) {
    if (!value.is_number())
      return false;
  } else if constexpr (std::is_same_v<T, std::string>) {
    if (!value.is_string())
      return false;
  }
  try {
    field = value.get<T>();
  } catch (const nlohmann::json::exception&) {
    return false;
  }
  return true;
}

template <class T>
bool read_field(const nlohmann::json& value, std::optional<T>& field) {
  field.reset();
  return value.is_null() || read_field(value, field.emplace());
}

} // namespace detail

template <class Fields>
std::vector<std::string> field_names() {
  std::vector<std::string> names;
  const Fields fields;
  Fields::each_field(fields, [&](const char* name, const auto&) { names.emplace_back(name); });
  return names;
}

/// Every field with its value; an optional without one is null.
template <class Fields>
nlohmann::json fields_to_json(const Fields& fields) {
  nlohmann::json json = nlohmann::json::object();
  Fields::each_field(fields, [&]<class T>(const char* name, const T& field) {
    if constexpr (requires { field.has_value(); }) {
      json[name] = field ? nlohmann::json(*field) : nlohmann::json();
    } else {
      json[name] = field;
    }
  });
  return json;
}

/// `fields` with the values that `json` has; `owner` begins the messages.
/// @throws c10::ValueError naming an unknown field and the nearest known one, or a value of the wrong type
template <class Fields>
Fields fields_from_json(const std::string& owner, const nlohmann::json& json, Fields fields = {}) {
  HA_CHECK(json.is_object(), owner, ": expected an object of fields, got ", json.dump());
  const std::vector<std::string> known = field_names<Fields>();
  for (const auto& item : json.items()) {
    HA_CHECK(std::find(known.begin(), known.end(), item.key()) != known.end(), owner, ": unknown field '", item.key(),
             "', the nearest is '", nearest(item.key(), known), "'");
  }
  Fields::each_field(fields, [&](const char* name, auto& field) {
    HA_CHECK(!json.contains(name) || detail::read_field(json[name], field), owner, ": ", name,
             " has the wrong type, got ", json[name].dump());
  });
  return fields;
}

} // namespace hybridattn
