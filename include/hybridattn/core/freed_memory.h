// What the allocator does with memory that was freed.
#pragma once

#include <cstdlib>
#include <string_view>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace hybridattn {

/// Lets this process keep the memory it frees for its next allocation, instead of giving it back to the system and
/// touching fresh pages again: on a CPU a training step frees and allocates the same large tensors over and over. The
/// process's peak does not grow; it only shrinks no more. Every later call does nothing.
///
/// Left alone are other allocators than glibc's, processes whose environment sets MALLOC_TRIM_THRESHOLD_,
/// MALLOC_MMAP_THRESHOLD_ or GLIBC_TUNABLES, and those with HYBRIDATTN_KEEP_FREED_MEMORY=0.
/// @returns whether freed memory is kept by this
inline bool keep_freed_memory() {
  static const bool kept = [] {
#if defined(__GLIBC__)
    for (const char* variable : {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"}) {
      if (std::getenv(variable) != nullptr) {
        return false;
      }
    }
    const char* wanted = std::getenv("HYBRIDATTN_KEEP_FREED_MEMORY");
    if (wanted != nullptr && std::string_view(wanted) == "0") {
      return false;
    }
    constexpr int kLargest = 1 << 30, kLargestOfOldVersions = 32 << 20; // bytes that come from the heap
    const bool from_heap =
        mallopt(M_MMAP_THRESHOLD, kLargest) == 1 || mallopt(M_MMAP_THRESHOLD, kLargestOfOldVersions) == 1;
    constexpr int kNever = -1;
    return from_heap && mallopt(M_TRIM_THRESHOLD, kNever) == 1;
#else
    return false;
#endif
  }();
  return kept;
}

} // namespace hybridattn
