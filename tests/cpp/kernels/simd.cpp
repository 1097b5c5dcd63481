// The vectors of every instruction set of this machine: exponential, transposition, and which set runs. No torch here.
#include <hybridattn/kernels/cpu/sets.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "catch.h"

using namespace hybridattn::kernels::cpu;

namespace {

// One function per set, since a vector must not leave its set's region: only these templates' results are compared.
#define HYBRIDATTN_TEST_FUNCTIONS                                                                                      \
  template <class T>                                                                                                   \
  void exponentials(const T* x, T* result, int count) {                                                                \
    for (int i = 0; i < count; i += Lanes<T>::count) {                                                                 \
      store<T>(result + i, exp_of_nonpositive<T>(load<T>(x + i)));                                                     \
    }                                                                                                                  \
  }                                                                                                                    \
  template <class T>                                                                                                   \
  void transposed(T* from, T* to, int rows, int columns) {                                                             \
    transpose<T>(Matrix<T>{from, columns}, rows, columns, Matrix<T>{to, rows});                                        \
  }
} // namespace

namespace hybridattn::kernels::cpu::portable {
HYBRIDATTN_TEST_FUNCTIONS
}
#if HYBRIDATTN_X86_KERNELS
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2")
namespace hybridattn::kernels::cpu::avx2 {
HYBRIDATTN_TEST_FUNCTIONS
}
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
namespace hybridattn::kernels::cpu::avx512 {
HYBRIDATTN_TEST_FUNCTIONS
}
#pragma GCC pop_options
#endif

namespace {

template <class T>
struct Functions {
  InstructionSet set;
  void (*exponentials)(const T*, T*, int);
  void (*transposed)(T*, T*, int, int);
};

template <class T>
std::vector<Functions<T>> of_this_machine() {
  std::vector<Functions<T>> all = {{InstructionSet::portable, portable::exponentials<T>, portable::transposed<T>}};
#if HYBRIDATTN_X86_KERNELS
  all.push_back({InstructionSet::avx2, avx2::exponentials<T>, avx2::transposed<T>});
  all.push_back({InstructionSet::avx512, avx512::exponentials<T>, avx512::transposed<T>});
#endif
  all.erase(std::remove_if(all.begin(), all.end(), [](const auto& f) { return !is_available(f.set); }), all.end());
  return all;
}

} // namespace

TEMPLATE_TEST_CASE("the exponential is right to its last bits", "", float, double) {
  std::vector<TestType> x;
  for (int i = 0; i < 4000; ++i) {
    x.push_back(-TestType(i) * TestType(0.0217));
  }
  const std::vector<TestType> special = {
      0, TestType(-1e-30), TestType(-700), TestType(-1e4), TestType(-1e30), -std::numeric_limits<TestType>::infinity()};
  x.insert(x.end(), special.begin(), special.end());
  x.resize((x.size() + 63) / 64 * 64, 0);
  for (const auto& functions : of_this_machine<TestType>()) {
    INFO(name(functions.set));
    std::vector<TestType> result(x.size());
    functions.exponentials(x.data(), result.data(), static_cast<int>(x.size()));
    double worst = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const auto expected = std::exp(static_cast<long double>(x[i]));
      if (expected < std::numeric_limits<TestType>::min() * 2) {
        worst = std::max(worst, result[i] <= std::numeric_limits<TestType>::min() * 2 ? 0.0 : 1.0);
      } else {
        worst = std::max(worst, static_cast<double>(std::abs(result[i] / expected - 1)));
      }
    }
    CHECK(worst <= 3 * std::numeric_limits<TestType>::epsilon());
  }
}

TEMPLATE_TEST_CASE("a matrix is transposed", "", float, double) {
  constexpr int kRows = 32, kColumns = 48;
  std::vector<TestType> from(kRows * kColumns), to(kRows * kColumns);
  for (size_t i = 0; i < from.size(); ++i) {
    from[i] = TestType(i);
  }
  for (const auto& functions : of_this_machine<TestType>()) {
    INFO(name(functions.set));
    functions.transposed(from.data(), to.data(), kRows, kColumns);
    bool right = true;
    for (int row = 0; row < kRows; ++row) {
      for (int column = 0; column < kColumns; ++column) {
        right &= to[column * kRows + row] == from[row * kColumns + column];
      }
    }
    CHECK(right);
  }
}

TEST_CASE("the best set runs unless another one is forced") {
  CHECK(is_available(chosen_instruction_set()));
  force_instruction_set(InstructionSet::portable);
  CHECK(chosen_instruction_set() == InstructionSet::portable);
  force_instruction_set(std::nullopt);
  CHECK_THROWS_WITH(instruction_set("sse9", "a test"), Catch::Contains("a test: instruction set 'sse9' is unknown"));
}
