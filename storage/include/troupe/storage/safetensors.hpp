// troupe/storage/safetensors.hpp -- named tensors in a file, in Hugging Face's safetensors format.
//
// The file: the header's size N as a 64-bit integer, N bytes of JSON that give each tensor's name,
// element type, shape and place, then the tensors' bytes back to back; all little-endian.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "troupe/engine/expected.hpp"
#include "troupe/storage/mapped_file.hpp"

namespace troupe::storage {

/// The element types of the format.
enum class DType : std::uint8_t {
  boolean,
  u8,
  i8,
  u16,
  i16,
  u32,
  i32,
  u64,
  i64,
  f16,
  bf16,
  f32,
  f64,
  c64,
  f8_e5m2,
  f8_e4m3,
  f8_e8m0,
  f8_e4m3fnuz,
  f8_e5m2fnuz,
  f4,
  f6_e2m3,
  f6_e3m2,
};

/// The format's spelling, for example "F32".
[[nodiscard]] std::string_view to_string(DType dtype) noexcept;
/// Bits per element: 4, 6 or a multiple of 8.
[[nodiscard]] std::uint32_t bits_of(DType dtype) noexcept;

/// A tensor in memory: row-major, without gaps. Does not own its bytes.
struct TensorView {
  std::string name;
  DType dtype = DType::f32;
  std::vector<std::uint64_t> shape;  ///< Outermost dim first; empty for a single number.
  std::span<const std::byte> bytes;
};

/// Free text that travels with the tensors.
using Metadata = std::map<std::string, std::string>;

/// Writes `tensors` to `path`, complete or not at all, straight from their memory. They are ordered
/// as the reference implementation does: wider elements first, then by name; so the same content
/// always makes the same bytes.
///
/// The names differ, are UTF-8 and not "__metadata__", and each tensor has the bytes its shape
/// says. Bytes of `metadata` that are not UTF-8 are replaced.
/// @returns `file_failure` naming path and reason, for example a full disk; nothing is left behind.
[[nodiscard]] Expected<Done> write_safetensors(const std::string& path,
                                               std::span<const TensorView> tensors,
                                               const Metadata& metadata);

/// Gives the bytes of tensor `index`; they stay valid until the next call.
using ReadTensor = std::function<Expected<std::span<const std::byte>>(std::size_t index)>;

/// The same with tensors that are fetched one after the other, each once, so that one of them needs
/// to be in memory at a time: `bytes` of `tensors` is not looked at. Returns also what `read` fails
/// with, and leaves nothing behind then.
[[nodiscard]] Expected<Done> write_safetensors(const std::string& path,
                                               std::span<const TensorView> tensors,
                                               const Metadata& metadata, const ReadTensor& read);

/// What a safetensors file says.
struct SafetensorsContent {
  std::vector<TensorView> tensors;  ///< In the order of their bytes.
  Metadata metadata;
};

/// Reads the bytes of a safetensors file without copying the tensors: the result points into
/// `bytes`. Any bytes are safe to pass. A tensor's bytes are aligned only as the file aligns them.
/// @returns `invalid_file` naming `source_name`, the tensor, what was found and what was expected.
[[nodiscard]] Expected<SafetensorsContent> parse_safetensors(std::span<const std::byte> bytes,
                                                             std::string_view source_name);

/// A safetensors file mapped into memory.
class SafetensorsFile {
public:
  /// @returns what `MappedFile::open` and `parse_safetensors` return.
  [[nodiscard]] static Expected<SafetensorsFile> open(const std::string& path);

  /// Valid as long as this file, also when it has moved.
  [[nodiscard]] const std::vector<TensorView>& tensors() const noexcept { return content_.tensors; }
  /// The tensor of that name, or null.
  [[nodiscard]] const TensorView* find(std::string_view name) const noexcept;
  [[nodiscard]] const Metadata& metadata() const noexcept { return content_.metadata; }

private:
  SafetensorsFile(MappedFile file, SafetensorsContent content) noexcept
      : file_{std::move(file)}, content_{std::move(content)} {}

  MappedFile file_;
  SafetensorsContent content_;
};

}  // namespace troupe::storage
