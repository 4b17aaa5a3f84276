#include "ucx/ucx_card.hpp"

#include "troupe/engine/check.hpp"

namespace troupe::transport {

namespace {

/// Where each number of a head begins, and where the head ends.
constexpr std::array<std::size_t, 7> bounds{0, 8, 12, 20, 28, 36, ucx_card_head_bytes};

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
  const auto& [process, address, number] = card.memory;
  const std::array<std::uint64_t, bounds.size() - 1> numbers{
      card.number, process, address, number[0], number[1], card.address.size()};
  std::vector<std::byte> bytes(ucx_card_head_bytes);
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    put(std::span{bytes}.subspan(bounds[i], bounds[i + 1] - bounds[i]), numbers[i]);
  }
  bytes.insert(bytes.end(), card.address.begin(), card.address.end());
  return bytes;
}

Expected<UcxCard> read_card_head(std::span<const std::byte, ucx_card_head_bytes> head) {
  std::array<std::uint64_t, bounds.size() - 1> numbers{};
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    numbers[i] = get(head.subspan(bounds[i], bounds[i + 1] - bounds[i]));
  }
  const auto& [number, process, address, first_half, second_half, size_bytes] = numbers;
  if (size_bytes == 0) {
    return Error{Errc::invalid_file, "sent the card of a fabric without a worker's address"};
  }
  return UcxCard{.number = number,
                 .memory = {.process = static_cast<std::uint32_t>(process),
                            .address = address,
                            .number = {first_half, second_half}},
                 .address = UcxWorkerAddress(size_bytes)};
}

}  // namespace troupe::transport
