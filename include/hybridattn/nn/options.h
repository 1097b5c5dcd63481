// Mixer options: plain structs whose field names are those of the Python options, of config.json and of the recipes.
#pragma once

#include <string>

#include "hybridattn/core/check.h"
#include "hybridattn/core/json_fields.h"

namespace hybridattn::nn {

/// Shape of an attention layer, as every mixer shares it. D = hidden_size, H = num_heads, K = head_dim.
struct MixerOptions {
  int64_t hidden_size = 0;     ///< D, width of the residual stream
  int64_t num_heads = 0;       ///< H, query heads
  int64_t num_kv_heads = 0;    ///< key/value heads of the teacher; 0 = as many as query heads
  int64_t head_dim = 0;        ///< K; 0 = hidden_size / num_heads
  bool qkv_bias = false;       ///< q_proj, k_proj and v_proj have biases
  bool output_bias = false;    ///< o_proj has a bias
  bool qk_norm = false;        ///< RMSNorm over each query and key head before the rotary embedding (Qwen3)
  std::string rotary = "keep"; ///< "keep" rotates q and k at the teacher's point, "drop" leaves positions out
  double norm_eps = 1e-6;      ///< epsilon of every RMSNorm in the mixer: the teacher's

  template <class Self, class Visit>
  static void each_field(Self& self, Visit&& visit) {
    visit("hidden_size", self.hidden_size);
    visit("num_heads", self.num_heads);
    visit("num_kv_heads", self.num_kv_heads);
    visit("head_dim", self.head_dim);
    visit("qkv_bias", self.qkv_bias);
    visit("output_bias", self.output_bias);
    visit("qk_norm", self.qk_norm);
    visit("rotary", self.rotary);
    visit("norm_eps", self.norm_eps);
  }

  /// Fills in what 0 stands for and checks every field.
  /// @throws c10::ValueError naming the field
  void resolve(const std::string& owner) {
    HA_CHECK(hidden_size > 0, owner, ": hidden_size must be positive, got ", hidden_size);
    HA_CHECK(num_heads > 0, owner, ": num_heads must be positive, got ", num_heads);
    num_kv_heads = num_kv_heads == 0 ? num_heads : num_kv_heads;
    HA_CHECK(num_kv_heads > 0 && num_heads % num_kv_heads == 0, owner, ": num_heads ", num_heads,
             " is not a multiple of num_kv_heads ", num_kv_heads);
    HA_CHECK(head_dim > 0 || (head_dim == 0 && hidden_size % num_heads == 0), owner, ": hidden_size ", hidden_size,
             " is not a multiple of num_heads ", num_heads, "; give head_dim");
    head_dim = head_dim == 0 ? hidden_size / num_heads : head_dim;
    HA_CHECK(norm_eps > 0, owner, ": norm_eps must be positive, got ", norm_eps);
    HA_CHECK(rotary == "keep" || rotary == "drop", owner, ": rotary must be keep or drop, got '", rotary, "'");
  }
};

/// Softmax attention; with `window` it is sliding-window attention with optional sinks.
struct SoftmaxAttentionOptions : MixerOptions {
  int64_t window = 0; ///< a query sees the last `window` positions, its own included; 0 = all
  int64_t sinks = 0;  ///< the first `sinks` tokens stay visible outside the window

  template <class Self, class Visit>
  static void each_field(Self& self, Visit&& visit) {
    MixerOptions::each_field(self, visit);
    visit("window", self.window);
    visit("sinks", self.sinks);
  }

  void resolve(const std::string& owner) {
    MixerOptions::resolve(owner);
    HA_CHECK(window >= 0 && sinks >= 0, owner, ": window and sinks must be >= 0, got ", window, " and ", sinks);
    HA_CHECK(sinks == 0 || window > 0, owner, ": sinks ", sinks, " has no effect without a window");
  }
};

/// What every linear mixer shares. V = value_head_dim.
struct LinearAttentionOptions : MixerOptions {
  int64_t value_head_dim = 0;        ///< V; 0 = head_dim
  std::string kv_sharing = "cloned"; ///< "cloned": a key/value head per query head; "shared": num_kv_heads, repeated
  std::string activation = "silu";   ///< on q, k and v: "silu" or "none"
  bool l2_norm = true;               ///< L2-normalise each query and key head before the rule
  int64_t short_convolution = 0; ///< width of a causal depthwise convolution on q, k, v before the activation; 0 = none
  bool output_gate = true;       ///< multiply the (normalised) output by an activation of g_proj x
  /// of the output gate: "silu" or "sigmoid"; "inner_sigmoid" stands in the middle of a g_proj of low rank
  std::string gate_activation = "silu";
  int64_t output_gate_low_rank_dim = 0; ///< rank of g_proj; 0 = a full matrix
  bool output_norm = true;              ///< RMSNorm over each value head before the gate

