// Products of bf16 numbers, as pairs in vectors and in tile registers (emulated where the processor has none), against
// the same kernels with fp32 products: values and every gradient. No torch here.
#include <hybridattn/kernels/cpu/sets.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "amx_emulation.h"
#include "catch.h"

#if HYBRIDATTN_X86_KERNELS && defined(__linux__)

using namespace hybridattn::kernels::cpu;

namespace {

template <bool Gated, bool Corrects>
struct SomeRule {
  static constexpr bool gated = Gated, per_channel = false, corrects = Corrects, generalised = false;
  static constexpr bool solves = Corrects;
};

std::mt19937 generator(0);

/// Exactly `count` numbers, so that AddressSanitizer sees what is read or written beside them.
template <class T>
struct Numbers {
  size_t count;
  std::unique_ptr<T[]> data;

  explicit Numbers(size_t size) : count(size), data(std::make_unique<T[]>(size)) {}
  T* get() const { return data.get(); }
};

Numbers<float> random_numbers(size_t count, float spread) {
  std::normal_distribution<float> normal(0, spread);
  Numbers<float> result(count);
  std::generate_n(result.get(), count, [&] { return normal(generator); });
  return result;
}

Numbers<Bfloat16> random_bfloat16(size_t count, float spread) {
  const auto wide = random_numbers(count, spread);
  Numbers<Bfloat16> result(count);
  for (size_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, wide.get() + i, sizeof(bits));
    result.get()[i].bits = static_cast<uint16_t>(bits >> 16);
  }
  return result;
}

/// Relative distance in the L2 norm.
double distance(const Numbers<float>& x, const Numbers<float>& from) {
  double error = 0, size = 0;
  for (size_t i = 0; i < x.count; ++i) {
    error += std::pow(static_cast<double>(x.get()[i]) - from.get()[i], 2);
    size += std::pow(static_cast<double>(from.get()[i]), 2);
  }
  return size > 0 ? std::sqrt(error / size) : std::sqrt(error);
}

/// One document of one head.
template <class R>
struct Problem {
  int tokens, keys, values;
  Numbers<Bfloat16> q, k, v, grad_out;
  Numbers<float> g, beta, initial, grad_final;

  Problem(int t, int key_dim, int value_dim)
      : tokens(t), keys(key_dim), values(value_dim), q(random_bfloat16(size_t(t) * key_dim, 1)),
        k(random_bfloat16(size_t(t) * key_dim, 1 / std::sqrt(static_cast<float>(key_dim)))),
        v(random_bfloat16(size_t(t) * value_dim, 1)), grad_out(random_bfloat16(size_t(t) * value_dim, 1)),
        g(random_numbers(t, 0.3F)), beta(random_numbers(t, 0.5F)),
        initial(random_numbers(size_t(key_dim) * value_dim, 0.3F)),
        grad_final(random_numbers(size_t(key_dim) * value_dim, 0.3F)) {
    for (int i = 0; i < t; ++i) {
      g.get()[i] = -std::abs(g.get()[i]);
      beta.get()[i] = std::min(1.0F, std::abs(beta.get()[i]));
    }
  }

