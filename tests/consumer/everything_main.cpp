// Includes the whole library; everything_other.cpp does so too, and both must link into one program.
#include <hybridattn/hybridattn.h>

#include <cstdio>

const void* other_features();

int main() {
  // An inline function has one address and one set of static variables in the whole program.
  const bool same = other_features() == &hybridattn::cpu_features();
  std::printf("%s\n", same ? "one definition" : "two definitions");
  return same ? 0 : 1;
}
