#include "node_actor.hpp"

#include <algorithm>
#include <utility>

#include "troupe/actors/loader.hpp"
#include "troupe/actors/stage_actor.hpp"
#include "troupe/engine/lanes.hpp"

#include "message_checks.hpp"

namespace troupe::actors {

void NodeState::start(WatchedNodeHandle::pointer self, NodeStock& stock) {
  self_ = self;
  stock_ = &stock;
  self_->set_down_handler([this](const caf::down_msg&) {
    end(Error{Errc::peer_unreachable,
              "the director is lost: its connection broke off, or it stopped answering"});
  });
}

void NodeState::on(const DoorPassed& message) {
  door_ = message.door;
  node_ = message.node;
  self_->monitor(door_);
}

void NodeState::on(const StepWanted& message) {
  if (!plan_) return refuse("a step without ranks");
  if (const auto misfit = misfit_of(*plan_, message)) return refuse(*misfit);
  caf::anon_send(loader_, message);
}

RanksReady NodeState::on(const RanksGiven& message) {
  if (has_ended_) return {Errc::cancelled, "the run has ended", {}};
  if (auto built = build(message); !built) {
    return {built.error().code, built.error().context, {}};
  }
  RanksReady ready;
  for (const auto& stage : stages_) ready.stages.push_back(stage.actor);
  return ready;
}

Expected<Done> NodeState::build(const RanksGiven& message) {
  if (plan_) return Error{Errc::internal, "the director gives ranks twice, which is a bug"};
  const auto plan = plan_of(message, stock_->custom_layer);
  if (!plan) return plan.error();
  auto source = stock_->make_source(*plan);
  if (!source) return source.error();
  plan_ = std::make_shared<const Plan>(*plan);
  nodes_ = message.nodes;
  director_fabric_ = message.director_fabric;
  auto parts = stock_->parts;
  parts.connect = [this, &message](std::uint64_t number, std::uint32_t rank) {
    return stock_->fabric->make_link(nodes_[message.node_of_rank[rank]].fabric_address, number);
  };
  std::vector<std::uint32_t> mine;
  for (std::uint32_t rank = 0; rank < message.node_of_rank.size(); ++rank) {
    if (message.node_of_rank[rank] == message.node) mine.push_back(rank);
  }
  auto ranks = LocalRanks::make(plan_, std::move(mine), std::move(parts));
  if (!ranks) return ranks.error();
  stock_->ranks = std::move(*ranks);
  auto weights =
      stock_->fabric->make_link(message.director_fabric, weight_lane(*plan_, message.node));
  if (!weights) return weights.error();
  stock_->weights = std::move(*weights);
  for (auto& rank : stock_->ranks->ranks()) {
    stages_.push_back(
        {rank.rank, self_->spawn<caf::linked>(stage_actor, plan_, &rank, message.director)});
  }
  loader_ = self_->spawn<caf::detached + caf::linked>(loader, plan_, *source, stages_,
                                                      &stock_->ranks->batches(), message.director);
  return Done{};
}

PeakTold NodeState::on(const PeakAsked& message) {
  if (message.stream_count == 0 || !stock_->ranks) return {};
  if (message.stream_count > plan_->config.parallel.rank_count()) return {};
  return {stock_->ranks->device().measure_peak_flops(
      message.stream_count, plan_->config.run.threads_per_stage, plan_->config.train.precision)};
}

stages::Stage* NodeState::stage_of(const ParameterAsked& message) {
  if (!stock_->weights || message.stage >= plan_->training.stage_count()) return nullptr;
  const StageIndex stage{message.stage};
  if (message.shard >= plan_->shard_count(stage)) return nullptr;
  const auto* held = stock_->ranks->find({plan_->weights_replica(), message.shard, stage});
  if (held == nullptr || message.index >= held->stage->parameters().size()) return nullptr;
  return held->stage.get();
}

void NodeState::on(const ParameterAsked& message) {
  auto* stage = stage_of(message);
  if (stage == nullptr) return refuse("a parameter that this node does not hold");
  if (message.number <= last_transfer_) return refuse("a parameter by a transfer of the past");
  last_transfer_ = message.number;
  const auto values =
      std::make_shared<std::vector<float>>(stage->parameters()[message.index].values.size());
  stage->read_parameter(message.index, *values);
  const BufferView bytes{reinterpret_cast<std::byte*>(values->data()),
                         values->size() * sizeof(float), MemorySpace::host};
  // The values live as long as the link needs them.
  stock_->weights->post_send(transport::Tag{message.number}, Buffer{bytes},
                             [values](const transport::Delivery&) {});
}

void NodeState::refuse(const std::string& what) {
  end(Error{Errc::internal, "the director asks for " + what + ", which is a bug"});
}

void NodeState::on(const PeerCut& message) {
  if (!door_) return;
  const auto lost = std::ranges::find(nodes_, message.address, &NodeFacts::fabric_address);
  // Behind the last node is the director, which may be unreachable for a reason of this process's.
  const auto peer = static_cast<std::uint32_t>(lost - nodes_.begin());
  self_->send(door_, PeerGone{node_, peer, message.sentence});
}

void NodeState::on(const RunEnded& message) {
  if (message.code == Errc::none) return end(Done{});
  end(Error{message.code, message.sentence});
}

/// Of a run that failed nobody waits for goodbyes: one that hangs says none.
void NodeState::end(Expected<Done> outcome) {
  if (std::exchange(has_ended_, true)) return;
  if (!outcome) {
    const auto& why = outcome.error().context;
    for (const auto& node : nodes_) stock_->fabric->give_up(node.fabric_address, why);
    if (!nodes_.empty()) stock_->fabric->give_up(director_fabric_, why);
  }
  stock_->on_ended(std::move(outcome));
}

WatchedNodeHandle::behavior_type node_actor(WatchedNodeHandle::stateful_pointer<NodeState> self,
                                            NodeStock* stock) {
  self->state.start(self, *stock);
  return {
      [self](const StepWanted& message) { self->state.on(message); },
      [self](const RanksGiven& message) { return self->state.on(message); },
      [](const ClockAsked&) { return ClockTold{stages::steady_now_ns()}; },
      [self](const PeakAsked& message) { return self->state.on(message); },
      [self](const ParameterAsked& message) { self->state.on(message); },
      [self](const RunEnded& message) { self->state.on(message); },
      [self](const PeerCut& message) { self->state.on(message); },
      [self](const DoorPassed& message) { self->state.on(message); },
  };
}

}  // namespace troupe::actors
