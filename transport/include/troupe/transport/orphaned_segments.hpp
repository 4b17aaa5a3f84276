// troupe/transport/orphaned_segments.hpp -- shared memory whose owner was killed as it made it.
//
// UCX makes a segment under a name in /dev/shm, fills it, and takes the name away. A process that
// is killed in between leaves the segment until the machine is started anew.
#pragma once

#include <cstddef>
#include <filesystem>

namespace troupe::transport {

/// Removes segments of UCX that belong to this user and that no process, of whatever container, has
/// open or mapped. Blocks for 200 ms if there are any, at most. Returns how many there were.
/// Threads and processes may do so at the same time.
std::size_t remove_orphaned_segments(const std::filesystem::path& folder = "/dev/shm");

}  // namespace troupe::transport
