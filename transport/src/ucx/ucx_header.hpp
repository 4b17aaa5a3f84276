// transport/src/ucx/ucx_header.hpp -- the fixed header in front of every message between fabrics.
//
//   0        2         3      4      5      8        16       24       32
//   +--------+---------+------+------+------+--------+--------+--------+
//   | "tr"   | version | kind | code | zero |  from  |  lane  |  tag   |   little-endian
//   +--------+---------+------+------+------+--------+--------+--------+
//
// Behind that of an offer, where the sender has the message in its memory:
//
//   0         8        16
//   +---------+--------+
//   | address |  size  |   little-endian
//   +---------+--------+
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "troupe/engine/expected.hpp"
#include "troupe/transport/tag.hpp"

namespace troupe::transport {

/// What a message between fabrics says.
enum class UcxMessage : std::uint8_t {
  data = 1,     ///< A transfer's bytes; how many, UCX knows.
  settled = 2,  ///< The receiver has dealt with the transfer `tag`; `code` says how.
  closed = 3,   ///< The sender of this has closed its end of the lane.
  goodbye = 4,  ///< The sender of this is shutting down in good order.
  hello = 5,    ///< The first message on a connection; asks for a welcome.
  welcome = 6,  ///< Tells the sender of a hello that its messages arrive.
  reader = 7,   ///< The sender of this is able to read the receiver's memory.
  offer = 8,    ///< A transfer that the receiver is to read out of the sender's memory.
};

struct UcxHeader {
  UcxMessage kind = UcxMessage::data;
  /// Of `settled`: none, message_truncated, cancelled, out_of_memory or peer_unreachable.
  Errc code = Errc::none;
  std::uint64_t from = 0;  ///< The sending fabric.
  std::uint64_t lane = 0;
  Tag tag{};

  friend bool operator==(const UcxHeader&, const UcxHeader&) = default;
};

inline constexpr std::uint8_t ucx_protocol_version = 2;
inline constexpr std::size_t ucx_header_bytes = 32;
using UcxHeaderBytes = std::array<std::byte, ucx_header_bytes>;

[[nodiscard]] UcxHeaderBytes write_header(const UcxHeader& header);

/// Reads a header that anybody may have sent. Fails with `invalid_file` and a sentence that says
/// which field is wrong; a header that is read writes back to the same bytes.
[[nodiscard]] Expected<UcxHeader> read_header(std::span<const std::byte> bytes);

/// A message that lies in its sender's memory until it is settled.
struct UcxOffer {
  std::uint64_t address = 0;
  std::uint64_t size_bytes = 0;  ///< Not 0.

  friend bool operator==(const UcxOffer&, const UcxOffer&) = default;
};

inline constexpr std::size_t ucx_offer_bytes = 16;
using UcxOfferBytes = std::array<std::byte, ucx_offer_bytes>;

[[nodiscard]] UcxOfferBytes write_offer(const UcxOffer& offer);

/// As `read_header`. The address may be anything: reading from it fails if it is wrong.
[[nodiscard]] Expected<UcxOffer> read_offer(std::span<const std::byte> bytes);

}  // namespace troupe::transport
