#include "troupe/actors/stage_actor.hpp"

#include <algorithm>
#include <string>
#include <utility>

#include "troupe/transport/tag.hpp"

namespace troupe::actors {

using stages::Edge;
using transport::make_tag;
using transport::Port;

namespace {

constexpr MicrobatchIndex once{0};  // Tied gradients travel once per step.

StageIndex next_of(StageIndex stage) {
  return StageIndex{stage.value() + 1};
}
StageIndex previous_of(StageIndex stage) {
  return StageIndex{stage.value() - 1};
}

std::string of_stage(StageIndex stage) {
  return " of stage " + std::to_string(stage.value());
}
std::string of_microbatch(MicrobatchIndex microbatch) {
  return " of microbatch " + std::to_string(microbatch.value());
}

/// A buffer that leaves or comes in over an edge.
struct Transfer {
  StageIndex stage;
  Edge edge{};
  MicrobatchIndex microbatch;
};
Transfer transfer_of(const ActivationArrived& e) {
  return {e.stage, Edge::activation_in, e.microbatch};
}
Transfer transfer_of(const GradientArrived& e) {
  return {e.stage, Edge::gradient_in, e.microbatch};
}
Transfer transfer_of(const ActivationSent& e) {
  return {e.stage, Edge::activation_out, e.microbatch};
}
Transfer transfer_of(const GradientSent& e) {
  return {e.stage, Edge::gradient_out, e.microbatch};
}
Transfer transfer_of(const TiedArrived& e) {
  return {e.stage, Edge::tied_in, once};
}
Transfer transfer_of(const TiedSent& e) {
  return {e.stage, Edge::tied_out, once};
}

bool is_sent(Edge edge) {
  return edge == Edge::activation_out || edge == Edge::gradient_out || edge == Edge::tied_out;
}

// What an event was the end of, for the sentence that tells its failure.
std::string describe(const PassFinished& e) {
  return "the pass " + to_string(e.action);
}
std::string describe(const PassChosen&) {
  return "agreeing on the next pass with the other shards";
}
std::string describe(const ActivationArrived& e) {
  return "receiving the activation" + of_microbatch(e.microbatch) + " for stage "
         + std::to_string(e.stage.value());
}
std::string describe(const GradientArrived& e) {
  return "receiving the gradient" + of_microbatch(e.microbatch) + " for stage "
         + std::to_string(e.stage.value());
}
std::string describe(const ActivationSent& e) {
  return "sending the activation" + of_microbatch(e.microbatch) + of_stage(e.stage);
}
std::string describe(const GradientSent& e) {
  return "sending the gradient" + of_microbatch(e.microbatch) + of_stage(e.stage);
}
std::string describe(const BucketReduced& e) {
  return "summing gradient bucket " + std::to_string(e.bucket) + of_stage(e.stage)
         + " over the replicas";
}
std::string describe(const TiedArrived& e) {
  return "receiving the tied gradient" + of_stage(e.stage);
}
std::string describe(const TiedSent& e) {
  return "sending the tied gradient" + of_stage(e.stage);
}
std::string describe(const TiedAdded& e) {
  return "adding the tied gradient" + of_stage(e.stage);
}
std::string describe(const GradientsMeasured& e) {
  return "measuring the gradients" + of_stage(e.stage);
}
std::string describe(const OptimizerFinished& e) {
  return "updating the weights" + of_stage(e.stage);
}
std::string describe(const WeightsExchanged& e) {
  return "exchanging the weights" + of_stage(e.stage);
}
std::string describe(const auto&) {
  return "an event that cannot fail";
}

std::vector<MachineStage> machine_stages(const Plan& plan, LocalRank& local,
                                         const std::vector<StageIndex>& stages, SumRole role) {
  std::vector<MachineStage> result;
  for (std::size_t i = 0; i < stages.size(); ++i) {
    const auto& held = local.stages[i];
    result.push_back({.bounds = role == SumRole::server ? StageBounds{.slots = 0}
                                                        : plan.stages[stages[i].value()].bounds,
                      .bucket_count = held.stage->bucket_count(),
                      .exchanges_tied = !held.tied.empty()});
  }
  return result;
}

}  // namespace

StageActorState::Travelling& StageActorState::Landing::at(Edge edge, MicrobatchIndex microbatch) {
  const auto per_edge = places.size() / stages::edge_count;
  return places.at(static_cast<std::size_t>(edge) * per_edge + microbatch.value());
}

void StageActorState::start(StageHandle self, std::shared_ptr<const Plan> plan, LocalRank& local,
                            DirectorHandle director) {
  self_ = std::move(self);
  director_ = std::move(director);
  plan_ = std::move(plan);
  local_ = &local;
  const auto rank = local.coordinate.pipeline;
  const auto stages = plan_->training.stages_of(rank);
  const auto described = machine_stages(*plan_, local, stages, role());
  constexpr std::uint32_t enqueued_max = 2;
  const auto policy = role() == SumRole::server ? Policy::in_order : plan_->config.schedule.policy;
  const auto staleness = role() == SumRole::client ? plan_->config.train.staleness : 0;
  training_.emplace(plan_->training, rank, described, role(), enqueued_max, policy,
                    follows() ? Chooser::leader : Chooser::self, staleness);
  evaluation_.emplace(plan_->evaluation, rank, described, role(), enqueued_max);
  local_of_stage_.resize(plan_->training.stage_count());
  for (std::uint32_t i = 0; i < stages.size(); ++i) {
    local_of_stage_[stages[i].value()] = i;
    landings_.emplace_back().places.resize(stages::edge_count * plan_->training.microbatch_count);
    local.stages[i].stage->on_bucket_ready([to = self_, stage = stages[i]](std::uint32_t bucket) {
      caf::anon_send(to, Completed{BucketFilled{stage, bucket}});
    });
  }
}

// -- messages -------------------------------------------------------------------------------------

void StageActorState::on(const StepStarted& message) {
  if (has_failed_) return;
  if (machine_ == nullptr || machine_->step_finished()) return begin(message);
  if (waiting_.size() == plan_->config.train.staleness) {
    return fail(Errc::internal, "the beginning of step " + std::to_string(message.step));
  }
  waiting_.push_back(message);
}

void StageActorState::begin(const StepStarted& message) {
  const auto now_ns = stages::steady_now_ns();
  if (!keeper_) keeper_.emplace(now_ns);
  keeper_->advance(WaitCause::next_step, now_ns);
  step_ = message.step;
  target_count_ = message.batch->target_count;
  machine_ = message.kind == StepKind::training ? &*training_ : &*evaluation_;
  trace_.reserve(trace_size_max());
  choices_told_ = 0;
  const auto stages = plan_->training.stages_of(local_->coordinate.pipeline);
  const auto& schedule = plan_->config.schedule;
  const auto samples = schedule.microbatches * schedule.microbatch_size;
  for (std::size_t i = 0; i < stages.size(); ++i) {
    local_->stages[i].stage->begin_step({.step = message.step,
                                         .kind = message.kind,
                                         .batch = message.batch,
                                         .microbatches = plan_->training.microbatches_of(stages[i]),
                                         .weights_of = message.weights_of,
                                         .first_sample = local_->coordinate.replica * samples,
                                         .loss_scale = static_cast<float>(message.loss_scale)});
  }
  advance(*machine_, Started{});
}

void StageActorState::on(const Completed& message) {
  if (has_failed_) return;
  if (message.code != Errc::none) {
    return fail(message.code, std::visit([](const auto& e) { return describe(e); }, message.event));
  }
  const auto* chosen = std::get_if<PassChosen>(&message.event);
  if (chosen != nullptr && !machine_->has(chosen->action)) {
    return fail(Errc::internal, describe(*chosen));
  }
  if (!std::visit([this](const auto& event) { return is_last(event); }, message.event)) return;
  keeper_->advance(machine_->waits_for(), stages::steady_now_ns());
  std::visit(
      [&](const auto& event) {
        record(event, message.span);
        settle(event);
      },
      message.event);
  // Gradients of a step may be given away while the next ones run.
  const bool is_reduced = std::holds_alternative<BucketReduced>(message.event);
  advance(is_reduced ? *training_ : *machine_, message.event);
}

void StageActorState::on(const UpdateStarted& message) {
  update_ = {message.update, message.learning_rate, message.gradient_scale};
  on_decision(ClippingDecided{});
}

void StageActorState::on(const UpdateSkipped& /*message*/) {
  on_decision(UpdateRefused{});
}

void StageActorState::on_decision(const StageEvent& event) {
  if (has_failed_) return;
  if (machine_ == nullptr || machine_->waits_for() != WaitCause::director) {
    return fail(Errc::internal, "updating the weights");
  }
  keeper_->advance(machine_->waits_for(), stages::steady_now_ns());
  advance(*machine_, event);
}

void StageActorState::advance(StageMachine& machine, const StageEvent& event) {
  commands_.clear();
  machine.on(event, commands_);
  for (const auto& command : commands_) {
    std::visit([this](const auto& c) { carry_out(c); }, command);
  }
  if (waiting_.empty() || !machine_->step_finished()) return;
  const auto next = waiting_.front();
  waiting_.pop_front();
  begin(next);
}

// -- what completions brought ---------------------------------------------------------------------

void StageActorState::settle(const PassFinished& event) {
  held(event.action.stage).stage->finish(event.action);
}
void StageActorState::settle(const ActivationArrived& event) {
  hold(event);
}
void StageActorState::settle(const GradientArrived& event) {
  hold(event);
}
void StageActorState::settle(const ActivationSent& event) {
  give_free(event);
}
void StageActorState::settle(const GradientSent& event) {
  give_free(event);
}
void StageActorState::settle(const TiedArrived& event) {
  hold(event);
}
void StageActorState::settle(const TiedSent& event) {
  give_free(event);
}
void StageActorState::settle(const TiedAdded& event) {
  auto& buffers = held(event.stage).stage->buffers();
  buffers.give_free(Edge::tied_in, buffers.release(Edge::tied_in, once));
}

void StageActorState::hold(const auto& arrived) {
  const auto [stage, edge, microbatch] = transfer_of(arrived);
  held(stage).stage->buffers().hold(edge, microbatch,
                                    std::move(landing(stage).at(edge, microbatch).buffer));
}
void StageActorState::give_free(const auto& sent) {
  const auto [stage, edge, microbatch] = transfer_of(sent);
  held(stage).stage->buffers().give_free(edge,
                                         std::move(landing(stage).at(edge, microbatch).buffer));
}

void StageActorState::record(const PassFinished& event, const stages::DeviceSpan& span) {
  keeper_->add_pass(span.end_ns - span.begin_ns, span.waiting_ns, span.gathering_ns);
  trace_.push_back({TraceEntry::Kind::pass, event.action, span.begin_ns, span.end_ns});
}
void StageActorState::record(const BucketReduced& event, const stages::DeviceSpan& span) {
  trace_.push_back({TraceEntry::Kind::reduce, {event.stage, {}, {}}, span.begin_ns, span.end_ns});
}
void StageActorState::record(const OptimizerFinished& event, const stages::DeviceSpan& span) {
  trace_.push_back({TraceEntry::Kind::optimize, {event.stage, {}, {}}, span.begin_ns, span.end_ns});
}

void StageActorState::fail(Errc code, const std::string& operation) {
  has_failed_ = true;
  caf::anon_send(director_, RankFailed{rank(), code, operation});
}

// -- completions ----------------------------------------------------------------------------------

/// A link that takes all of a buffer may give back another. Of parts, which may go to several, the
/// buffer stays here.
template <class Event>
void StageActorState::travel(std::vector<LaneEnd>& lanes, transport::Tag tag, Buffer buffer,
                             const Event& event) {
  const auto [stage, edge, microbatch] = transfer_of(event);
  const auto post = is_sent(edge) ? &transport::Link::post_send : &transport::Link::post_receive;
  auto& place = landing(stage).at(edge, microbatch);
  if (lanes.front().is_whole) {
    place.awaited = 1;
    return (*lanes.front().link.*post)(tag, std::move(buffer),
                                       [to = self_, &place, event](transport::Delivery delivery) {
                                         place.buffer = std::move(delivery.buffer);
                                         caf::anon_send(to, Completed{event, delivery.code});
                                       });
  }
  const auto whole = buffer.view();
  place.buffer = std::move(buffer);
  place.awaited = 0;
  for (auto& lane : lanes) {
    const auto [begin_bytes, size_bytes] = is_sent(edge) ? lane.sent : lane.received;
    if (size_bytes == 0) continue;
    TROUPE_ASSERT(begin_bytes + size_bytes <= whole.size_bytes);
    ++place.awaited;
    (*lane.link.*post)(tag, Buffer{{whole.data + begin_bytes, size_bytes, whole.space}},
                       [to = self_, event](const transport::Delivery& delivery) {
                         caf::anon_send(to, Completed{event, delivery.code});
                       });
  }
  if (place.awaited > 0) return;
  place.awaited = 1;  // Nobody needs it: other shards send the same.
  caf::anon_send(self_, Completed{event});
}

template <class Event>
bool StageActorState::is_last(const Event& event) {
  if constexpr (requires { transfer_of(event); }) {
    const auto [stage, edge, microbatch] = transfer_of(event);
    return --landing(stage).at(edge, microbatch).awaited == 0;
  }
  return true;
}

template <class Event>
stages::DeviceDone StageActorState::then(Event event) {
  return [to = self_, event](Errc code, stages::DeviceSpan span) {
    caf::anon_send(to, Completed{event, code, span});
  };
}

// -- commands -------------------------------------------------------------------------------------

void StageActorState::carry_out(const ExpectActivation& command) {
  auto& to = held(command.stage);
  travel(to.previous, make_tag(Port::activation, step_, command.stage, command.microbatch),
         to.stage->buffers().take_free(Edge::activation_in),
         ActivationArrived{command.stage, command.microbatch});
}

void StageActorState::carry_out(const ExpectGradient& command) {
  auto& to = held(command.stage);
  travel(to.next, make_tag(Port::gradient, step_, command.stage, command.microbatch),
         to.stage->buffers().take_free(Edge::gradient_in),
         GradientArrived{command.stage, command.microbatch});
}

void StageActorState::carry_out(const RunPass& command) {
  held(command.action.stage).stage->enqueue(command.action, then(PassFinished{command.action}));
  if (leads()) tell_choice(command.action);
}

void StageActorState::carry_out(const FetchSlot& command) {
  held(command.stage).stage->fetch(command.microbatch);
}

void StageActorState::tell_choice(const Action& choice) {
  for (auto& follower : local_->choices) {
    follower->send(step_, choices_told_, choice, [to = self_](Errc code) {
      if (code != Errc::none) caf::anon_send(to, Completed{PassChosen{}, code});
    });
  }
  ++choices_told_;
}

void StageActorState::carry_out(const ExpectChoice& command) {
  local_->choices.front()->receive(
      step_, command.index, [to = self_, index = command.index](Errc code, const Action& choice) {
        caf::anon_send(to, Completed{PassChosen{index, choice}, code});
      });
}

void StageActorState::carry_out(const SendActivation& command) {
  auto& from = held(command.stage);
  travel(from.next, make_tag(Port::activation, step_, next_of(command.stage), command.microbatch),
         from.stage->buffers().release(Edge::activation_out, command.microbatch),
         ActivationSent{command.stage, command.microbatch});
}

void StageActorState::carry_out(const SendGradient& command) {
  auto& from = held(command.stage);
  travel(from.previous,
         make_tag(Port::gradient, step_, previous_of(command.stage), command.microbatch),
         from.stage->buffers().release(Edge::gradient_out, command.microbatch),
         GradientSent{command.stage, command.microbatch});
}

void StageActorState::carry_out(const ReduceBucket& command) {
  auto& stage = held(command.stage);
  stage.stage->reduce_bucket(
      command.bucket,
      [to = self_, event = BucketReduced{command.stage, command.bucket, command.round},
       begin_ns = stages::steady_now_ns()](Errc code) {
        caf::anon_send(to, Completed{event, code, {begin_ns, stages::steady_now_ns()}});
      });
}

void StageActorState::carry_out(const ExpectTied& command) {
  auto& to = held(command.stage);
  travel(to.tied, make_tag(Port::tied_gradient, step_, command.stage, once),
         to.stage->buffers().take_free(Edge::tied_in), TiedArrived{command.stage});
}

void StageActorState::carry_out(const SendTied& command) {
  auto& from = held(command.stage);
  const auto to_other_end = plan_->training.stages_per_copy() - 1;
  const auto receiver = plan_->training.is_last(command.stage)
                            ? StageIndex{command.stage.value() - to_other_end}
                            : StageIndex{command.stage.value() + to_other_end};
  travel(from.tied, make_tag(Port::tied_gradient, step_, receiver, once),
         from.stage->buffers().release(Edge::tied_out, once), TiedSent{command.stage});
}

void StageActorState::carry_out(const AddTied& command) {
  held(command.stage).stage->add_tied(then(TiedAdded{command.stage}));
}

void StageActorState::carry_out(const MeasureGradients& command) {
  held(command.stage).stage->measure_gradients(then(GradientsMeasured{command.stage}));
}

void StageActorState::carry_out(const ReportStep&) {
  StepReported report{.rank = rank(), .losses = {}, .squares = {}, .target_count = target_count_};
  for (auto& held : local_->stages) {
    // Ends of two copies of the model have losses and predictions of different microbatches.
    const auto losses = held.stage->losses();
    if (!losses.empty()) report.losses.resize(losses.size());
    for (std::size_t m = 0; m < losses.size(); ++m) report.losses[m] += losses[m];
    const auto predictions = held.stage->predictions();
    if (!predictions.empty()) report.predictions.resize(predictions.size());
    for (std::size_t s = 0; s < predictions.size(); ++s) report.predictions[s] += predictions[s];
    const auto squares = held.stage->gradient_squares();
    report.squares.emplace_back(squares.begin(), squares.end());
  }
  caf::anon_send(director_, std::move(report));
}

void StageActorState::carry_out(const RunOptimizer& command) {
  held(command.stage).stage->optimize(update_, then(OptimizerFinished{command.stage}));
}

void StageActorState::carry_out(const ExchangeWeights& command) {
  held(command.stage).stage->exchange_weights(then(WeightsExchanged{command.stage}));
}

void StageActorState::carry_out(const FinishStep&) {
  caf::anon_send(director_, RankFinished{rank(), keeper_->close(), std::exchange(trace_, {})});
}

// -- look-ups -------------------------------------------------------------------------------------

HeldStage& StageActorState::held(StageIndex stage) {
  return local_->stages[local_of_stage_[stage.value()]];
}

StageActorState::Landing& StageActorState::landing(StageIndex stage) {
  return landings_[local_of_stage_[stage.value()]];
}

std::size_t StageActorState::trace_size_max() const {
  const bool trains = machine_ == &*training_;
  const auto& schedule = trains ? plan_->training : plan_->evaluation;
  auto size =
      role() == SumRole::server ? 0 : schedule.ranks[local_->coordinate.pipeline.value()].size();
  if (!trains) return size;
  for (const auto& held : local_->stages) {
    size += 1 + (held.holders ? held.stage->bucket_count() : 0);
  }
  return size;
}

std::uint32_t StageActorState::rank() const {
  return local_->rank;
}

SumRole StageActorState::role() const {
  const auto& plan = *plan_;
  if (!plan.has_servers()) return plan.holder_count() > 1 ? SumRole::peer : SumRole::alone;
  const bool is_server = local_->coordinate.replica == plan.config.parallel.data;
  return is_server ? SumRole::server : SumRole::client;
}

bool StageActorState::follows() const {
  return !local_->choices.empty() && local_->coordinate.shard > 0;
}

/// Evaluation needs no choices: its order is fixed.
bool StageActorState::leads() const {
  return !local_->choices.empty() && local_->coordinate.shard == 0 && machine_ == &*training_;
}

StageHandle::behavior_type stage_actor(StageHandle::stateful_pointer<StageActorState> self,
                                       const std::shared_ptr<const Plan>& plan, LocalRank* local,
                                       const DirectorHandle& director) {
  self->state.start(StageHandle{self}, plan, *local, director);
  return {
      [self](const StepStarted& message) { self->state.on(message); },
      [self](const Completed& message) { self->state.on(message); },
      [self](const UpdateStarted& message) { self->state.on(message); },
      [self](const UpdateSkipped& message) { self->state.on(message); },
  };
}

}  // namespace troupe::actors
