// transport/src/ucx/ucx_header.hpp -- the fixed header in front of every message between fabrics.
//
//   0        2         3      4      5      8        16       24       32
//   +--------+---------+------+------+------+--------+--------+--------+
//   | "tr"   | version | kind | code | zero |  from  |  lane  |  tag   |   little-endian
//   +--------+---------+------+------+------+--------+--------+--------+
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
};

struct UcxHeader {
  UcxMessage kind = UcxMessage::data;
  Errc code = Errc::none;  ///< Of `settled`: none, message_truncated, cancelled or out_of_memory.
  std::uint64_t from = 0;  ///< The sending fabric.
  std::uint64_t lane = 0;
  Tag tag{};

  friend bool operator==(const UcxHeader&, const UcxHeader&) = default;
};

inline constexpr std::uint8_t ucx_protocol_version = 1;
inline constexpr std::size_t ucx_header_bytes = 32;
using UcxHeaderBytes = std::array<std::byte, ucx_header_bytes>;

[[nodiscard]] UcxHeaderBytes write_header(const UcxHeader& header);

/// Reads a header that anybody may have sent. Fails with `invalid_file` and a sentence that says
/// which field is wrong; a header that is read writes back to the same bytes.
[[nodiscard]] Expected<UcxHeader> read_header(std::span<const std::byte> bytes);

}  // namespace troupe::transport
