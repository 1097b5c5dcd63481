// Rules with a decay per channel.
#include "ops_rules.h"

HYBRIDATTN_REGISTER_RULES(GatedLinearAttentionRule, KimiDeltaRule, DplrDeltaRule)
