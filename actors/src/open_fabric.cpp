#include "open_fabric.hpp"

#include <filesystem>
#include <system_error>

#include "troupe/transport/orphaned_segments.hpp"

namespace troupe::actors {

namespace {

/// As much as a process takes that has three peers: UCX 1.13 takes 4.2 MB for itself and for each.
constexpr std::uintmax_t little_bytes = std::uintmax_t{16} << 20U;

}  // namespace

Expected<std::unique_ptr<transport::UcxFabric>> open_fabric(const transport::UcxOptions& options) {
  transport::remove_orphaned_segments();
  auto fabric = transport::UcxFabric::make(options);
  if (fabric || !options.shared_memory) return fabric;
  std::error_code unknown;
  const auto space = std::filesystem::space("/dev/shm", unknown);
  if (unknown || space.available > little_bytes) return fabric;
  return Error{fabric.error().code,
               "/dev/shm, the memory that processes share, has "
                   + std::to_string(space.available >> 10U)
                   + " KiB left, and each process needs about 5000, and as much again for each "
                     "other it exchanges messages with: enlarge it, or give --no-shared-memory ("
                   + fabric.error().context + ")"};
}

}  // namespace troupe::actors
