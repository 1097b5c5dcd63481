// Views and memory that the kernels of every instruction set share. No vector instruction is used here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <type_traits>

namespace hybridattn::kernels::cpu {

/// The upper half of an fp32, as tensors store it.
struct Bfloat16 {
  uint16_t bits;
};

/// What arithmetic on elements of type E is done in.
template <class E>
using Arithmetic = std::conditional_t<std::is_same_v<E, double>, double, float>;

/// Rows of a caller's array: element c of row t is data[t * stride + c * step].
template <class E>
struct Rows {
  E* data = nullptr;
  int64_t stride = 0, step = 1;

  E* row(int64_t t) const { return data + t * stride; }
  Rows from(int64_t t) const { return {row(t), stride, step}; }
};

/// A row-major matrix in scratch memory; rows are `stride` elements apart.
template <class T>
struct Matrix {
  T* data = nullptr;
  int stride = 0;

  T* at(int row, int column) const { return data + static_cast<ptrdiff_t>(row) * stride + column; }
};

/// Memory of one thread, kept from call to call: a kernel takes what it needs at its start and frees nothing.
class Arena {
public:
  /// Starts anew with room for at least `bytes`; what was taken before is gone.
  void reset(size_t bytes) {
    if (bytes > size_) {
      memory_.reset(static_cast<std::byte*>(::operator new(bytes, std::align_val_t{kAlignment})));
      size_ = bytes;
    }
    used_ = 0;
  }

  /// Uninitialised; aligned to a cache line.
  template <class T>
  T* take(size_t count) {
    auto* taken = reinterpret_cast<T*>(memory_.get() + used_);
    used_ += bytes_of<T>(count);
    return taken;
  }

  template <class T>
  static constexpr size_t bytes_of(size_t count) {
    return (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
  }

  static Arena& of_this_thread() {
    thread_local Arena arena;
    return arena;
  }

private:
  static constexpr size_t kAlignment = 64;
  struct Free {
    void operator()(std::byte* memory) const { ::operator delete(memory, std::align_val_t{kAlignment}); }
  };
  std::unique_ptr<std::byte, Free> memory_;
  size_t size_ = 0, used_ = 0;
};

} // namespace hybridattn::kernels::cpu
