// troupe/engine/memory.hpp -- words for memory that every module shares and none of them owns.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

namespace troupe {

/// Where a buffer lives; tells a transport how to register and move it.
enum class MemorySpace : std::uint8_t {
  host,         ///< Ordinary host memory.
  host_pinned,  ///< Page-locked host memory that a device can copy from and to asynchronously.
  device,       ///< Memory of one accelerator.
};

/// A non-owning view of bytes. Whoever receives one also receives the promise that the bytes stay
/// valid and untouched until the operation using them completes.
struct BufferView {
  std::byte* data = nullptr;
  std::size_t size_bytes = 0;
  MemorySpace space = MemorySpace::host;
};

/// The right to use one stretch of arena memory. Move-only: whoever holds it, and nobody else, may
/// read and write the bytes. A link takes a buffer and gives one of the same size back, perhaps
/// another one: that is how an activation is handed over within a process without a copy.
///
/// Frees nothing: the arena the bytes come from outlives every buffer cut from it.
class Buffer {
public:
  Buffer() = default;
  explicit Buffer(BufferView view) noexcept : view_{view} {}
  Buffer(Buffer&& other) noexcept : view_{std::exchange(other.view_, {})} {}
  Buffer& operator=(Buffer&& other) noexcept {
    view_ = std::exchange(other.view_, {});
    return *this;
  }
  ~Buffer() = default;

  [[nodiscard]] BufferView view() const noexcept { return view_; }
  [[nodiscard]] std::byte* data() const noexcept { return view_.data; }
  [[nodiscard]] std::size_t size_bytes() const noexcept { return view_.size_bytes; }
  [[nodiscard]] explicit operator bool() const noexcept { return view_.data != nullptr; }

private:
  BufferView view_;
};

/// Formats bytes for a person, for example "1.50 GiB".
[[nodiscard]] std::string format_bytes(std::uint64_t bytes);

}  // namespace troupe
