// troupe/actors/step_report.hpp -- what is known about a step when it is over.
#pragma once

#include <cstdint>
#include <vector>

#include "troupe/engine/grid.hpp"
#include "troupe/engine/schedule.hpp"
#include "troupe/engine/time_account.hpp"

namespace troupe::actors {

/// What a device did and when, for traces.
struct TraceEntry {
  enum class Kind : std::uint8_t { pass, reduce, optimize };
  Kind kind = Kind::pass;
  Action action;              ///< The pass; of other kinds only the stage counts.
  std::int64_t begin_ns = 0;  ///< Of the process's steady clock.
  std::int64_t end_ns = 0;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, TraceEntry& x) {
  return f(x.kind, x.action, x.begin_ns, x.end_ns);
}

/// How a step went on one rank of the grid, or on a parameter server.
struct RankReport {
  Coordinate coordinate;
  TimeAccount account;  ///< From the end of the rank's step before to the end of this one.
  std::vector<TraceEntry> trace;
};

/// How a step went.
struct StepReport {
  std::uint32_t step = 0;  ///< Counted from 1.
  StepKind kind = StepKind::training;
  double loss = 0.0;               ///< Mean over the step's targets, in nats.
  std::uint32_t target_count = 0;  ///< Over all replicas.
  /// Of an evaluation that classifies: the class that the model takes each sequence for, [replicas,
  /// microbatches, sequences].
  std::vector<std::int32_t> predictions{};
  double gradient_norm = 0.0;  ///< Over all parameters, before clipping; 0 in an evaluation step.
  double learning_rate = 0.0;
  double loss_scale = 1.0;  ///< Neither the loss nor the gradient norm is multiplied by it.
  bool is_skipped = false;  ///< Gradients have overflowed at that scale: the weights are as before.
  /// Of the process's steady clock: when it began, or, if that was later, when the step before it
  /// ended.
  std::int64_t begin_ns = 0;
  std::int64_t end_ns = 0;
  std::vector<RankReport> ranks;  ///< By rank of the grid.
  /// Of parameter servers, in the order of their ranks: they run no passes.
  std::vector<RankReport> servers{};

  /// Share of the pipeline's rank-time, from the first pass's begin to the last one's end, in which
  /// no pass ran; the mean over the replicas.
  [[nodiscard]] double bubble_fraction() const;

  /// The report with the first shard of each rank alone: all run the same passes.
  [[nodiscard]] StepReport of_first_shards() const;
};

}  // namespace troupe::actors
