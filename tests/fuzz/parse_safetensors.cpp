// The reader of safetensors files: what it accepts covers the file exactly, byte for byte.

#include <span>
#include <string>

#include "troupe/storage/safetensors.hpp"

#include "fuzz_target.hpp"

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size_bytes) {
  using namespace troupe;
  const auto bytes = std::as_bytes(std::span{data, size_bytes});
  const auto content = storage::parse_safetensors(bytes, "fuzz.safetensors");
  if (!content) {
    check_refusal(content.error(), Errc::invalid_file);
    return 0;
  }
  std::size_t covered_bytes = 0;
  unsigned sum = 0;
  for (const auto& tensor : content->tensors) {
    covered_bytes += tensor.bytes.size();
    for (const auto byte : tensor.bytes) sum += std::to_integer<unsigned>(byte);  // All readable.
    TROUPE_ASSERT(tensor.bytes.empty()
                  || (tensor.bytes.data() >= bytes.data()
                      && tensor.bytes.data() + tensor.bytes.size() <= bytes.data() + bytes.size()));
  }
  TROUPE_ASSERT(covered_bytes + 8 <= size_bytes && sum <= 255 * covered_bytes);
  return 0;
}
