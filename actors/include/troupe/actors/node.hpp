// troupe/actors/node.hpp -- a process that performs ranks for a director in another process.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "troupe/actors/batch_source.hpp"
#include "troupe/actors/local_ranks.hpp"
#include "troupe/engine/expected.hpp"
#include "troupe/engine/plan.hpp"
#include "troupe/transport/tls_files.hpp"

namespace troupe::actors {

/// How processes watch over each other. The same on both sides.
struct Heartbeat {
  std::chrono::milliseconds interval{500};
  /// Silence after which a process counts as lost.
  std::chrono::milliseconds timeout{5000};
};

struct NodeOptions {
  std::string director_host = "127.0.0.1";
  std::uint16_t director_port = 0;
  /// Shared by all processes of the run; who does not know it is not let in.
  std::string secret;
  /// Encrypts what is said to the director, who must have TLS from the same authority, or none like
  /// this node.
  std::optional<transport::TlsFiles> tls{};
  /// Where other processes' links reach this one; see `transport::UcxOptions`.
  std::string network_interface = "lo";
  bool shared_memory = true;
  /// What this machine can give to its nodes: the director refuses ranks that need more. 0:
  /// unknown, and not checked.
  std::uint64_t available_memory_bytes = 0;
  /// The layer of the run's model, if that has one of its own: the same as the director's.
  std::shared_ptr<const CustomLayer> custom_layer{};
  Heartbeat heartbeat{};
  /// How long to try to reach a director that is not there yet.
  std::chrono::milliseconds patience{60000};
  /// Told of each stranger that was not let in to the links, in one sentence. Called on their
  /// thread.
  std::function<void(const std::string& sentence)> on_refused{};
  /// Called once, from another thread, when the run has ended, before what it used is taken down:
  /// the place to say why, and to limit how long the rest may take.
  std::function<void(const Expected<Done>& outcome)> on_ended{};
};

/// Makes the batches of the ranks of this process, for a plan that came from the director.
using SourceFactory = std::function<Expected<BatchSource>(const Plan&)>;

/// Joins the director, performs the ranks that it gives, and returns when the run is over. Blocks.
/// The director may be in this process as well, on another thread; a crash of a rank ends both
/// then. `parts.connect` is not looked at.
/// @returns Done if the run ended in order; otherwise why it ended: `peer_unreachable` if the
///          director cannot be reached, does not let this process in, or is lost; the errors of
///          `transport::check_tls_files`.
[[nodiscard]] Expected<Done> perform_as_node(const NodeOptions& options,
                                             const SourceFactory& make_source,
                                             RankParts parts = {});

}  // namespace troupe::actors
