// actors/src/cluster_impl.hpp -- the director's process as its nodes see it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "troupe/actors/cluster.hpp"
#include "troupe/transport/gate.hpp"
#include "troupe/transport/ucx_fabric.hpp"

#include "ask.hpp"
#include "door.hpp"
#include "network_settings.hpp"

namespace troupe::actors {

class Cluster::Impl {
public:
  Impl(const ClusterOptions& options, const transport::TlsAuthority& tls_authority);
  ~Impl();
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  [[nodiscard]] Expected<Done> open();

  /// Blocks until all nodes are in.
  [[nodiscard]] Expected<NodesHere> gather();

  /// Why a request to a node failed: the loss of a node if there is one, otherwise `fallback`.
  [[nodiscard]] Error explain(Error fallback);

  /// Tells the nodes that the run is over. Once.
  void end(Errc code, const std::string& sentence);
  /// Ends the run in order, if it has not ended, and lets the nodes leave.
  void close();

  [[nodiscard]] const ClusterOptions& options() const noexcept { return options_; }
  [[nodiscard]] caf::actor_system& system() noexcept { return system_; }
  [[nodiscard]] const WatchedDoorHandle& door() const noexcept { return door_; }
  [[nodiscard]] transport::UcxFabric& fabric() noexcept { return *fabric_; }
  [[nodiscard]] std::uint16_t port() const noexcept { return gate_->port(); }

private:
  const ClusterOptions options_;
  const transport::TlsAuthority tls_authority_;
  NetworkSettings settings_{options_.tls};
  caf::actor_system system_{settings_};
  WatchedDoorHandle door_;
  std::unique_ptr<transport::UcxFabric> fabric_;
  std::unique_ptr<transport::Gate> gate_;
  bool has_ended_ = false;
};

}  // namespace troupe::actors
