// transport/src/ucx/ucx_header.hpp -- the fixed header in front of every message between fabrics.
//
//   0        2         3      4      5      8        16       24       32
//   +--------+---------+------+------+------+--------+--------+--------+
//   | "tr"   | version | kind | code | zero |  from  |  lane  |  tag   |   little-endian
//   +--------+---------+------+------+------+--------+--------+--------+
//
// Behind it there may be a second one, of kind `settled`: a verdict that travels along.
//
// Behind an offer's, where the sender has the message in its memory:
//
//   0         8        16
//   +---------+--------+
//   | address |  size  |   little-endian
//   +---------+--------+
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
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

inline constexpr std::uint8_t ucx_protocol_version = 3;
inline constexpr std::size_t ucx_header_bytes = 32;
using UcxHeaderBytes = std::array<std::byte, ucx_header_bytes>;

[[nodiscard]] UcxHeaderBytes write_header(const UcxHeader& header);

/// Reads a header that anybody may have sent. Fails with `invalid_file` and a sentence that says
/// which field is wrong; a header that is read writes back to the same bytes.
[[nodiscard]] Expected<UcxHeader> read_header(std::span<const std::byte> bytes);

/// What travels in front of a message.
struct UcxHeaders {
  UcxHeader message;
  std::optional<UcxHeader> verdict;  ///< That travels along. From the same fabric.

  friend bool operator==(const UcxHeaders&, const UcxHeaders&) = default;
};

/// As bytes, with room for both.
class UcxEnvelope {
public:
  UcxEnvelope() = default;
  explicit UcxEnvelope(const UcxHeader& message);

  /// Has `verdict` travel along, once at most.
  void add(const UcxHeader& verdict);

  [[nodiscard]] std::span<const std::byte> bytes() const noexcept {
    return std::span{bytes_}.first(size_);
  }

private:
  std::array<std::byte, 2 * ucx_header_bytes> bytes_{};
  std::size_t size_ = 0;
};

/// As `read_header`.
[[nodiscard]] Expected<UcxHeaders> read_headers(std::span<const std::byte> bytes);

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
