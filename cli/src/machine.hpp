// cli/src/machine.hpp -- what the operating system says of this machine and grants this process.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace troupe::cli {

/// A resource limit of this process; nothing where it is unlimited.
struct ResourceLimit {
  std::optional<std::uint64_t> soft;  ///< In force.
  std::optional<std::uint64_t> hard;  ///< What the process itself may raise it to.
};

struct Machine {
  std::string host;
  std::string processor;  ///< As its maker calls it; empty if unknown.
  std::uint32_t core_count = 0;
  std::uint32_t usable_core_count = 0;  ///< By the affinity of this thread.
  std::optional<double> core_quota;     ///< Cores' worth of time that its control group grants.

  std::uint64_t memory_bytes = 0;
  std::uint64_t available_memory_bytes = 0;
  std::optional<std::uint64_t> memory_quota_bytes;  ///< What its control group grants.
  /// What processes of this machine can have without pushing others out; 0 if unknown.
  [[nodiscard]] std::uint64_t usable_memory_bytes() const;

  std::optional<std::uint64_t> shared_memory_bytes;  ///< Size of /dev/shm; nothing: there is none.
  std::uint64_t free_shared_memory_bytes = 0;

  ResourceLimit open_files;
  ResourceLimit locked_memory_bytes;
  std::vector<std::string> infiniband_devices;  ///< InfiniBand and RoCE, by name.
};

/// Looks at this machine. What cannot be found out stays empty.
[[nodiscard]] Machine look_at_machine();

}  // namespace troupe::cli
