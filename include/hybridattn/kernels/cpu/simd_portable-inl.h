// No instruction set beyond the compiler's own: 16-byte vectors, which are SSE2 on x86-64 and NEON on AArch64.
inline constexpr int kVectorBytes = 16;
inline constexpr int kTileRows = 4;
inline constexpr int kLargeTileRows = 4;

template <class V>
HYBRIDATTN_INLINE V fma(V a, V b, V c) {
  return a * b + c;
}
