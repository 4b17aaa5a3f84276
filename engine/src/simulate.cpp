#include "troupe/engine/simulate.hpp"

#include <algorithm>
#include <cstddef>
#include <functional>
#include <queue>
#include <tuple>
#include <utility>

#include "cost_table.hpp"
#include "dependency_order.hpp"

namespace troupe {

namespace {

constexpr std::int64_t unknown_ns = -1;

/// Divides a stretch of idle time among its causes, from its beginning on.
class IdleSplit {
public:
  IdleSplit(IdleTime& idle, std::int64_t begin_ns) : idle_{idle}, at_ns_{begin_ns} {}

  /// Books what is left of the time before `until_ns`.
  void take(IdleCause cause, std::int64_t until_ns) noexcept {
    if (until_ns <= at_ns_) return;
    idle_[cause] += until_ns - at_ns_;
    at_ns_ = until_ns;
  }

private:
  IdleTime& idle_;
  std::int64_t at_ns_;
};

// -- passes and transfers -------------------------------------------------------------------------

/// A rank of one replica while its passes run.
struct RankState {
  RankTime time;
  std::int64_t free_ns = 0;         ///< Its device may begin the next pass.
  std::int64_t enqueued_ns = 0;     ///< Its last pass was enqueued.
  std::int64_t standing_ns = 0;     ///< Until then it stood still for an output to leave.
  std::int64_t sent_ns = 0;         ///< All outputs sent so far have left.
  std::size_t leaving = no_output;  ///< It stands still for this one, until it is known when.
  IdleTime idle;
};

/// The pass that is the last to add to a stage's weight gradients.
struct LastWeightPass {
  std::size_t position = 0;  ///< In the rank's program.
  std::int64_t begin_ns = 0;
  std::int64_t end_ns = 0;
};

/// What the passes of one replica come to.
struct Passes {
  std::vector<RankState> ranks;
  std::vector<LastWeightPass> last_weight_passes;  ///< By stage.
};

/// Runs the passes and transfers of one replica. A rank runs as far as it is known when what it
/// waits for happens, so ranks are visited in no order of time. A transfer is served at once where
/// its carriers serve one sender alone. Otherwise transfers queue, and when no rank can go on, the
/// one that is ready first is served: whatever follows from that is ready no sooner.
class PassWalk {
public:
  PassWalk(const Schedule& schedule, const CostTable& table, std::uint32_t replica)
      : table_{table},
        replica_{replica},
        kind_{schedule.kind},
        is_queued_{table.interface_count() > 0 || table.receivers_hold_up()},
        stands_still_{!table.model().network.overlaps_passes},
        dispatch_ns_{table.model().runtime.dispatch_ns},
        enqueued_max_{table.model().runtime.enqueued_max},
        schedule_{schedule},
        outputs_{schedule},
        walk_{schedule},
        ranks_(schedule.rank_count()),
        last_weight_passes_(schedule.stage_count()),
        transfers_(outputs_.count()),
        out_buffers_(schedule.stage_count()),
        channel_free_ns_(table.channel_count()),
        interface_free_ns_(std::size_t{2} * table.interface_count()) {
    for (std::uint32_t r = 0; r < schedule.rank_count(); ++r) {
      ranks_[r].free_ns = ranks_[r].time.end_ns = table.rank_start_ns(r);
    }
    for (std::uint32_t s = 0; s < schedule.stage_count(); ++s) {
      for (const auto edge : {Edge::activation, Edge::gradient}) {
        const auto count = table.way(StageIndex{s}, edge).buffer_count;
        out_buffers_[s][static_cast<std::size_t>(edge)] = {buffers_.size(), count};
        buffers_.resize(buffers_.size() + count);
      }
    }
    if (table.receivers_hold_up()) inboxes_.resize(schedule.stage_count());
    // A pass may be enqueued when the one so many places before it is known to be over.
    if (dispatch_ns_ > 0) {
      ends_ns_.resize(std::size_t{schedule.rank_count()} * enqueued_max_, -dispatch_ns_);
    }
  }

