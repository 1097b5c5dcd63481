// Short causal depthwise convolution over tokens with the activation after it, as one differentiable op: this library's
// CPU kernels, or a composition of ATen ops. Letters: B batch, T tokens, D channels, W taps.
#pragma once

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/zeros.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <hybridattn/core/check.h>
#include <hybridattn/kernels/cpu/sets.h>
#include <hybridattn/ops/backend.h>
#include <hybridattn/ops/documents.h>
#include <hybridattn/ops/rule.h>
#include <hybridattn/ops/tensor_rows.h>
#include <torch/csrc/autograd/custom_function.h>

#include <string>
#include <tuple>
#include <vector>

namespace hybridattn::ops {

/// out_t = f(bias + sum_i weight[:, i] x_(t - W + 1 + i)), zeros before a document's first token; f is SiLU or nothing.
struct ConvolutionInputs {
  at::Tensor x, weight;                       ///< [B, T, D], [D, W]
  std::optional<at::Tensor> bias, cu_seqlens; ///< [D]; [N + 1] documents packed into a batch of one
  bool activates = false;                     ///< f = SiLU
};

/// Gradients of x, weight and bias; undefined where there is no bias.
using ConvolutionGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

/// Sizes may be symbolic: tracing checks them too.
inline void check_convolution(const ConvolutionInputs& in) {
  HA_CHECK(
      in.x.dim() == 3 && in.weight.dim() == 2 && in.weight.sym_size(0) == in.x.sym_size(2) &&
          in.weight.sym_size(1) > 0 && (!in.bias || (in.bias->dim() == 1 && in.bias->sym_size(0) == in.x.sym_size(2))),
      "short_convolution: x must be [B, T, D], weight [D, W] and bias [D], got ", in.x.sym_sizes(), ", ",
      in.weight.sym_sizes(), in.bias ? " and a bias of " : "", in.bias ? in.bias->sym_sizes() : c10::SymIntArrayRef{});
  HA_CHECK(!in.cu_seqlens || in.x.sym_size(0) == 1, "short_convolution: cu_seqlens needs a batch of 1, got ",
           in.x.sym_size(0));
}

/// Composed of ATen ops.
inline at::Tensor aten_convolution(const ConvolutionInputs& in) {
  const int64_t width = in.weight.size(1), length = in.x.size(1);
  const auto before = at::zeros({in.x.size(0), width - 1, in.x.size(2)}, in.x.options());
  const auto padded = at::cat({before, in.x}, 1);
  at::Tensor place; // of each token in its document
  if (in.cu_seqlens) {
    const auto tokens = at::arange(length, in.cu_seqlens->options());
    const auto document = at::searchsorted(*in.cu_seqlens, tokens, false, true) - 1;
    place = tokens - in.cu_seqlens->index_select(0, document);
  }
  at::Tensor out;
  for (int64_t tap = 0; tap < width; ++tap) { // W is 3 or 4: shifted products beat torch's depthwise conv1d on a CPU
    auto term = padded.narrow(1, tap, length) * in.weight.select(1, tap);
    if (place.defined() && tap + 1 < width) {
      term = term.masked_fill(place.lt(width - 1 - tap).unsqueeze(-1), 0);
    }
    out = out.defined() ? out + term : term;
  }
  out = in.bias ? out + *in.bias : out;
  return (in.activates ? at::silu(out) : out).to(in.x.scalar_type());
}

namespace detail {

/// The inputs as the kernels read them, and the tasks: some channels of one sequence each, so that sums over tokens do
/// not depend on the number of threads.
template <class T>
struct NativeConvolution {
  const ConvolutionInputs& in;
  at::Tensor x, weight, bias;
  std::vector<int64_t> borders; // of the documents of a sequence
  int64_t batch, tokens, channels, taps;

