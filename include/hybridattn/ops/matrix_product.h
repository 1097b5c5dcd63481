// Products of large matrices: this library's CPU kernels, or ATen where that is faster. Letters: M rows and N
// columns of the result, K terms of every sum.
#pragma once

#include <ATen/Context.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>
#include <ATen/Parallel.h>
#include <hybridattn/core/check.h>
#include <hybridattn/core/cpu_features.h>
#include <hybridattn/kernels/cpu/sets.h>
#include <hybridattn/ops/backend.h>
#include <hybridattn/ops/tensor_rows.h>

#include <algorithm>
#include <limits>
#include <utility>

namespace hybridattn::ops {

/// Whether products by this library's kernels are faster on this machine than ATen's with results of the same type.
/// They reach three quarters of the peak of AVX-512, oneMKL as much on Intel's processors and less than half on others.
/// Of bf16 numbers ATen has no product with a result in fp32 at all. `narrow`: both factors are bf16.
inline bool prefers_native_products(bool narrow) {
  using kernels::cpu::InstructionSet;
  const auto set = kernels::cpu::chosen_instruction_set();
  if (narrow && set >= InstructionSet::avx512_bf16) {
    return true;
  }
  return set >= InstructionSet::avx512 && !(at::hasMKL() && is_intel_cpu());
}

namespace detail {

/// The split of [rows, columns] into one part per thread for which the threads copy least of the factors.
struct ProductGrid {
  int64_t across_rows = 1, across_columns = 1;

  ProductGrid(int64_t rows, int64_t columns, int64_t parts) {
    double least = std::numeric_limits<double>::infinity();
    for (int64_t split = 1; split <= parts; ++split) {
      if (parts % split == 0) {
        const double copied = static_cast<double>(rows) * (parts / split) + static_cast<double>(columns) * split;
        if (copied < least) {
          least = copied;
          across_rows = split;
          across_columns = parts / split;
        }
      }
    }
  }
};

/// Part `number` of `parts` of a dimension, in whole tiles: {begin, end}.
inline std::pair<int64_t, int64_t> part_of(int64_t size, int64_t number, int64_t parts) {
  constexpr int64_t kTile = 32;
  const int64_t tiles = (size + kTile - 1) / kTile;
  return {std::min(size, tiles * number / parts * kTile), std::min(size, tiles * (number + 1) / parts * kTile)};
}

template <class T>
void native_product(const at::Tensor& out, const at::Tensor& left, const at::Tensor& right, bool accumulate,
                    bool narrow) {
  /// A factor as the kernels read it, and whether that is its transpose.
  struct Operand {
    at::Tensor tensor;
    bool transposed;
    kernels::cpu::Rows<T> rows;

    explicit Operand(const at::Tensor& x) : tensor(readable<T>(x)) {
      transposed = tensor.stride(1) != 1 && tensor.stride(0) == 1;
      if (!transposed && tensor.stride(1) != 1) {
        tensor = tensor.contiguous();
      }
      rows = tensor_rows<T>(tensor, 0, tensor.stride(transposed ? 1 : 0));
    }
    /// From `row` and `column` on of the matrix that is not transposed.
    kernels::cpu::Rows<T> from(int64_t row, int64_t column) const {
      return transposed ? rows.from(column).columns_from(row) : rows.from(row).columns_from(column);
    }
  };
  const Operand a(left), b(right);
  const int64_t rows = out.size(0), columns = out.size(1);
  const auto kernel = kernels::cpu::product_kernel<T>(kernels::cpu::chosen_instruction_set(), narrow);
  const ProductGrid grid(rows, columns, at::in_parallel_region() ? 1 : at::get_num_threads());
  T* result = out.mutable_data_ptr<T>();
  at::parallel_for(0, grid.across_rows * grid.across_columns, 1, [&](int64_t begin, int64_t end) {
    for (int64_t number = begin; number < end; ++number) {
      const auto [row, last_row] = part_of(rows, number / grid.across_columns, grid.across_rows);
      const auto [column, last_column] = part_of(columns, number % grid.across_columns, grid.across_columns);
      kernels::cpu::ProductTask<T> task;
      task.rows = last_row - row;
      task.columns = last_column - column;
      task.terms = left.size(1);
      task.left = a.from(row, 0);
      task.right = b.from(0, column);
      task.left_transposed = a.transposed;
      task.right_transposed = b.transposed;
      task.out = result + row * out.stride(0) + column;
      task.out_stride = out.stride(0);
      task.accumulate = accumulate;
      if (task.rows > 0 && task.columns > 0) {
        kernel(task);
      }
    }
  });
}

} // namespace detail

/// How an op forms its products.
struct MatrixProducts {
  bool native; ///< by this library's kernels
  bool narrow; ///< factors may be rounded to bf16, which native kernels do where they have products of such numbers

  /// For products of, and with results of the size of, x and y.
  MatrixProducts(Backend wanted, const at::Tensor& x, const at::Tensor& y)
      : narrow(x.scalar_type() == at::kBFloat16 && y.scalar_type() == at::kBFloat16) {
    native = wanted != Backend::aten && native_can_run(x) && native_can_run(y) &&
             (wanted == Backend::native || prefers_native_products(narrow));
  }

  /// out = left right, or out += left right.
  /// @param out [M, N] fp32 or fp64, its rows dense  @param left [M, K]  @param right [K, N]: any strides; types other
  ///        than bf16 and out's are converted
  void operator()(at::Tensor& out, const at::Tensor& left, const at::Tensor& right, bool accumulate = false) const {
    HA_CHECK(left.size(1) == right.size(0) && out.size(0) == left.size(0) && out.size(1) == right.size(1),
             "matrix product: sizes do not fit: ", out.sizes(), " = ", left.sizes(), " x ", right.sizes());
    if (!native) {
      const auto a = left.to(out.scalar_type()), b = right.to(out.scalar_type());
      accumulate ? out.addmm_(a, b) : at::mm_out(out, a, b);
    } else if (out.scalar_type() == at::kDouble) {
      detail::native_product<double>(out, left, right, accumulate, false);
    } else {
      detail::native_product<float>(out, left, right, accumulate, narrow);
    }
  }
};

} // namespace hybridattn::ops
