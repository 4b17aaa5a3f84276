#include "ucx/ucx_header.hpp"

#include <algorithm>
#include <string>

#include "troupe/engine/check.hpp"

namespace troupe::transport {

namespace {

constexpr std::array magic{std::byte{'t'}, std::byte{'r'}};
constexpr std::size_t version_at = 2;
constexpr std::size_t kind_at = 3;
constexpr std::size_t code_at = 4;
constexpr std::size_t zero_at = 5;
constexpr std::size_t from_at = 8;
constexpr std::size_t lane_at = 16;
constexpr std::size_t tag_at = 24;

constexpr std::size_t address_at = 0;
constexpr std::size_t size_at = 8;

void put(std::span<std::byte> bytes, std::size_t at, std::uint64_t value) {
  for (std::size_t i = 0; i < sizeof value; ++i) {
    bytes[at + i] = static_cast<std::byte>(value >> (8U * i));
  }
}

std::uint64_t get(std::span<const std::byte> bytes, std::size_t at) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < sizeof value; ++i) {
    value |= std::to_integer<std::uint64_t>(bytes[at + i]) << (8U * i);
  }
  return value;
}

Error malformed(const std::string& what) {
  return {Errc::invalid_file, "a message between fabrics " + what};
}

bool fits(UcxMessage kind, Errc code) {
  if (kind != UcxMessage::settled) return code == Errc::none;
  return code == Errc::none || code == Errc::message_truncated || code == Errc::cancelled
         || code == Errc::out_of_memory || code == Errc::peer_unreachable;
}

}  // namespace

UcxHeaderBytes write_header(const UcxHeader& header) {
  UcxHeaderBytes bytes{};
  std::ranges::copy(magic, bytes.begin());
  bytes[version_at] = std::byte{ucx_protocol_version};
  bytes[kind_at] = static_cast<std::byte>(header.kind);
  bytes[code_at] = static_cast<std::byte>(header.code);
  put(bytes, from_at, header.from);
  put(bytes, lane_at, header.lane);
  put(bytes, tag_at, static_cast<std::uint64_t>(header.tag));
  return bytes;
}

Expected<UcxHeader> read_header(std::span<const std::byte> bytes) {
  if (bytes.size() != ucx_header_bytes) {
    return malformed("has a header of " + std::to_string(bytes.size()) + " bytes instead of "
                     + std::to_string(ucx_header_bytes));
  }
  const auto at = [bytes](std::size_t i) { return std::to_integer<std::uint8_t>(bytes[i]); };
  if (!std::ranges::equal(bytes.first(magic.size()), magic)) {
    return malformed("does not begin with 'tr'");
  }
  if (at(version_at) != ucx_protocol_version) {
    return malformed("has version " + std::to_string(at(version_at)) + ", and this program speaks "
                     + std::to_string(ucx_protocol_version) + ": run one version everywhere");
  }
  const auto kind = static_cast<UcxMessage>(at(kind_at));
  if (kind < UcxMessage::data || kind > UcxMessage::offer) {
    return malformed("is of the unknown kind " + std::to_string(at(kind_at)));
  }
  const auto code = static_cast<Errc>(at(code_at));
  if (!fits(kind, code)) {
    return malformed("of kind " + std::to_string(at(kind_at)) + " has the code "
                     + std::to_string(at(code_at)));
  }
  if (std::ranges::any_of(bytes.subspan(zero_at, from_at - zero_at),
                          [](std::byte byte) { return byte != std::byte{0}; })) {
    return malformed("has bytes other than zero where nothing belongs");
  }
  return UcxHeader{.kind = kind,
                   .code = code,
                   .from = get(bytes, from_at),
                   .lane = get(bytes, lane_at),
                   .tag = Tag{get(bytes, tag_at)}};
}

UcxEnvelope::UcxEnvelope(const UcxHeader& message) : size_{ucx_header_bytes} {
  std::ranges::copy(write_header(message), bytes_.begin());
}

void UcxEnvelope::add(const UcxHeader& verdict) {
  TROUPE_ASSERT(size_ == ucx_header_bytes);
  std::ranges::copy(write_header(verdict), bytes_.begin() + ucx_header_bytes);
  size_ += ucx_header_bytes;
}

Expected<UcxHeaders> read_headers(std::span<const std::byte> bytes) {
  const bool has_two = bytes.size() == 2 * ucx_header_bytes;
  const auto message = read_header(has_two ? bytes.first(ucx_header_bytes) : bytes);
  if (!message) return message.error();
  if (!has_two) return UcxHeaders{.message = *message, .verdict = std::nullopt};
  const auto verdict = read_header(bytes.last(ucx_header_bytes));
  if (!verdict) return verdict.error();
  if (verdict->kind != UcxMessage::settled) {
    return malformed("has one of kind " + std::to_string(static_cast<unsigned>(verdict->kind))
                     + " travel along, which only verdicts may");
  }
  if (verdict->from != message->from) return malformed("has a stranger's verdict travel along");
  return UcxHeaders{.message = *message, .verdict = *verdict};
}

UcxOfferBytes write_offer(const UcxOffer& offer) {
  UcxOfferBytes bytes{};
  put(bytes, address_at, offer.address);
  put(bytes, size_at, offer.size_bytes);
  return bytes;
}

Expected<UcxOffer> read_offer(std::span<const std::byte> bytes) {
  if (bytes.size() != ucx_offer_bytes) {
    return malformed("is an offer of " + std::to_string(bytes.size()) + " bytes instead of "
                     + std::to_string(ucx_offer_bytes));
  }
  const UcxOffer offer{.address = get(bytes, address_at), .size_bytes = get(bytes, size_at)};
  if (offer.size_bytes == 0) return malformed("offers nothing");
  return offer;
}

}  // namespace troupe::transport
