// The smallest user program: one op on one tensor, a thread pool with more than one thread where OpenMP works.
#include <hybridattn/ops/gated_delta_rule.h>
#include <hybridattn/version.h>

#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <ATen/Parallel.h>

#include <cstdio>

#ifndef _OPENMP
#error "compiled without OpenMP: at::parallel_for would be serial"
#endif

int main() {
  const auto x = at::ones({1, 3, 1, 2});
  const auto gate = at::zeros({1, 3, 1});
  const auto [out, state] = hybridattn::ops::naive_gated_delta_rule(x, x, x, gate, gate + 0.5);
  std::printf("hybridattn %s, %.4f\n", hybridattn::version, out.sum().item<double>());
}
