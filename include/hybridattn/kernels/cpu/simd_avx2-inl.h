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
