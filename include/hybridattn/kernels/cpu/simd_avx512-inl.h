// AVX-512: what the vectors of simd-inl.h cannot say themselves. Included inside the set's namespace and target region.
inline constexpr int kVectorBytes = 64;
inline constexpr int kTileRows = 8;       // 8 x 2 accumulators of 32 registers hide the latency of two FMA units
inline constexpr int kLargeTileRows = 12; // 12 x 2 accumulators and what is multiplied fit 32 registers

HYBRIDATTN_INLINE __m512 fma(__m512 a, __m512 b, __m512 c) {
  return _mm512_fmadd_ps(a, b, c);
}
HYBRIDATTN_INLINE __m512d fma(__m512d a, __m512d b, __m512d c) {
  return _mm512_fmadd_pd(a, b, c);
}

/// Numbers of 16 bits, each in 32.
typedef uint32_t Halves __attribute__((vector_size(kVectorBytes)));

HYBRIDATTN_INLINE Halves load_halves(const void* from) { // all lanes by mask: GCC 12 warns of its own header otherwise
  return (Halves)_mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(static_cast<const __m256i*>(from)));
}
HYBRIDATTN_INLINE void store_halves(void* to, Halves x) {
  _mm256_storeu_si256(static_cast<__m256i*>(to), _mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)x));
}
