// Random numbers that are the same on every machine for a seed.
#pragma once

#include <cstdint>

namespace hybridattn::select {

/// splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014). The standard library's
/// distributions and std::shuffle differ between implementations.
class SplitMix64 {
public:
  explicit SplitMix64(uint64_t seed) : state_(seed) {}

  uint64_t next() {
    uint64_t bits = (state_ += 0x9E3779B97F4A7C15ULL);
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9ULL;
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EBULL;
    return bits ^ (bits >> 31);
  }

  /// In [0, 1).
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }

  /// In [0, n).
  int64_t below(int64_t n) { return static_cast<int64_t>(uniform() * static_cast<double>(n)); }

private:
  uint64_t state_;
};

} // namespace hybridattn::select
