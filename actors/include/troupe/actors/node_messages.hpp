// troupe/actors/node_messages.hpp -- what a director's process and the processes of its nodes say
// to each other before and after the steps.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "troupe/actors/messages.hpp"

namespace troupe::actors {

/// A process that offers to perform ranks.
struct NodeFacts {
  std::string host;  ///< Of its machine.
  std::uint32_t process = 0;
  std::uint32_t core_count = 0;
  std::uint64_t available_memory_bytes = 0;  ///< 0: unknown.
  std::string fabric_address;                ///< Where links to it lead.
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, NodeFacts& x) {
  return f(x.host, x.process, x.core_count, x.available_memory_bytes, x.fabric_address);
}

// -- to a node ------------------------------------------------------------------------------------

/// From the director's process: build and wire these ranks.
struct RanksGiven {
  std::uint32_t node = 0;                   ///< Which one the receiver is.
  std::string config;                       ///< As TOML.
  std::string custom_layer;                 ///< Its fingerprint; empty for other families.
  std::string schedule;                     ///< Of training, as CSV.
  std::vector<std::uint32_t> node_of_rank;  ///< By rank of the grid, and servers.
  std::vector<NodeFacts> nodes;
  std::string director_fabric;  ///< Where the link for weights leads.
  DirectorHandle director;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, RanksGiven& x) {
  return f(x.node, x.config, x.custom_layer, x.schedule, x.node_of_rank, x.nodes, x.director_fabric,
           x.director);
}
/// Its answer.
struct RanksReady {
  Errc code = Errc::none;
  std::string refusal;              ///< A sentence, if `code` is not `none`.
  std::vector<StageHandle> stages;  ///< In ascending order of the node's ranks.
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, RanksReady& x) {
  return f(x.code, x.refusal, x.stages);
}

/// What does your clock show?
struct ClockAsked {
  std::uint32_t round = 0;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, ClockAsked& x) {
  return f(x.round);
}
struct ClockTold {
  std::int64_t now_ns = 0;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, ClockTold& x) {
  return f(x.now_ns);
}

/// How fast are matrix products on that many streams at once? On none they take no time.
struct PeakAsked {
  std::uint32_t stream_count = 0;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, PeakAsked& x) {
  return f(x.stream_count);
}
struct PeakTold {
  double flops = 0.0;  ///< Per second.
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, PeakTold& x) {
  return f(x.flops);
}

/// Send this parameter, of the first replica or of a server of yours, over the lane for weights.
struct ParameterAsked {
  std::uint32_t stage = 0;
  std::uint32_t shard = 0;
  std::uint64_t index = 0;   ///< Among the stage's parameters.
  std::uint64_t number = 0;  ///< The transfer's tag.
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, ParameterAsked& x) {
  return f(x.stage, x.shard, x.index, x.number);
}

/// The run is over, in order or with a failure that `sentence` tells.
struct RunEnded {
  Errc code = Errc::none;
  std::string sentence;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, RunEnded& x) {
  return f(x.code, x.sentence);
}

/// It takes what is meant for the loader of its process, and passes it on.
using NodeHandle = LoaderHandle::extend<caf::replies_to<RanksGiven>::with<RanksReady>,
                                        caf::replies_to<ClockAsked>::with<ClockTold>,
                                        caf::replies_to<PeakAsked>::with<PeakTold>,
                                        caf::reacts_to<ParameterAsked>, caf::reacts_to<RunEnded>>;

// -- to the door ----------------------------------------------------------------------------------

/// From a process: let me in.
struct JoinAsked {
  NodeFacts facts;
  NodeHandle node;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, JoinAsked& x) {
  return f(x.facts, x.node);
}
struct JoinAnswered {
  std::string refusal;  ///< A sentence; empty if the process is in.
  std::uint32_t node = 0;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, JoinAnswered& x) {
  return f(x.refusal, x.node);
}

/// From a node: its links to another, or to the director, are broken.
struct PeerGone {
  std::uint32_t node = 0;  ///< That tells it.
  std::uint32_t peer = 0;  ///< That it no longer reaches; the number of nodes: the director.
  std::string sentence;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, PeerGone& x) {
  return f(x.node, x.peer, x.sentence);
}

/// What processes see of a director before they are its nodes.
using DoorHandle =
    caf::typed_actor<caf::replies_to<JoinAsked>::with<JoinAnswered>, caf::reacts_to<PeerGone>>;

}  // namespace troupe::actors
