// A teacher's attention weights into a mixer of any kind: what is copied, what is cloned per head, what is dropped.
// Letters: H query heads, HKV key/value heads, K head dim, D hidden size.
#pragma once

#include <ATen/core/Tensor.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <hybridattn/core/check.h>

#include <map>
#include <set>
#include <string>
#include <vector>

namespace hybridattn::transfer {

/// Shape of the teacher's attention; read from its config, never derived from one another.
struct AttentionSpec {
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
};

/// One line of a plan.
struct TransferEntry {
  std::string action; ///< copied, cloned, initialised or dropped
  std::string source; ///< the teacher's tensor; empty for initialised
  std::string target; ///< the mixer's tensor; empty for dropped
  std::string note;
};

struct TransferResult {
  std::map<std::string, at::Tensor> weights; ///< mixer tensors that come from the teacher
  std::vector<TransferEntry> entries;
};

namespace detail {

inline std::string start_of(const std::string& name) {
  static const std::map<std::string, std::string> starts = {
      {"A_log", "log of a rate uniform in (0, 16)"},
      {"dt_bias", "inverse softplus of a step log-uniform in (0.001, 0.1)"},
      {"a_proj.weight", "random, as a new linear layer"},
      {"b_proj.weight", "random, as a new linear layer"},
      {"g_proj.weight", "random, as a new linear layer"},
      {"o_norm.weight", "ones"},
      {"gk_proj.down.weight", "random, as a new linear layer"},
      {"gk_proj.up.weight", "random, as a new linear layer"},
      {"gk_proj.up.bias", "random, as a new linear layer"},
      {"f_proj.down.weight", "random, as a new linear layer"},
      {"f_proj.up.weight", "random, as a new linear layer"},
      {"w0", "rising from -6 to -1 over a head's channels"},
      {"w_lora.down.weight", "random, as a new linear layer"},
      {"w_lora.up.weight", "zeros: no dependence on the token yet"},
      {"a0", "zeros: a rate of one half"},
      {"a_lora.down.weight", "random, as a new linear layer"},
      {"a_lora.up.weight", "zeros: no dependence on the token yet"},
      {"v0", "zeros: a gate half open"},
      {"v_lora.down.weight", "random, as a new linear layer"},
      {"v_lora.up.weight", "zeros: no dependence on the token yet"},
      {"v_scale", "zeros: no value residual yet"},
      {"g_proj.down.weight", "random, as a new linear layer"},
      {"g_proj.up.weight", "random, as a new linear layer"},
      {"o_norm.bias", "zeros"},
  };
  if (name.starts_with("token_shift.")) {
    return name.ends_with("down.weight") ? "random, as a new linear layer" : "zeros: no shift yet";
  }
  const auto found = starts.find(name);
  return found != starts.end()                      ? found->second
         : name.find("conv1d") != std::string::npos ? "identity: the last tap is 1"
                                                    : "module default";
}

} // namespace detail

/// Maps every teacher tensor and every mixer tensor.
///
/// Grouped keys and values: query head i reads KV head i / (H / HKV), so a mixer with one key head per query head gets
/// each KV head's rows repeated as a block, H / HKV times in a row.
/// @param teacher  q_proj, k_proj, v_proj, o_proj .weight (and .bias), q_norm.weight, k_norm.weight where it has them
/// @param mixer    the mixer's tensors; only names and shapes are read
/// @throws c10::ValueError naming a missing, unknown or misshapen tensor
inline TransferResult transfer_attention(const std::map<std::string, at::Tensor>& teacher, const AttentionSpec& spec,
                                         const std::map<std::string, at::Tensor>& mixer) {
  static const std::set<std::string> known = {"q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight",
                                              "q_proj.bias",   "k_proj.bias",   "v_proj.bias",   "o_proj.bias",
                                              "q_norm.weight", "k_norm.weight"};
  HA_CHECK(spec.num_heads > 0 && spec.num_kv_heads > 0 && spec.num_heads % spec.num_kv_heads == 0,
           "transfer: heads must be a multiple of KV heads, got ", spec.num_heads, " and ", spec.num_kv_heads);
  for (const auto& name : {"q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight"}) {
    HA_CHECK(teacher.count(name), "transfer: the teacher's attention has no ", name);
  }
  const int64_t queries = spec.num_heads * spec.head_dim, keys = spec.num_kv_heads * spec.head_dim;
  const int64_t groups = spec.num_heads / spec.num_kv_heads;
  TransferResult result;
  for (const auto& [name, tensor] : teacher) {
    HA_CHECK(known.count(name), "transfer: unknown tensor ", name, " in the teacher's attention; known are ",
             fmt::format("{}", fmt::join(known, ", ")));
    const bool key_value = name.starts_with("k_proj") || name.starts_with("v_proj");
    if (key_value || name.starts_with("q_proj")) {
      HA_CHECK(tensor.size(0) == (key_value ? keys : queries), "transfer: the teacher's ", name, " has ",
               tensor.size(0), " rows, expected ", key_value ? keys : queries);
    }
    const auto target = mixer.find(name);
    if (target == mixer.end()) {
      HA_CHECK(name.find("norm") != std::string::npos, "transfer: the mixer has no ", name,
               " although the teacher has; build it with the teacher's biases");
      result.entries.push_back({"dropped", name, "", "the mixer was built without q/k norm"});
    } else if (tensor.sizes() == target->second.sizes()) {
      result.weights[name] = tensor.clone();
      result.entries.push_back({"copied", name, name, ""});
    } else {
      auto shape = tensor.sizes().vec();
      shape[0] = queries;
      HA_CHECK(key_value && target->second.sizes() == at::IntArrayRef(shape), "transfer: ", name, " is ",
               tensor.sizes(), " in the teacher, ", target->second.sizes(), " in the mixer");
      auto heads = tensor.reshape({spec.num_kv_heads, spec.head_dim, -1});
      result.weights[name] = heads.repeat_interleave(groups, 0).reshape(shape);
      result.entries.push_back({"cloned", name, name, fmt::format("each KV head serves {} query heads", groups)});
    }
  }
  for (const auto& [name, tensor] : mixer) {
    if (!result.weights.count(name)) {
      HA_CHECK(!known.count(name), "transfer: the mixer has ", name, ", the teacher's attention does not");
      result.entries.push_back({"initialised", "", name, detail::start_of(name)});
    }
  }
  return result;
}

} // namespace hybridattn::transfer
