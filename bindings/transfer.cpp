// Weight transfer for Python.
#include "bindings.h"

#include <hybridattn/transfer/attention.h>

namespace hybridattn {

void bind_transfer(py::module_& module) {
  auto transfer = module.def_submodule("transfer", "Teacher attention weights into mixers.");
  transfer.def(
      "transfer_attention",
      [](const std::map<std::string, at::Tensor>& teacher, int64_t num_heads, int64_t num_kv_heads, int64_t head_dim,
         const std::map<std::string, at::Tensor>& mixer) {
        const auto result = transfer::transfer_attention(teacher, {num_heads, num_kv_heads, head_dim}, mixer);
        py::list entries;
        for (const auto& entry : result.entries) {
          entries.append(py::dict(py::arg("action") = entry.action, py::arg("source") = entry.source,
                                  py::arg("target") = entry.target, py::arg("note") = entry.note));
        }
        return py::make_tuple(result.weights, entries);
      },
      py::arg("teacher"), py::kw_only(), py::arg("num_heads"), py::arg("num_kv_heads"), py::arg("head_dim"),
      py::arg("mixer"), "(weights, plan entries); raises ValueError naming a missing, unknown or misshapen tensor.");
}

} // namespace hybridattn
