// All that an instruction set's namespace holds. Without include guard: included once per set. Each header uses the
// ones before it.
// clang-format off
#include <hybridattn/kernels/cpu/simd-inl.h>
#include <hybridattn/kernels/cpu/tile-inl.h>
#include <hybridattn/kernels/cpu/chunk-inl.h>
#include <hybridattn/kernels/cpu/chunk_forward-inl.h>
#include <hybridattn/kernels/cpu/chunk_backward-inl.h>
#include <hybridattn/kernels/cpu/channel-inl.h>
#include <hybridattn/kernels/cpu/channel_forward-inl.h>
#include <hybridattn/kernels/cpu/channel_backward-inl.h>
#include <hybridattn/kernels/cpu/step-inl.h>
#include <hybridattn/kernels/cpu/divergence-inl.h>
#include <hybridattn/kernels/cpu/norm-inl.h>
#include <hybridattn/kernels/cpu/distance-inl.h>
#include <hybridattn/kernels/cpu/swiglu-inl.h>
#include <hybridattn/kernels/cpu/rotary-inl.h>
#include <hybridattn/kernels/cpu/convolution-inl.h>
#include <hybridattn/kernels/cpu/product-inl.h>
#include <hybridattn/kernels/cpu/attention_step-inl.h>
#include <hybridattn/kernels/cpu/attention-inl.h>
#include <hybridattn/kernels/cpu/kernels-inl.h>
// clang-format on
