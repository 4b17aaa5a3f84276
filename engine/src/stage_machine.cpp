#include "troupe/engine/stage_machine.hpp"

#include <algorithm>
#include <array>
#include <utility>

#include "troupe/engine/check.hpp"

namespace troupe {

namespace {

/// Records that something happened; the same fact reported twice is a driver's bug.
void mark(std::vector<bool>& here, MicrobatchIndex microbatch) {
  TROUPE_ASSERT(microbatch.value() < here.size());
  TROUPE_ASSERT(!here[microbatch.value()]);
  here[microbatch.value()] = true;
}

void mark(bool& flag) {
  TROUPE_ASSERT(!flag);
  flag = true;
}

/// The microbatches in the order in which stage `v` sends them on.
std::vector<MicrobatchIndex> forward_order(const Schedule& schedule, std::uint32_t v) {
  std::vector<MicrobatchIndex> order;
  for (const auto& action : schedule.ranks[schedule.rank_of_stage[v].value()]) {
    if (action.stage == StageIndex{v} && action.pass == Pass::forward) {
      order.push_back(action.microbatch);
    }
  }
  return order;
}

}  // namespace

StageMachine::StageMachine(const Schedule& schedule, RankIndex rank,
                           std::span<const MachineStage> stages, SumRole role,
                           std::uint32_t enqueued_max, Policy policy, Chooser chooser,
                           std::uint32_t staleness)
    : kind_{schedule.kind},
      policy_{policy},
      chooser_{chooser},
      program_{schedule.ranks.at(rank.value())},
      local_of_stage_(schedule.stage_count()),
      role_{role},
      enqueued_max_{enqueued_max},
      buckets_pending_(staleness + 1) {
  TROUPE_ASSERT(enqueued_max >= 1);
  TROUPE_ASSERT(role == SumRole::client || staleness == 0);
  TROUPE_ASSERT(chooser == Chooser::self || policy != Policy::in_order);
  TROUPE_ASSERT(role != SumRole::server || policy == Policy::in_order);
  if (role == SumRole::server) program_.clear();
  const auto held = schedule.stages_of(rank);
  TROUPE_ASSERT(held.size() == stages.size());
  for (std::uint32_t local = 0; local < held.size(); ++local) {
    const auto v = held[local].value();
    local_of_stage_[v] = local;
    auto& state = stages_.emplace_back();
    state.stage = held[local];
    state.props = stages[local];
    state.is_first = schedule.is_first(held[local]);
    state.is_last = schedule.is_last(held[local]);
    state.microbatches = schedule.microbatches_of(held[local]);
    state.input_done.resize(schedule.microbatch_count);
    state.activation_here.resize(schedule.microbatch_count);
    state.gradient_here.resize(schedule.microbatch_count);
    bucket_count_ += state.props.bucket_count;
  }
  for (auto& state : stages_) {
    if (state.is_first) continue;
    state.arrival_order = forward_order(schedule, state.stage.value() - 1);
    if (policy != Policy::in_order) std::ranges::sort(state.arrival_order);
  }
  if (policy != Policy::in_order) program_.assign(pass_count(), {});
  if (chooser == Chooser::leader) choice_here_.resize(program_.size());
}

/// With a policy, a stage runs its backward passes all whole or all in halves.
std::size_t StageMachine::pass_count() const {
  std::size_t sum = 0;
  for (const auto& stage : stages_) {
    const std::size_t backward = stage.props.bounds.splits_backward ? 2 : 1;
    const auto passes = kind_ == StepKind::training ? 1 + backward : 1;
    sum += passes * (stage.microbatches.end - stage.microbatches.begin);
  }
  return sum;
}

void StageMachine::on(const StageEvent& event, Commands& out) {
  std::visit([&](const auto& e) { handle(e, out); }, event);
  enqueue_ready_passes(out);
  advance_phase(out);
}

WaitCause StageMachine::waits_for() const {
  switch (phase_) {
    case Phase::passes:
      if (next_ > finished_count_ || next_ == program_.size()) return WaitCause::none;
      if (const auto action = next_action()) return obstacle(*action);
      return WaitCause::leader;
    case Phase::reducing:
      return gradients_are_away() ? WaitCause::send : WaitCause::reduction;
    case Phase::measuring:
      return WaitCause::measuring;
    case Phase::waiting:
      return WaitCause::director;
    case Phase::optimizing:
      return WaitCause::optimizer;
    case Phase::finished:
      return WaitCause::next_step;
  }
  return WaitCause::none;
}

// -- passes ---------------------------------------------------------------------------------------

void StageMachine::handle(const Started&, Commands& out) {
  TROUPE_ASSERT(phase_ == Phase::finished);
  phase_ = Phase::passes;
  next_ = 0;
  finished_count_ = 0;
  fetched_count_ = 0;
  buckets_issued_ = 0;
  round_ = (round_ + 1) % static_cast<std::uint32_t>(buckets_pending_.size());
  choices_expected_ = 0;
  std::fill(choice_here_.begin(), choice_here_.end(), false);
  // One is on its way while another waits to be enqueued.
  for (std::uint32_t i = 0; i <= enqueued_max_; ++i) expect_choice(out);
  for (auto& stage : stages_) {
    begin_step(stage);
    expect_activations(stage, out);
    if (kind_ == StepKind::evaluation) continue;
    if (stage.props.exchanges_tied) out.emplace_back(ExpectTied{stage.stage});
    if (role_ != SumRole::server) continue;
    for (std::uint32_t b = 0; b < stage.props.bucket_count; ++b) reduce(stage.stage, b, out);
  }
}

void StageMachine::begin_step(StageState& stage) const {
  const auto& bounds = stage.props.bounds;
  // The ends of the model take their inputs from the batch and from the loss.
  std::fill(stage.activation_here.begin(), stage.activation_here.end(), stage.is_first);
  std::fill(stage.gradient_here.begin(), stage.gradient_here.end(), stage.is_last);
  stage.expected_count = 0;
  stage.activations_in_free = bounds.activations_in;
  stage.activations_out_free = bounds.activations_out;
  stage.gradients_out_free = bounds.gradients_out;
  stage.buckets_filled = 0;
  stage.slots_free = bounds.slots;
  stage.forward_next = stage.weight_next = stage.microbatches.begin;
  std::fill(stage.input_done.begin(), stage.input_done.end(), false);
  stage.tied_here = stage.tied_sent = stage.tied_added = false;
}

void StageMachine::handle(const ActivationArrived& event, Commands&) {
  mark(state_of(event.stage).activation_here, event.microbatch);
}

void StageMachine::handle(const GradientArrived& event, Commands&) {
  mark(state_of(event.stage).gradient_here, event.microbatch);
}

void StageMachine::handle(const ActivationSent& event, Commands&) {
  auto& stage = state_of(event.stage);
  ++stage.activations_out_free;
  TROUPE_ASSERT(stage.activations_out_free <= stage.props.bounds.activations_out);
}

void StageMachine::handle(const GradientSent& event, Commands&) {
  auto& stage = state_of(event.stage);
  ++stage.gradients_out_free;
  TROUPE_ASSERT(stage.gradients_out_free <= stage.props.bounds.gradients_out);
}

void StageMachine::handle(const PassFinished& event, Commands& out) {
  TROUPE_ASSERT(phase_ == Phase::passes && finished_count_ < next_);
  const auto& action = event.action;
  TROUPE_ASSERT(action == program_[finished_count_]);
  ++finished_count_;
  auto& stage = state_of(action.stage);
  if (action.pass == Pass::forward && !stage.is_last) {
    out.emplace_back(SendActivation{action.stage, action.microbatch});
    if (kind_ == StepKind::training) {
      out.emplace_back(ExpectGradient{action.stage, action.microbatch});
    }
  }
  if (makes_input_gradient(action.pass) && !stage.is_first) {
    out.emplace_back(SendGradient{action.stage, action.microbatch});
  }
  const bool is_last_use =
      kind_ == StepKind::training ? accumulates_weights(action.pass) : action.pass == Pass::forward;
  if (is_last_use && !stage.is_first) {
    ++stage.activations_in_free;
    expect_activations(stage, out);
  }
}

/// Asks for as many input activations as there are buffers, in the order in which the stage before
/// sends them: a send finds its receive whatever order they are used in (see `bounds_of`).
void StageMachine::expect_activations(StageState& stage, Commands& out) const {
  if (stage.is_first) return;
  while (stage.activations_in_free > 0 && stage.expected_count < stage.arrival_order.size()) {
    --stage.activations_in_free;
    out.emplace_back(ExpectActivation{stage.stage, stage.arrival_order[stage.expected_count++]});
  }
}

void StageMachine::enqueue_ready_passes(Commands& out) {
  if (phase_ != Phase::passes) return;
  while (next_ < program_.size()) {
    fetch_ahead(out);
    if (next_ - finished_count_ == enqueued_max_) return;
    const auto action = next_action();
    if (!action || obstacle(*action) != WaitCause::none) return;
    enqueue(*action, out);
  }
}

/// The slot of the next pass can come while passes before it run, and while its gradient is on its
/// way. A policy prefers no pass before it can run: the stage fetches when it enqueues.
void StageMachine::fetch_ahead(Commands& out) {
  if (policy_ != Policy::in_order || fetched_count_ > next_) return;
  fetched_count_ = next_ + 1;
  const auto& action = program_[next_];
  if (action.pass == Pass::forward || !state_of(action.stage).props.bounds.offloads) return;
  out.emplace_back(FetchSlot{action.stage, action.microbatch});
}

void StageMachine::enqueue(const Action& action, Commands& out) {
  program_[next_++] = action;
  auto& stage = state_of(action.stage);
  if (action.pass == Pass::forward) {
    stage.forward_next = action.microbatch.value() + 1;
    if (!stage.is_last) --stage.activations_out_free;
    if (kind_ == StepKind::training) --stage.slots_free;
  }
  if (makes_input_gradient(action.pass)) {
    stage.input_done[action.microbatch.value()] = true;
    if (!stage.is_first) --stage.gradients_out_free;
  }
  if (accumulates_weights(action.pass)) {
    ++stage.weight_next;
    ++stage.slots_free;
  }
  out.emplace_back(RunPass{action});
}

std::optional<Action> StageMachine::next_action() const {
  if (next_ == program_.size() || (chooser_ == Chooser::leader && !choice_here_[next_])) {
    return std::nullopt;
  }
  if (chooser_ == Chooser::leader) return program_[next_];
  return policy_ == Policy::in_order ? program_[next_] : preferred();
}

/// A pass runs when its input is here, its slot free, and its output buffer too. A weight pass
/// needs nothing: what it reads was there for the input pass, which comes before it.
WaitCause StageMachine::obstacle(const Action& action) const {
  const auto& stage = state_of(action.stage);
  const auto m = action.microbatch.value();
  if (action.pass == Pass::forward) {
    if (!stage.activation_here[m]) return WaitCause::activation;
    if (stage.slots_free == 0) return WaitCause::gradient;  // With which one becomes free.
    if (!stage.is_last && stage.activations_out_free == 0) return WaitCause::send;
  } else if (makes_input_gradient(action.pass)) {
    if (!stage.gradient_here[m]) return WaitCause::gradient;
    if (!stage.is_first && stage.gradients_out_free == 0) return WaitCause::send;
  }
  return WaitCause::none;
}

// -- policies -------------------------------------------------------------------------------------

void StageMachine::handle(const PassChosen& event, Commands& out) {
  TROUPE_ASSERT(chooser_ == Chooser::leader && event.index < choices_expected_);
  TROUPE_ASSERT(has(event.action) && !choice_here_[event.index]);
  choice_here_[event.index] = true;
  program_[event.index] = event.action;
  expect_choice(out);
}

void StageMachine::expect_choice(Commands& out) {
  if (chooser_ == Chooser::self || choices_expected_ == program_.size()) return;
  out.emplace_back(ExpectChoice{choices_expected_++});
}

bool StageMachine::has(const Action& action) const {
  return std::ranges::any_of(stages_, [&](const StageState& stage) {
    const auto& [begin, end] = stage.microbatches;
    const auto m = action.microbatch.value();
    return stage.stage == action.stage && begin <= m && m < end;
  });
}

namespace {

/// The smaller, the sooner.
using Urgency = std::array<std::uint32_t, 3>;

Urgency urgency_of(const Action& action, Policy policy) {
  const bool forward_first = policy == Policy::forward_first;
  const auto stage = action.stage.value();
  const auto m = action.microbatch.value();
  if (action.pass == Pass::backward_weight) return {2, m, stage};
  if (action.pass != Pass::forward) return {forward_first ? 1U : 0U, m, stage};
  return forward_first ? Urgency{0, stage, m} : Urgency{1, ~stage, m};
}

}  // namespace

/// Of the passes that could come next in each stage, the one that the policy prefers of those that
/// nothing keeps from running, or of all.
std::optional<Action> StageMachine::preferred() const {
  std::optional<std::pair<bool, Urgency>> best;
  std::optional<Action> found;
  for (const auto& stage : stages_) {
    for_every_candidate(stage, [&](const Action& action) {
      const std::pair key{obstacle(action) != WaitCause::none, urgency_of(action, policy_)};
      if (best && *best < key) return;
      best = key;
      found = action;
    });
  }
  return found;
}

template <class Visit>
void StageMachine::for_every_candidate(const StageState& stage, Visit visit) const {
  const auto& [begin, end] = stage.microbatches;
  if (stage.forward_next < end) {
    visit(Action{stage.stage, Pass::forward, MicrobatchIndex{stage.forward_next}});
  }
  if (kind_ != StepKind::training || stage.weight_next == stage.forward_next) return;
  const MicrobatchIndex oldest{stage.weight_next};
  if (!stage.props.bounds.splits_backward) {
    return visit(Action{stage.stage, Pass::backward, oldest});
  }
  if (const auto m = next_input(stage)) visit(Action{stage.stage, Pass::backward_input, *m});
  if (stage.input_done[oldest.value()]) {
    visit(Action{stage.stage, Pass::backward_weight, oldest});
  }
}

/// The oldest microbatch in flight whose gradient is here and has not gone on, or whose gradient is
/// the next to come.
std::optional<MicrobatchIndex> StageMachine::next_input(const StageState& stage) const {
  std::optional<MicrobatchIndex> awaited;
  for (auto m = stage.weight_next; m < stage.forward_next; ++m) {
    if (stage.input_done[m]) continue;
    if (stage.gradient_here[m]) return MicrobatchIndex{m};
    if (!awaited) awaited = MicrobatchIndex{m};
  }
  return awaited;
}

// -- gradients ------------------------------------------------------------------------------------

void StageMachine::handle(const BucketFilled& event, Commands& out) {
  TROUPE_ASSERT(kind_ == StepKind::training);
  auto& stage = state_of(event.stage);
  ++stage.buckets_filled;
  TROUPE_ASSERT(stage.buckets_filled <= stage.props.bucket_count);
  if (stage.props.exchanges_tied && event.bucket + 1 == stage.props.bucket_count) {
    out.emplace_back(SendTied{event.stage});
    add_tied_when_ready(stage, out);
  } else {
    reduce(event.stage, event.bucket, out);
  }
}

void StageMachine::handle(const TiedArrived& event, Commands& out) {
  auto& stage = state_of(event.stage);
  mark(stage.tied_here);
  add_tied_when_ready(stage, out);
}

void StageMachine::handle(const TiedSent& event, Commands&) {
  mark(state_of(event.stage).tied_sent);
}

void StageMachine::add_tied_when_ready(const StageState& stage, Commands& out) const {
  if (stage.tied_here && stage.buckets_filled == stage.props.bucket_count) {
    out.emplace_back(AddTied{stage.stage});
  }
}

void StageMachine::handle(const TiedAdded& event, Commands& out) {
  auto& stage = state_of(event.stage);
  mark(stage.tied_added);
  reduce(event.stage, stage.props.bucket_count - 1, out);
}

void StageMachine::reduce(StageIndex stage, std::uint32_t bucket, Commands& out) {
  ++buckets_issued_;
  if (role_ == SumRole::alone) return;
  ++buckets_pending_[round_];
  out.emplace_back(ReduceBucket{stage, bucket, round_});
}

void StageMachine::handle(const BucketReduced& event, Commands&) {
  auto& pending = buckets_pending_.at(event.round);
  TROUPE_ASSERT(pending > 0);
  --pending;
}

/// All that the step has are on their way, and those are away whose memory the next step needs:
/// its own, or if it keeps those of several steps, the oldest.
bool StageMachine::gradients_are_away() const {
  if (kind_ == StepKind::evaluation) return true;
  return buckets_issued_ == bucket_count_
         && buckets_pending_[(round_ + 1) % buckets_pending_.size()] == 0;
}

void StageMachine::handle(const GradientsMeasured&, Commands&) {
  TROUPE_ASSERT(phase_ == Phase::measuring);
  ++stages_reported_;
}

void StageMachine::handle(const ClippingDecided&, Commands& out) {
  TROUPE_ASSERT(phase_ == Phase::waiting);
  begin_optimizing<RunOptimizer>(out);
}

void StageMachine::handle(const UpdateRefused&, Commands& out) {
  TROUPE_ASSERT(phase_ == Phase::waiting);
  // Clients have asked for weights, and wait for them.
  if (role_ == SumRole::server) return begin_optimizing<ExchangeWeights>(out);
  phase_ = Phase::finished;
  out.emplace_back(FinishStep{});
}

void StageMachine::handle(const OptimizerFinished&, Commands&) {
  TROUPE_ASSERT(phase_ == Phase::optimizing);
  ++stages_reported_;
}

void StageMachine::handle(const WeightsExchanged&, Commands&) {
  TROUPE_ASSERT(phase_ == Phase::optimizing);
  ++stages_reported_;
}

template <class Command>
void StageMachine::begin_optimizing(Commands& out) {
  phase_ = Phase::optimizing;
  for (const auto& stage : stages_) out.emplace_back(Command{stage.stage});
}

bool StageMachine::all_stages_reported() {
  if (stages_reported_ < stages_.size()) return false;
  stages_reported_ = 0;
  return true;
}

void StageMachine::advance_phase(Commands& out) {
  if (phase_ == Phase::passes && finished_count_ == program_.size()) phase_ = Phase::reducing;
  if (phase_ == Phase::reducing && kind_ == StepKind::evaluation) {
    // Outputs may still be on their way: their buffers must be back before the next step.
    const auto is_idle = [](const StageState& s) {
      return s.activations_out_free == s.props.bounds.activations_out;
    };
    if (!std::ranges::all_of(stages_, is_idle)) return;
    phase_ = Phase::finished;
    out.emplace_back(ReportStep{});
    out.emplace_back(FinishStep{});
  }
  if (phase_ == Phase::reducing) {
    const auto is_idle = [](const StageState& s) {
      return s.activations_out_free == s.props.bounds.activations_out
             && s.gradients_out_free == s.props.bounds.gradients_out
             && s.tied_sent == s.props.exchanges_tied;
    };
    if (!gradients_are_away() || !std::ranges::all_of(stages_, is_idle)) return;
    if (role_ == SumRole::client) {
      out.emplace_back(ReportStep{});
      return begin_optimizing<ExchangeWeights>(out);
    }
    phase_ = Phase::measuring;
    for (const auto& stage : stages_) out.emplace_back(MeasureGradients{stage.stage});
  }
  if (phase_ == Phase::measuring && all_stages_reported()) {
    phase_ = Phase::waiting;
    out.emplace_back(ReportStep{});
  }
  if (phase_ == Phase::optimizing && all_stages_reported()) {
    phase_ = Phase::finished;
    out.emplace_back(FinishStep{});
  }
}

StageMachine::StageState& StageMachine::state_of(StageIndex stage) {
  return stages_[local_of_stage_.at(stage.value())];
}

const StageMachine::StageState& StageMachine::state_of(StageIndex stage) const {
  return stages_[local_of_stage_.at(stage.value())];
}

}  // namespace troupe
