// The step of a run in virtual time: real machines, and a device, links, collectives and a director
// that know only what they cost. Events are told in the order of time; what happens at one time is
// told in the order in which it came about, and transfers begin when nothing else is left to happen
// at their time.

#include <algorithm>
#include <cstddef>
#include <deque>
#include <functional>
#include <queue>
#include <tuple>
#include <utility>
#include <variant>

#include "troupe/engine/simulate.hpp"
#include "troupe/engine/stage_machine.hpp"

#include "cost_table.hpp"
#include "dependency_order.hpp"

namespace troupe {

namespace {

class MachineSimulation {
public:
  MachineSimulation(const Schedule& schedule, const CostModel& costs);
  [[nodiscard]] Timeline run();

private:
  // -- what happens -------------------------------------------------------------------------------

  /// The machine of a rank hears of an event.
  struct Told {
    std::size_t row;
    StageEvent event;
  };
  struct DeviceReady {
    std::size_t row;
  };
  struct PassOver {
    std::size_t row;
  };
  struct TransferReady {
    std::size_t parcel;
  };
  struct TransferLeft {
    std::size_t parcel;
  };
  struct TransferHere {
    std::size_t parcel;
  };
  struct ReductionOver {
    std::uint32_t rank;
  };
  using What = std::variant<Told, DeviceReady, PassOver, TransferReady, TransferLeft, TransferHere,
                            ReductionOver>;
  /// At one time, transfers that become ready come last, by rank and place in its program; the rest
  /// in the order in which it was foreseen.
  struct Occurrence {
    std::int64_t at_ns;
    bool is_ready_transfer;
    std::uint32_t rank;
    std::size_t position;
    std::uint64_t number;
    What what;

    bool operator>(const Occurrence& other) const noexcept {
      const auto key = [](const Occurrence& o) {
        return std::tie(o.at_ns, o.is_ready_transfer, o.rank, o.position, o.number);
      };
      return key(*this) > key(other);
    }
  };

  // -- what there is ------------------------------------------------------------------------------

  /// Where a rank of one replica is.
  struct Row {
    std::uint32_t replica;
    std::uint32_t rank;
    StageMachine machine;
    std::queue<Action> enqueued{};
    bool runs_pass = false;
    bool stands_still = false;  ///< Until an output has left.
    std::int64_t busy_until_ns = 0;
    std::size_t over_count = 0;      ///< Passes.
    std::uint32_t unsent_count = 0;  ///< Outputs made and not left.
    std::uint32_t bucket_count = 0;
    std::uint32_t reduced_count = 0;
    std::vector<ReduceBucket> posted_reductions{};
    enum class Phase { working, reported, updating, done } phase = Phase::working;
    std::int64_t booked_until_ns = 0;
    RankTime time{};
    IdleTime idle{};
    std::vector<TimelineEntry> entries{};
  };
  /// What one stage of one replica hands to another.
  struct Parcel {
    std::size_t sender;  ///< A row.
    std::size_t reader;
    StageIndex stage;  ///< The sender's.
    Edge edge;
    MicrobatchIndex microbatch;
    std::size_t position = 0;  ///< In the sender's program: of the pass that made it.
    bool is_made = false;
    bool is_sent = false;      ///< Posted by its sender,
    bool is_expected = false;  ///< and by its reader.
    bool has_begun = false;
    bool is_here = false;
  };
  /// Carries one parcel at a time.
  using Carrier = std::deque<std::size_t>;

  // -- what is done -------------------------------------------------------------------------------

  void foresee(std::int64_t at_ns, const What& what) {
    queue_.push({at_ns, false, 0, 0, number_++, what});
  }
  void tell(std::size_t row, const StageEvent& event) {
    foresee(now_ns_ + dispatch_ns_, Told{row, event});
  }
  void happen(const Told& what);
  void happen(const DeviceReady& what) { begin_next_pass(what.row); }
  void happen(const PassOver& what);
  void happen(const TransferReady& what);
  void happen(const TransferLeft& what);
  void happen(const TransferHere& what);
  void happen(const ReductionOver& what);

