// Kernels read and write what they were given and nothing beside it: arrays of exactly their size, for a build with
// AddressSanitizer; every instruction set, rules with and without gates, sizes that fit no tile. No torch here.
#include <hybridattn/kernels/cpu/saved_states.h>
#include <hybridattn/kernels/cpu/sets.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "catch.h"

using namespace hybridattn::kernels::cpu;

namespace {

template <bool Gated, bool PerChannel, bool Corrects, bool Generalised>
struct SomeRule {
  static constexpr bool gated = Gated, per_channel = PerChannel, corrects = Corrects, generalised = Generalised;
  static constexpr bool solves = Corrects || Generalised;
};
using GatedDelta = SomeRule<true, false, true, false>;
using Additive = SomeRule<false, false, false, false>;
using ChannelAdditive = SomeRule<true, true, false, false>;
using ChannelDelta = SomeRule<true, true, true, false>;
using ChannelGeneralised = SomeRule<true, true, false, true>;

std::unique_ptr<float[]> random_numbers(size_t count) {
  static std::mt19937 generator(0);
  std::normal_distribution<float> normal(0, 0.3F);
  auto numbers = std::make_unique<float[]>(count);
  std::generate_n(numbers.get(), count, [&] { return normal(generator); });
  return numbers;
}

bool all_finite(const std::unique_ptr<float[]>& numbers, size_t count) {
  return std::all_of(numbers.get(), numbers.get() + count, [](float x) { return std::isfinite(x); });
}

template <class R>
void run(InstructionSet set, int tokens, int keys, int values, int chunk) {
  const size_t of_keys = static_cast<size_t>(tokens) * keys, of_values = static_cast<size_t>(tokens) * values;
  const size_t of_state = static_cast<size_t>(keys) * values;
  const auto q = random_numbers(of_keys), k = random_numbers(of_keys), v = random_numbers(of_values);
  const auto g = random_numbers(tokens), beta = random_numbers(tokens), grad_out = random_numbers(of_values);
  for (int t = 0; t < tokens; ++t) {
    g[t] = -std::abs(g[t]);
    beta[t] = std::min(1.0F, std::abs(beta[t]));
  }
  const auto out = random_numbers(of_values), initial = random_numbers(of_state), last = random_numbers(of_state);
  const auto grad_q = random_numbers(of_keys), grad_k = random_numbers(of_keys), grad_v = random_numbers(of_values);
  const auto grad_g = random_numbers(tokens), grad_beta = random_numbers(tokens);
  const auto channel_g = random_numbers(of_keys), a = random_numbers(of_keys), b = random_numbers(of_keys);
  const auto grad_channel_g = random_numbers(of_keys);
  const auto grad_a = random_numbers(of_keys), grad_b = random_numbers(of_keys);
  for (size_t i = 0; i < of_keys; ++i) {
    channel_g[i] = -std::abs(channel_g[i]);
    a[i] /= static_cast<float>(keys);
  }
  const auto kernels = rule_kernels<R, float>(set);

  ForwardTask<float> forward;
  forward.tokens = tokens;
  forward.key_dim = keys;
  forward.value_dim = values;
  forward.chunk = chunk;
  forward.scale = 0.5F;
  forward.q = Rows<float>::of(q.get(), keys);
  forward.k = Rows<float>::of(k.get(), keys);
  forward.v = Rows<float>::of(v.get(), values);
  forward.g = g.get();
  forward.beta = beta.get();
  forward.channel_g = Rows<float>::of(channel_g.get(), keys);
  forward.a = Rows<float>::of(a.get(), keys);
  forward.b = Rows<float>::of(b.get(), keys);
  forward.state_stride = values;
  forward.initial_state = initial.get();
  forward.final_state = last.get();
  forward.out = Rows<float>::of(out.get(), values);
  const auto states = random_numbers(static_cast<size_t>(forward.chunks()) * of_state);
  std::vector<float*> starts;
  for (int64_t n = 0; n < forward.chunks(); ++n) {
    starts.push_back(states.get() + static_cast<size_t>(n) * of_state);
  }
  forward.starts = starts.data();
  kernels.chunk_forward(forward);
  CHECK(all_finite(out, of_values));

  BackwardTask<float> backward;
  static_cast<ChunkInputs<float>&>(backward) = forward;
  backward.starts = starts.data();
  backward.grad_out = Rows<float>::of(grad_out.get(), values);
  backward.grad_final_state = initial.get();
  backward.grad_initial_state = last.get();
  backward.grad_q = Rows<float>::of(grad_q.get(), keys);
  backward.grad_k = Rows<float>::of(grad_k.get(), keys);
  backward.grad_v = Rows<float>::of(grad_v.get(), values);
  backward.grad_g = grad_g.get();
  backward.grad_beta = grad_beta.get();
  backward.grad_channel_g = Rows<float>::of(grad_channel_g.get(), keys);
  backward.grad_a = Rows<float>::of(grad_a.get(), keys);
  backward.grad_b = Rows<float>::of(grad_b.get(), keys);
  kernels.chunk_backward(backward);
  const std::vector<float> once(grad_q.get(), grad_q.get() + of_keys);
  // The same from some of the states.
  constexpr int64_t kInterval = 3;
  for (int64_t n = 0; n < forward.chunks(); ++n) {
    starts[n] = n % kInterval == 0 ? starts[n] : nullptr;
  }
  kernels.chunk_forward(forward);
  backward_between_states(kernels, backward, kInterval);
  CHECK(std::equal(once.begin(), once.end(), grad_q.get()));
  CHECK(all_finite(grad_q, of_keys));
  CHECK(all_finite(grad_k, of_keys));
  CHECK(all_finite(grad_v, of_values));
  CHECK(all_finite(grad_g, tokens));
  CHECK(all_finite(grad_channel_g, of_keys));
  CHECK(all_finite(grad_a, of_keys));
  CHECK(all_finite(grad_b, of_keys));

  if (tokens > 0) {
    StepTask<float> step;
    step.key_dim = keys;
    step.value_dim = values;
    step.q = forward.q;
    step.k = forward.k;
    step.v = forward.v;
    step.g = -0.1F;
    step.channel_g = forward.channel_g;
    step.a = forward.a;
    step.b = forward.b;
    step.state = last.get();
    step.out = forward.out;
    kernels.step(step);
    CHECK(all_finite(last, of_state));
  }
}

} // namespace

