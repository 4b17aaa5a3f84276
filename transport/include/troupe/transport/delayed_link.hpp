// troupe/transport/delayed_link.hpp -- a link that is slower than it is, for experiments.
#pragma once

#include <chrono>
#include <memory>

#include "troupe/transport/link.hpp"

namespace troupe::transport {

/// Sends through `inner`, each message `delay` after it was posted. Any number of messages is on
/// its way at once and they keep their order: a lane with latency, whose width is no limit. A
/// sender has its buffer back when `inner` has sent it. Owns a thread that waits.
[[nodiscard]] std::unique_ptr<Link> make_delayed_link(std::unique_ptr<Link> inner,
                                                      std::chrono::nanoseconds delay);

}  // namespace troupe::transport
