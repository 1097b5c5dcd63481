// Memory for large results.
#pragma once

#include <ATen/ops/empty.h>
#include <hybridattn/core/huge_pages.h>

namespace hybridattn {

/// A tensor to be written in full.
inline at::Tensor fresh_tensor(at::IntArrayRef sizes, const at::TensorOptions& options) {
  auto result = at::empty(sizes, options);
  if (result.device().is_cpu()) {
    prefer_huge_pages(result.mutable_data_ptr(), result.nbytes());
  }
  return result;
}

} // namespace hybridattn
