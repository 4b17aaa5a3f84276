// troupe/transport/in_process.hpp -- links and collectives between actors of one process.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "troupe/transport/collective.hpp"
#include "troupe/transport/link.hpp"

namespace troupe::transport {

/// The two ends of something.
using LinkPair = std::pair<std::unique_ptr<Link>, std::unique_ptr<Link>>;

/// What happens to the buffers of a transfer within a process.
enum class HandOver : std::uint8_t {
  swap,  ///< Nothing is copied: each end gets the other's buffer.
  copy,  ///< Each end gets its own buffer back, as between processes.
};

/// Makes a lane. The end that posts second moves the message and runs both completions, on its own
/// thread.
[[nodiscard]] LinkPair make_in_process_link(HandOver hand_over = HandOver::swap);

/// Makes a group of `size` members; element r is the member of rank r.
///
/// An operation is shared out: when all members have arrived, member r adds up or copies the r-th
/// part of the array on its own queue and writes it to every member that takes it. Nothing blocks,
/// and no thread is added.
[[nodiscard]] std::vector<std::unique_ptr<Collective>> make_in_process_group(
    std::uint32_t size, WireFormat wire = WireFormat::fp32);

}  // namespace troupe::transport
