// troupe/actors/cluster.hpp -- the processes that perform a run, gathered by the one that leads it.
//
//   auto cluster = troupe::actors::Cluster::listen({.node_count = 2, .secret = secret});
//   ... start two processes that call perform_as_node with (*cluster)->port() ...
//   auto trainer = troupe::actors::Trainer::make_on(**cluster, plan);
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "troupe/actors/node.hpp"
#include "troupe/engine/expected.hpp"

namespace troupe::actors {

struct ClusterOptions {
  std::uint32_t node_count = 1;
  std::string listen_host = "127.0.0.1";     ///< An address of this machine.
  std::uint16_t listen_port = 0;             ///< 0: any that is free.
  std::string secret;                        ///< As in `NodeOptions`.
  std::optional<transport::TlsFiles> tls{};  ///< As in `NodeOptions`.
  std::string network_interface = "lo";      ///< As in `NodeOptions`.
  bool shared_memory = true;
  Heartbeat heartbeat{};
  /// How long to wait for all nodes to join, and then for all to be ready.
  std::chrono::milliseconds patience{120000};
  /// Told of each stranger that was not let in, in one sentence. Called on the threads of the gate,
  /// of CAF and of links, also by several at the same time.
  std::function<void(const std::string& sentence)> on_refused{};
};

/// Nodes, from the first that joins to the end of the run.
///
/// Thread safety: `tell_process_ended` may be called from any thread, the rest from one.
class Cluster {
public:
  /// Begins to let nodes in.
  /// @returns `invalid_config` if it cannot listen there; the errors of
  ///          `transport::check_tls_files`.
  [[nodiscard]] static Expected<std::unique_ptr<Cluster>> listen(const ClusterOptions& options);
  ~Cluster();
  Cluster(const Cluster&) = delete;
  Cluster& operator=(const Cluster&) = delete;

  [[nodiscard]] std::uint16_t port() const noexcept;

  /// Whoever started a node's process tells what became of it, for example "was killed by signal 9
  /// (Killed)", so that the run can say so.
  /// @param last_line What the process wrote last, which may say why; empty if nothing is known.
  void tell_process_ended(std::uint32_t process, const std::string& what,
                          const std::string& last_line = {});

  /// Tells nodes that are still there that the run is over, and lets them leave, 2 s at most. The
  /// destructor does the same.
  void close();

  class Impl;
  [[nodiscard]] Impl& impl() noexcept { return *impl_; }

private:
  explicit Cluster(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace troupe::actors
