#include "troupe/actors/director.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <span>
#include <utility>

#include "troupe/stages/device.hpp"

#include "message_checks.hpp"

namespace troupe::actors {

namespace {

/// What a code means, for the end of a sentence.
std::string reason_of(Errc code) {
  switch (code) {
    case Errc::device_failure:
      return "the device reported a failure";
    case Errc::peer_unreachable:
      return "the peer cannot be reached";
    case Errc::message_truncated:
      return "the message has another size than its buffer";
    case Errc::cancelled:
      return "the lane or the group was closed";
    case Errc::internal:
      return "a message was not the one that was due, which is a bug";
    default:
      return std::string{to_string(code)};
  }
}

std::string describe_failure(const GridExtent& extent, const RankFailed& failed) {
  const auto at = coordinate_of(extent, failed.rank);
  return describe(extent, at) + " failed at " + failed.operation + ": " + reason_of(failed.code);
}

/// From the clock of the rank's process to the director's.
void shift(RankReport& rank, std::int64_t lead_ns) {
  rank.account.begin_ns -= lead_ns;
  rank.account.end_ns -= lead_ns;
  for (auto& entry : rank.trace) {
    entry.begin_ns -= lead_ns;
    entry.end_ns -= lead_ns;
  }
}

}  // namespace

void DirectorState::start(DirectorHandle::pointer self, std::shared_ptr<const Plan> plan,
                          StepDone done) {
  self_ = self;
  plan_ = std::move(plan);
  done_ = std::move(done);
  loss_scaler_.emplace(plan_->config.train);
  for (std::uint32_t s = 0; s < plan_->training.stages_per_copy(); ++s) {
    auto& parts = is_part_.emplace_back();
    for (const auto& spec : parameters_of(plan_->config.model, plan_->stages[s].spec,
                                          plan_->shard(StageIndex{s}, 0))) {
      if (spec.owned) parts.push_back(spec.slice.has_value());
    }
  }
}

void DirectorState::on(const GroupChosen& message) {
  loaders_ = message.loaders;
  stages_ = message.stages;
  clock_lead_ns_ = message.clock_lead_ns;
}

void DirectorState::on(const StepDue& message) {
  TROUPE_ASSERT(wanted_ == Wanted::nothing);
  const auto& [step, kind, scale, weights_of] = message.what;
  if (kind == StepKind::evaluation) {
    wanted_ = Wanted::evaluation;
    evaluation_ = message.what;
    return answer();
  }
  wanted_ = Wanted::training;
  if (under_way_.empty() && over_.empty()) last_begun_ = step - 1;
  while (!failure_ && last_begun_ < last_to_begin(step)) begin_training(last_begun_ + 1);
  answer();
}

void DirectorState::on(const StepsAwaited& /*message*/) {
  TROUPE_ASSERT(wanted_ == Wanted::nothing);
  wanted_ = Wanted::end_of_steps;
  answer();
}

std::uint32_t DirectorState::last_to_begin(std::uint32_t step) const {
  const auto& train = plan_->config.train;
  auto last = std::min(step + train.staleness, std::max(step, train.steps));
  const auto interval = train.validation_interval;
  if (interval > 0) last = std::min(last, (step - 1) / interval * interval + interval);
  return last;
}

void DirectorState::begin_training(std::uint32_t step) {
  const auto& train = plan_->config.train;
  const auto before = step - 1;
  if (train.validation_interval > 0 && before % train.validation_interval == 0) barrier_ = before;
  last_begun_ = step;
  begin({.step = step,
         .kind = StepKind::training,
         .loss_scale = loss_scaler_->scale(),
         .weights_of = std::max(before - std::min(before, train.staleness), barrier_)});
}

void DirectorState::begin(const StepWanted& what) {
  auto& step = under_way_.emplace_back();
  step.reported.resize(stages_.size());
  step.has_finished.resize(stages_.size());
  step.report.step = what.step;
  step.report.kind = what.kind;
  step.report.loss_scale = what.loss_scale;
  step.report.begin_ns = stages::steady_now_ns();
  step.report.ranks.resize(plan_->config.parallel.rank_count());
  step.report.servers.resize(stages_.size() - step.report.ranks.size());
  for (const auto& loader : loaders_) caf::anon_send(loader, what);
}

/// Steps that are over are told before a failure that came later.
void DirectorState::answer() {
  if (wanted_ == Wanted::nothing) return;
  if (wanted_ == Wanted::training && !over_.empty()) {
    auto report = std::move(over_.front());
    over_.pop_front();
    return finish(std::move(report));
  }
  if (!under_way_.empty()) return;
  if (wanted_ == Wanted::end_of_steps) return finish(StepReport{});
  if (failure_) return finish(*failure_);
  if (wanted_ == Wanted::evaluation) {
    begin({.step = evaluation_.step, .kind = StepKind::evaluation, .weights_of = last_begun_});
  }
}

bool DirectorState::refuse(const std::optional<std::string>& misfit) {
  if (!misfit) return false;
  give_up(Errc::internal,
          step_under_way("step ", ": ") + "a rank has reported " + *misfit + ", which is a bug");
  return true;
}

std::string DirectorState::step_under_way(const char* before, const char* after) const {
  if (under_way_.empty()) return {};
  return before + std::to_string(under_way_.front().report.step) + after;
}

void DirectorState::on(StepReported& message) {
  if (under_way_.empty() || refuse(misfit_of(*plan_, under_way_.front().report.kind, message))
      || refuse(misfit_of_parts(message))) {
    return;
  }
  for (auto& step : under_way_) {
    if (!step.reported[message.rank]) return count_report(step, message);
  }
  (void)refuse("its gradients twice");
}

void DirectorState::count_report(StepUnderWay& step, StepReported& message) {
  step.reported[message.rank] = std::move(message);
  if (++step.reported_count < stages_.size()) return;
  step.report.loss = mean_loss(step);
  step.report.target_count = step.reported.front()->target_count;
  if (step.report.kind == StepKind::training) return decide_update(step);
  if (plan_->config.model.classifies()) step.report.predictions = predictions(step);
}

/// Between shards, and holders of parts, the norm is added up parameter by parameter.
std::optional<std::string> DirectorState::misfit_of_parts(const StepReported& message) const {
  const auto& config = plan_->config;
  if (!updates(message.rank)) {
    for (const auto& squares : message.squares) {
      if (!squares.empty()) return "gradients of parameters that a server updates";
    }
    return std::nullopt;
  }
  if (config.parallel.tensor.most() == 1
      && config.train.optimizer_sharding == OptimizerSharding::none) {
    return std::nullopt;
  }
  const auto pipeline = coordinate_of(plan_->config.parallel, message.rank).pipeline;
  const auto stages = plan_->training.stages_of(pipeline);
  for (std::size_t i = 0; i < stages.size(); ++i) {
    const auto expected = is_part_[stages[i].value() % plan_->training.stages_per_copy()].size();
    if (message.squares[i].size() == expected) continue;
    return "gradients of " + std::to_string(message.squares[i].size())
           + " parameters of a stage that has " + std::to_string(expected);
  }
  return std::nullopt;
}

/// PyTorch's rule: scale by clip / (norm + 1e-6) when that is below one. Gradients that are not
/// finite come from too large a loss scale, if there is one; a loss that is not never does.
void DirectorState::decide_update(StepUnderWay& step) {
  auto& report = step.report;
  report.gradient_norm = global_norm(step) / report.loss_scale;
  report.learning_rate = learning_rate_at(plan_->config.train, report.step);
  const bool is_finite = std::isfinite(report.gradient_norm);
  if (!std::isfinite(report.loss) || (!is_finite && !loss_scaler_->on_overflow())) {
    return give_up(Errc::diverged,
                   "step " + std::to_string(report.step)
                       + ": the loss or the gradient norm is not a finite number; lower "
                         "train.learning_rate or set train.clip_norm");
  }
  if (!is_finite) {
    report.is_skipped = true;
    ++skipped_count_;
    return tell_who_updates(UpdateSkipped{});
  }
  loss_scaler_->on_update();
  const auto clip = plan_->config.train.clip_norm;
  const auto scale = clip > 0.0 ? std::min(1.0, clip / (report.gradient_norm + 1e-6)) : 1.0;
  const UpdateStarted update{report.step - skipped_count_, static_cast<float>(report.learning_rate),
                             static_cast<float>(scale / report.loss_scale)};
  tell_who_updates(update);
}

bool DirectorState::updates(std::uint32_t rank) const {
  return !plan_->has_servers() || rank >= plan_->config.parallel.rank_count();
}

template <class Decision>
void DirectorState::tell_who_updates(const Decision& decision) const {
  for (std::uint32_t rank = 0; rank < stages_.size(); ++rank) {
    if (updates(rank)) caf::anon_send(stages_[rank], decision);
  }
}

void DirectorState::on(RankFinished& message) {
  if (under_way_.empty() || refuse(misfit_of(*plan_, message))) return;
  const auto step = std::ranges::find_if(under_way_, [&](const StepUnderWay& candidate) {
    return !candidate.has_finished[message.rank];
  });
  if (step == under_way_.end()) return (void)refuse("its end twice");
  auto& report = step->report;
  // In an evaluation step no rank waits for the others, nor does one that updates nothing.
  const bool waits = report.kind == StepKind::training && updates(message.rank);
  const bool is_due =
      waits ? step->reported_count == stages_.size() : step->reported[message.rank].has_value();
  if (!is_due) return (void)refuse("its end before its turn");
  step->has_finished[message.rank] = true;
  ++step->finished_count;
  const auto grid = report.ranks.size();
  auto& rank =
      message.rank < grid ? report.ranks[message.rank] : report.servers[message.rank - grid];
  rank = {coordinate_of(plan_->config.parallel, message.rank), message.account,
          std::move(message.trace)};
  if (!clock_lead_ns_.empty()) shift(rank, clock_lead_ns_[message.rank]);
  while (!under_way_.empty() && under_way_.front().finished_count == stages_.size()) {
    end_first_step();
  }
}

void DirectorState::end_first_step() {
  auto report = std::move(under_way_.front().report);
  under_way_.pop_front();
  report.end_ns = stages::steady_now_ns();
  report.begin_ns = std::max(report.begin_ns, last_end_ns_);
  last_end_ns_ = report.end_ns;
  if (report.kind == StepKind::evaluation) return finish(std::move(report));
  over_.push_back(std::move(report));
  answer();
}

/// A process that dies makes its neighbours fail. The door soon knows better what happened. What
/// failed between two steps ends the next.
void DirectorState::on(const RankFailed& message) {
  if (unexplained_) return;  // The others follow from the first.
  if (refuse(misfit_of(*plan_, message))) return;
  unexplained_ = message;
  if (is_alone()) return on(CauseAwaited{});
  constexpr std::chrono::seconds patience{1};
  self_->delayed_send(self_, patience, CauseAwaited{});
}

void DirectorState::on(const CauseAwaited& /*message*/) {
  give_up(unexplained_->code,
          step_under_way("step ", ": ") + describe_failure(plan_->config.parallel, *unexplained_));
}

void DirectorState::on(const NodeLost& message) {
  auto sentence = message.sentence + step_under_way(", in step ", "");
  if (unexplained_) sentence += "; " + describe_failure(plan_->config.parallel, *unexplained_);
  give_up(Errc::peer_unreachable, sentence);
}

/// The steps before it go on.
void DirectorState::on(const LoadFailed& message) {
  if (under_way_.empty() || failure_) return;
  failure_ =
      Error{Errc::invalid_batch, "step " + std::to_string(message.step) + ": " + message.reason};
  while (!under_way_.empty() && under_way_.back().report.step >= message.step) {
    under_way_.pop_back();
  }
  answer();
}

void DirectorState::give_up(Errc code, const std::string& sentence) {
  if (failure_) return;
  failure_ = Error{code, sentence};
  under_way_.clear();
  answer();
}

void DirectorState::finish(Expected<StepReport> outcome) {
  wanted_ = Wanted::nothing;
  done_(std::move(outcome));
}

/// Replica after replica, and where the model has two copies, end after end: tells `visit` what the
/// rank of a last stage has reported and which microbatches end there. All shards report the same.
template <class Visit>
void DirectorState::for_each_end(const StepUnderWay& step, const Visit& visit) const {
  const auto& schedule = plan_->training;
  for (std::uint32_t r = 0; r < plan_->config.parallel.data; ++r) {
    for (std::uint32_t s = 0; s < schedule.stage_count(); ++s) {
      if (!schedule.is_last(StageIndex{s})) continue;
      const auto rank = rank_at(plan_->config.parallel, {r, 0, schedule.rank_of_stage[s]});
      visit(r, *step.reported[rank], schedule.microbatches_of(StageIndex{s}));
    }
  }
}

/// Adds replica after replica, microbatch after microbatch: the order of the serial run.
double DirectorState::mean_loss(const StepUnderWay& step) const {
  double sum = 0.0;
  for_each_end(step,
               [&](std::uint32_t, const StepReported& reported, const MicrobatchRange& range) {
                 for (auto m = range.begin; m < range.end; ++m) sum += reported.losses[m];
               });
  return sum / step.reported.front()->target_count;
}

std::vector<std::int32_t> DirectorState::predictions(const StepUnderWay& step) const {
  const std::size_t sequences = plan_->config.schedule.microbatch_size;
  const auto per_replica = plan_->training.microbatch_count * sequences;
  std::vector<std::int32_t> all(plan_->config.parallel.data * per_replica);
  for_each_end(
      step, [&](std::uint32_t replica, const StepReported& reported, const MicrobatchRange& range) {
        const auto from = std::span{reported.predictions}.subspan(
            range.begin * sequences, (range.end - range.begin) * sequences);
        const auto to = replica * per_replica + range.begin * sequences;
        std::ranges::copy(from, all.begin() + static_cast<std::ptrdiff_t>(to));
      });
  return all;
}

/// Adds parameter after parameter in model order, from the first copy of the model in the first
/// replica (all have the same sums), so that the partition does not change the order of the
/// additions. What shards hold in parts is added shard after shard, and what holders update in
/// parts, holder after holder. Servers have what they update whole.
double DirectorState::global_norm(const StepUnderWay& step) const {
  const bool is_sharded = plan_->config.train.optimizer_sharding != OptimizerSharding::none;
  const auto member_count = is_sharded ? plan_->holder_count() : 1;
  const auto first = plan_->has_servers() ? plan_->holder_count() - 1 : 0;
  double sum = 0.0;
  for (std::uint32_t s = 0; s < plan_->training.stages_per_copy(); ++s) {
    std::vector<std::span<const double>> squares;
    for (std::uint32_t shard = 0; shard < plan_->shard_count(StageIndex{s}); ++shard) {
      for (std::uint32_t m = 0; m < member_count; ++m) {
        squares.push_back(squares_of(step, holder_of(*plan_, {s, shard}, first + m)));
      }
    }
    for (std::size_t i = 0; i < squares.front().size(); ++i) {
      const bool is_whole = squares.size() == member_count || !is_part_[s][i];
      const auto count = is_whole ? member_count : squares.size();
      for (std::size_t part = 0; part < count; ++part) sum += squares[part][i];
    }
  }
  return std::sqrt(sum);
}

std::span<const double> DirectorState::squares_of(const StepUnderWay& step,
                                                  const StageHolder& holder) const {
  const auto pipeline = coordinate_of(plan_->config.parallel, holder.rank).pipeline;
  const auto stages = plan_->training.stages_of(pipeline);
  const auto held = std::ranges::find(stages, holder.place.stage) - stages.begin();
  return step.reported[holder.rank]->squares[static_cast<std::size_t>(held)];
}

DirectorHandle::behavior_type director(DirectorHandle::stateful_pointer<DirectorState> self,
                                       const std::shared_ptr<const Plan>& plan,
                                       const std::shared_ptr<StepDone>& done) {
  self->state.start(self, plan, std::move(*done));
  return {
      [self](const GroupChosen& message) { self->state.on(message); },
      [self](const StepDue& message) { self->state.on(message); },
      [self](const StepsAwaited& message) { self->state.on(message); },
      [self](StepReported& message) { self->state.on(message); },
      [self](RankFinished& message) { self->state.on(message); },
      [self](const RankFailed& message) { self->state.on(message); },
      [self](const LoadFailed& message) { self->state.on(message); },
      [self](const NodeLost& message) { self->state.on(message); },
      [self](const CauseAwaited& message) { self->state.on(message); },
  };
}

}  // namespace troupe::actors