  template <class Self, class Visit>
  static void each_field(Self& self, Visit&& visit) {
    MixerOptions::each_field(self, visit);
    visit("value_head_dim", self.value_head_dim);
    visit("kv_sharing", self.kv_sharing);
    visit("activation", self.activation);
    visit("l2_norm", self.l2_norm);
    visit("short_convolution", self.short_convolution);
    visit("output_gate", self.output_gate);
    visit("gate_activation", self.gate_activation);
    visit("output_gate_low_rank_dim", self.output_gate_low_rank_dim);
    visit("output_norm", self.output_norm);
  }

  void resolve(const std::string& owner) {
    MixerOptions::resolve(owner);
    value_head_dim = value_head_dim == 0 ? head_dim : value_head_dim;
    HA_CHECK(value_head_dim > 0, owner, ": value_head_dim must be positive, got ", value_head_dim);
    HA_CHECK(short_convolution == 0 || short_convolution >= 2, owner,
             ": short_convolution must be 0 (off) or at least 2, got ", short_convolution);
    HA_CHECK(kv_sharing == "cloned" || kv_sharing == "shared", owner, ": kv_sharing must be cloned or shared, got '",
             kv_sharing, "'");
    HA_CHECK(activation == "silu" || activation == "none", owner, ": activation must be silu or none, got '",
             activation, "'");
    HA_CHECK(gate_activation == "silu" || gate_activation == "sigmoid" || gate_activation == "inner_sigmoid", owner,
             ": gate_activation must be silu, sigmoid or inner_sigmoid, got '", gate_activation, "'");
    HA_CHECK(output_gate_low_rank_dim >= 0, owner,
             ": output_gate_low_rank_dim must be 0 (a full matrix) or positive, got ", output_gate_low_rank_dim);
    HA_CHECK(gate_activation != "inner_sigmoid" || output_gate_low_rank_dim > 0, owner,
             ": gate_activation inner_sigmoid needs output_gate_low_rank_dim, got 0");
  }

  /// Heads that k_proj and v_proj produce.
  int64_t projected_kv_heads() const { return kv_sharing == "shared" ? num_kv_heads : num_heads; }
};

/// Delta rule without decay.
struct DeltaNetOptions : LinearAttentionOptions {
  static constexpr const char* kind = "deltanet";

  bool allow_negative_eigenvalues = false; ///< beta in (0, 2): a state transition may have negative eigenvalues

  template <class Self, class Visit>
  static void each_field(Self& self, Visit&& visit) {
    LinearAttentionOptions::each_field(self, visit);
    visit("allow_negative_eigenvalues", self.allow_negative_eigenvalues);
  }
};

/// Delta rule with a data-dependent scalar decay per head.
struct GatedDeltaNetOptions : DeltaNetOptions {
  static constexpr const char* kind = "gated_deltanet";
};

/// Additive rule with a fixed decay per head.
struct LightningOptions : LinearAttentionOptions {
  static constexpr const char* kind = "lightning";

  std::string decay_slopes =
      "lightning"; ///< "lightning": -2^(-8 h / H), h = 1..H; "retnet": log(1 - 2^(-5 - h)), h from 0

  template <class Self, class Visit>
  static void each_field(Self& self, Visit&& visit) {
    LinearAttentionOptions::each_field(self, visit);
    visit("decay_slopes", self.decay_slopes);
  }

  void resolve(const std::string& owner) {
    LinearAttentionOptions::resolve(owner);
    HA_CHECK(decay_slopes == "lightning" || decay_slopes == "retnet", owner,
             ": decay_slopes must be lightning or retnet, got '", decay_slopes, "'");
  }
};

/// Additive rule with a data-dependent decay per channel.
struct GatedLinearAttentionOptions : LinearAttentionOptions {
  static constexpr const char* kind = "gla";

  int64_t gate_low_rank_dim = 16;      ///< rank of the projection that gives the decay
  double gate_logit_normalizer = 16.0; ///< g = logsigmoid(gk_proj x) / gate_logit_normalizer

  template <class Self, class Visit>
  static void each_field(Self& self, Visit&& visit) {
    LinearAttentionOptions::each_field(self, visit);
    visit("gate_low_rank_dim", self.gate_low_rank_dim);
    visit("gate_logit_normalizer", self.gate_logit_normalizer);
  }

