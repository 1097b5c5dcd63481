// Freed memory is kept: allocating again what was freed touches no fresh page.
#include "hybridattn/core/freed_memory.h"
#include "catch.h"

#include <cstring>
#include <memory>
#include <sys/resource.h>

namespace {

long fresh_pages_of(size_t bytes) {
  rusage before{}, after{};
  getrusage(RUSAGE_SELF, &before);
  const std::unique_ptr<void, void (*)(void*)> block(std::malloc(bytes), std::free);
  std::memset(block.get(), 1, bytes);
  getrusage(RUSAGE_SELF, &after);
  return after.ru_minflt - before.ru_minflt;
}

} // namespace

TEST_CASE("freed memory is kept for the next allocation") {
  constexpr size_t kBytes = 24 << 20;
  if (!hybridattn::keep_freed_memory()) {
    WARN("the environment or the allocator decides otherwise here");
    return;
  }
  CHECK(hybridattn::keep_freed_memory());
  fresh_pages_of(kBytes);
  CHECK(fresh_pages_of(kBytes) < 100); // of 6,144 pages of 4 KiB
}
