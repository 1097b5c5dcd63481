// The Python module hybridattn._C. Ops register themselves (TORCH_LIBRARY in ops_*.cpp) when it is loaded.
#include "bindings.h"

PYBIND11_MODULE(_C, module) {
  module.doc() = "Compiled part of hybridattn: registers torch.ops.hybridattn and binds the C++ classes.";
  for (auto* bind :
       {&hybridattn::bind_core, &hybridattn::bind_transfer, &hybridattn::bind_distill, &hybridattn::bind_select}) {
    if (bind != nullptr) {
      bind(module);
    }
  }
}
