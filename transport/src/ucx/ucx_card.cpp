#include "ucx/ucx_card.hpp"

#include "troupe/engine/check.hpp"

namespace troupe::transport {

namespace {

constexpr std::size_t length_at = 8;

void put(std::span<std::byte> bytes, std::uint64_t value) {
  for (auto& byte : bytes) {
    byte = static_cast<std::byte>(value);
    value >>= 8U;
  }
}

std::uint64_t get(std::span<const std::byte> bytes) {
  std::uint64_t value = 0;
  for (auto i = bytes.size(); i-- > 0;) {
    value = value << 8U | std::to_integer<std::uint64_t>(bytes[i]);
  }
  return value;
}

}  // namespace

std::vector<std::byte> write_card(const UcxCard& card) {
  TROUPE_ASSERT(!card.address.empty() && card.address.size() <= ucx_card_address_max_bytes);
  std::vector<std::byte> bytes(ucx_card_head_bytes);
  put(std::span{bytes}.first(length_at), card.number);
  put(std::span{bytes}.subspan(length_at), card.address.size());
  bytes.insert(bytes.end(), card.address.begin(), card.address.end());
  return bytes;
}

Expected<UcxCard> read_card_head(std::span<const std::byte, ucx_card_head_bytes> head) {
  const auto size_bytes = static_cast<std::size_t>(get(head.subspan<length_at>()));
  if (size_bytes == 0) {
    return Error{Errc::invalid_file, "sent the card of a fabric without a worker's address"};
  }
  return UcxCard{get(head.first<length_at>()), UcxWorkerAddress(size_bytes)};
}

}  // namespace troupe::transport
