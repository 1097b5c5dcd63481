// Views and memory that the kernels of every instruction set share. No vector instruction is used here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace hybridattn::kernels::cpu {

/// The upper half of an fp32, as tensors store it.
struct Bfloat16 {
  uint16_t bits;
};

/// Rows of a caller's array in the arithmetic's own type T, or in bf16 where T is float: element c of row t is
/// data[t * stride + c * step]. The type is a value here, so that kernels are compiled once for both.
template <class T>
struct Rows {
  void* data = nullptr;
  bool is_bfloat16 = false;
  int64_t stride = 0, step = 1;

  static Rows of(T* elements, int64_t stride, int64_t step = 1) { return {elements, false, stride, step}; }
  static Rows of(const T* elements, int64_t stride, int64_t step = 1) {
    return {const_cast<T*>(elements), false, stride, step};
  }

  /// From row t on; nothing stays nothing.
  Rows from(int64_t t) const { return moved(t * stride); }
  /// From column c on.
  Rows columns_from(int64_t c) const { return moved(c * step); }

private:
  Rows moved(int64_t elements) const {
    if (data == nullptr) {
      return *this;
    }
    const int64_t bytes = elements * static_cast<int64_t>(is_bfloat16 ? sizeof(Bfloat16) : sizeof(T));
    return {static_cast<char*>(data) + bytes, is_bfloat16, stride, step};
  }
};

/// Rows that the next chunk will read. A row lies a whole token behind the one before, too far for the processor to
/// guess; so the current chunk asks for them between its products, a few at a time.
template <class T>
class UpcomingRows {
public:
  void clear() { added_ = next_ = 0; }

  /// Rows of null, or with a step, are not asked for.
  void add(Rows<T> rows, int64_t count, int columns) {
    if (rows.data != nullptr && rows.step == 1) {
      parts_[added_++] = {rows, count, columns};
    }
  }

  void prefetch() {
    for (int n = 0; n < kAtOnce && next_ < added_; ++n) {
      Part& part = parts_[next_];
      const auto* row = static_cast<const char*>(part.rows.data);
      const int64_t bytes = part.columns * static_cast<int64_t>(part.rows.is_bfloat16 ? sizeof(Bfloat16) : sizeof(T));
      for (int64_t at = 0; at < bytes; at += kCacheLine) {
        __builtin_prefetch(row + at, 0, 2);
      }
      part.rows = part.rows.from(1);
      next_ += --part.count == 0;
    }
  }

private:
  static constexpr int kAtOnce = 4, kCacheLine = 64, kMost = 8;
  struct Part {
    Rows<T> rows;
    int64_t count = 0;
    int columns = 0;
  };
  Part parts_[kMost];
  int added_ = 0, next_ = 0;
};

/// A row-major matrix in scratch memory; rows are `stride` elements apart.
template <class T>
struct Matrix {
  T* data = nullptr;
  int stride = 0;

  T* at(int row, int column) const { return data + static_cast<ptrdiff_t>(row) * stride + column; }
};

/// Adds up what an Arena must hold: whatever takes its memory from an arena can take it from this first.
class ArenaSize {
public:
  template <class T>
  T* take(size_t count);
  size_t bytes() const { return bytes_; }

private:
  size_t bytes_ = 0;
};

/// Memory of one thread, kept from call to call: a kernel takes what it needs at its start and frees nothing.
class Arena {
public:
  /// Starts anew with room for at least `bytes`; what was taken before is gone.
  void reset(size_t bytes) {
    if (bytes > size_) {
      memory_.reset(static_cast<std::byte*>(::operator new (bytes, std::align_val_t{kAlignment})));
      size_ = bytes;
    }
    used_ = 0;
  }

  /// Calls take(size) to learn what is needed, then take(arena).
  template <class Take>
  void lay_out(Take&& take) {
    ArenaSize size;
    take(size);
    reset(size.bytes());
    take(*this);
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
    void operator()(std::byte* memory) const { ::operator delete (memory, std::align_val_t{kAlignment}); }
  };
  std::unique_ptr<std::byte, Free> memory_;
  size_t size_ = 0, used_ = 0;
};

template <class T>
T* ArenaSize::take(size_t count) {
  bytes_ += Arena::bytes_of<T>(count);
  return nullptr;
}

} // namespace hybridattn::kernels::cpu