  explicit NativeConvolution(const ConvolutionInputs& inputs)
      : in(inputs), x(inputs.x), weight(inputs.weight.to(state_dtype(x)).t().contiguous()),
        bias(inputs.bias ? inputs.bias->to(state_dtype(x)).contiguous() : at::Tensor()), borders{0}, batch(x.size(0)),
        tokens(x.size(1)), channels(x.size(2)), taps(inputs.weight.size(1)) {
    for (const auto& [begin, end] : document_spans("short_convolution", 1, tokens, in.cu_seqlens)) {
      borders.push_back(end);
    }
  }

  /// From `channel` on of sequence `row` of y [B, T, D].
  static kernels::cpu::Rows<T> rows_of(const at::Tensor& y, int64_t row, int64_t channel) {
    return tensor_rows<T>(y, row * y.stride(0) + channel * y.stride(2), y.stride(1), y.stride(2));
  }

  /// f(sequence, first channel, task) for each task, on all threads.
  template <class F>
  void each(F&& f) const {
    constexpr int64_t kLeast = 128; // channels: less wastes what memory brings along
    const int64_t parts = std::max<int64_t>(1, std::min(channels / kLeast, int64_t{4} * at::get_num_threads()));
    const int64_t block = ((channels + parts - 1) / parts + kLeast - 1) / kLeast * kLeast;
    const int64_t blocks = (channels + block - 1) / block;
    at::parallel_for(0, batch * blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t number = begin; number < end; ++number) {
        const int64_t row = number / blocks, channel = number % blocks * block;
        kernels::cpu::ConvolutionTask<T> task;
        task.borders = borders.data();
        task.documents = static_cast<int64_t>(borders.size()) - 1;
        task.channels = static_cast<int>(std::min(block, channels - channel));
        task.taps = static_cast<int>(taps);
        task.activates = in.activates;
        task.weight = weight.const_data_ptr<T>() + channel;
        task.weight_stride = channels;
        task.bias = bias.defined() ? bias.const_data_ptr<T>() + channel : nullptr;
        task.x = rows_of(x, row, channel);
        f(row, channel, task);
      }
    });
  }
};

template <class T>
at::Tensor native_convolution(const ConvolutionInputs& in) {
  const NativeConvolution<T> convolution(in);
  auto out = at::empty(in.x.sizes(), in.x.options());
  const auto kernels = kernels::cpu::convolution_kernels<T>(kernels::cpu::chosen_instruction_set());
  convolution.each([&](int64_t row, int64_t channel, kernels::cpu::ConvolutionTask<T>& task) {
    task.out = convolution.rows_of(out, row, channel);
    kernels.forward(task);
  });
  return out;
}

template <class T>
ConvolutionGradients native_convolution_backward(const ConvolutionInputs& in, const at::Tensor& grad_out) {
  const NativeConvolution<T> convolution(in);
  const auto grad = grad_out.to(in.x.scalar_type());
  auto grad_x = at::empty(in.x.sizes(), in.x.options());
  const auto options = convolution.weight.options();
  auto grad_weight = at::empty({convolution.batch, convolution.taps, convolution.channels}, options);
  auto grad_bias = in.bias ? at::empty({convolution.batch, convolution.channels}, options) : at::Tensor();
  const auto kernels = kernels::cpu::convolution_kernels<T>(kernels::cpu::chosen_instruction_set());
  convolution.each([&](int64_t row, int64_t channel, kernels::cpu::ConvolutionTask<T>& task) {
    task.grad_out = convolution.rows_of(grad, row, channel);
    task.grad_x = convolution.rows_of(grad_x, row, channel);
    task.grad_weight =
        grad_weight.template mutable_data_ptr<T>() + row * convolution.taps * convolution.channels + channel;
    task.grad_bias =
        grad_bias.defined() ? grad_bias.template mutable_data_ptr<T>() + row * convolution.channels + channel : nullptr;
    kernels.backward(task);
  });
  return {grad_x, grad_weight.sum(0).t().contiguous().to(in.weight.scalar_type()),
          grad_bias.defined() ? grad_bias.sum(0).to(in.bias->scalar_type()) : at::Tensor()};
}

} // namespace detail

