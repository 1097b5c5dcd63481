// What of a set is called from outside. Included inside the set's namespace and target region.

struct Kernels {
  template <class R, class T>
  static RuleKernels<T> rule() {
    if constexpr (R::per_channel) {
      return {channel_forward<R, T>, channel_backward<R, T>, step<R, T>};
    } else {
      return {chunk_forward<R, T>, chunk_backward<R, T>, step<R, T>};
    }
  }
  template <class T>
  static NormKernels<T> norm() {
    return {norm_forward<T>, norm_backward<T>};
  }
  template <class T>
  static DistanceKernels<T> distance() {
    return {distance_forward<T>, distance_backward<T>};
  }
  template <class T>
  static SwigluKernels<T> swiglu() {
    return {swiglu_forward<T>, swiglu_backward<T>};
  }
  template <class T>
  static RotaryKernel<T> rotary() {
    return rotate<T>;
  }
  template <class T>
  static ConvolutionKernels<T> convolution() {
    return {convolution_forward<T>, convolution_backward<T>};
  }
  template <class T>
  static ProductKernel<T> product() {
    return multiply<T>;
  }
  template <class T, class Products = Exact>
  static AttentionKernels<T> attention() {
    return {attention_forward<T, Products>, attention_backward<T, Products>};
  }
  template <class T, bool StudentIsLeft>
  static DivergenceOfRows<T> divergence() {
    return divergence_of_rows<StudentIsLeft, T>;
  }
};
