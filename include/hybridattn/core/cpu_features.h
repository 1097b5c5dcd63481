// Which vector instruction sets this processor has and the operating system lets programs use.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#define HYBRIDATTN_DETAIL_X86 1
#endif

namespace hybridattn {

/// Instruction sets that matter for linear algebra; false where the processor or the operating system lacks one.
struct CpuFeatures {
  bool avx2 = false;
  bool fma = false;
  bool f16c = false;
  bool avx512f = false;
  bool avx512bw = false;
  bool avx512dq = false;
  bool avx512vl = false;
  bool avx512_bf16 = false;
  bool avx512_fp16 = false;
  bool amx_tile = false;
  bool amx_bf16 = false;
  bool neon = false;

  /// Every set with its name, as Linux spells it in /proc/cpuinfo.
  std::vector<std::pair<std::string, bool>> named() const {
    return {{"avx2", avx2},
            {"fma", fma},
            {"f16c", f16c},
            {"avx512f", avx512f},
            {"avx512bw", avx512bw},
            {"avx512dq", avx512dq},
            {"avx512vl", avx512vl},
            {"avx512_bf16", avx512_bf16},
            {"avx512_fp16", avx512_fp16},
            {"amx_tile", amx_tile},
            {"amx_bf16", amx_bf16},
            {"neon", neon}};
  }
};

namespace detail {

inline CpuFeatures detect_cpu_features() {
  CpuFeatures found;
#if defined(HYBRIDATTN_DETAIL_X86)
  struct Registers {
    unsigned a = 0, b = 0, c = 0, d = 0;
  };
  const auto cpuid = [](unsigned leaf, unsigned subleaf) {
    Registers r;
    __get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d); // leaves zeros when the leaf does not exist
    return r;
  };
  const auto bit = [](unsigned value, int index) { return ((value >> index) & 1u) != 0; };

  const Registers basic = cpuid(1, 0);
  if (!bit(basic.c, 27)) {
    return found; // no OSXSAVE: the operating system keeps no vector registers across a task switch
  }
  unsigned low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  const bool saves_ymm = (low & 0x06) == 0x06;
  const bool saves_zmm = (low & 0xe6) == 0xe6;
  const bool saves_tiles = (low & 0x60000) == 0x60000;

  const Registers seven = cpuid(7, 0);
  const Registers seven_one = cpuid(7, 1);
  found.fma = saves_ymm && bit(basic.c, 12);
  found.f16c = saves_ymm && bit(basic.c, 29);
  found.avx2 = saves_ymm && bit(seven.b, 5);
  found.avx512f = saves_zmm && bit(seven.b, 16);
  found.avx512dq = saves_zmm && bit(seven.b, 17);
  found.avx512bw = saves_zmm && bit(seven.b, 30);
  found.avx512vl = saves_zmm && bit(seven.b, 31);
  found.avx512_fp16 = saves_zmm && bit(seven.d, 23);
  found.avx512_bf16 = saves_zmm && bit(seven_one.a, 5);
  found.amx_bf16 = saves_tiles && bit(seven.d, 22);
  found.amx_tile = saves_tiles && bit(seven.d, 24);
#elif defined(__aarch64__)
  found.neon = true; // part of the base instruction set
#endif
  return found;
}

} // namespace detail

/// The features of this machine, detected once.
inline const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detail::detect_cpu_features();
  return features;
}

/// Whether Intel made this processor: oneMKL, which PyTorch's matrix products come from, is at its best there.
inline bool is_intel_cpu() {
#if defined(HYBRIDATTN_DETAIL_X86)
  static const bool is_intel = [] {
    unsigned highest = 0, parts[3] = {}; // of "GenuineIntel", four letters each
    __get_cpuid(0, &highest, &parts[0], &parts[2], &parts[1]);
    return std::memcmp(parts, "GenuineIntel", sizeof(parts)) == 0;
  }();
  return is_intel;
#else
  return false;
#endif
}

} // namespace hybridattn

#undef HYBRIDATTN_DETAIL_X86