  void carry_out(std::size_t row, const RunPass& command);
  void carry_out(std::size_t row, const SendActivation& command);
  void carry_out(std::size_t row, const SendGradient& command);
  void carry_out(std::size_t row, const ExpectActivation& command);
  void carry_out(std::size_t row, const ExpectGradient& command);
  void carry_out(std::size_t row, const ReduceBucket& command);
  void carry_out(std::size_t row, const MeasureGradients& command);
  void carry_out(std::size_t row, const ReportStep& command);
  void carry_out(std::size_t row, const RunOptimizer& command);
  void carry_out(std::size_t row, const FinishStep& command);
  /// The copies between device and host memory take no time here.
  void carry_out(std::size_t, const FetchSlot&) {}
  // One shard of each stage is simulated, which follows nobody. Tied gradients are not simulated:
  // no stage says that it exchanges any.
  void carry_out(std::size_t, const ExpectChoice&) { TROUPE_ASSERT(false); }
  void carry_out(std::size_t, const ExpectTied&) { TROUPE_ASSERT(false); }
  void carry_out(std::size_t, const SendTied&) { TROUPE_ASSERT(false); }
  void carry_out(std::size_t, const AddTied&) { TROUPE_ASSERT(false); }
  void carry_out(std::size_t, const ExchangeWeights&) { TROUPE_ASSERT(false); }

  void begin_next_pass(std::size_t row);
  void fill_buckets(std::size_t row, const Action& action, std::int64_t duration_ns);
  void post(Parcel& parcel);
  void begin_if_first(std::size_t parcel);
  void begin_reduction(std::uint32_t rank);
  void book(std::size_t row);
  [[nodiscard]] IdleCause cause_of(const Row& row) const;
  [[nodiscard]] IdleCause cause_of_gap(const Row& row, const Action& next) const;

  [[nodiscard]] StageBounds bounds_of_stage(StageIndex stage) const;
  [[nodiscard]] std::size_t row_of(std::uint32_t replica, std::uint32_t rank) const noexcept {
    return std::size_t{replica} * schedule_.rank_count() + rank;
  }
  [[nodiscard]] std::size_t parcel_of(std::uint32_t replica, const Action& maker) const noexcept {
    return replica * outputs_.count() + outputs_.made_by(maker);
  }
  [[nodiscard]] std::vector<Carrier*> carriers_of(const Parcel& parcel);

