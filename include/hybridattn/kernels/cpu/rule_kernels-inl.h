// Which kernels compute a rule. Included inside a set's namespace and target region.

template <class R, class T>
RuleKernels<T> rule_kernels() {
  if constexpr (R::per_channel) {
    return {channel_forward<R, T>, channel_backward<R, T>, step<R, T>};
  } else {
    return {chunk_forward<R, T>, chunk_backward<R, T>, step<R, T>};
  }
}
