// DeltaNet: the delta rule without decay.
#pragma once

#include "hybridattn/nn/linear_attention.h"
#include "hybridattn/ops/rule.h"

namespace hybridattn::nn {

/// S += beta k (v - S^T k)^T with beta = sigmoid(b_proj x), doubled when negative eigenvalues are allowed.
/// Source: Yang et al., arXiv 2406.06484; the doubled beta: Grazzi et al., arXiv 2411.12537.
class DeltaNetImpl : public LinearAttentionImpl<ops::DeltaRule, DeltaNetOptions> {
public:
  using LinearAttentionImpl::LinearAttentionImpl;
};
TORCH_MODULE(DeltaNet);

} // namespace hybridattn::nn
