#include "troupe/actors/memory_need.hpp"

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <vector>

#include "troupe/engine/check.hpp"
#include "troupe/engine/lanes.hpp"
#include "troupe/engine/memory.hpp"
#include "troupe/transport/linked_group.hpp"

namespace troupe::actors {

namespace {

/// The nodes of one host, together.
struct HostNeed {
  std::vector<std::uint32_t> nodes;
  std::uint64_t available_bytes = 0;  ///< 0: unknown.
  std::uint64_t needed_bytes = 0;
  std::vector<std::uint32_t> ranks;
};

RankIndex pipeline_rank_of(const Plan& plan, std::uint32_t rank) {
  return coordinate_of(plan.config.parallel, rank).pipeline;
}

bool is_server(const Plan& plan, std::uint32_t rank) {
  return rank >= plan.config.parallel.rank_count();
}

/// What the stages of a rank of the grid, or a server, allocate.
std::uint64_t bytes_of(const Plan& plan, std::uint32_t rank) {
  const auto pipeline = pipeline_rank_of(plan, rank);
  return is_server(plan, rank) ? plan.server_bytes_of(pipeline) : plan.bytes_of(pipeline);
}

/// "node 2", or "nodes 0, 1 and 2".
std::string list_of(const std::vector<std::uint32_t>& nodes) {
  std::string text = nodes.size() == 1 ? "node " : "nodes ";
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    if (i > 0) text += i + 1 == nodes.size() ? " and " : ", ";
    text += std::to_string(nodes[i]);
  }
  return text;
}

Error does_not_fit(const Plan& plan, std::size_t node_count, const std::string& host,
                   const HostNeed& need) {
  const auto bytes = [&](std::uint32_t rank) { return bytes_of(plan, rank); };
  const auto largest = *std::ranges::max_element(need.ranks, {}, bytes);
  const auto rank = pipeline_rank_of(plan, largest).value();
  const auto who = node_count == 1 ? std::string{"the run"} : list_of(need.nodes);
  return {Errc::out_of_memory,
          who + (need.nodes.size() == 1 ? " needs " : " need ") + format_bytes(need.needed_bytes)
              + " of memory on " + host + ", " + format_bytes(bytes(largest))
              + " of it for " + (is_server(plan, largest) ? "the parameter server of " : "")
              + "pipeline rank " + std::to_string(rank)
              + ", and " + format_bytes(need.available_bytes)
              + " are available there; make model.hidden, schedule.microbatch_size or "
                "schedule.microbatches smaller, or spread the ranks over more machines"};
}

}  // namespace

std::uint64_t batch_bytes(const Plan& plan, std::uint64_t replica_count) {
  // Those of all steps that may be under way, and of the next.
  const std::uint64_t batch_count = 2 + plan.config.train.staleness;
  const auto& schedule = plan.config.schedule;
  const auto sequences = std::uint64_t{schedule.microbatches} * schedule.microbatch_size;
  return batch_count * sizeof(std::int32_t) * plan.config.model.batch_widths().sum() * sequences
         * replica_count;
}

namespace {

/// What streams round before they multiply it: the two operands of the largest product, to bf16, or
/// to floats with the values of fp16.
std::uint64_t rounding_bytes(const Plan& plan) {
  if (plan.config.train.precision == Precision::fp32) return 0;
  const auto rows =
      std::uint64_t{plan.config.schedule.microbatch_size} * plan.config.model.sequence;
  std::uint64_t most = 0;
  for (const auto& stage : plan.stages) {
    const auto graph =
        graph_of(plan.config.model, stage.spec, {.shard = plan.shard(stage.stage, 0)});
    for (const auto& of : graph.operations) {
      if (of.kind != OperationKind::linear) continue;
      const auto [in, out] = std::pair<std::uint64_t, std::uint64_t>{of.in, of.out};
      const auto wider = std::max(in, out);
      most = std::max({most, rows * wider + in * out, rows * (in + out)});
    }
  }
  return (plan.config.train.precision == Precision::bf16 ? 2 : sizeof(float)) * most;
}

}  // namespace

