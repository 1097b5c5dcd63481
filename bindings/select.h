// What the binding files of layer selection share.
#pragma once

#include "json.h"

#include <hybridattn/select/race_state.h>

namespace hybridattn {

/// A row of `LayerScores`.
inline py::dict score_dict(const select::LayerScore& score) {
  py::dict result;
  result["layer"] = score.layer;
  result["score"] = score.score;
  result["low"] = score.low;
  result["high"] = score.high;
  result["verdict"] = nlohmann::json(score.verdict).get<std::string>();
  result["steps"] = score.steps;
  result["reason"] = score.reason;
  return result;
}

void bind_select_scores(py::module_& select);

} // namespace hybridattn
