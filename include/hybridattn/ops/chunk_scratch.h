// Memory that one call uses again and again: touching fresh pages costs more than the arithmetic of a chunk.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/mul.h>
#include <c10/util/accumulate.h>

#include <vector>

namespace hybridattn::ops {

/// Hands out uninitialised tensors; the memory of one that nobody holds any more is handed out again.
class Scratch {
public:
  /// @param options  device, and the dtype of tensors for which none is given
  explicit Scratch(const at::TensorOptions& options) : options_(options) {}

  at::Tensor empty(at::IntArrayRef sizes, std::optional<at::ScalarType> dtype = {}) {
    const auto type = dtype.value_or(c10::typeMetaToScalarType(options_.dtype()));
    const int64_t bytes = c10::multiply_integers(sizes) * static_cast<int64_t>(c10::elementSize(type));
    return at_least(bytes).narrow(0, 0, bytes).view(type).view(sizes);
  }

  /// a * b in the shape of a.
  at::Tensor product(const at::Tensor& a, const at::Tensor& b) {
    auto result = empty(a.sizes());
    return at::mul_out(result, a, b);
  }

private:
  /// A free buffer that is large enough, the smallest of them, or a new one.
  at::Tensor at_least(int64_t bytes) {
    const at::Tensor* best = nullptr;
    for (const auto& buffer : buffers_) {
      const bool is_free = buffer.storage().use_count() == 1;
      if (is_free && buffer.numel() >= bytes && (best == nullptr || buffer.numel() < best->numel())) {
        best = &buffer;
      }
    }
    return best != nullptr ? *best : buffers_.emplace_back(at::empty({bytes}, options_.dtype(at::kByte)));
  }

  at::TensorOptions options_;
  std::vector<at::Tensor> buffers_;
};

} // namespace hybridattn::ops
