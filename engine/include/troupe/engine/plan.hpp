// troupe/engine/plan.hpp -- everything that is decided before a run begins.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "troupe/engine/config.hpp"
#include "troupe/engine/expected.hpp"
#include "troupe/engine/memory.hpp"
#include "troupe/engine/model_layout.hpp"
#include "troupe/engine/partition.hpp"
#include "troupe/engine/schedule.hpp"
#include "troupe/engine/simulate.hpp"

namespace troupe {

/// One virtual stage of the plan.
struct StagePlan {
  StageIndex stage;
  RankIndex rank;
  StageSpec spec;
  StageBounds bounds;
  PassFlops flops;                 ///< Of one microbatch, of the first shard.
  std::vector<MemoryItem> memory;  ///< What a shard of the stage allocates, line by line.
  /// What its parameter server allocates; nothing, if it has none.
  std::vector<MemoryItem> server_memory{};

  /// What a microbatch keeps there from its forward to its backward pass, in a slot of a shard.
  [[nodiscard]] std::uint64_t slot_bytes() const;
};

/// A run, decided: who holds what, in which order it is worked on, what it needs.
struct Plan {
  Config config;
  Schedule training;
  Schedule evaluation;            ///< Forward passes of as many microbatches, on the same stages.
  std::vector<StagePlan> stages;  ///< By virtual stage.

  /// Whether every shard of every pipeline rank has a parameter server, a rank of its own.
  [[nodiscard]] bool has_servers() const noexcept {
    return config.train.synchronization == Synchronization::parameter_server;
  }
  /// Those of the grid, and the servers behind them.
  [[nodiscard]] std::uint32_t rank_count() const {
    const auto grid = config.parallel.rank_count();
    return has_servers() ? grid + grid / config.parallel.data : grid;
  }
  /// How many stages hold the same parameters: one in every copy of the model in every replica, and
  /// their server.
  [[nodiscard]] std::uint32_t holder_count() const noexcept {
    return config.parallel.data * training.copy_count + (has_servers() ? 1 : 0);
  }
  [[nodiscard]] Holder holder(std::uint32_t member) const noexcept {
    return {.index = member, .count = holder_count(), .has_server = has_servers()};
  }
  /// Where the weights are always whole and new: the first replica, or the servers.
  [[nodiscard]] std::uint32_t weights_replica() const noexcept {
    return has_servers() ? config.parallel.data : 0;
  }
  /// Sequences of one step over all replicas.
  [[nodiscard]] std::uint32_t sequences_per_step() const noexcept;
  /// Tokens of one step over all replicas.
  [[nodiscard]] std::uint32_t tokens_per_step() const noexcept;
  /// Floating-point operations of one training step over all replicas.
  [[nodiscard]] double flops_per_step() const noexcept;
  /// Shards of a stage.
  [[nodiscard]] std::uint32_t shard_count(StageIndex stage) const {
    return config.parallel.tensor.of(training.rank_of_stage[stage.value()]);
  }
  /// The part of a stage that its `index`-th shard holds.
  [[nodiscard]] Shard shard(StageIndex stage, std::uint32_t index) const {
    return {.index = index,
            .count = shard_count(stage),
            .divides_rows = config.train.sequence_parallel};
  }
  /// Bytes that the stages of `rank` (of one shard of one replica) allocate.
  [[nodiscard]] std::uint64_t bytes_of(RankIndex rank) const noexcept;
  /// Of these, those in page-locked host memory.
  [[nodiscard]] std::uint64_t host_bytes_of(RankIndex rank) const noexcept;
  /// Bytes that `rank` (its first shard) copies to host memory in a training step at most, and back
  /// at most.
  [[nodiscard]] std::uint64_t offloaded_bytes_of(RankIndex rank) const;
  /// Bytes that a server of `rank` (of one shard) allocates.
  [[nodiscard]] std::uint64_t server_bytes_of(RankIndex rank) const noexcept;
  /// Bytes of the gradients of `rank` (of its first shard) on their way between holders.
  [[nodiscard]] std::uint64_t gradient_bytes_of(RankIndex rank) const;
};

/// Decides a run with a named schedule.
/// @returns `invalid_config` or `invalid_schedule` with a sentence that says what to change.
[[nodiscard]] Expected<Plan> make_plan(const Config& config);

/// Decides a run with a given schedule, for example one read from a file. It brings its own stages:
/// `schedule.chunks` must agree if it is not 1. `schedule.split_backward` splits what is whole.
/// Weight passes out of microbatch order are brought into order first.
[[nodiscard]] Expected<Plan> make_plan(const Config& config, Schedule training);

/// Whether ranks whose device computes in `space` can do what the plan wants.
/// @returns `invalid_config` with a sentence that says what to change.
[[nodiscard]] Expected<Done> check_device(const Plan& plan, MemorySpace space);

/// The buffers and slots of `stage` such that every pass of both schedules finds its buffers and no
/// send ever waits for its receiver's memory:
///   slots              microbatches between F and the last use of their activations
///   gradients in       the same: a slot's gradient is awaited from its F on
///   activations in     microbatches that the stage before may have sent and this one still needs
///   out (either way)   two: one being written, one on its way
[[nodiscard]] StageBounds bounds_of(const Schedule& training, const Schedule& evaluation,
                                    StageIndex stage);

/// How many of the streams of a process that performs `rank_count` ranks can compute at once: as
/// many as it has ranks, if it has cores.
[[nodiscard]] std::uint32_t concurrent_streams(const Plan& plan, std::uint32_t rank_count,
                                               std::uint32_t core_count);

}  // namespace troupe