TEST_CASE("kernels touch only what they were given") {
  for (const auto& [set, its_name] : kInstructionSets) {
    if (!is_available(set)) {
      continue;
    }
    INFO(its_name);
    for (const int tokens : {0, 1, 15, 64, 65, 130}) {
      for (const auto& [keys, values] : {std::pair{16, 16}, {60, 100}, {1, 1}, {130, 7}, {64, 33}}) {
        for (const int chunk : {1, 16, 64, 100}) {
          run<GatedDelta>(set, tokens, keys, values, chunk);
          run<Additive>(set, tokens, keys, values, chunk);
          run<ChannelAdditive>(set, tokens, keys, values, chunk);
          run<ChannelDelta>(set, tokens, keys, values, chunk);
          run<ChannelGeneralised>(set, tokens, keys, values, chunk);
        }
      }
    }
    for (const int size : {1, 15, 16, 17, 1000}) {
      const auto left = random_numbers(size), right = random_numbers(size);
      CHECK(std::isfinite(divergence_of_rows<float, true>(set)(left.get(), right.get(), size, 1.3, 0.7, true)));
      CHECK(all_finite(left, size));
      CHECK(std::isfinite(divergence_of_rows<float, false>(set)(left.get(), right.get(), size, 1, 0.7, true)));
      CHECK(all_finite(right, size));
      constexpr int kRows = 3;
      const size_t count = static_cast<size_t>(kRows) * size;
      const auto x = random_numbers(count), gate = random_numbers(count), weight = random_numbers(size);
      const auto out = random_numbers(count), grad_gate = random_numbers(count), grad_weight = random_numbers(size);
      NormTask<float> task;
      task.rows = kRows;
      task.size = size;
      task.mean = task.activates = true;
      task.eps = 1e-6F;
      task.weight = weight.get();
      task.x = task.grad_out = Rows<float>::of(x.get(), size);
      task.gate = Rows<float>::of(gate.get(), size);
      task.out = task.grad_x = Rows<float>::of(out.get(), size);
      task.grad_gate = Rows<float>::of(grad_gate.get(), size);
      task.grad_weight = grad_weight.get();
      norm_kernels<float>(set).forward(task);
      CHECK(all_finite(out, count));
      norm_kernels<float>(set).backward(task);
      CHECK(all_finite(out, count));
      CHECK(all_finite(grad_gate, count));
      CHECK(all_finite(grad_weight, size));
      RotaryTask<float> rotary;
      rotary.tokens = rotary.heads = 1;
      rotary.size = static_cast<int>(count);
      rotary.half = size;
      rotary.x = Rows<float>::of(x.get(), 0);
      rotary.out = Rows<float>::of(out.get(), 0);
      rotary.cos = rotary.sin = Rows<float>::of(gate.get(), 0);
      rotary_kernel<float>(set)(rotary);
      CHECK(out[0] == x[0] * gate[0] - x[size] * gate[0]);
      CHECK(out[count - 1] == x[count - 1]);
      for (const int taps : {1, 4}) {
        const int64_t borders[] = {0, 1, 1, kRows};
        const auto filter = random_numbers(static_cast<size_t>(taps) * size);
        const auto grad_filter = random_numbers(static_cast<size_t>(taps) * size);
        ConvolutionTask<float> convolution;
        convolution.borders = borders;
        convolution.documents = 3;
        convolution.channels = size;
        convolution.taps = taps;
        convolution.activates = true;
        convolution.weight = filter.get();
        convolution.weight_stride = size;
        convolution.bias = weight.get();
        convolution.x = convolution.grad_out = Rows<float>::of(x.get(), size);
        convolution.out = convolution.grad_x = Rows<float>::of(out.get(), size);
        convolution.grad_weight = grad_filter.get();
        convolution.grad_bias = grad_weight.get();
        convolution_kernels<float>(set).forward(convolution);
        CHECK(all_finite(out, count));
        convolution_kernels<float>(set).backward(convolution);
        CHECK(all_finite(out, count));
        CHECK(all_finite(grad_filter, static_cast<size_t>(taps) * size));
        CHECK(all_finite(grad_weight, size));
      }
    }
  }
}
