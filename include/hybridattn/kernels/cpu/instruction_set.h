// The instruction sets that kernels are built for, and which one runs: the best one this processor has, or a forced
// one.
#pragma once

#include <hybridattn/core/cpu_features.h>

#include <array>
#include <cstdlib>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

// Sets other than the portable one are compiled by target pragmas, which need GCC on x86-64.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define HYBRIDATTN_X86_KERNELS 1
#else
#define HYBRIDATTN_X86_KERNELS 0
#endif

#if HYBRIDATTN_X86_KERNELS && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace hybridattn::kernels::cpu {

/// portable: what the compiler makes of 16-byte vectors (SSE2, NEON); avx2: AVX2 and FMA; avx512: AVX-512 F, BW, DQ,
/// VL; avx512_bf16: also BF16, whose products of bf16 numbers the chunked form takes where its inputs are such; amx:
/// the same products in tile registers.
enum class InstructionSet { portable, avx2, avx512, avx512_bf16, amx };

inline constexpr std::array<std::pair<InstructionSet, std::string_view>, 5> kInstructionSets = {
    {{InstructionSet::portable, "portable"},
     {InstructionSet::avx2, "avx2"},
     {InstructionSet::avx512, "avx512"},
     {InstructionSet::avx512_bf16, "avx512_bf16"},
     {InstructionSet::amx, "amx"}}};

inline std::string_view name(InstructionSet set) {
  return kInstructionSets[static_cast<size_t>(set)].second;
}

namespace detail {
/// Whether the operating system lets this process use AMX: Linux grants the memory for its registers when asked.
inline bool may_use_tiles() {
#if HYBRIDATTN_X86_KERNELS && defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18; // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}
} // namespace detail

/// Whether kernels of this set were compiled and this processor can run them.
inline bool is_available(InstructionSet set) {
  const auto& cpu = cpu_features();
  switch (set) {
  case InstructionSet::amx:
    return cpu.amx_bf16 && cpu.amx_tile && is_available(InstructionSet::avx512_bf16) && detail::may_use_tiles();
  case InstructionSet::avx512_bf16:
    return cpu.avx512_bf16 && is_available(InstructionSet::avx512);
  case InstructionSet::avx512:
    return HYBRIDATTN_X86_KERNELS && cpu.avx512f && cpu.avx512bw && cpu.avx512dq && cpu.avx512vl && cpu.fma;
  case InstructionSet::avx2:
    return HYBRIDATTN_X86_KERNELS && cpu.avx2 && cpu.fma;
  case InstructionSet::portable:
    break;
  }
  return true;
}

/// The set called `wanted`. @throws std::invalid_argument if it is unknown, or this processor lacks it
inline InstructionSet instruction_set(std::string_view wanted, std::string_view source) {
  std::string known;
  for (const auto& [set, its_name] : kInstructionSets) {
    if (its_name == wanted && is_available(set)) {
      return set;
    }
    if (is_available(set)) {
      known.append(known.empty() ? "" : ", ").append(its_name);
    }
  }
  throw std::invalid_argument(std::string(source) + ": instruction set '" + std::string(wanted) +
                              "' is unknown or not on this machine, which has " + known);
}

namespace detail {
inline std::optional<InstructionSet> forced_set;

inline InstructionSet best_instruction_set() {
  for (const auto set :
       {InstructionSet::amx, InstructionSet::avx512_bf16, InstructionSet::avx512, InstructionSet::avx2}) {
    if (is_available(set)) {
      return set;
    }
  }
  return InstructionSet::portable;
}
} // namespace detail

/// Makes every later call of this process run kernels of one set; std::nullopt ends that. Not to be called while
/// kernels run.
inline void force_instruction_set(std::optional<InstructionSet> set) {
  detail::forced_set = set;
}

inline std::optional<InstructionSet> forced_instruction_set() {
  return detail::forced_set;
}

/// The set that runs: the forced one, else the one that the environment variable HYBRIDATTN_INSTRUCTION_SET names (read
/// once), else the best one.
/// @throws std::invalid_argument if the variable's set is unknown, or this processor lacks it
inline InstructionSet chosen_instruction_set() {
  if (const auto forced = detail::forced_set) {
    return *forced;
  }
  static const InstructionSet standing = [] {
    constexpr const char* kVariable = "HYBRIDATTN_INSTRUCTION_SET";
    const char* wanted = std::getenv(kVariable);
    return wanted != nullptr && *wanted != '\0' ? instruction_set(wanted, kVariable) : detail::best_instruction_set();
  }();
  return standing;
}

} // namespace hybridattn::kernels::cpu