  /// Calls `record(rank, action, begin_ns, end_ns)` for every pass.
  template <class Record>
  [[nodiscard]] Passes run(Record record) && {
    const auto try_run = [&](std::uint32_t rank, std::size_t position, const Action& action) {
      return this->try_run(rank, position, action, record);
    };
    for (walk_.run(try_run); !requests_.empty(); walk_.run(try_run)) {
      const auto request = requests_.top();
      requests_.pop();
      serve(request);
    }
    for (std::uint32_t r = 0; r < schedule_.rank_count(); ++r) {
      TROUPE_ASSERT(walk_.stopped()[r] == schedule_.ranks[r].size());
    }
    return {std::move(ranks_), std::move(last_weight_passes_)};
  }

private:
  /// What stages hand to each other.
  struct Transfer {
    std::int64_t made_ns = unknown_ns;
    std::int64_t here_ns = unknown_ns;
  };
  /// An output buffer: what was last in it, and when that left.
  struct Buffer {
    std::size_t output = no_output;
    std::int64_t left_ns = 0;
  };
  /// The buffers of an edge, which are used in turn.
  struct OutBuffers {
    std::size_t begin = 0;
    std::uint32_t count = 0;
    std::uint32_t next = 0;
  };
  /// A transfer that both ends have posted.
  struct Request {
    std::int64_t ready_ns;
    std::uint32_t rank;    ///< That sends.
    std::size_t position;  ///< In its program: of the pass that made it.
    Action action;         ///< That pass.
    std::size_t output;
    Buffer* buffer;

    /// Whether it is served after `other`.
    bool operator>(const Request& other) const noexcept {
      return std::tie(ready_ns, rank, position)
             > std::tie(other.ready_ns, other.rank, other.position);
    }
  };
  /// The input buffers of a stage for activations.
  struct Inbox {
    std::uint32_t sent_count = 0;        ///< Sends to it.
    std::vector<std::int64_t> freed_ns;  ///< Buffers that were posted again, in order.
    std::queue<Request> held_up;         ///< Sends that found none.
  };

  template <class Record>
  std::size_t try_run(std::uint32_t rank, std::size_t position, const Action& action,
                      Record record) {
    auto& state = ranks_[rank];
    if (state.leaving != no_output) return state.leaving;
    Transfer input{0, 0};
    if (const auto needed = outputs_.needed_by(action); needed != no_output) {
      input = transfers_[needed];
      if (input.here_ns == unknown_ns) return needed;
      state.enqueued_ns = std::max(state.enqueued_ns, input.here_ns + dispatch_ns_);
    }
    const Way* const way = way_of(action);
    Buffer* const buffer = way == nullptr ? nullptr : next_buffer(action);
    if (buffer != nullptr && buffer->output != no_output) {
      if (buffer->left_ns == unknown_ns) return buffer->output;
      state.enqueued_ns = std::max(state.enqueued_ns, buffer->left_ns + dispatch_ns_);
    }
    if (dispatch_ns_ > 0) {
      state.enqueued_ns = std::max(state.enqueued_ns, end_before(rank, position) + dispatch_ns_);
    }

    const auto begin_ns = std::max(state.free_ns, state.enqueued_ns);
    const auto end_ns = begin_ns + table_.pass_ns(replica_, action);
    if (position == 0) {
      state.time.begin_ns = state.idle[IdleCause::warm_up] = begin_ns;
    } else if (begin_ns > state.time.end_ns) {
      IdleSplit split{state.idle, state.time.end_ns};
      split.take(IdleCause::send, state.standing_ns);
      split.take(IdleCause::imbalance, input.made_ns);
      split.take(IdleCause::communication, input.here_ns);
      if (buffer != nullptr) split.take(IdleCause::send, buffer->left_ns);
      split.take(IdleCause::dispatch, begin_ns);
    }
    state.free_ns = state.time.end_ns = end_ns;
    state.time.passes_ns += end_ns - begin_ns;
    if (dispatch_ns_ > 0) end_before(rank, position) = end_ns;
    record(rank, action, begin_ns, end_ns);
    if (accumulates_weights(action.pass)) {
      last_weight_passes_[action.stage.value()] = {position, begin_ns, end_ns};
    }
    if (!inboxes_.empty()) free_input(action, end_ns);
    if (way != nullptr) send(*way, rank, position, action, end_ns, buffer);
    return no_output;
  }

