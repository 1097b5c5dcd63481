// Every tolerance of the C++ tests, by kind of comparison and dtype, each with its reason. Loosening one needs a reason
// too. The measure is relative: RMS of the difference over RMS of the expected values.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/isfinite.h>
#include <ATen/TensorOperators.h>
#include <c10/util/Exception.h>

namespace tolerances {

struct Row {
  double fp64, fp32, bf16;

  double operator()(at::ScalarType dtype) const {
    switch (dtype) {
    case at::kDouble:
      return fp64;
    case at::kFloat:
      return fp32;
    case at::kBFloat16:
      return bf16;
    default:
      TORCH_CHECK(false, "no tolerance for ", dtype);
    }
  }
};

// The same values by another order of operations: rounding of the dtype, grown over a few hundred terms.
inline constexpr Row value{1e-10, 1e-5, 1e-2};
// Gradients pass through twice as many operations as values.
inline constexpr Row gradient{1e-9, 5e-5, 2e-2};
// A whole model's logits against another implementation of it.
inline constexpr Row logits{1e-9, 1e-4, 3e-2};

/// RMS(actual - expected) / RMS(expected) in fp64; the plain RMS of the difference where expected is all zero; infinity
/// where shapes differ or a value is not finite. Use: `CHECK(relative_error(a, b) <=
/// tolerances::value(a.scalar_type()));`
inline double relative_error(const at::Tensor& actual, const at::Tensor& expected) {
  if (actual.sizes() != expected.sizes() || !at::isfinite(actual).all().item<bool>()) {
    return std::numeric_limits<double>::infinity();
  }
  if (actual.numel() == 0) {
    return 0;
  }
  const at::Tensor wanted = expected.detach().to(at::kDouble);
  const double difference = (actual.detach().to(at::kDouble) - wanted).square().mean().sqrt().item<double>();
  const double size = wanted.square().mean().sqrt().item<double>();
  return size > 0 ? difference / size : difference;
}

} // namespace tolerances
