// actors/src/node_actor.hpp -- the actor of a process that performs ranks for a director elsewhere.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "troupe/actors/node.hpp"
#include "troupe/actors/node_messages.hpp"
#include "troupe/transport/ucx_fabric.hpp"

namespace troupe::actors {

/// From the fabric: links to `address` are broken.
struct PeerCut {
  std::string address;
  std::string sentence;
};

/// From the process: whose node it is, and which one.
struct DoorPassed {
  DoorHandle door;
  std::uint32_t node = 0;
};

using WatchedNodeHandle = NodeHandle::extend<caf::reacts_to<PeerCut>, caf::reacts_to<DoorPassed>>;

/// What the actor works with. It outlives the actor and those that the actor spawns.
struct NodeStock {
  SourceFactory make_source;
  RankParts parts;
  std::shared_ptr<const CustomLayer> custom_layer;
  std::unique_ptr<transport::UcxFabric> fabric;
  std::function<void(Expected<Done>)> on_ended;  ///< Called once.
  std::unique_ptr<LocalRanks> ranks;             ///< Once they are given.
  std::unique_ptr<transport::Link> weights;      ///< To the director's process.
};

/// What takes its time, building ranks and the like, it does while no step runs.
///
/// CAF does not end an actor with a thread of its own before the last reference to it is gone, and
/// keeps references to those it told other processes of until its own end. So neither this actor,
/// whom others know, may have a thread, nor may others know the loader, which has one.
class NodeState {
public:
  static inline const char* name = "troupe.node";  // Read by CAF's logger.

  void start(WatchedNodeHandle::pointer self, NodeStock& stock);
  void on(const StepWanted& message);
  [[nodiscard]] RanksReady on(const RanksGiven& message);
  [[nodiscard]] PeakTold on(const PeakAsked& message);
  void on(const ParameterAsked& message);
  void on(const RunEnded& message);
  void on(const PeerCut& message);
  void on(const DoorPassed& message);

private:
  [[nodiscard]] Expected<Done> build(const RanksGiven& message);
  /// Null if this node does not hold it.
  [[nodiscard]] stages::Stage* stage_of(const ParameterAsked& message);
  /// Ends the run: the director asks for what no director asks for.
  void refuse(const std::string& what);
  void end(Expected<Done> outcome);

  WatchedNodeHandle::pointer self_ = nullptr;
  NodeStock* stock_ = nullptr;
  DoorHandle door_;
  std::uint32_t node_ = 0;
  std::vector<NodeFacts> nodes_;
  std::string director_fabric_;
  std::shared_ptr<const Plan> plan_;
  std::vector<PlacedStage> stages_;
  LoaderHandle loader_;
  std::uint64_t last_transfer_ = 0;  ///< Of a parameter.
  bool has_ended_ = false;
};

WatchedNodeHandle::behavior_type node_actor(WatchedNodeHandle::stateful_pointer<NodeState> self,
                                            NodeStock* stock);

}  // namespace troupe::actors

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::actors::PeerCut)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::actors::DoorPassed)
