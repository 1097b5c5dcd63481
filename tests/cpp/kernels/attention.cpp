// Softmax attention of every set against the formula in fp64: values, every gradient, windows with sinks, padding,
// queries at one position, in blocks and split by keys. No torch here; vectors are exactly as long as what they hold,
// so that AddressSanitizer sees what is read or written beside it.
#include <hybridattn/kernels/cpu/sets.h>

#include <cmath>
#include <memory>
#include <vector>

#include "amx_emulation.h"
#include "catch.h"
#include "exact_numbers.h"

using namespace hybridattn::kernels::cpu;
using hybridattn::test::ExactNumbers;

namespace {

struct Case {
  int queries, keys, key_dim, value_dim;
  bool causal = true, one_position = false;
  int window = 0, sinks = 0, padding = 0; ///< the first `padding` keys are no tokens
};
constexpr Case kCases[] = {
    {1, 1, 1, 1},
    {70, 70, 20, 33},
    {150, 290, 16, 16},
    {140, 140, 64, 7, false},
    {290, 290, 16, 16, true, false, 40, 3},
    {140, 280, 16, 5, true, false, 130, 150},
    {140, 140, 8, 8, true, false, 30, 2, 9},
    {3, 150, 33, 16, true, true},
    {1, 150, 64, 32, true, true}, // read in place
    {7, 150, 32, 96, true, true, 40, 3},
    {2, 150, 16, 16, true, true, 0, 0, 100},
};

/// Values, then the gradients of q, k and v.
template <class T>
using Results = std::vector<std::vector<T>>;

template <class T>
struct Problem {
  Case is;
  bool as_bfloat16;
  ExactNumbers<T> q, k, v, grad_out;
  std::unique_ptr<bool[]> tokens;

  Problem(const Case& given, bool narrow)
      : is(given), as_bfloat16(narrow), q(size_t(given.queries) * given.key_dim), k(size_t(given.keys) * given.key_dim),
        v(size_t(given.keys) * given.value_dim), grad_out(size_t(given.queries) * given.value_dim),
        tokens(new bool[given.keys]) {
    for (int j = 0; j < is.keys; ++j) {
      tokens[j] = j >= is.padding;
    }
  }

  int position(int query) const { return is.one_position ? is.keys - 1 : is.keys - is.queries + query; }
  bool sees(int query, int key) const {
    const int at = position(query);
    const bool near = is.window == 0 || key > at - is.window || key < is.padding + is.sinks;
    return (tokens[key] && near && (!is.causal || key <= at)) || key == at;
  }

  Results<double> expected() const {
    Results<double> all = {std::vector<double>(grad_out.wide.size()), std::vector<double>(q.wide.size()),
                           std::vector<double>(k.wide.size()), std::vector<double>(v.wide.size())};
    const double scale = 0.3;
    for (int i = 0; i < is.queries; ++i) {
      std::vector<double> weight(is.keys), product(is.keys);
      double total = 0, mean = 0;
      for (int j = 0; j < is.keys; ++j) {
        double score = 0;
        for (int c = 0; c < is.key_dim; ++c) {
          score += scale * q.wide[i * is.key_dim + c] * k.wide[j * is.key_dim + c];
        }
        total += weight[j] = sees(i, j) ? std::exp(score) : 0;
      }
      for (int j = 0; j < is.keys; ++j) {
        weight[j] /= total;
        for (int c = 0; c < is.value_dim; ++c) {
          const double grad = grad_out.wide[i * is.value_dim + c];
          all[0][i * is.value_dim + c] += weight[j] * v.wide[j * is.value_dim + c];
          all[3][j * is.value_dim + c] += weight[j] * grad;
          product[j] += grad * v.wide[j * is.value_dim + c];
        }
        mean += weight[j] * product[j];
      }
      for (int j = 0; j < is.keys; ++j) {
        for (int c = 0; c < is.key_dim; ++c) {
          const double of_score = scale * weight[j] * (product[j] - mean);
          all[1][i * is.key_dim + c] += of_score * k.wide[j * is.key_dim + c];
          all[2][j * is.key_dim + c] += of_score * q.wide[i * is.key_dim + c];
        }
      }
    }
    return all;
  }

