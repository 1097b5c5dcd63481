// What one machine can do at most: fused multiply-adds, dot products of bf16 numbers, memory traffic. Compiled for the
// machine it runs on by roofline.py, so every loop uses the widest registers there are.
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
typedef float Vector __attribute__((vector_size(kBytes)));
constexpr int kLanes = kBytes / sizeof(float);

// More than latency times throughput of any processor's multiply-add, and few enough for 16 registers.
constexpr int kChains = 12;

// Keeps a value that nobody reads from being optimised away.
template <class T>
void keep(T& value) {
  asm volatile("" : "+m"(value) : : "memory");
}

// Runs `work(thread)` on all threads at once; seconds from the common start to the last one's end.
template <class Work>
double seconds(int threads, Work work) {
  std::atomic<int> ready{0};
  std::atomic<bool> go{false};
  std::vector<std::thread> pool;
  for (int t = 0; t < threads; ++t) {
    pool.emplace_back([&, t] {
      ++ready;
      while (!go) {
      }
      work(t);
    });
  }
  while (ready < threads) {
  }
  const auto start = std::chrono::steady_clock::now();
  go = true;
  for (std::thread& thread : pool) {
    thread.join();
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void multiply_adds(std::int64_t rounds) {
  Vector sums[kChains] = {}, factor = Vector{} + 0.5f, term = Vector{} + 1.0f;
  keep(factor);
  keep(term);
  for (std::int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 16
    for (int c = 0; c < kChains; ++c) {
      sums[c] = sums[c] * factor + term;
    }
  }
  keep(sums);
}

#if defined(__AMX_BF16__)
constexpr double kDotFlops = 4 * 2.0 * 16 * 16 * 32; // of one round: four products of 16 x 32 by 32 x 16

bool dot_products(std::int64_t rounds) {
  constexpr int kRequest = 0x1023, kTileData = 18; // ARCH_REQ_XCOMP_PERM, of the tiles' content
  if (syscall(SYS_arch_prctl, kRequest, kTileData) != 0) {
    return false;
  }
  struct alignas(64) {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};
  } config;
  for (int tile = 0; tile < 8; ++tile) {
    config.row_bytes[tile] = 64;
    config.rows[tile] = 16;
  }
  alignas(64) std::uint16_t zeros[16 * 32] = {};
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, zeros, 64);
  _tile_loadd(5, zeros, 64);
  _tile_loadd(6, zeros, 64);
  _tile_loadd(7, zeros, 64);
  for (std::int64_t r = 0; r < rounds; ++r) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  alignas(64) float result[16 * 16];
  _tile_stored(0, result, 64);
  keep(result);
  _tile_release();
  return true;
}
#elif defined(__AVX512BF16__)
constexpr double kDotFlops = kChains * 16 * 4.0; // of one round: pairs of products, added

bool dot_products(std::int64_t rounds) {
  __m512 sums[kChains] = {};
  __m512 bits = {};
  keep(bits);
  const __m512bh a = reinterpret_cast<__m512bh>(bits), b = a;
  for (std::int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 16
    for (int c = 0; c < kChains; ++c) {
      sums[c] = _mm512_dpbf16_ps(sums[c], a, b);
    }
  }
  keep(sums);
  return true;
}
#else
constexpr double kDotFlops = 0;

bool dot_products(std::int64_t) {
  return false;
}
#endif

} // namespace

extern "C" {

/// GFLOP/s of fp32 multiply-adds on `threads` threads, each `rounds` times twelve vectors.
double fp32_fma(int threads, std::int64_t rounds) {
  const double time = seconds(threads, [=](int) { multiply_adds(rounds); });
  return 2.0 * kLanes * kChains * static_cast<double>(rounds) * threads / time / 1e9;
}

/// GFLOP/s of bf16 dot products with fp32 sums: AMX tiles, else AVX512-BF16, else 0: there is no such instruction.
double bf16_dot(int threads, std::int64_t rounds) {
  std::atomic<bool> ran{true};
  const double time = seconds(threads, [&](int) {
    if (!dot_products(rounds)) {
      ran = false;
    }
  });
  return ran ? kDotFlops * static_cast<double>(rounds) * threads / time / 1e9 : 0.0;
}

/// GB/s of reading `count` floats (a multiple of 64 per thread is read), `update`: of reading and writing them in
/// place.
double memory(int threads, float* data, std::int64_t count, bool update) {
  constexpr std::int64_t kAtOnce = 4 * kLanes;
  const std::int64_t share = count / threads / kAtOnce * kAtOnce;
  const double time = seconds(threads, [=](int t) {
    Vector sums[4] = {}, factor = Vector{} + 1.0f;
    keep(factor);
    float* own = data + t * share;
    for (std::int64_t i = 0; i < share; i += kAtOnce) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        Vector value;
        __builtin_memcpy(&value, own + i + j * kLanes, sizeof value);
        if (update) {
          value *= factor;
          __builtin_memcpy(own + i + j * kLanes, &value, sizeof value);
        } else {
          sums[j] += value;
        }
      }
    }
    keep(sums);
  });
  return (update ? 2.0 : 1.0) * sizeof(float) * static_cast<double>(share) * threads / time / 1e9;
}
}