std::uint64_t runtime_bytes(const Plan& plan, std::uint32_t rank_count) {
  // Measured: bench/results/simulator.md.
  constexpr std::uint64_t program_bytes = std::uint64_t{22} << 20U;
  constexpr std::uint64_t thread_bytes = std::uint64_t{1} << 20U;
  constexpr std::uint64_t fabric_bytes = std::uint64_t{6} << 20U;
  std::uint64_t parameter_bytes = 0;
  for (const auto& parameter : parameters_of(plan.config.model)) {
    parameter_bytes = std::max(parameter_bytes, sizeof(float) * parameter.element_count());
  }
  const bool is_alone = rank_count == plan.rank_count();
  return program_bytes + thread_bytes * rank_count * plan.config.run.threads_per_stage
         + rounding_bytes(plan) * rank_count + parameter_bytes + (is_alone ? 0 : fabric_bytes);
}

std::uint64_t staging_bytes(const Plan& plan, std::span<const std::uint32_t> ranks) {
  const std::set<std::uint32_t> performed(ranks.begin(), ranks.end());
  const auto of_member = [&](const std::vector<std::uint32_t>& members, WireFormat wire) {
    const auto is_here = [&](std::uint32_t rank) { return performed.contains(rank); };
    if (std::ranges::all_of(members, is_here)) return std::size_t{0};
    return transport::linked_staging_bytes(static_cast<std::uint32_t>(members.size()), {}, wire);
  };
  std::uint64_t sum = 0;
  for (const auto rank : ranks) {
    const auto at = coordinate_of(plan.config.parallel, rank);
    for (const auto stage : plan.training.stages_of(at.pipeline)) {
      const auto position = stage.value() % plan.training.stages_per_copy();
      sum += of_member(ranks_holding(plan, {position, at.shard}), plan.config.train.gradient_wire);
    }
    sum += of_member(ranks_of_shards(plan, at.replica, at.pipeline), WireFormat::fp32);
  }
  return sum;
}

std::uint64_t process_bytes(const Plan& plan, std::span<const std::uint32_t> ranks) {
  std::set<std::uint32_t> replicas;
  auto sum =
      runtime_bytes(plan, static_cast<std::uint32_t>(ranks.size())) + staging_bytes(plan, ranks);
  for (const auto rank : ranks) {
    sum += bytes_of(plan, rank);
    if (!is_server(plan, rank)) replicas.insert(coordinate_of(plan.config.parallel, rank).replica);
  }
  return sum + batch_bytes(plan, replicas.size());
}

std::uint64_t process_bytes(const Plan& plan) {
  std::vector<std::uint32_t> ranks(plan.rank_count());
  std::iota(ranks.begin(), ranks.end(), 0U);
  return process_bytes(plan, ranks);
}

std::uint64_t largest_process_bytes(const Plan& plan, std::uint32_t process_count) {
  std::vector<std::vector<std::uint32_t>> ranks(process_count);
  const auto process_of_rank = place_ranks(plan, process_count);
  for (std::uint32_t rank = 0; rank < process_of_rank.size(); ++rank) {
    ranks[process_of_rank[rank]].push_back(rank);
  }
  std::uint64_t most = 0;
  for (const auto& of_process : ranks) most = std::max(most, process_bytes(plan, of_process));
  return most;
}

Expected<Done> check_memory(const Plan& plan, std::span<const std::uint32_t> node_of_rank,
                            std::span<const NodeMemory> nodes) {
  TROUPE_ASSERT(node_of_rank.size() == plan.rank_count());
  std::vector<std::vector<std::uint32_t>> ranks_of_node(nodes.size());
  for (std::uint32_t rank = 0; rank < node_of_rank.size(); ++rank) {
    ranks_of_node.at(node_of_rank[rank]).push_back(rank);
  }
  std::map<std::string, HostNeed> needs;
  for (std::uint32_t node = 0; node < nodes.size(); ++node) {
    auto& need = needs[nodes[node].host];
    const auto available = nodes[node].available_bytes;
    if (need.available_bytes == 0) need.available_bytes = available;
    if (available > 0) need.available_bytes = std::min(need.available_bytes, available);
    const auto& ranks = ranks_of_node[node];
    need.nodes.push_back(node);
    need.needed_bytes += process_bytes(plan, ranks);
    need.ranks.insert(need.ranks.end(), ranks.begin(), ranks.end());
  }
  for (const auto& [host, need] : needs) {
    if (need.available_bytes == 0 || need.needed_bytes <= need.available_bytes) continue;
    return does_not_fit(plan, nodes.size(), host, need);
  }
  return Done{};
}

}  // namespace troupe::actors
