// troupe/engine/cost_model.hpp -- how long everything in a step takes, for the simulator.
//
// What is not said costs nothing: a default model has links that take no time, one replica, no
// jitter and a runtime that reacts at once.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "troupe/engine/model_layout.hpp"
#include "troupe/engine/schedule.hpp"

namespace troupe {

/// How long the passes of one microbatch take on one stage.
struct PassCosts {
  std::int64_t forward_ns = 1;
  std::int64_t backward_ns = 2;
  std::int64_t backward_input_ns = 1;
  std::int64_t backward_weight_ns = 1;

  /// Costs where the whole backward pass takes as long as its two parts.
  [[nodiscard]] static constexpr PassCosts of_parts(std::int64_t forward_ns,
                                                    std::int64_t backward_input_ns,
                                                    std::int64_t backward_weight_ns) noexcept {
    return {forward_ns, backward_input_ns + backward_weight_ns, backward_input_ns,
            backward_weight_ns};
  }
  [[nodiscard]] constexpr std::int64_t of(Pass pass) const noexcept {
    switch (pass) {
      case Pass::forward:
        return forward_ns;
      case Pass::backward:
        return backward_ns;
      case Pass::backward_input:
        return backward_input_ns;
      case Pass::backward_weight:
        return backward_weight_ns;
    }
    return 0;
  }
  friend constexpr bool operator==(const PassCosts&, const PassCosts&) = default;
};

/// What carries bytes. A transfer of b bytes occupies it for b / `bytes_per_second`, rounded to
/// whole nanoseconds, and is there `latency_ns` after it has left.
struct Wire {
  std::int64_t latency_ns = 0;
  double bytes_per_second = std::numeric_limits<double>::infinity();

  friend constexpr bool operator==(const Wire&, const Wire&) = default;
};

/// The way from one rank to another, in one direction.
struct Channel {
  RankIndex from;
  RankIndex to;
  Wire wire{};
};

/// How activations and gradients travel between ranks. Nothing is spent within a rank.
///
/// A transfer is ready when both ends have posted it. A channel carries one transfer at a time, all
/// that lead from one rank to another share one, and each direction has its own. The transfers of
/// one replica are served in the order in which they became ready; of those ready at the same time,
/// the one from the lower rank goes first, and of one rank's the one that its program makes first.
struct Network {
  std::vector<std::int64_t> activation_bytes{0};  ///< By stage s: what s sends to s + 1.
  std::vector<std::int64_t> gradient_bytes{0};    ///< By stage s: what s + 1 sends to s.
  Wire wire{};                                    ///< Of every channel that is not listed.
  std::vector<Channel> channels{};                ///< Those that differ, each once.

  /// By rank: the number of its network interface, ranks of one node having the same. An interface
  /// carries one transfer out and one in at a time; a transfer occupies it as long as its channel,
  /// and while it waits for its turn on one side it holds up those behind it on the other. What
  /// stays within an interface does not occupy it. Empty: every rank has as many as it has
  /// channels.
  std::vector<std::uint32_t> interfaces{};

  /// Whether a rank goes on while what it made is leaving. If not, no pass begins on it before the
  /// output of the pass before has left.
  bool overlaps_passes = true;
};

/// Data-parallel copies of the pipeline, and what they do together: they sum their gradients. They
/// share nothing else, each has its own ranks and channels.
struct Replicas {
  std::uint32_t count = 1;

  /// By stage: the sizes of its gradient buckets, in the order in which its last weight pass fills
  /// them: the j-th of n when j / n of that pass is over. A list of one is that of every stage.
  std::vector<std::vector<std::int64_t>> bucket_bytes{{}};

  /// An all-reduce of a bucket begins when every replica's rank has filled it and the one before it
  /// on these ranks is through; it takes the latency and the time of the bytes.
  Wire wire{};

  /// Whether reductions run beside passes. If not, they begin behind the rank's last pass.
  bool overlaps_passes = true;
};

/// Durations that differ from one time to the next. Each is multiplied by a factor with mean 1 that
/// depends on the seed, the replica, and the pass or transfer alone.
struct Jitter {
  enum class Shape : std::uint8_t {
    normal,     ///< Cut off at 0.
    lognormal,  ///< Never 0, now and then very late.
  };
  Shape shape = Shape::lognormal;
  double pass_spread = 0.0;      ///< Standard deviation over mean of the passes' factors.
  double transfer_spread = 0.0;  ///< The same of the transfers', for leaving and travelling alike.
  std::uint64_t seed = 0;
};

/// What the runtime that drives the ranks adds.
struct Runtime {
  /// From something having happened to the rank's machine knowing it.
  std::int64_t dispatch_ns = 0;
  std::uint32_t enqueued_max = 2;  ///< Passes that a device may have before it; at least 1.

  /// By stage: the buffers for what comes in and goes out; `bounds_of` gives those of a run, fewer
  /// for outputs are possible, fewer for inputs may be a deadlock. Empty: as many as are needed.
  std::vector<StageBounds> bounds{};

  /// From the last report of a gradient norm until every rank knows the global one. Without a value
  /// no rank waits for the others before it updates its weights.
  std::optional<std::int64_t> director_ns{};
};

/// How long everything takes. A list of one value means that value everywhere. No value is
/// negative.
struct CostModel {
  std::vector<PassCosts> stages{PassCosts{}};  ///< By stage.
  std::vector<std::int64_t> link_ns{0};        ///< By stage s: between s and s + 1, in either
                                               ///< direction, on top of the channel's latency. Not
                                               ///< spent within a rank.
  std::vector<std::int64_t> rank_start_ns{0};  ///< By rank: nothing runs there before.
  std::vector<std::int64_t> optimizer_ns{0};   ///< By rank: its update, behind its last pass and
                                               ///< what follows that.
  std::vector<std::int64_t> measuring_ns{0};   ///< By rank: measuring its gradients.

  /// By rank, or by rank of every replica in turn: the factor by which its passes take longer.
  std::vector<double> slowdown{1.0};

  Network network{};
  Replicas replicas{};
  Jitter jitter{};
  Runtime runtime{};
};

}  // namespace troupe