  /// `split`: gradients of queries by blocks of queries, those of keys by blocks of keys.
  Results<T> found(const AttentionKernels<T>& kernels, bool split) {
    Results<T> all = {std::vector<T>(grad_out.wide.size()), std::vector<T>(q.wide.size()), {}, {}};
    std::vector<T> log_sum(is.queries);
    const auto padded = [](int size) { return (size + kAttentionColumns - 1) / kAttentionColumns * kAttentionColumns; };
    std::vector<T> grad_k(is.keys * padded(is.key_dim)), grad_v(is.keys * padded(is.value_dim));
    AttentionTask<T> forward;
    forward.queries = is.queries;
    forward.keys = is.keys;
    forward.key_dim = is.key_dim;
    forward.value_dim = is.value_dim;
    forward.scale = T(0.3);
    forward.causal = is.causal;
    forward.first_position = position(0);
    forward.position_step = is.one_position ? 0 : 1;
    forward.window = is.window;
    forward.sink_end = is.padding + is.sinks;
    forward.tokens = is.padding > 0 ? tokens.get() : nullptr;
    forward.q = q.rows(is.key_dim, as_bfloat16);
    forward.k = k.rows(is.key_dim, as_bfloat16);
    forward.v = v.rows(is.value_dim, as_bfloat16);
    forward.out = Rows<T>::of(all[0].data(), is.value_dim);
    forward.log_sum = log_sum.data();
    kernels.forward(forward);
    const auto backward = [&](int query, int queries, int key, int end_key, bool for_queries, bool for_keys) {
      AttentionBackwardTask<T> task;
      static_cast<AttentionInputs<T>&>(task) = forward;
      task.queries = queries;
      task.first_position = forward.position(query);
      task.q = forward.q.from(query);
      task.out = forward.out.from(query);
      task.grad_out = grad_out.rows(is.value_dim, as_bfloat16).from(query);
      task.log_sum = log_sum.data() + query;
      task.first_key = key;
      task.end_key = end_key;
      task.grad_q = for_queries ? Rows<T>::of(all[1].data(), is.key_dim).from(query) : Rows<T>{};
      task.grad_k = for_keys ? grad_k.data() : nullptr;
      task.grad_v = for_keys ? grad_v.data() : nullptr;
      task.grad_k_stride = padded(is.key_dim);
      task.grad_v_stride = padded(is.value_dim);
      kernels.backward(task);
    };
    if (split) {
      for (int i = 0; i < is.queries; i += kAttentionBlock) {
        backward(i, std::min(kAttentionBlock, is.queries - i), 0, is.keys, true, false);
      }
      for (int j = 0; j < is.keys; j += kAttentionBlock) {
        backward(0, is.queries, j, std::min(is.keys, j + kAttentionBlock), false, true);
      }
    } else {
      backward(0, is.queries, 0, is.keys, true, true);
    }
    for (int j = 0; j < is.keys; ++j) {
      const auto row = [&](const std::vector<T>& from, int size, std::vector<T>& to) {
        const auto first = from.begin() + j * padded(size);
        to.insert(to.end(), first, first + size);
      };
      row(grad_k, is.key_dim, all[2]);
      row(grad_v, is.value_dim, all[3]);
    }
    return all;
  }
};

/// In the L2 norm, of an expected norm of at least 1e-3.
template <class T>
double distance(const std::vector<T>& x, const std::vector<double>& from) {
  double error = 0, size = 1e-6;
  for (size_t i = 0; i < x.size(); ++i) {
    error += std::pow(static_cast<double>(x[i]) - from[i], 2);
    size += std::pow(from[i], 2);
  }
  return std::sqrt(error / size);
}

template <class T>
void check(const AttentionKernels<T>& kernels, bool as_bfloat16, double allowed) {
  for (const auto& given : kCases) {
    INFO(given.queries << " queries, " << given.keys << " keys, K " << given.key_dim << ", V " << given.value_dim
                       << ", window " << given.window << ", padding " << given.padding << ", bf16 " << as_bfloat16);
    Problem<T> problem(given, as_bfloat16);
    const auto found = problem.found(kernels, false);
    const auto expected = problem.expected();
    for (size_t i = 0; i < expected.size(); ++i) {
      INFO("result " << i);
      if (given.keys == 1 && (i == 1 || i == 2)) {
        continue; // the only weight has no gradient: nothing but rounding
      }
      CHECK(distance(found[i], expected[i]) <= allowed);
    }
    CHECK(problem.found(kernels, true) == found);
  }
}

} // namespace

TEST_CASE("softmax attention is its formula, on every set") {
  for (const auto& [set, its_name] : kInstructionSets) {
    if (is_available(set)) {
      INFO(its_name);
      check<double>(attention_kernels<double>(set, false), false, 1e-13);
      check<float>(attention_kernels<float>(set, false), false, 3e-6);
      check<float>(attention_kernels<float>(set, false), true, 3e-6);
      check<float>(attention_kernels<float>(set, true), true, set >= InstructionSet::avx512_bf16 ? 1e-2 : 3e-6);
    }
  }
}

#if HYBRIDATTN_X86_KERNELS && defined(__linux__)
TEST_CASE("softmax attention in tile registers") {
  if (!is_available(InstructionSet::avx512_bf16)) {
    WARN("this processor has no AVX512-BF16");
    return;
  }
  const hybridattn::test::AmxEmulation emulation;
  check<float>(avx512_bf16::Kernels::attention<float, avx512_bf16::Amx>(), true, 1e-2);
}
#endif
