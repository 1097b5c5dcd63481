// Autocast as a scope: matrix products in bf16, everything else as it comes.
#pragma once

#include <ATen/autocast_mode.h>

namespace hybridattn::nn {

/// Sets autocast for a device type until the end of the scope. The cache of narrowed weights is off: with it a layer's
/// bf16 weights would outlive its activations.
class Autocast {
public:
  struct State {
    bool enabled = false;
    at::ScalarType dtype = at::kBFloat16;
  };

  static State state(at::DeviceType device) {
    return {at::autocast::is_autocast_enabled(device), at::autocast::get_autocast_dtype(device)};
  }

  Autocast(at::DeviceType device, State wanted)
      : device_(device), before_(state(device)), cache_before_(at::autocast::is_autocast_cache_enabled()) {
    set(wanted);
    at::autocast::set_autocast_cache_enabled(false);
  }
  ~Autocast() {
    set(before_);
    at::autocast::set_autocast_cache_enabled(cache_before_);
  }
  Autocast(const Autocast&) = delete;
  Autocast& operator=(const Autocast&) = delete;

private:
  void set(State state) const {
    at::autocast::set_autocast_enabled(device_, state.enabled);
    at::autocast::set_autocast_dtype(device_, state.dtype);
  }

  at::DeviceType device_;
  State before_;
  bool cache_before_;
};

} // namespace hybridattn::nn
