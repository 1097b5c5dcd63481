// AVX2 and FMA: what the vectors of simd-inl.h cannot say themselves. Included inside the set's namespace and target
// region.
inline constexpr int kVectorBytes = 32;
inline constexpr int kTileRows = 4;      // 4 x 2 accumulators of 16 registers hide the latency of two FMA units
inline constexpr int kLargeTileRows = 6; // 6 x 2 accumulators and what is multiplied fit 16 registers

HYBRIDATTN_INLINE __m256 fma(__m256 a, __m256 b, __m256 c) {
  return _mm256_fmadd_ps(a, b, c);
}
HYBRIDATTN_INLINE __m256d fma(__m256d a, __m256d b, __m256d c) {
  return _mm256_fmadd_pd(a, b, c);
}

/// Numbers of 16 bits, each in 32.
typedef uint32_t Halves __attribute__((vector_size(kVectorBytes)));

HYBRIDATTN_INLINE Halves load_halves(const void* from) {
  return (Halves)_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(from)));
}
HYBRIDATTN_INLINE void store_halves(void* to, Halves x) {
  const __m256i packed = _mm256_packus_epi32((__m256i)x, (__m256i)x); // within each half of the register
  _mm_storeu_si128(static_cast<__m128i*>(to), _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0b1000)));
}
