// Frequencies and angles of rotary position embedding (Su et al., arXiv 2104.09864) with the scalings of
// Transformers 5.
#pragma once

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/where.h>
#include <ATen/TensorOperators.h>
#include <hybridattn/core/check.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace hybridattn::ops {

/// The keys of a config's `rope_parameters`, with Transformers' names, and the head they act on.
struct RotaryOptions {
  std::string type = "default"; ///< default, linear, dynamic, yarn, longrope, llama3
  int64_t head_dim = 0;
  double theta = 10000;
  double partial = 1;                  ///< share of the head that rotates
  int64_t max_position_embeddings = 0; ///< of the config; dynamic and longrope need it
  double factor = 1;
  std::optional<double> attention_factor, mscale, mscale_all_dim;
  double beta_fast = 32, beta_slow = 1;             ///< yarn
  bool truncate = true;                             ///< yarn
  double low_freq_factor = 1, high_freq_factor = 4; ///< llama3
  std::optional<int64_t> original_max_position_embeddings;
  std::vector<double> short_factor, long_factor; ///< longrope

  int64_t rotary_dim() const { return static_cast<int64_t>(static_cast<double>(head_dim) * partial); }
};

struct RotaryFrequencies {
  at::Tensor inverse_frequencies; ///< [R / 2] fp32
  double attention_scaling;       ///< multiplies cos and sin
};

namespace detail {

inline at::Tensor plain_frequencies(double theta, int64_t dim) {
  return at::pow(theta, at::arange(0, dim, 2, at::kLong).to(at::kFloat) / static_cast<double>(dim)).reciprocal();
}

inline double yarn_scale(double factor, double mscale = 1) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

/// Peng et al., "YaRN", arXiv 2309.00071: dimensions that turn often keep their frequency, slow ones are interpolated.
inline RotaryFrequencies yarn(const RotaryOptions& o) {
  const int64_t dim = o.rotary_dim();
  const auto original = static_cast<double>(o.original_max_position_embeddings.value_or(o.max_position_embeddings));
  const auto correction = [&](double rotations) {
    return static_cast<double>(dim) * std::log(original / (rotations * 2 * std::numbers::pi)) / (2 * std::log(o.theta));
  };
  double low = correction(o.beta_fast), high = correction(o.beta_slow);
  if (o.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(dim - 1));
  if (low == high) {
    high += 0.001;
  }
  const auto ramp = ((at::arange(dim / 2, at::kFloat) - low) / (high - low)).clamp(0, 1);
  const auto plain = plain_frequencies(o.theta, dim);
  const double scaling = o.attention_factor.value_or(
      o.mscale && o.mscale_all_dim ? yarn_scale(o.factor, *o.mscale) / yarn_scale(o.factor, *o.mscale_all_dim)
                                   : yarn_scale(o.factor));
  return {plain / o.factor * ramp + plain * (1 - ramp), scaling};
}

/// Ding et al., "LongRoPE", arXiv 2402.13753: one factor per frequency, another set beyond the trained length.
inline RotaryFrequencies longrope(const RotaryOptions& o, int64_t seq_len) {
  const int64_t original = o.original_max_position_embeddings.value_or(o.max_position_embeddings);
  const double factor = o.original_max_position_embeddings
                            ? static_cast<double>(o.max_position_embeddings) / static_cast<double>(original)
                            : o.factor;
  const auto& factors = seq_len > original ? o.long_factor : o.short_factor;
  HA_CHECK(static_cast<int64_t>(factors.size()) == o.rotary_dim() / 2, "rotary: longrope needs ", o.rotary_dim() / 2,
           " short and long factors, got ", factors.size());
  const double scaling = o.attention_factor.value_or(
      factor <= 1 ? 1.0 : std::sqrt(1 + std::log(factor) / std::log(static_cast<double>(original))));
  return {plain_frequencies(o.theta, o.rotary_dim()) / at::tensor(factors, at::kFloat), scaling};
}

/// Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, a smooth ramp between.
inline RotaryFrequencies llama3(const RotaryOptions& o) {
  const auto original = static_cast<double>(o.original_max_position_embeddings.value_or(o.max_position_embeddings));
  const auto plain = plain_frequencies(o.theta, o.rotary_dim());
  const auto wavelength = 2 * std::numbers::pi / plain;
  const auto smooth = (original / wavelength - o.low_freq_factor) / (o.high_freq_factor - o.low_freq_factor);
  const auto between = (1 - smooth) * plain / o.factor + smooth * plain;
  const auto scaled = at::where(wavelength > original / o.low_freq_factor, plain / o.factor, plain);
  const auto medium =
      wavelength.ge(original / o.high_freq_factor).logical_and(wavelength.le(original / o.low_freq_factor));
  return {at::where(medium, between, scaled), 1.0};
}

} // namespace detail

/// @param seq_len  longest position + 1; dynamic and longrope depend on it
/// @throws c10::ValueError for an unknown type (listing the known ones) or a missing field
inline RotaryFrequencies rotary_frequencies(const RotaryOptions& o, int64_t seq_len = 0) {
  HA_CHECK(o.head_dim > 0 && o.rotary_dim() > 0 && o.rotary_dim() % 2 == 0,
           "rotary: head_dim times the partial factor must be even and positive, got ", o.rotary_dim());
  if (o.type == "default") {
    return {detail::plain_frequencies(o.theta, o.rotary_dim()), 1.0};
  }
  if (o.type == "linear") {
    return {detail::plain_frequencies(o.theta, o.rotary_dim()) / o.factor, 1.0};
  }
  if (o.type == "dynamic") {
    const auto trained = static_cast<double>(o.max_position_embeddings);
    const double length = std::max(static_cast<double>(seq_len), trained), dim = static_cast<double>(o.rotary_dim());
    const double theta = o.theta * std::pow(o.factor * length / trained - (o.factor - 1), dim / (dim - 2));
    return {detail::plain_frequencies(theta, o.rotary_dim()), 1.0};
  }
  if (o.type == "yarn") {
    return detail::yarn(o);
  }
  if (o.type == "longrope") {
    return detail::longrope(o, seq_len);
  }
  HA_CHECK(o.type == "llama3", "rotary: unknown type '", o.type,
           "', known are default, linear, dynamic, yarn, longrope, llama3");
  return detail::llama3(o);
}

/// @param position_ids [B, T]  @returns cos and sin [B, T, R] in `dtype`
inline std::pair<at::Tensor, at::Tensor> rotary_cos_sin(const RotaryFrequencies& frequencies,
                                                        const at::Tensor& position_ids, at::ScalarType dtype) {
  const auto inverse = frequencies.inverse_frequencies.to(position_ids.device());
  const auto half = position_ids.to(at::kFloat).unsqueeze(-1) * inverse;
  const auto angle = at::cat({half, half}, -1);
  return {(angle.cos() * frequencies.attention_scaling).to(dtype),
          (angle.sin() * frequencies.attention_scaling).to(dtype)};
}

} // namespace hybridattn::ops
