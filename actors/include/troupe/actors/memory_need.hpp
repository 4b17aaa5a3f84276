// troupe/actors/memory_need.hpp -- what processes need of their machines' memory, and whether it is
// there.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "troupe/engine/expected.hpp"
#include "troupe/engine/plan.hpp"

namespace troupe::actors {

/// What a process that performs `rank_count` ranks, servers too, needs beyond the plan's lines and
/// the batches: program and libraries, for each rank its actors and the scratch memory of its
/// threads, the largest parameter on its way into the file of weights, and what reaches other
/// processes if some perform the rest.
[[nodiscard]] std::uint64_t runtime_bytes(const Plan& plan, std::uint32_t rank_count);

/// The bytes of the batches that a process keeps if it performs ranks of so many replicas.
[[nodiscard]] std::uint64_t batch_bytes(const Plan& plan, std::uint64_t replica_count);

/// What the groups to which `ranks` belong, performed by one process, keep for what they get from
/// other processes to add up; nothing of groups that are whole in it.
[[nodiscard]] std::uint64_t staging_bytes(const Plan& plan, std::span<const std::uint32_t> ranks);

/// The bytes of a process that performs `ranks` of the grid, or servers.
[[nodiscard]] std::uint64_t process_bytes(const Plan& plan, std::span<const std::uint32_t> ranks);
/// The bytes of a process that performs the whole grid.
[[nodiscard]] std::uint64_t process_bytes(const Plan& plan);

/// The bytes of the process that needs most of so many, which `place_ranks` gives their ranks.
[[nodiscard]] std::uint64_t largest_process_bytes(const Plan& plan, std::uint32_t process_count);

/// The memory of a node's machine.
struct NodeMemory {
  std::string host;  ///< Nodes of one host share its memory.
  /// What the node sees available there; 0: unknown, and not checked.
  std::uint64_t available_bytes = 0;
};

/// Checks what the nodes of each host need together against what is available there, by the node
/// that sees least. A process that performs all ranks is one node.
/// @param node_of_rank As from `place_ranks`.
/// @returns `out_of_memory` with the nodes, their host, both numbers and what to change.
[[nodiscard]] Expected<Done> check_memory(const Plan& plan,
                                          std::span<const std::uint32_t> node_of_rank,
                                          std::span<const NodeMemory> nodes);

}  // namespace troupe::actors
