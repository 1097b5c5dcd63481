// Huge pages for large results. Touching fresh memory costs a page fault per 4 KiB otherwise, which for long sequences
// takes as long as half of the computation.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace hybridattn {

/// Asks for huge pages behind `bytes` of memory that nobody has touched yet, if there is room for several; a hint that
/// systems may ignore.
inline void prefer_huge_pages(void* memory, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20, kLeast = 2 * kHugePage;
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t first = (begin + kHugePage - 1) & ~(kHugePage - 1), last = (begin + bytes) & ~(kHugePage - 1);
  if (first < last && last - first >= kLeast) {
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE); // whether it was taken does not matter
  }
#else
  static_cast<void>(memory);
  static_cast<void>(bytes);
#endif
}

} // namespace hybridattn