  /// The way that what `action` makes takes, or none.
  [[nodiscard]] const Way* way_of(const Action& action) const noexcept {
    if (action.pass == Pass::backward_weight) return nullptr;
    const auto& way = table_.way(action.stage, edge_of(action.pass));
    return way.leads_somewhere() ? &way : nullptr;
  }
  /// The buffer for what `action` makes, or none if they are not bounded.
  [[nodiscard]] Buffer* next_buffer(const Action& action) noexcept {
    if (buffers_.empty()) return nullptr;
    const auto& own =
        out_buffers_[action.stage.value()][static_cast<std::size_t>(edge_of(action.pass))];
    return &buffers_[own.begin + own.next];
  }
  /// The end of the pass that many places before `position` that this one may be enqueued behind
  /// it.
  [[nodiscard]] std::int64_t& end_before(std::uint32_t rank, std::size_t position) noexcept {
    return ends_ns_[std::size_t{rank} * enqueued_max_ + position % enqueued_max_];
  }

  void send(const Way& way, std::uint32_t rank, std::size_t position, const Action& action,
            std::int64_t made_ns, Buffer* buffer) {
    const auto output = outputs_.made_by(action);
    transfers_[output].made_ns = made_ns;
    if (buffer != nullptr) {
      *buffer = {output, unknown_ns};
      auto& own =
          out_buffers_[action.stage.value()][static_cast<std::size_t>(edge_of(action.pass))];
      if (++own.next == own.count) own.next = 0;
    }
    if (stands_still_ && !way.stays_on_rank()) ranks_[rank].leaving = output;
    const auto posted_ns = made_ns + dispatch_ns_;
    if (is_queued_) {
      post({posted_ns, rank, position, action, output, buffer});
    } else {
      serve(way, rank, action, output, buffer, posted_ns);
    }
  }

  /// Lets a transfer that its sender has posted wait for a buffer of its receiver.
  void post(Request request) {
    if (!inboxes_.empty() && request.action.pass == Pass::forward) {
      const StageIndex reader{request.action.stage.value() + 1};
      auto& inbox = inboxes_[reader.value()];
      const auto sent_before = inbox.sent_count++;
      const auto buffer_count = table_.activations_in(reader);
      if (sent_before >= buffer_count) {
        const auto freed = sent_before - buffer_count;
        if (freed >= inbox.freed_ns.size()) return inbox.held_up.push(request);
        request.ready_ns = std::max(request.ready_ns, inbox.freed_ns[freed]);
      }
    }
    queue(request);
  }

  /// Posts the buffer again that `action`, if it is the last use of its input, leaves.
  void free_input(const Action& action, std::int64_t end_ns) {
    const bool is_last_use = kind_ == StepKind::training ? accumulates_weights(action.pass)
                                                         : action.pass == Pass::forward;
    if (!is_last_use) return;
    auto& inbox = inboxes_[action.stage.value()];
    inbox.freed_ns.push_back(end_ns + dispatch_ns_);
    if (inbox.held_up.empty()) return;
    auto request = inbox.held_up.front();
    inbox.held_up.pop();
    request.ready_ns = std::max(request.ready_ns, inbox.freed_ns.back());
    queue(request);
  }

  /// Lets a transfer that is ready wait for its turn; there are no turns within a rank.
  void queue(const Request& request) {
    if (way_of(request.action)->stays_on_rank()) {
      serve(request);
    } else {
      requests_.push(request);
    }
  }
  void serve(const Request& request) {
    serve(*way_of(request.action), request.rank, request.action, request.output, request.buffer,
          request.ready_ns);
  }

  void serve(const Way& way, std::uint32_t rank, const Action& action, std::size_t output,
             Buffer* buffer, std::int64_t ready_ns) {
    auto left_ns = ready_ns;
    auto here_ns = ready_ns;
    if (!way.stays_on_rank()) {
      const auto takes =
          table_.transfer(replica_, action.stage, edge_of(action.pass), action.microbatch);
      left_ns = occupy(way, ready_ns, takes.occupies_ns);
      here_ns = left_ns + takes.travels_ns;
    }
    transfers_[output].here_ns = here_ns;
    if (buffer != nullptr) buffer->left_ns = left_ns;
    auto& sender = ranks_[rank];
    sender.sent_ns = std::max(sender.sent_ns, left_ns);
    if (sender.leaving == output) {
      sender.leaving = no_output;
      sender.free_ns = sender.standing_ns = left_ns;
    }
    walk_.announce(output, way.reader_rank);
    if (is_queued_) walk_.announce(output, rank);
  }

