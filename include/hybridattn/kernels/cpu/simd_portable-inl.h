// No instruction set beyond the compiler's own: 16-byte vectors, which are SSE2 on x86-64 and NEON on AArch64.
inline constexpr int kVectorBytes = 16;
inline constexpr int kTileRows = 4;
inline constexpr int kLargeTileRows = 4;

template <class V>
HYBRIDATTN_INLINE V fma(V a, V b, V c) {
  return a * b + c;
}

/// Numbers of 16 bits, each in 32.
typedef uint32_t Halves __attribute__((vector_size(kVectorBytes)));

typedef uint16_t PackedHalves __attribute__((vector_size(kVectorBytes / 2)));

HYBRIDATTN_INLINE Halves load_halves(const void* from) {
  PackedHalves packed;
  __builtin_memcpy(&packed, from, sizeof(packed));
  return __builtin_convertvector(packed, Halves);
}
HYBRIDATTN_INLINE void store_halves(void* to, Halves x) {
  const PackedHalves packed = __builtin_convertvector(x, PackedHalves);
  __builtin_memcpy(to, &packed, sizeof(packed));
}
