// Everything, for users who do not mind compile time. Inside the library the narrow headers are included instead.
#pragma once

#include "hybridattn/core/check.h"
#include "hybridattn/core/cpu_features.h"
#include "hybridattn/core/nearest.h"

#include "hybridattn/ops/alignment_loss.h"
#include "hybridattn/ops/attention.h"
#include "hybridattn/ops/chunk_backward.h"
#include "hybridattn/ops/chunk_forward.h"
#include "hybridattn/ops/chunk_rule.h"
#include "hybridattn/ops/chunk_tensors.h"
#include "hybridattn/ops/delta_rule.h"
#include "hybridattn/ops/documents.h"
#include "hybridattn/ops/gated_delta_rule.h"
#include "hybridattn/ops/lightning.h"
#include "hybridattn/ops/linear_attention.h"
#include "hybridattn/ops/linear_cross_entropy.h"
#include "hybridattn/ops/linear_kl_divergence.h"
#include "hybridattn/ops/linear_loss.h"
#include "hybridattn/ops/naive_rule.h"
#include "hybridattn/ops/norm.h"
#include "hybridattn/ops/rotary.h"
#include "hybridattn/ops/rule.h"
#include "hybridattn/ops/short_convolution.h"
#include "hybridattn/ops/step_rule.h"

#include "hybridattn/transfer/attention.h"

#include "hybridattn/distill/parameter_groups.h"
#include "hybridattn/distill/presets.h"
#include "hybridattn/distill/schedule.h"
#include "hybridattn/distill/stage.h"

#include "hybridattn/select/cost.h"
#include "hybridattn/select/plans.h"
#include "hybridattn/select/race.h"
#include "hybridattn/select/race_options.h"
#include "hybridattn/select/race_state.h"
#include "hybridattn/select/statistics.h"
#include "hybridattn/select/verdicts.h"

#include "hybridattn/version.h"