  /// Lets a transfer that is ready wait for its turn on all of its carriers.
  /// @returns when it has left.
  std::int64_t occupy(const Way& way, std::int64_t ready_ns, std::int64_t occupies_ns) {
    auto& channel_ns = channel_free_ns_[way.channel];
    if (way.interface_out == Way::none) {
      return channel_ns = std::max(ready_ns, channel_ns) + occupies_ns;
    }
    auto& out_ns = interface_free_ns_[std::size_t{2} * way.interface_out];
    auto& in_ns = interface_free_ns_[std::size_t{2} * way.interface_in + 1];
    return channel_ns = out_ns = in_ns =
               std::max({ready_ns, channel_ns, out_ns, in_ns}) + occupies_ns;
  }

  const CostTable& table_;
  std::uint32_t replica_;
  StepKind kind_;
  bool is_queued_;
  bool stands_still_;
  std::int64_t dispatch_ns_;
  std::uint32_t enqueued_max_;
  const Schedule& schedule_;
  OutputNumbers outputs_;
  DependencyWalk walk_;
  std::vector<RankState> ranks_;
  std::vector<LastWeightPass> last_weight_passes_;               ///< By stage.
  std::vector<Transfer> transfers_;                              ///< By output number.
  std::vector<std::array<OutBuffers, edge_count>> out_buffers_;  ///< By stage and edge.
  std::vector<Buffer> buffers_;                                  ///< Of all stages.
  std::vector<Inbox> inboxes_;                   ///< By stage; empty if none holds up.
  std::vector<std::int64_t> ends_ns_;            ///< By rank: of its last passes, by position.
  std::vector<std::int64_t> channel_free_ns_;    ///< By channel.
  std::vector<std::int64_t> interface_free_ns_;  ///< By interface: out, in.
  std::priority_queue<Request, std::vector<Request>, std::greater<>> requests_;
};

// -- the end of the step --------------------------------------------------------------------------

/// When the buckets of `stages` on one rank begin and end their way around the replicas.
/// @param stages in the order of their last weight passes.
std::vector<ReductionEntry> reductions_of(const std::vector<StageIndex>& stages,
                                          const CostTable& table, std::uint32_t rank,
                                          const std::vector<Passes>& replicas) {
  const auto dispatch_ns = table.model().runtime.dispatch_ns;
  const bool overlaps = table.model().replicas.overlaps_passes;
  std::vector<ReductionEntry> entries;
  std::int64_t through_ns = 0;
  for (const auto stage : stages) {
    const auto count = table.bucket_count(stage);
    for (std::uint32_t b = 0; b < count; ++b) {
      auto begin_ns = through_ns;
      for (const auto& replica : replicas) {
        const auto& last = replica.last_weight_passes[stage.value()];
        const auto filled_ns = last.begin_ns + (last.end_ns - last.begin_ns) * (b + 1) / count;
        begin_ns = std::max(begin_ns, filled_ns + dispatch_ns);
        if (!overlaps) begin_ns = std::max(begin_ns, replica.ranks[rank].time.end_ns);
      }
      through_ns = begin_ns + table.reduction_ns(stage, b);
      entries.push_back({stage, b, begin_ns, through_ns});
    }
  }
  return entries;
}

/// By rank: its stages, in the order of their last weight passes, which is that of its program.
std::vector<std::vector<StageIndex>> stages_by_last_pass(const Schedule& schedule,
                                                         const Passes& replica) {
  std::vector<std::vector<StageIndex>> stages(schedule.rank_count());
  for (std::uint32_t s = 0; s < schedule.stage_count(); ++s) {
    stages[schedule.rank_of_stage[s].value()].emplace_back(s);
  }
  for (auto& row : stages) {
    std::ranges::sort(row, {}, [&](StageIndex stage) {
      return replica.last_weight_passes[stage.value()].position;
    });
  }
  return stages;
}

/// Lets a rank go through its phases up to its report.
/// @returns when it reports.
std::int64_t report(RankState& rank, std::uint32_t r, const CostTable& table, StepKind kind,
                    std::int64_t reduced_ns) {
  const auto dispatch_ns = table.model().runtime.dispatch_ns;
  const auto over_ns = rank.time.end_ns;
  const auto known_ns = std::max({over_ns, reduced_ns, rank.sent_ns}) + dispatch_ns;
  IdleSplit split{rank.idle, over_ns};
  split.take(IdleCause::send, rank.standing_ns);
  split.take(IdleCause::reduction, reduced_ns);
  split.take(IdleCause::send, rank.sent_ns);
  split.take(IdleCause::dispatch, known_ns);
  if (kind == StepKind::evaluation) return known_ns;
  rank.time.measuring_ns = table.measuring_ns(r);
  rank.idle[IdleCause::dispatch] += dispatch_ns;
  return known_ns + rank.time.measuring_ns + dispatch_ns;
}

/// Lets a rank that reported at `reported_ns` go on to the end of its step.
/// @param all_reported_ns when the last rank of all replicas reported.
/// @returns when it is done.
std::int64_t finish(RankState& rank, std::uint32_t r, const CostTable& table, StepKind kind,
                    std::int64_t reported_ns, std::int64_t all_reported_ns) {
  if (kind == StepKind::evaluation) return reported_ns;
  const auto& runtime = table.model().runtime;
  auto decided_ns = reported_ns;
  if (runtime.director_ns) {
    decided_ns = all_reported_ns + *runtime.director_ns;
    IdleSplit split{rank.idle, reported_ns};
    split.take(IdleCause::drain, all_reported_ns);
    split.take(IdleCause::director, decided_ns);
  }
  rank.time.optimizer_begin_ns = decided_ns;
  rank.time.optimizer_ns = table.optimizer_ns(r);
  rank.idle[IdleCause::dispatch] += runtime.dispatch_ns;
  return decided_ns + rank.time.optimizer_ns + runtime.dispatch_ns;
}

/// Books the end of the step of all ranks behind their passes.
void end_step(const Schedule& schedule, const CostTable& table, std::vector<Passes>& replicas,
              Timeline& timeline) {
  const auto stages = stages_by_last_pass(schedule, replicas.front());
  for (std::uint32_t r = 0; r < schedule.rank_count(); ++r) {
    timeline.reductions.push_back(reductions_of(stages[r], table, r, replicas));
  }
  std::vector<std::int64_t> at_ns;  // By row: where its rank stands.
  for (auto& replica : replicas) {
    for (std::uint32_t r = 0; r < schedule.rank_count(); ++r) {
      const auto& reductions = timeline.reductions[r];
      const auto reduced_ns = reductions.empty() ? 0 : reductions.back().end_ns;
      at_ns.push_back(report(replica.ranks[r], r, table, schedule.kind, reduced_ns));
    }
  }
  const auto all_reported_ns = std::ranges::max(at_ns);
  auto row_ns = at_ns.begin();
  for (auto& replica : replicas) {
    for (std::uint32_t r = 0; r < schedule.rank_count(); ++r, ++row_ns) {
      *row_ns = finish(replica.ranks[r], r, table, schedule.kind, *row_ns, all_reported_ns);
    }
  }
  timeline.makespan_ns = std::ranges::max(at_ns);
  row_ns = at_ns.begin();
  for (auto& replica : replicas) {
    for (auto& rank : replica.ranks) {
      rank.idle[IdleCause::drain] += timeline.makespan_ns - *row_ns++;
      timeline.rank_times.push_back(rank.time);
      timeline.idle_times.push_back(rank.idle);
    }
  }
}

}  // namespace

Timeline simulate(const Schedule& schedule, const CostModel& costs, Recording recording) {
  const CostTable table{schedule, costs};
  const auto rank_count = schedule.rank_count();
  Timeline timeline{.ranks = std::vector<std::vector<TimelineEntry>>(std::size_t{rank_count}
                                                                     * costs.replicas.count),
                    .rank_times = {},
                    .in_flight_max = in_flight_max(schedule, Pass::backward_weight),
                    .idle_times = {},
                    .reductions = {}};
  std::vector<Passes> replicas;
  for (std::uint32_t d = 0; d < costs.replicas.count; ++d) {
    PassWalk walk{schedule, table, d};
    if (recording == Recording::totals) {
      replicas.push_back(std::move(walk).run([](auto&&...) {}));
      continue;
    }
    auto* const rows = &timeline.ranks[std::size_t{d} * rank_count];
    for (std::uint32_t r = 0; r < rank_count; ++r) rows[r].reserve(schedule.ranks[r].size());
    replicas.push_back(std::move(walk).run(
        [rows](std::uint32_t r, const Action& action, std::int64_t begin_ns, std::int64_t end_ns) {
          rows[r].push_back({action, begin_ns, end_ns});
        }));
  }
  end_step(schedule, table, replicas, timeline);
  return timeline;
}

}  // namespace troupe
