#include <algorithm>
#include <array>
#include <tuple>

#include <nlohmann/json.hpp>

#include "troupe/engine/check.hpp"
#include "troupe/storage/safetensors.hpp"

#include "file.hpp"
#include "safetensors_format.hpp"

namespace troupe::storage {

namespace {

using Json = nlohmann::ordered_json;
using Order = std::vector<const TensorView*>;

Order ordered(std::span<const TensorView> tensors) {
  Order order;
  for (const auto& tensor : tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](const auto* left, const auto* right) {
    const auto left_bits = bits_of(left->dtype);
    const auto right_bits = bits_of(right->dtype);
    return std::tie(right_bits, left->name) < std::tie(left_bits, right->name);
  });
  return order;
}

std::uint64_t size_bytes_of(const TensorView& tensor) {
  const auto size_bytes = storage::size_bytes_of(tensor.dtype, tensor.shape);
  TROUPE_ASSERT(size_bytes.has_value());
  return *size_bytes;
}

std::string header_of(const Order& order, const Metadata& metadata) {
  Json header = Json::object();
  if (!metadata.empty()) header[std::string{metadata_key}] = metadata;
  std::uint64_t offset = 0;
  for (const auto* tensor : order) {
    TROUPE_ASSERT(tensor->name != metadata_key && !header.contains(tensor->name));
    const auto begin = offset;
    offset += size_bytes_of(*tensor);
    header[tensor->name] = {{"dtype", to_string(tensor->dtype)},
                            {"shape", tensor->shape},
                            {"data_offsets", {begin, offset}}};
  }
  auto text = header.dump(-1, ' ', false, Json::error_handler_t::replace);
  text.append((8 - text.size() % 8) % 8, ' ');
  TROUPE_ASSERT(text.size() <= header_size_max_bytes);
  return text;
}

std::array<std::byte, length_size_bytes> little_endian(std::uint64_t number) {
  std::array<std::byte, length_size_bytes> bytes{};
  for (auto& byte : bytes) {
    byte = static_cast<std::byte>(number & 0xffU);
    number >>= 8U;
  }
  return bytes;
}

}  // namespace

std::string_view to_string(DType dtype) noexcept {
  return dtype_specs[static_cast<std::size_t>(dtype)].name;
}

std::uint32_t bits_of(DType dtype) noexcept {
  return dtype_specs[static_cast<std::size_t>(dtype)].bits;
}

Expected<Done> write_safetensors(const std::string& path, std::span<const TensorView> tensors,
                                 const Metadata& metadata, const ReadTensor& read) {
  const auto order = ordered(tensors);
  const auto header = header_of(order, metadata);
  auto file = AtomicFile::create(path);
  if (!file) return file.error();
  if (auto done = file->write(little_endian(header.size())); !done) return done;
  if (auto done = file->write(std::as_bytes(std::span{header})); !done) return done;
  for (const auto* tensor : order) {
    const auto bytes = read(static_cast<std::size_t>(tensor - tensors.data()));
    if (!bytes) return bytes.error();
    TROUPE_ASSERT(bytes->size() == size_bytes_of(*tensor));
    if (auto done = file->write(*bytes); !done) return done;
  }
  return file->commit();
}

Expected<Done> write_safetensors(const std::string& path, std::span<const TensorView> tensors,
                                 const Metadata& metadata) {
  return write_safetensors(path, tensors, metadata,
                           [tensors](std::size_t index) { return tensors[index].bytes; });
}

}  // namespace troupe::storage
