// transport/src/ucx/ucx_card.hpp -- how a fabric introduces itself to another.
//
//   0        8         12        20               36         38
//   +--------+---------+---------+----------------+----------+----------------------+
//   | number | process | address | random number  | length n | worker's address (n) |
//   +--------+---------+---------+----------------+----------+----------------------+
//
// All numbers are little-endian. The second to fourth are the key to the fabric's memory
// (process_memory.hpp), and zeros if nobody may read it.
//
// Follows the proof of the secret (gate/hello.hpp), so it comes from a process of the run. UCX
// trusts what is in the address; nobody else's bytes get that far.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "troupe/engine/expected.hpp"

#include "process_memory.hpp"

namespace troupe::transport {

/// What UCX calls the address of a worker: bytes that only UCX reads.
using UcxWorkerAddress = std::vector<std::byte>;

struct UcxCard {
  std::uint64_t number = 0;  ///< Of the fabric.
  MemoryKey memory;
  UcxWorkerAddress address;  ///< Of the worker that it has made for whoever reads the card.

  friend bool operator==(const UcxCard&, const UcxCard&) = default;
};

inline constexpr std::size_t ucx_card_head_bytes = 38;
inline constexpr std::size_t ucx_card_address_max_bytes = 65535;

/// The address must have 1 to 65,535 bytes.
[[nodiscard]] std::vector<std::byte> write_card(const UcxCard& card);

/// Reads the head of a card. The card's address is of the right size, with zeros, for its bytes to
/// be read into. Fails with `invalid_file` on an empty address.
[[nodiscard]] Expected<UcxCard> read_card_head(
    std::span<const std::byte, ucx_card_head_bytes> head);

}  // namespace troupe::transport