/// Below autograd, on the native backend.
inline at::Tensor convolution_forward(const ConvolutionInputs& in) {
  return in.x.scalar_type() == at::kDouble ? detail::native_convolution<double>(in)
                                           : detail::native_convolution<float>(in);
}
inline ConvolutionGradients convolution_backward(const ConvolutionInputs& in, const at::Tensor& grad_out) {
  return in.x.scalar_type() == at::kDouble ? detail::native_convolution_backward<double>(in, grad_out)
                                           : detail::native_convolution_backward<float>(in, grad_out);
}

/// Calls the kernels themselves: what C++ users get without any registration.
struct DirectConvolutionCalls {
  static at::Tensor forward(const ConvolutionInputs& in) { return convolution_forward(in); }
  static ConvolutionGradients backward(const ConvolutionInputs& in, const at::Tensor& grad_out) {
    return convolution_backward(in, grad_out);
  }
};

/// Autograd of the native op. `Calls` says how forward and backward are reached: directly, or through the dispatcher.
template <class Calls>
struct ConvolutionFunction : torch::autograd::Function<ConvolutionFunction<Calls>> {
  using List = torch::autograd::variable_list;
  using Optional = std::optional<at::Tensor>;

  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            const Optional& bias, const Optional& cu_seqlens, bool activates) {
    ctx->save_for_backward({x, weight, bias.value_or(at::Tensor()), cu_seqlens.value_or(at::Tensor())});
    ctx->saved_data["activates"] = activates;
    return Calls::forward({x, weight, bias, cu_seqlens, activates});
  }

  static List backward(torch::autograd::AutogradContext* ctx, List grads) {
    const auto saved = ctx->get_saved_variables();
    const auto optional = [](const at::Tensor& x) { return x.defined() ? Optional(x) : std::nullopt; };
    auto [x, weight, bias] = Calls::backward(
        {saved[0], saved[1], optional(saved[2]), optional(saved[3]), ctx->saved_data["activates"].toBool()}, grads[0]);
    return {x, weight, bias, at::Tensor(), at::Tensor()};
  }
};

/// The convolution, differentiable, on the backend that is asked for.
template <class Calls = DirectConvolutionCalls>
at::Tensor convolution(const ConvolutionInputs& in, Backend backend = Backend::automatic) {
  check_convolution(in);
  return runs_native("short_convolution", backend, in.x)
             ? ConvolutionFunction<Calls>::apply(in.x, in.weight, in.bias, in.cu_seqlens, in.activates)
             : aten_convolution(in);
}

/// inner(inputs, backend), with what `state` holds before the first token of each sequence.
template <class Inner>
at::Tensor short_convolution_by(Inner&& inner, const ConvolutionInputs& in, const std::optional<at::Tensor>& state,
                                Backend backend) {
  if (!state) {
    return inner(in, backend);
  }
  check_convolution(in);
  const auto past = in.weight.sym_size(1) - 1;
  HA_CHECK(state->dim() == 3 && state->sym_size(0) == in.x.sym_size(0) && state->sym_size(1) == in.x.sym_size(2) &&
               state->sym_size(2) == past,
           "short_convolution: state must be [B, D, W - 1] = [", in.x.sym_size(0), ", ", in.x.sym_size(2), ", ", past,
           "], got ", state->sym_sizes());
  HA_CHECK(!in.cu_seqlens, "short_convolution: state and cu_seqlens cannot be given together");
  ConvolutionInputs whole = in;
  whole.x = at::cat({state->to(in.x.scalar_type()).transpose(1, 2), in.x}, 1);
  return inner(whole, backend).narrow_symint(1, past, in.x.sym_size(1));
}

/// The convolution with a state.
/// @param state [B, D, W - 1] in time order; not with documents
/// @returns [B, T, D] in x's dtype; differentiable
/// @throws c10::ValueError if shapes disagree, or the backend cannot compute on x
inline at::Tensor short_convolution(const ConvolutionInputs& in, const std::optional<at::Tensor>& state = {},
                                    Backend backend = Backend::automatic) {
  return short_convolution_by([](const ConvolutionInputs& given, Backend wanted) { return convolution(given, wanted); },
                              in, state, backend);
}

} // namespace hybridattn::ops