  void resolve(const std::string& owner) {
    LinearAttentionOptions::resolve(owner);
    HA_CHECK(gate_low_rank_dim > 0, owner, ": gate_low_rank_dim must be positive, got ", gate_low_rank_dim);
    HA_CHECK(gate_logit_normalizer > 0, owner, ": gate_logit_normalizer must be positive, got ", gate_logit_normalizer);
  }
};

/// Delta rule with a data-dependent decay per channel.
struct KimiDeltaAttentionOptions : DeltaNetOptions {
  static constexpr const char* kind = "kda";

  int64_t gate_low_rank_dim = 0; ///< rank of the projection that gives the decay; 0 = head_dim
  /// 0: g = -exp(A_log) softplus(f_proj x + dt_bias); below 0: g = bound * sigmoid(exp(A_log) (f_proj x + dt_bias))
  double gate_lower_bound = 0.0;

  template <class Self, class Visit>
  static void each_field(Self& self, Visit&& visit) {
    DeltaNetOptions::each_field(self, visit);
    visit("gate_low_rank_dim", self.gate_low_rank_dim);
    visit("gate_lower_bound", self.gate_lower_bound);
  }

  void resolve(const std::string& owner) {
    DeltaNetOptions::resolve(owner);
    gate_low_rank_dim = gate_low_rank_dim == 0 ? head_dim : gate_low_rank_dim;
    HA_CHECK(gate_low_rank_dim > 0, owner, ": gate_low_rank_dim must be positive, got ", gate_low_rank_dim);
    HA_CHECK(gate_lower_bound <= 0, owner, ": gate_lower_bound must be 0 (off) or below, got ", gate_lower_bound);
  }
};

/// Additive rule with RWKV-6's decay per channel; keys are written by as much as the state forgets.
struct Rwkv6Options : LinearAttentionOptions {
  static constexpr const char* kind = "rwkv6";

  int64_t gate_low_rank_dim = 64; ///< rank of the projection that gives the decay
  bool state_balancing = true; ///< scale keys so that the state's size does not depend on its decay; for an output norm
  bool group_norm = false;     ///< the output norm, where there is one, is RWKV's group norm instead of an RMSNorm
  /// projections read a mixture with the token before: "lerp" in fixed shares per channel, "ddlerp" in shares that
  /// depend on the data, "none" not at all; starts without a shift
  std::string token_shift = "none";
  int64_t shift_low_rank_dim = 32; ///< rank of the projections that give ddlerp's shares
  bool value_residual =
      false; ///< mix the values with those of the model's first mixer by a learned gate, closed at first
  int64_t value_low_rank_dim = 32; ///< rank of the projection that gives the value residual's gate

  Rwkv6Options() {
    activation = "none";
    l2_norm = false;
    gate_activation = "sigmoid";
    output_norm = false;
  }

  template <class Self, class Visit>
  static void each_field(Self& self, Visit&& visit) {
    LinearAttentionOptions::each_field(self, visit);
    visit("gate_low_rank_dim", self.gate_low_rank_dim);
    visit("state_balancing", self.state_balancing);
    visit("group_norm", self.group_norm);
    visit("token_shift", self.token_shift);
    visit("shift_low_rank_dim", self.shift_low_rank_dim);
    visit("value_residual", self.value_residual);
    visit("value_low_rank_dim", self.value_low_rank_dim);
  }

  void resolve(const std::string& owner) {
    LinearAttentionOptions::resolve(owner);
    HA_CHECK(gate_low_rank_dim > 0, owner, ": gate_low_rank_dim must be positive, got ", gate_low_rank_dim);
    HA_CHECK(shift_low_rank_dim > 0, owner, ": shift_low_rank_dim must be positive, got ", shift_low_rank_dim);
    HA_CHECK(value_low_rank_dim > 0, owner, ": value_low_rank_dim must be positive, got ", value_low_rank_dim);
    HA_CHECK(token_shift == "none" || token_shift == "lerp" || token_shift == "ddlerp", owner,
             ": token_shift must be none, lerp or ddlerp, got '", token_shift, "'");
    HA_CHECK(!group_norm || output_norm, owner, ": group_norm has no effect without output_norm");
  }
};

/// RWKV-7's generalised delta rule: what the state holds for the normalised key is replaced at a rate per channel.
struct Rwkv7Options : Rwkv6Options {
  static constexpr const char* kind = "rwkv7";

  int64_t rate_low_rank_dim = 64; ///< rank of the projection that gives the in-context learning rate

  template <class Self, class Visit>
  static void each_field(Self& self, Visit&& visit) {
    Rwkv6Options::each_field(self, visit);
    visit("rate_low_rank_dim", self.rate_low_rank_dim);
  }

  void resolve(const std::string& owner) {
    Rwkv6Options::resolve(owner);
    HA_CHECK(rate_low_rank_dim > 0, owner, ": rate_low_rank_dim must be positive, got ", rate_low_rank_dim);
  }
};

} // namespace hybridattn::nn
