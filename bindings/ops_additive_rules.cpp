// Rules with the additive update and at most one decay per head.
#include "ops_rules.h"

HYBRIDATTN_REGISTER_RULES(LightningRule, LinearAttentionRule)
