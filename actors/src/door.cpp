#include "door.hpp"

#include <algorithm>
#include <chrono>
#include <utility>

namespace troupe::actors {

void DoorState::start(WatchedDoorHandle::pointer self, std::uint32_t node_count,
                      std::chrono::milliseconds join_time_max, NodeGone node_gone) {
  self_ = self;
  node_count_ = node_count;
  join_time_max_ = join_time_max;
  node_gone_ = std::move(node_gone);
  self_->set_down_handler([this](const caf::down_msg& message) { on_down(message); });
}

void DoorState::on(const NodeAdmitted& message) {
  self_->delayed_send(self_, join_time_max_, JoinDue{++admitted_count_, message.from});
}

/// Until it asks, nobody watches over it. Those who are too many are of no interest.
void DoorState::on(const JoinDue& message) {
  if (asked_count_ >= message.admitted_count || members_.size() == node_count_ || is_over_) return;
  tell("a node on " + message.from + " is lost: it has the secret but did not join within "
       + std::to_string(join_time_max_.count()) + " ms; see whether it still runs");
}

JoinAnswered DoorState::on(const JoinAsked& message) {
  ++asked_count_;
  if (!loss_.empty()) return {"the run has ended: " + loss_, 0};
  if (!ranks_of_node_.empty() || is_over_) {
    return {"the run has begun without this node: every node is in", 0};
  }
  const auto is_it = [&](const Member& member) {
    return member.facts.host == message.facts.host && member.facts.process == message.facts.process;
  };
  if (std::ranges::any_of(members_, is_it)) {
    return {"process " + std::to_string(message.facts.process) + " on " + message.facts.host
                + " has joined already",
            0};
  }
  if (members_.size() == node_count_) {
    return {"the " + std::to_string(node_count_) + " nodes that the director waits for are in", 0};
  }
  if (!message.node) return {"it has named no actor to talk to, which is a bug", 0};
  self_->monitor(message.node);
  members_.push_back({message.facts, message.node, false, {}, {}});
  answer_if_complete();
  return {{}, static_cast<std::uint32_t>(members_.size() - 1)};
}

caf::result<NodesHere> DoorState::on(const NodesWanted& /*message*/) {
  wanted_ = self_->make_response_promise<NodesHere>();
  answer_if_complete();
  return wanted_;
}

caf::result<Loss> DoorState::on(const LossAwaited& /*message*/) {
  loss_awaited_ = self_->make_response_promise<Loss>();
  if (!loss_.empty()) loss_awaited_.deliver(Loss{loss_});
  return loss_awaited_;
}

void DoorState::answer_if_complete() {
  if (!wanted_.pending()) return;
  NodesHere here{loss_, {}, {}};
  for (const auto& member : members_) {
    here.facts.push_back(member.facts);
    here.nodes.push_back(member.node);
  }
  if (loss_.empty() && members_.size() < node_count_) return;
  wanted_.deliver(std::move(here));
}

void DoorState::on(const RunBegun& message) {
  director_ = message.director;
  ranks_of_node_ = message.ranks_of_node;
  if (!loss_.empty()) caf::anon_send(director_, NodeLost{loss_});
}

void DoorState::on(const RunEnded& message) {
  is_over_ = true;
  for (const auto& member : members_) caf::anon_send(member.node, message);
}

caf::result<Departed> DoorState::on(const DepartureAwaited& /*message*/) {
  departed_ = self_->make_response_promise<Departed>();
  answer_if_empty();
  return departed_;
}

void DoorState::answer_if_empty() {
  if (departed_.pending() && std::ranges::all_of(members_, &Member::is_gone)) {
    departed_.deliver(Departed{});
  }
}

void DoorState::on(const PeerGone& message) {
  if (is_over_ || message.peer > members_.size() || message.node >= members_.size()) return;
  if (message.peer == members_.size()) {
    return tell(describe(message.node) + " cannot reach the director: " + message.sentence);
  }
  complain(describe(message.node), message.peer, message.sentence);
}

void DoorState::on(const FabricCut& message) {
  for (std::uint32_t node = 0; node < members_.size() && !is_over_; ++node) {
    if (members_[node].facts.fabric_address != message.address) continue;
    return complain("the director", node, message.sentence);
  }
}

void DoorState::complain(const std::string& who, std::uint32_t node, const std::string& sentence) {
  auto& member = members_[node];
  if (!member.complaint.empty()) return;
  member.complaint = who + " cannot reach " + describe(node) + ": " + sentence;
  if (!member.is_gone) wait_for_evidence(node);
}

void DoorState::on_down(const caf::down_msg& message) {
  for (std::uint32_t node = 0; node < members_.size(); ++node) {
    auto& member = members_[node];
    if (member.node.address() != message.source || member.is_gone) continue;
    member.is_gone = true;
    if (member.evidence.empty()) {
      member.evidence = message.reason == caf::exit_reason::remote_link_unreachable
                            ? "its connection to the director broke off, or it stopped answering"
                            : "it left the run";
    }
    node_gone_(member.facts, member.evidence);
    if (!is_over_) wait_for_evidence(node);
  }
  answer_if_empty();
}

void DoorState::on(const ProcessEnded& message) {
  for (std::uint32_t node = 0; node < members_.size(); ++node) {
    if (members_[node].facts.process != message.process) continue;
    members_[node].is_gone = true;
    members_[node].evidence = "it " + message.what;
    if (!is_over_) wait_for_evidence(node);
    return;
  }
  if (!is_over_) {
    tell("process " + std::to_string(message.process) + " " + message.what
         + " before it joined as a node"
         + (message.last_line.empty() ? "" : "; its last line: " + message.last_line));
  }
}

void DoorState::wait_for_evidence(std::uint32_t node) {
  constexpr std::chrono::milliseconds patience{300};
  self_->delayed_send(self_, patience, EvidenceAwaited{node});
}

void DoorState::on(const EvidenceAwaited& message) {
  if (is_over_) return;
  const auto& member = members_[message.node];
  tell(member.is_gone ? describe(message.node) + " is lost: " + member.evidence : member.complaint);
}

void DoorState::tell(const std::string& sentence) {
  if (!loss_.empty()) return;
  loss_ = sentence;
  if (director_) caf::anon_send(director_, NodeLost{sentence});
  if (loss_awaited_.pending()) loss_awaited_.deliver(Loss{sentence});
  answer_if_complete();
}

std::string DoorState::describe(std::uint32_t node) const {
  const auto& facts = members_[node].facts;
  auto sentence = "node " + std::to_string(node) + " (process " + std::to_string(facts.process)
                  + " on " + facts.host;
  if (node < ranks_of_node_.size()) sentence += ", " + ranks_of_node_[node];
  return sentence + ")";
}

WatchedDoorHandle::behavior_type door(WatchedDoorHandle::stateful_pointer<DoorState> self,
                                      std::uint32_t node_count,
                                      std::chrono::milliseconds join_time_max,
                                      const NodeGone& node_gone) {
  self->state.start(self, node_count, join_time_max, node_gone);
  return {
      [self](const JoinAsked& message) { return self->state.on(message); },
      [self](const PeerGone& message) { self->state.on(message); },
      [self](const NodesWanted& message) { return self->state.on(message); },
      [self](const LossAwaited& message) { return self->state.on(message); },
      [self](const RunBegun& message) { self->state.on(message); },
      [self](const RunEnded& message) { self->state.on(message); },
      [self](const ProcessEnded& message) { self->state.on(message); },
      [self](const FabricCut& message) { self->state.on(message); },
      [self](const EvidenceAwaited& message) { self->state.on(message); },
      [self](const NodeAdmitted& message) { self->state.on(message); },
      [self](const JoinDue& message) { self->state.on(message); },
      [self](const DepartureAwaited& message) { return self->state.on(message); },
  };
}

}  // namespace troupe::actors
