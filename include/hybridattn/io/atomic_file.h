// Files that are either whole or not there: written under a temporary name, synced, renamed.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <string_view>

#include <c10/util/Exception.h>

namespace hybridattn::io {

/// A new file at `path`, which appears there (over an older one) when `commit` returns. Without a commit nothing is
/// left. Every function throws c10::Error with the system's reason (a full disk, for example); the older file is then
/// intact.
class AtomicFile {
public:
  explicit AtomicFile(std::filesystem::path path) : path_(std::move(path)), temporary_(path_) {
    temporary_ += ".tmp" + std::to_string(::getpid());
    file_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    require(file_ >= 0, "cannot be created");
  }
  ~AtomicFile() {
    if (file_ >= 0) {
      ::close(file_);
      ::unlink(temporary_.c_str());
    }
  }
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, size_t size) {
    const auto* bytes = static_cast<const char*>(data);
    while (size > 0) {
      const ssize_t written = ::write(file_, bytes, size);
      if (written < 0 && errno == EINTR) {
        continue;
      }
      require(written > 0, "cannot be written");
      bytes += written;
      size -= static_cast<size_t>(written);
    }
  }
  void write(std::string_view text) { write(text.data(), text.size()); }

  void commit() {
    require(::fsync(file_) == 0, "cannot be written to disk");
    require(::rename(temporary_.c_str(), path_.c_str()) == 0, "cannot be renamed");
    ::close(file_);
    file_ = -1;
    // The new name itself is on disk when its folder is.
    const auto folder = path_.has_parent_path() ? path_.parent_path() : std::filesystem::path(".");
    if (const int directory = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); directory >= 0) {
      ::fsync(directory);
      ::close(directory);
    }
  }

private:
  void require(bool good, const char* what) const {
    TORCH_CHECK(good, path_.string(), " ", what, ": ", std::strerror(errno));
  }

  std::filesystem::path path_, temporary_;
  int file_ = -1;
};

} // namespace hybridattn::io