  /// {out, final state}, then the gradients of q, k, v, initial state, and of g and beta together.
  template <class Forward, class Backward>
  std::pair<std::vector<Numbers<float>>, std::vector<Numbers<float>>> results(Forward chunk_forward,
                                                                              Backward chunk_backward) const {
    const auto rows = [](const Numbers<Bfloat16>& x, int columns) { return Rows<float>{x.get(), true, columns, 1}; };
    const size_t of_keys = size_t(tokens) * keys, of_values = size_t(tokens) * values, of_state = size_t(keys) * values;
    std::vector<Numbers<float>> made, gradients;
    for (const size_t size : {of_values, of_state}) {
      made.emplace_back(size);
    }
    for (const size_t size : {of_keys, of_keys, of_values, of_state, 2 * size_t(tokens)}) {
      gradients.emplace_back(size);
    }
    ForwardTask<float> forward;
    forward.tokens = tokens;
    forward.key_dim = keys;
    forward.value_dim = values;
    forward.scale = 0.3F;
    forward.q = rows(q, keys);
    forward.k = rows(k, keys);
    forward.v = rows(v, values);
    forward.g = g.get();
    forward.beta = beta.get();
    forward.state_stride = values;
    forward.initial_state = initial.get();
    forward.out = Rows<float>::of(made[0].get(), values);
    forward.final_state = made[1].get();
    const Numbers<float> states(static_cast<size_t>(forward.chunks()) * of_state);
    std::vector<float*> starts;
    for (int64_t n = 0; n < forward.chunks(); ++n) {
      starts.push_back(states.get() + static_cast<size_t>(n) * of_state);
    }
    forward.starts = starts.data();
    chunk_forward(forward);

    BackwardTask<float> backward;
    static_cast<ChunkInputs<float>&>(backward) = forward;
    backward.starts = starts.data();
    backward.grad_out = rows(grad_out, values);
    backward.grad_final_state = grad_final.get();
    backward.grad_q = Rows<float>::of(gradients[0].get(), keys);
    backward.grad_k = Rows<float>::of(gradients[1].get(), keys);
    backward.grad_v = Rows<float>::of(gradients[2].get(), values);
    backward.grad_initial_state = gradients[3].get();
    backward.grad_g = gradients[4].get();
    backward.grad_beta = gradients[4].get() + tokens;
    chunk_backward(backward);
    return {std::move(made), std::move(gradients)};
  }
};

template <class R, class Products>
void compare(const Problem<R>& problem) {
  const auto [exact, exact_gradients] =
      problem.results(avx512::chunk_forward<R, float>, avx512::chunk_backward<R, float>);
  const auto [narrow, gradients] =
      problem.results(avx512_bf16::chunk_forward<R, float, Products>, avx512_bf16::chunk_backward<R, float, Products>);
  for (size_t i = 0; i < exact.size(); ++i) {
    CHECK(distance(narrow[i], exact[i]) <= 6e-3);
  }
  for (size_t i = 0; i < exact_gradients.size(); ++i) {
    INFO("gradient " << i);
    if (i == 4 && problem.tokens == 1) {
      continue; // two numbers, each perhaps a small difference of large ones
    }
    CHECK(distance(gradients[i], exact_gradients[i]) <= 1e-2);
  }
}

} // namespace

TEMPLATE_TEST_CASE("products of bf16 numbers are near those of fp32", "", avx512_bf16::Pairs, avx512_bf16::Amx) {
  if (!is_available(InstructionSet::avx512_bf16)) {
    WARN("this processor has no AVX512-BF16");
    return;
  }
  const hybridattn::test::AmxEmulation emulation;
  for (const int tokens : {1, 15, 64, 65, 130}) {
    for (const auto& [keys, values] : {std::pair{16, 16}, {60, 100}, {130, 7}, {64, 33}}) {
      INFO(tokens << " tokens, K " << keys << ", V " << values);
      compare<SomeRule<true, true>, TestType>({tokens, keys, values});
    }
  }
  compare<SomeRule<false, false>, TestType>({130, 64, 64});
}

TEST_CASE("tile registers hold what vectors of pairs hold") {
  if (!is_available(InstructionSet::avx512_bf16)) {
    WARN("this processor has no AVX512-BF16");
    return;
  }
  const hybridattn::test::AmxEmulation emulation;
  using R = SomeRule<true, true>;
  const Problem<R> problem(100, 60, 40);
  const auto [pairs, pair_gradients] = problem.results(avx512_bf16::chunk_forward<R, float, avx512_bf16::Pairs>,
                                                       avx512_bf16::chunk_backward<R, float, avx512_bf16::Pairs>);
  const auto [tiles, tile_gradients] = problem.results(avx512_bf16::chunk_forward<R, float, avx512_bf16::Amx>,
                                                       avx512_bf16::chunk_backward<R, float, avx512_bf16::Amx>);
  // The operands are the same bits; only sums are rounded in another order, and then again to bf16.
  CHECK(distance(tiles[0], pairs[0]) <= 1e-3);
  CHECK(distance(tile_gradients[1], pair_gradients[1]) <= 1e-3);
}
#endif