  const Schedule& schedule_;
  CostTable table_;
  OutputNumbers outputs_;
  std::int64_t dispatch_ns_;
  bool stands_still_;
  std::int64_t now_ns_ = 0;
  std::uint64_t number_ = 0;
  std::priority_queue<Occurrence, std::vector<Occurrence>, std::greater<>> queue_;
  std::vector<Row> rows_;
  std::vector<Parcel> parcels_;
  std::vector<Carrier> carriers_;  ///< By replica: channels, interfaces out, interfaces in.
  std::vector<std::uint32_t> weight_pass_count_;                   ///< By replica, by stage.
  std::vector<std::array<std::uint32_t, edge_count>> in_buffers_;  ///< The same: outputs begun and
                                                                   ///< not left, by edge.
  std::vector<bool> is_reducing_;                                  ///< By rank.
  std::size_t reported_count_ = 0;
  Timeline timeline_;
};

MachineSimulation::MachineSimulation(const Schedule& schedule, const CostModel& costs)
    : schedule_{schedule},
      table_{schedule, costs},
      outputs_{schedule},
      dispatch_ns_{costs.runtime.dispatch_ns},
      stands_still_{!costs.network.overlaps_passes},
      carriers_(costs.replicas.count
                * (table_.channel_count() + std::size_t{2} * table_.interface_count())),
      weight_pass_count_(std::size_t{costs.replicas.count} * schedule.stage_count()),
      in_buffers_(weight_pass_count_.size()),
      is_reducing_(schedule.rank_count()) {
  timeline_.in_flight_max = in_flight_max(schedule, Pass::backward_weight);
  timeline_.reductions.resize(schedule.rank_count());
  parcels_.resize(costs.replicas.count * outputs_.count());
  for (std::uint32_t d = 0; d < costs.replicas.count; ++d) {
    for (std::uint32_t r = 0; r < schedule.rank_count(); ++r) {
      std::vector<MachineStage> stages;
      std::uint32_t bucket_count = 0;
      for (const auto stage : schedule.stages_of(RankIndex{r})) {
        stages.push_back({bounds_of_stage(stage), table_.bucket_count(stage)});
        bucket_count += table_.bucket_count(stage);
      }
      rows_.push_back({.replica = d,
                       .rank = r,
                       .machine = {schedule, RankIndex{r}, stages,
                                   costs.replicas.count > 1 ? SumRole::peer : SumRole::alone,
                                   costs.runtime.enqueued_max},
                       .bucket_count = bucket_count});
      foresee(0, Told{row_of(d, r), Started{}});
      foresee(table_.rank_start_ns(r), DeviceReady{row_of(d, r)});
      for (std::size_t i = 0; i < schedule.ranks[r].size(); ++i) {
        const auto& action = schedule.ranks[r][i];
        if (action.pass == Pass::backward_weight) continue;
        const auto edge = edge_of(action.pass);
        const auto& way = table_.way(action.stage, edge);
        if (!way.leads_somewhere()) continue;
        parcels_[parcel_of(d, action)] = {.sender = row_of(d, r),
                                          .reader = row_of(d, way.reader_rank),
                                          .stage = action.stage,
                                          .edge = edge,
                                          .microbatch = action.microbatch,
                                          .position = i};
      }
    }
  }
}

Timeline MachineSimulation::run() {
  while (!queue_.empty()) {
    const auto next = queue_.top();
    queue_.pop();
    now_ns_ = next.at_ns;
    std::visit([this](const auto& what) { happen(what); }, next.what);
  }
  for (std::size_t row = 0; row < rows_.size(); ++row) {
    TROUPE_ASSERT(rows_[row].machine.step_finished());
    now_ns_ = timeline_.makespan_ns;
    book(row);
    timeline_.ranks.push_back(std::move(rows_[row].entries));
    timeline_.rank_times.push_back(rows_[row].time);
    timeline_.idle_times.push_back(rows_[row].idle);
  }
  return std::move(timeline_);
}

/// Unbounded means as many buffers as there are microbatches.
StageBounds MachineSimulation::bounds_of_stage(StageIndex stage) const {
  const auto& bounds = table_.model().runtime.bounds;
  if (!bounds.empty()) return bounds[stage.value()];
  const auto count = schedule_.microbatch_count;
  return {.slots = count,
          .activations_in = count,
          .activations_out = count,
          .gradients_in = count,
          .gradients_out = count};
}

// -- machines -------------------------------------------------------------------------------------

void MachineSimulation::happen(const Told& what) {
  book(what.row);
  StageMachine::Commands commands;
  rows_[what.row].machine.on(what.event, commands);
  for (const auto& command : commands) {
    std::visit([&](const auto& c) { carry_out(what.row, c); }, command);
  }
}

void MachineSimulation::carry_out(std::size_t row, const MeasureGradients& command) {
  // A rank's stages are measured, and updated, together.
  auto& state = rows_[row];
  state.time.measuring_ns = table_.measuring_ns(state.rank);
  state.busy_until_ns = now_ns_ + state.time.measuring_ns;
  foresee(state.busy_until_ns + dispatch_ns_, Told{row, GradientsMeasured{command.stage}});
}

void MachineSimulation::carry_out(std::size_t row, const ReportStep&) {
  if (schedule_.kind == StepKind::evaluation) return;
  const auto& director_ns = table_.model().runtime.director_ns;
  if (!director_ns) return foresee(now_ns_, Told{row, ClippingDecided{}});
  rows_[row].phase = Row::Phase::reported;
  const bool is_last = reported_count_ + 1 == rows_.size();
  for (std::size_t other = 0; is_last && other < rows_.size(); ++other) {
    book(other);  // The others have waited for this one.
    foresee(now_ns_ + *director_ns, Told{other, ClippingDecided{}});
  }
  ++reported_count_;
}

void MachineSimulation::carry_out(std::size_t row, const RunOptimizer& command) {
  auto& state = rows_[row];
  state.phase = Row::Phase::updating;
  state.time.optimizer_begin_ns = now_ns_;
  state.time.optimizer_ns = table_.optimizer_ns(state.rank);
  state.busy_until_ns = now_ns_ + state.time.optimizer_ns;
  foresee(state.busy_until_ns + dispatch_ns_, Told{row, OptimizerFinished{command.stage}});
}

void MachineSimulation::carry_out(std::size_t row, const FinishStep&) {
  rows_[row].phase = Row::Phase::done;
  timeline_.makespan_ns = std::max(timeline_.makespan_ns, now_ns_);
}

// -- the device -----------------------------------------------------------------------------------

void MachineSimulation::carry_out(std::size_t row, const RunPass& command) {
  rows_[row].enqueued.push(command.action);
  begin_next_pass(row);
}

void MachineSimulation::begin_next_pass(std::size_t row) {
  auto& state = rows_[row];
  if (state.runs_pass || state.stands_still || state.enqueued.empty()) return;
  if (now_ns_ < table_.rank_start_ns(state.rank)) return;
  book(row);
  const auto action = state.enqueued.front();
  state.enqueued.pop();
  const auto duration_ns = table_.pass_ns(state.replica, action);
  if (state.entries.empty()) state.time.begin_ns = now_ns_;
  state.time.passes_ns += duration_ns;
  state.time.end_ns = state.busy_until_ns = now_ns_ + duration_ns;
  state.entries.push_back({action, now_ns_, state.time.end_ns});
  state.runs_pass = true;
  if (action.pass != Pass::backward_weight) {
    const auto stage = std::size_t{state.replica} * schedule_.stage_count() + action.stage.value();
    ++in_buffers_[stage][static_cast<std::size_t>(edge_of(action.pass))];
  }
  if (accumulates_weights(action.pass)) fill_buckets(row, action, duration_ns);
  foresee(state.time.end_ns, PassOver{row});
}

void MachineSimulation::fill_buckets(std::size_t row, const Action& action,
                                     std::int64_t duration_ns) {
  const auto stage =
      std::size_t{rows_[row].replica} * schedule_.stage_count() + action.stage.value();
  const auto microbatches = schedule_.microbatches_of(action.stage);
  if (++weight_pass_count_[stage] < microbatches.end - microbatches.begin) return;
  const auto count = table_.bucket_count(action.stage);
  for (std::uint32_t b = 0; b < count; ++b) {
    foresee(now_ns_ + duration_ns * (b + 1) / count + dispatch_ns_,
            Told{row, BucketFilled{action.stage, b}});
  }
}

void MachineSimulation::happen(const PassOver& what) {
  auto& state = rows_[what.row];
  book(what.row);
  const auto action = state.entries.back().action;
  ++state.over_count;
  state.runs_pass = false;
  tell(what.row, PassFinished{action});
  const bool sends = action.pass != Pass::backward_weight
                     && table_.way(action.stage, edge_of(action.pass)).leads_somewhere();
  if (sends) {
    auto& parcel = parcels_[parcel_of(state.replica, action)];
    book(parcel.reader);
    parcel.is_made = true;
    ++state.unsent_count;
    state.stands_still = stands_still_ && parcel.sender != parcel.reader;
  }
  if (state.over_count == schedule_.ranks[state.rank].size()) begin_reduction(state.rank);
  begin_next_pass(what.row);
}

// -- links ----------------------------------------------------------------------------------------

void MachineSimulation::carry_out(std::size_t row, const SendActivation& command) {
  auto& parcel =
      parcels_[parcel_of(rows_[row].replica, {command.stage, Pass::forward, command.microbatch})];
  parcel.is_sent = true;
  post(parcel);
}

void MachineSimulation::carry_out(std::size_t row, const SendGradient& command) {
  auto& parcel =
      parcels_[parcel_of(rows_[row].replica, {command.stage, Pass::backward, command.microbatch})];
  parcel.is_sent = true;
  post(parcel);
}

void MachineSimulation::carry_out(std::size_t row, const ExpectActivation& command) {
  const StageIndex sender{command.stage.value() - 1};
  auto& parcel =
      parcels_[parcel_of(rows_[row].replica, {sender, Pass::forward, command.microbatch})];
  parcel.is_expected = true;
  post(parcel);
}

void MachineSimulation::carry_out(std::size_t row, const ExpectGradient& command) {
  const StageIndex sender{command.stage.value() + 1};
  auto& parcel =
      parcels_[parcel_of(rows_[row].replica, {sender, Pass::backward, command.microbatch})];
  parcel.is_expected = true;
  post(parcel);
}

void MachineSimulation::post(Parcel& parcel) {
  if (!parcel.is_sent || !parcel.is_expected) return;
  const auto number = static_cast<std::size_t>(&parcel - parcels_.data());
  if (parcel.sender == parcel.reader) {
    foresee(now_ns_, TransferLeft{number});
    foresee(now_ns_, TransferHere{number});
  } else {
    queue_.push({now_ns_, true, rows_[parcel.sender].rank, parcel.position, number_++,
                 TransferReady{number}});
  }
}

/// What a parcel needs to itself; within a rank nothing.
std::vector<MachineSimulation::Carrier*> MachineSimulation::carriers_of(const Parcel& parcel) {
  if (parcel.sender == parcel.reader) return {};
  const auto& way = table_.way(parcel.stage, parcel.edge);
  const auto interface_count = table_.interface_count();
  const auto per_replica = table_.channel_count() + std::size_t{2} * interface_count;
  auto* const channels = carriers_.data() + rows_[parcel.sender].replica * per_replica;
  std::vector<Carrier*> carriers{channels + way.channel};
  if (way.interface_out != Way::none) {
    auto* const interfaces = channels + table_.channel_count();
    carriers.push_back(interfaces + way.interface_out);
    carriers.push_back(interfaces + interface_count + way.interface_in);
  }
  return carriers;
}

void MachineSimulation::happen(const TransferReady& what) {
  for (auto* const carrier : carriers_of(parcels_[what.parcel])) carrier->push_back(what.parcel);
  begin_if_first(what.parcel);
}

void MachineSimulation::begin_if_first(std::size_t number) {
  auto& parcel = parcels_[number];
  const auto carriers = carriers_of(parcel);
  const auto is_first = [&](const Carrier* carrier) { return carrier->front() == number; };
  if (parcel.has_begun || !std::ranges::all_of(carriers, is_first)) return;
  parcel.has_begun = true;
  const auto takes =
      table_.transfer(rows_[parcel.sender].replica, parcel.stage, parcel.edge, parcel.microbatch);
  foresee(now_ns_ + takes.occupies_ns, TransferLeft{number});
  foresee(now_ns_ + takes.occupies_ns + takes.travels_ns, TransferHere{number});
}

void MachineSimulation::happen(const TransferLeft& what) {
  const auto& parcel = parcels_[what.parcel];
  auto& sender = rows_[parcel.sender];
  book(parcel.sender);
  --sender.unsent_count;
  const auto stage = std::size_t{sender.replica} * schedule_.stage_count() + parcel.stage.value();
  --in_buffers_[stage][static_cast<std::size_t>(parcel.edge)];
  if (parcel.edge == Edge::activation) {
    tell(parcel.sender, ActivationSent{parcel.stage, parcel.microbatch});
  } else {
    tell(parcel.sender, GradientSent{parcel.stage, parcel.microbatch});
  }
  const auto carriers = carriers_of(parcel);
  for (auto* const carrier : carriers) carrier->pop_front();
  for (const auto* const carrier : carriers) {
    if (!carrier->empty()) begin_if_first(carrier->front());
  }
  if (parcel.sender != parcel.reader) sender.stands_still = false;
  begin_next_pass(parcel.sender);
}

void MachineSimulation::happen(const TransferHere& what) {
  auto& parcel = parcels_[what.parcel];
  book(parcel.reader);
  parcel.is_here = true;
  const StageIndex reader{table_.way(parcel.stage, parcel.edge).reader};
  if (parcel.edge == Edge::activation) {
    tell(parcel.reader, ActivationArrived{reader, parcel.microbatch});
  } else {
    tell(parcel.reader, GradientArrived{reader, parcel.microbatch});
  }
}

// -- replicas -------------------------------------------------------------------------------------

void MachineSimulation::carry_out(std::size_t row, const ReduceBucket& command) {
  rows_[row].posted_reductions.push_back(command);
  begin_reduction(rows_[row].rank);
}

/// Begins the next reduction of the ranks number `rank` of all replicas, if all have posted it.
void MachineSimulation::begin_reduction(std::uint32_t rank) {
  auto& entries = timeline_.reductions[rank];
  if (is_reducing_[rank]) return;
  for (std::uint32_t d = 0; d < table_.model().replicas.count; ++d) {
    const auto& row = rows_[row_of(d, rank)];
    if (row.posted_reductions.size() <= entries.size()) return;
    const bool may_begin =
        table_.model().replicas.overlaps_passes || row.over_count == schedule_.ranks[rank].size();
    if (!may_begin) return;
  }
  const auto& next = rows_[row_of(0, rank)].posted_reductions[entries.size()];
  const auto end_ns = now_ns_ + table_.reduction_ns(next.stage, next.bucket);
  entries.push_back({next.stage, next.bucket, now_ns_, end_ns});
  is_reducing_[rank] = true;
  foresee(end_ns, ReductionOver{rank});
}

void MachineSimulation::happen(const ReductionOver& what) {
  const auto& entry = timeline_.reductions[what.rank].back();
  for (std::uint32_t d = 0; d < table_.model().replicas.count; ++d) {
    const auto row = row_of(d, what.rank);
    book(row);
    ++rows_[row].reduced_count;
    tell(row, BucketReduced{entry.stage, entry.bucket});
  }
  is_reducing_[what.rank] = false;
  begin_reduction(what.rank);
}

// -- idle time ------------------------------------------------------------------------------------

/// Books the time since the last call on what the rank has been waiting for; to be called before
/// that changes.
void MachineSimulation::book(std::size_t row) {
  auto& state = rows_[row];
  const auto idle_ns = now_ns_ - std::max(state.booked_until_ns, state.busy_until_ns);
  if (idle_ns <= 0) return;
  state.idle[cause_of(state)] += idle_ns;
  state.booked_until_ns = now_ns_;
}

IdleCause MachineSimulation::cause_of(const Row& row) const {
  const auto& program = schedule_.ranks[row.rank];
  if (row.entries.empty() && !program.empty()) return IdleCause::warm_up;
  if (row.stands_still) return IdleCause::send;
  if (row.over_count < program.size()) return cause_of_gap(row, program[row.over_count]);
  if (row.reduced_count < row.bucket_count) return IdleCause::reduction;
  if (row.unsent_count > 0) return IdleCause::send;
  switch (row.phase) {
    case Row::Phase::reported:
      return reported_count_ < rows_.size() ? IdleCause::drain : IdleCause::director;
    case Row::Phase::done:
      return IdleCause::drain;
    case Row::Phase::working:
    case Row::Phase::updating:
      return IdleCause::dispatch;
  }
  return IdleCause::dispatch;
}

IdleCause MachineSimulation::cause_of_gap(const Row& row, const Action& next) const {
  if (const auto needed = outputs_.needed_by(next); needed != no_output) {
    const auto& input = parcels_[row.replica * outputs_.count() + needed];
    if (!input.is_made) return IdleCause::imbalance;
    if (!input.is_here) return IdleCause::communication;
  }
  if (next.pass == Pass::backward_weight) return IdleCause::dispatch;
  const auto edge = edge_of(next.pass);
  const auto buffer_count = table_.way(next.stage, edge).buffer_count;
  const auto stage = std::size_t{row.replica} * schedule_.stage_count() + next.stage.value();
  const auto in_use = in_buffers_[stage][static_cast<std::size_t>(edge)];
  return buffer_count > 0 && in_use == buffer_count ? IdleCause::send : IdleCause::dispatch;
}

}  // namespace

Timeline simulate_machines(const Schedule& schedule, const CostModel& costs) {
  return MachineSimulation{schedule, costs}.run();
}

}  // namespace troupe
