// MappedFile: a file's bytes in memory without reading them.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>

#include "hybridattn/core/check.h"

namespace hybridattn::io {

/// A private, writable mapping: writing to it changes memory only, never the file.
class MappedFile {
public:
  /// @throws c10::ValueError when the file cannot be opened or mapped, with the system's reason
  explicit MappedFile(const std::filesystem::path& path) {
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    HA_CHECK(file >= 0, path.string(), ": ", std::strerror(errno));
    struct stat status {};
    const bool known = ::fstat(file, &status) == 0 && S_ISREG(status.st_mode);
    size_ = known ? static_cast<size_t>(status.st_size) : 0;
    void* mapping = size_ > 0 ? ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0) : nullptr;
    const int reason = errno;
    ::close(file);
    HA_CHECK(known, path.string(), ": not a regular file");
    HA_CHECK(mapping != MAP_FAILED, path.string(), ": cannot be mapped: ", std::strerror(reason));
    data_ = static_cast<uint8_t*>(mapping);
  }
  ~MappedFile() {
    if (data_ != nullptr) {
      ::munmap(data_, size_);
    }
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

} // namespace hybridattn::io
