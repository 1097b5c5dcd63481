// The second file that includes the whole library.
#include <hybridattn/hybridattn.h>

const void* other_features() {
  return &hybridattn::cpu_features();
}
