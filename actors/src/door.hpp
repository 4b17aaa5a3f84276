// actors/src/door.hpp -- the actor that lets nodes in and notices when one is gone.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "troupe/actors/node_messages.hpp"

namespace troupe::actors {

/// From the cluster: tell me when all nodes are in.
struct NodesWanted {};
struct NodesHere {
  std::string failure;  ///< A sentence, if one was lost meanwhile.
  std::vector<NodeFacts> facts;
  std::vector<NodeHandle> nodes;  ///< As `facts`.
};

/// From the cluster: tell me when a node is lost.
struct LossAwaited {};
struct Loss {
  std::string sentence;
};

/// From the cluster: these ranks are theirs from now on, and this director is to hear of losses.
struct RunBegun {
  DirectorHandle director;
  std::vector<std::string> ranks_of_node;  ///< For a person, for example "pipeline rank 1".
};

/// From who started a node's process: what became of it.
struct ProcessEnded {
  std::uint32_t process = 0;
  std::string what;       ///< For example "was killed by signal 9 (Killed)".
  std::string last_line;  ///< That it wrote; empty if none is known.
};

/// From the director's fabric: no messages to the node whose fabric is at `address`.
struct FabricCut {
  std::string address;
  std::string sentence;
};

/// From itself: the operating system had time to say what became of a process.
struct EvidenceAwaited {
  std::uint32_t node = 0;
};

/// From the gate: somebody has proved to be a node, and is about to ask to join.
struct NodeAdmitted {
  std::string from;  ///< An address.
};

/// From itself: all who were admitted until then have had time to ask.
struct JoinDue {
  std::uint32_t admitted_count = 0;
  std::string from;  ///< The last of them.
};

/// From the cluster: tell me when every node has left.
struct DepartureAwaited {};
struct Departed {};

using WatchedDoorHandle = DoorHandle::extend<
    caf::replies_to<NodesWanted>::with<NodesHere>, caf::replies_to<LossAwaited>::with<Loss>,
    caf::reacts_to<RunBegun>, caf::reacts_to<RunEnded>, caf::reacts_to<ProcessEnded>,
    caf::reacts_to<FabricCut>, caf::reacts_to<EvidenceAwaited>, caf::reacts_to<NodeAdmitted>,
    caf::reacts_to<JoinDue>, caf::replies_to<DepartureAwaited>::with<Departed>>;

/// Called on the door's thread when a node's connection is gone: links to it will not get further.
using NodeGone = std::function<void(const NodeFacts& facts, const std::string& why)>;

/// Joins what CAF, UCX and the operating system say about a node to one sentence, told once.
class DoorState {
public:
  static inline const char* name = "troupe.door";  // Read by CAF's logger.

  void start(WatchedDoorHandle::pointer self, std::uint32_t node_count,
             std::chrono::milliseconds join_time_max, NodeGone node_gone);
  void on(const NodeAdmitted& message);
  void on(const JoinDue& message);
  [[nodiscard]] JoinAnswered on(const JoinAsked& message);
  void on(const PeerGone& message);
  [[nodiscard]] caf::result<NodesHere> on(const NodesWanted& message);
  [[nodiscard]] caf::result<Loss> on(const LossAwaited& message);
  void on(const RunBegun& message);
  void on(const RunEnded& message);
  void on(const ProcessEnded& message);
  void on(const FabricCut& message);
  void on(const EvidenceAwaited& message);
  [[nodiscard]] caf::result<Departed> on(const DepartureAwaited& message);

private:
  struct Member {
    NodeFacts facts;
    NodeHandle node;
    bool is_gone = false;
    std::string evidence;   ///< What is known of its end; empty while it is there.
    std::string complaint;  ///< Of another node that no longer reaches it.
  };

  void on_down(const caf::down_msg& message);
  /// `who` cannot reach a node any more, unless the node is known to have gone.
  void complain(const std::string& who, std::uint32_t node, const std::string& sentence);
  void answer_if_complete();
  void answer_if_empty();
  /// Waits a little for what others know, then tells.
  void wait_for_evidence(std::uint32_t node);
  void tell(const std::string& sentence);
  [[nodiscard]] std::string describe(std::uint32_t node) const;

  WatchedDoorHandle::pointer self_ = nullptr;
  std::uint32_t node_count_ = 0;
  std::chrono::milliseconds join_time_max_{};
  NodeGone node_gone_;
  std::uint32_t admitted_count_ = 0;
  std::uint32_t asked_count_ = 0;
  std::vector<Member> members_;
  std::vector<std::string> ranks_of_node_;
  DirectorHandle director_;
  caf::typed_response_promise<NodesHere> wanted_;
  caf::typed_response_promise<Loss> loss_awaited_;
  bool is_over_ = false;  ///< The run has ended: nodes may leave.
  caf::typed_response_promise<Departed> departed_;
  std::string loss_;  ///< The first, once told.
};

/// @param join_time_max Who was admitted and has not asked to join in that time hangs.
WatchedDoorHandle::behavior_type door(WatchedDoorHandle::stateful_pointer<DoorState> self,
                                      std::uint32_t node_count,
                                      std::chrono::milliseconds join_time_max,
                                      const NodeGone& node_gone);

}  // namespace troupe::actors

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::actors::NodesWanted)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::actors::NodesHere)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::actors::LossAwaited)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::actors::Loss)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::actors::RunBegun)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::actors::ProcessEnded)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::actors::FabricCut)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::actors::EvidenceAwaited)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::actors::NodeAdmitted)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::actors::JoinDue)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::actors::DepartureAwaited)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::actors::Departed)
