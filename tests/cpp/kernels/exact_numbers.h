// Random numbers that bf16 holds exactly.
#pragma once

#include <hybridattn/kernels/cpu/arrays.h>

#include <cstring>
#include <random>
#include <vector>

namespace hybridattn::test {

/// Numbers in T and as bf16; vectors are exactly as long, so that AddressSanitizer sees what is read beside them.
template <class T>
struct ExactNumbers {
  std::vector<T> wide;
  std::vector<kernels::cpu::Bfloat16> narrow;

  explicit ExactNumbers(size_t count) : wide(count), narrow(count) {
    static std::mt19937 generator(0);
    std::normal_distribution<float> normal;
    for (size_t i = 0; i < count; ++i) {
      const float number = normal(generator);
      uint32_t bits;
      std::memcpy(&bits, &number, sizeof(bits));
      narrow[i].bits = static_cast<uint16_t>(bits >> 16);
      bits &= 0xffff0000;
      float exact;
      std::memcpy(&exact, &bits, sizeof(exact));
      wide[i] = exact;
    }
  }

  kernels::cpu::Rows<T> rows(int64_t stride, bool as_bfloat16) {
    return as_bfloat16 ? kernels::cpu::Rows<T>{narrow.data(), true, stride}
                       : kernels::cpu::Rows<T>::of(wide.data(), stride);
  }
};

} // namespace hybridattn::test
