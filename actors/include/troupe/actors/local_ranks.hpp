// troupe/actors/local_ranks.hpp -- the ranks of a grid that this process performs, built and wired.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "troupe/actors/choice_lane.hpp"
#include "troupe/engine/expected.hpp"
#include "troupe/engine/lanes.hpp"
#include "troupe/engine/part.hpp"
#include "troupe/engine/plan.hpp"
#include "troupe/stages/device.hpp"
#include "troupe/stages/stage.hpp"
#include "troupe/stages/transformer_stage.hpp"
#include "troupe/transport/collective.hpp"
#include "troupe/transport/in_process.hpp"

namespace troupe::actors {

/// Builds one virtual stage, of one shard of one replica; everything it enqueues goes to `stream`.
using StageFactory = std::function<Expected<std::unique_ptr<stages::Stage>>(
    const Plan& plan, const StagePlan& stage, stages::Device& device, stages::Stream& stream,
    const stages::StagePeers& peers)>;

/// What ranks are made of. Every default is the real thing.
struct RankParts {
  std::function<std::unique_ptr<stages::Device>()> make_device;  ///< The CPU of this machine.
  StageFactory make_stage;                                       ///< The plan's model family.
  /// Of the operations that the model's own layer defines; for the default of `make_stage`.
  stages::CustomKernels custom_kernels{};
  /// A lane whose ends are both here: in-process.
  std::function<transport::LinkPair(transport::HandOver)> make_link;
  /// The members of a group that are all here, in rank order: in process.
  std::function<std::vector<std::unique_ptr<transport::Collective>>(std::uint32_t size,
                                                                    WireFormat wire)>
      make_group;
  /// This end of the lane `number` to `rank` of the grid, which another process performs. There is
  /// no default: a process that performs all ranks needs none.
  std::function<Expected<std::unique_ptr<transport::Link>>(std::uint64_t number,
                                                           std::uint32_t rank)>
      connect;
};

/// This end of a lane to a shard of another stage.
struct LaneEnd {
  std::unique_ptr<transport::Link> link;
  // Of the buffers that leave or come in over the edge, what travels over this lane: all of them if
  // it is `is_whole`, else these parts, which may be empty.
  bool is_whole = true;
  Part sent{};
  Part received{};
};

/// One virtual stage and its lanes; an edge without lanes leads nowhere.
struct HeldStage {
  std::unique_ptr<stages::Stage> stage;
  std::vector<LaneEnd> previous;
  std::vector<LaneEnd> next;
  std::vector<LaneEnd> tied;  ///< To the stage with the other half of the embeddings.
  /// With the others that hold the same parameters, their server too; null if there are none.
  std::unique_ptr<transport::Collective> holders;
};

/// Everything one rank, or one parameter server, works with; a stage actor uses it while a step
/// runs.
struct LocalRank {
  std::uint32_t rank = 0;  ///< Of the grid, or beyond: see `rank_at`.
  Coordinate coordinate;
  std::vector<HeldStage> stages;           ///< In ascending order of virtual stage.
  std::unique_ptr<stages::Stream> stream;  ///< Passes and the optimizer.
  /// Additions of all-reduces; null if nobody holds the same parameters.
  std::unique_ptr<stages::Stream> reduce_stream;
  /// With the other shards of the rank's stages, and where its additions run; null if there are
  /// none.
  std::unique_ptr<transport::Collective> shards;
  std::unique_ptr<stages::Stream> shard_stream;
  /// Under a policy: from shard 0, which chooses, to every other, in their order; at the others the
  /// one to shard 0.
  std::vector<std::unique_ptr<ChoiceLane>> choices;
};

/// What one step reads, by replica, the last for servers; a replica that has no rank here, and
/// servers, have an empty batch.
using StepBatches = std::vector<stages::Batch>;

/// The ranks that this process performs: all of the grid, or some, and parameter servers.
///
/// Thread safety: none, but `close_lanes` may be called while actors use the ranks.
class LocalRanks {
public:
  /// Allocates everything the plan announced for `ranks`, in ascending order, and wires it.
  /// @returns `out_of_memory` if the device refuses, `invalid_config` if it cannot do what the plan
  ///          wants, or what a part of `parts` returned.
  [[nodiscard]] static Expected<std::unique_ptr<LocalRanks>> make(std::shared_ptr<const Plan> plan,
                                                                  std::vector<std::uint32_t> ranks,
                                                                  RankParts parts = {});

  /// Every rank of the plan, and its servers.
  [[nodiscard]] static std::vector<std::uint32_t> all_of(const Plan& plan);

  /// Closes the lanes and empties the streams; the actors are gone by then.
  ~LocalRanks();
  LocalRanks(const LocalRanks&) = delete;
  LocalRanks& operator=(const LocalRanks&) = delete;

  [[nodiscard]] std::span<LocalRank> ranks() noexcept { return ranks_; }
  /// Null if it is held elsewhere.
  [[nodiscard]] HeldStage* find(const StagePlace& place);
  [[nodiscard]] stages::Device& device() noexcept { return *device_; }
  /// The batches of the steps that may be under way, and the next one's, for the loader to fill.
  /// They are here because streams read them until they are empty, when the loader has gone.
  [[nodiscard]] std::vector<StepBatches>& batches() noexcept { return batches_; }

  /// Completes everything that waits for a neighbour or a replica as cancelled. Idempotent.
  void close_lanes();
  /// Waits for device work that is still enqueued, and drops what would be posted to the actors.
  void empty_streams();

private:
  LocalRanks(std::shared_ptr<const Plan> plan, RankParts parts);

  void make_batches();
  void make_places(LocalRank& rank);
  [[nodiscard]] Expected<Done> build(LocalRank& rank);
  [[nodiscard]] Expected<Done> wire(std::uint64_t number, const StageLane& lane);
  /// Makes the group of those who hold the parameters of `part`.
  [[nodiscard]] Expected<Done> join_holders(const HeldPart& part);
  /// Makes the group of the shards of a pipeline rank of a replica.
  [[nodiscard]] Expected<Done> join_shards(std::uint32_t replica, RankIndex pipeline);
  /// Makes the lanes over which shard 0 tells them what it chooses.
  [[nodiscard]] Expected<Done> connect_choices(std::uint32_t replica, RankIndex pipeline);

  /// The ranks of a group's members, the number of the lane between two of them, and in what they
  /// exchange what they sum.
  struct GroupPlan {
    std::vector<std::uint32_t> ranks;
    std::function<std::uint64_t(std::uint32_t a, std::uint32_t b)> lane;
    WireFormat wire = WireFormat::fp32;
  };
  /// The members of a group that are here, by member; null for those elsewhere.
  [[nodiscard]] Expected<std::vector<std::unique_ptr<transport::Collective>>> join(
      const GroupPlan& group);
  /// The links of member `member`, by member, to those of its group that are elsewhere.
  [[nodiscard]] Expected<std::vector<std::unique_ptr<transport::Link>>> links_elsewhere(
      const GroupPlan& group, std::uint32_t member);
  [[nodiscard]] LocalRank* find(std::uint32_t rank);

  std::shared_ptr<const Plan> plan_;
  RankParts parts_;
  std::unique_ptr<stages::Device> device_;
  std::vector<StepBatches> batches_;
  std::vector<LocalRank> ranks_;  ///< Ascending.
};

}  // namespace troupe::actors
