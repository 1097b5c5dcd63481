// Matrix products of every set against sums in fp64: both factors plain and transposed, sizes that fill no tile,
// several blocks, fp32 and bf16 factors, strided results. No torch here; vectors are exactly as long as what they hold,
// so that AddressSanitizer sees what is read or written beside it.
#include <hybridattn/kernels/cpu/sets.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "amx_emulation.h"
#include "catch.h"
#include "exact_numbers.h"

using namespace hybridattn::kernels::cpu;
using hybridattn::test::ExactNumbers;

namespace {

struct Sizes {
  int rows, columns, terms;
};
constexpr Sizes kSizes[] = {{1, 1, 1},      {5, 7, 3},      {33, 17, 40}, {200, 70, 300},
                            {12, 1030, 16}, {13, 33, 1100}, {3, 3, 0}};

/// The largest error of a product, relative to the root of the number of terms.
template <class T>
double error_of(ProductKernel<T> kernel, Sizes size, bool left_transposed, bool right_transposed, bool accumulate,
                bool as_bfloat16) {
  const auto [rows, columns, terms] = size;
  const size_t stride = static_cast<size_t>(columns) + 3;
  ExactNumbers<T> left(static_cast<size_t>(rows) * terms), right(static_cast<size_t>(columns) * terms);
  std::vector<T> out((rows - 1) * stride + columns, T(0.5));
  ProductTask<T> task;
  task.rows = rows;
  task.columns = columns;
  task.terms = terms;
  task.left = left.rows(left_transposed ? rows : terms, as_bfloat16);
  task.right = right.rows(right_transposed ? terms : columns, as_bfloat16);
  task.left_transposed = left_transposed;
  task.right_transposed = right_transposed;
  task.out = out.data();
  task.out_stride = static_cast<int64_t>(stride);
  task.accumulate = accumulate;
  kernel(task);
  double worst = 0;
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < columns; ++j) {
      double sum = accumulate ? 0.5 : 0;
      for (int k = 0; k < terms; ++k) {
        sum += static_cast<double>(left.wide[left_transposed ? k * rows + i : i * terms + k]) *
               static_cast<double>(right.wide[right_transposed ? j * terms + k : k * columns + j]);
      }
      worst = std::max(worst, std::abs(sum - out[i * stride + j]));
    }
    for (size_t beside = columns; beside < stride && i + 1 < rows; ++beside) {
      worst = out[i * stride + beside] == T(0.5) ? worst : INFINITY;
    }
  }
  return worst / std::sqrt(std::max(1, terms));
}

template <class T>
void check(ProductKernel<T> kernel, double allowed) {
  for (const auto& size : kSizes) {
    INFO(size.rows << " x " << size.columns << ", " << size.terms << " terms");
    for (int choice = 0; choice < 16; ++choice) {
      const bool as_bfloat16 = (choice & 8) != 0 && sizeof(T) == sizeof(float);
      INFO("left transposed " << (choice & 1) << ", right transposed " << (choice & 2) << ", accumulate "
                              << (choice & 4) << ", bf16 " << as_bfloat16);
      CHECK(error_of<T>(kernel, size, (choice & 1) != 0, (choice & 2) != 0, (choice & 4) != 0, as_bfloat16) <= allowed);
    }
  }
}

} // namespace

TEST_CASE("products are sums of products, on every set") {
  for (const auto& [set, its_name] : kInstructionSets) {
    if (is_available(set)) {
      INFO(its_name);
      check<float>(product_kernel<float>(set, false), 3e-6);
      check<float>(product_kernel<float>(set, true), 3e-6);
      check<double>(product_kernel<double>(set, false), 1e-14);
    }
  }
}

TEST_CASE("a split of rows and columns changes no bit") {
  ExactNumbers<float> left(150 * 700), right(700 * 90);
  const auto product = [&](int64_t row, int64_t rows, int64_t column, int64_t columns, std::vector<float>& out) {
    ProductTask<float> task;
    task.rows = rows;
    task.columns = columns;
    task.terms = 700;
    task.left = left.rows(700, false).from(row);
    task.right = right.rows(90, false).columns_from(column);
    task.out = out.data() + row * 90 + column;
    task.out_stride = 90;
    product_kernel<float>(chosen_instruction_set(), false)(task);
  };
  std::vector<float> whole(150 * 90), parts(150 * 90);
  product(0, 150, 0, 90, whole);
  product(0, 149, 0, 90, parts);
  product(149, 1, 0, 41, parts);
  product(149, 1, 41, 49, parts);
  CHECK(whole == parts);
}

#if HYBRIDATTN_X86_KERNELS && defined(__linux__)
TEST_CASE("products in tile registers are those of pairs") {
  if (!is_available(InstructionSet::avx512_bf16)) {
    WARN("this processor has no AVX512-BF16");
    return;
  }
  const hybridattn::test::AmxEmulation emulation;
  check<float>(avx512_bf16::multiply<float, avx512_bf16::Amx>, 3e-6);
}
#endif
