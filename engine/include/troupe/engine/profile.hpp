// troupe/engine/profile.hpp -- what the parts of a model take on a machine, and so any plan of it.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "troupe/engine/cost_model.hpp"
#include "troupe/engine/expected.hpp"
#include "troupe/engine/model_spec.hpp"
#include "troupe/engine/plan.hpp"
#include "troupe/engine/timeline.hpp"

namespace troupe {

/// What the parts of a model take for one microbatch on a stage of so many shards: on one of them,
/// with its waiting for the others.
struct PartTimes {
  std::uint32_t shard_count = 1;
  PassCosts embedding{};          ///< What the first stage takes besides its layers.
  PassCosts layer{};              ///< What one layer takes.
  PassCosts recomputing_layer{};  ///< What one takes that recomputes as `Profile::recompute` says.
  PassCosts head{};               ///< What the last stage takes besides its layers.

  friend bool operator==(const PartTimes&, const PartTimes&) = default;
};

/// How unevenly a machine computed. What else runs on it slows one core for seconds and not the
/// other, and one pass and not the next; ranks wait for each other, so a step takes longer than its
/// passes do in the mean.
struct Unevenness {
  static constexpr double slowdown_max = 1000.0;
  static constexpr double pass_spread_max = 3.0;

  /// By step that was measured, by actor that computed at once with the others: what its passes
  /// took in that step over what they take in the mean. None: the machine is even.
  std::vector<std::vector<double>> slowdowns{};
  /// Standard deviation over mean of such a pass within its step, without what slows all actors at
  /// a time: nobody waits for that.
  double pass_spread = 0.0;

  friend bool operator==(const Unevenness&, const Unevenness&) = default;
};

/// What it takes when ranks of different processes exchange something.
struct ProcessLinks {
  Wire link{};       ///< A transfer, on top of what the runtime adds.
  Wire reduction{};  ///< An all-reduce of gradients, between two.

  friend bool operator==(const ProcessLinks&, const ProcessLinks&) = default;
};

/// Measured with `stream_count` ranks computing at once: what they share, caches, memory and the
/// speed of the cores, is part of the times.
struct Profile {
  ModelSpec model;  ///< Resolved. How many layers it has does not matter.
  std::uint32_t microbatch_size = 1;
  std::uint32_t threads_per_stage = 1;
  Precision precision = Precision::fp32;
  std::uint32_t stream_count = 1;
  Recompute recompute = Recompute::none;
  bool sequence_parallel = false;  ///< Of stages of several shards.

  std::vector<PartTimes> parts{};  ///< One for each number of shards that was measured.

  double optimizer_ns_per_element = 0.0;
  double measuring_ns_per_element = 0.0;

  std::int64_t dispatch_ns = 0;  ///< As in `Runtime`; nothing else is spent on a hop in a process.
  std::int64_t director_ns = 0;  ///< As in `Runtime`.
  std::int64_t start_ns = 0;     ///< From the wish for a step to the first pass.

  Wire reduction{};  ///< An all-reduce of gradients between replicas in one process.
  /// Whether cores were left for that while all streams computed. If not, it takes them from
  /// passes.
  bool has_spare_cores = false;
  std::optional<ProcessLinks> between_processes{};  ///< Of this machine; none: not measured.

  Unevenness unevenness{};

  friend bool operator==(const Profile&, const Profile&) = default;
};

/// Parameter elements of the first shard of a stage.
[[nodiscard]] double elements_of(const Plan& plan, const StagePlan& stage);

/// Checks that `profile` was measured for what `plan`, performed by so many processes, is made of.
/// @returns `invalid_config` with the first thing that differs, and both values, or if a step would
///          take years.
[[nodiscard]] Expected<Done> check_fits(const Profile& profile, const Plan& plan,
                                        std::uint32_t process_count = 1);

/// What a training step of `plan` takes, by a `profile` that fits it: passes, hops, sums over
/// replicas, the update and what the runtime adds. Ranks are spread over processes as `place_ranks`
/// does; what is between processes for one replica or shard, is for all. The halves of a tied
/// embedding's gradient, if they go to another process, are part of measuring there, and so are
/// sums over copies of the model if there is one replica. Of replicas there are as many as computed
/// at once when it was profiled, or two: more would do the same. Left out are servers, and that
/// shards of a stage are in different processes.
///
/// An all-reduce among n processes moves 2 (n - 1) / n of the bytes to and from each of them, and a
/// reduce-scatter or an all-gather half of that (Patarasuk and Yuan 2009); in one process every
/// member adds and copies its part, whatever n. With sharded optimizers the first half follows the
/// passes and the second, of weights, the update, where it counts as part of that; under `zero2`
/// the first half is part of each weight pass, which takes as long as that if it runs beside it.
[[nodiscard]] CostModel costs_of(const Plan& plan, const Profile& profile,
                                 std::uint32_t process_count = 1);

/// Decides a run with a named schedule, made for these costs if it is one that is searched for.
/// @returns `invalid_config` or `invalid_schedule` with a sentence that says what to change.
[[nodiscard]] Expected<Plan> make_plan(const Config& config, const Profile& profile);

/// Simulates the training step of `plan` by `profile`, with every pass as long as in the mean.
[[nodiscard]] Timeline predict(const Plan& plan, const Profile& profile,
                               std::uint32_t process_count = 1);

/// What steps take on an uneven machine.
struct UnevenSteps {
  double mean_ns = 0.0;
  std::int64_t tenth_ns = 0;      ///< A tenth of them takes less.
  std::int64_t ninetieth_ns = 0;  ///< A tenth of them takes more.
};

/// Simulates a step for each one that was measured, with its slowdowns on top of those of `costs`
/// and with jitter of passes. The ranks, replica by replica, are the actors that were measured,
/// from the first again behind the last. On an even machine all steps are alike.
[[nodiscard]] UnevenSteps simulate_uneven(const Schedule& schedule, CostModel costs,
                                          const Unevenness& unevenness);

}  // namespace troupe
