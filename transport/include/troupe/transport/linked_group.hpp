// troupe/transport/linked_group.hpp -- a group whose members meet over links.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "troupe/transport/collective.hpp"
#include "troupe/transport/link.hpp"

namespace troupe::transport {

/// How much a linked member keeps under way. The same on every member.
struct LinkedLimits {
  std::size_t segment_bytes = std::size_t{1} << 20U;  ///< Of an array, per transfer; a multiple of
                                                      ///< 64. Half as much travels in bf16.
  std::uint32_t segments_in_flight = 2;               ///< Of each part of an operation's array.
  std::uint32_t operations_in_flight = 2;  ///< Later ones wait for an earlier one to complete.
};

/// The memory that a member of a group of `size` allocates for what others send it to add:
/// one segment from each of the others, for each segment in flight of each operation in flight.
/// In bf16 these are half as long, and there is another for what it makes of each part's own.
[[nodiscard]] constexpr std::size_t linked_staging_bytes(std::uint32_t size,
                                                         const LinkedLimits& limits,
                                                         WireFormat wire = WireFormat::fp32) {
  const auto segments =
      limits.segment_bytes * limits.segments_in_flight * limits.operations_in_flight;
  return wire == WireFormat::bf16 ? segments / 2 * (2 * size - 1) : segments * (size - 1);
}

/// Makes the member of `rank` in a group of `links.size()`, whose members may be in different
/// processes. `links[p]` leads to member p and carries nothing else; `links[rank]` is null.
///
/// Every member sends part p of an array straight to member p, which adds up what it got in rank
/// order and sends the sum to all. The sums have the same bits as those of an in-process group.
///
/// Links must give back the buffer that was posted, unchanged if it was sent: the member sends from
/// the caller's array and receives into it. A link that swaps buffers, as the in-process one does,
/// aborts the program. All arrays are in host memory.
///
/// Threads: the member has none. Additions, posts to links and the completions of operations run on
/// the queues given with the operations. A queue must outlive the operations posted with it.
///
/// Failure: when a transfer fails, the member closes its links, on the operation's queue; once none
/// of an operation's transfers is pending any more, it completes with the code of that first
/// failure, as all later ones do at once. Closing the links makes the other members fail in the
/// same way. Destroying the member closes it; the links go with the last work on a queue that
/// refers to them.
///
/// Allocates `linked_staging_bytes` when made, and nothing per operation once as many operations
/// have been waiting as ever will be.
[[nodiscard]] std::unique_ptr<Collective> make_linked_member(
    std::uint32_t rank, std::vector<std::unique_ptr<Link>> links, LinkedLimits limits = {},
    WireFormat wire = WireFormat::fp32);

}  // namespace troupe::transport
