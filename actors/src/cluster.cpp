#include "troupe/actors/cluster.hpp"

#include <utility>

#include <caf/io/all.hpp>

#include "troupe/transport/orphaned_segments.hpp"

#include "cluster_impl.hpp"
#include "door_port.hpp"

namespace troupe::actors {

Cluster::Impl::Impl(const ClusterOptions& options, const transport::TlsAuthority& tls_authority)
    : options_{options}, tls_authority_{tls_authority} {
  begin_heartbeat(system_, options.heartbeat);
  const NodeGone node_gone = [this](const NodeFacts& facts, const std::string& why) {
    fabric_->give_up(facts.fabric_address, why);
  };
  door_ = system_.spawn(actors::door, options.node_count, options.heartbeat.timeout, node_gone);
}

Cluster::Impl::~Impl() {
  close();
  caf::anon_send_exit(door_, caf::exit_reason::user_shutdown);
  door_ = nullptr;
  system_.await_all_actors_done();  // The door uses the fabric.
  transport::remove_orphaned_segments();
}

/// The gate stays open until the nodes have heard: what they hear comes through it.
void Cluster::Impl::close() {
  end(Errc::none, {});
  constexpr std::chrono::seconds patience{2};
  (void)ask<Departed>(system_, door_, DepartureAwaited{}, patience);
}

Expected<Done> Cluster::Impl::open() {
  transport::remove_orphaned_segments();
  auto fabric = transport::UcxFabric::make(
      {.secret = options_.secret,
       .network_interface = options_.network_interface,
       .shared_memory = options_.shared_memory,
       .on_refused = options_.on_refused,
       .on_peer_lost = [door = door_](const std::string& peer, const std::string& sentence) {
         caf::anon_send(door, FabricCut{peer, sentence});
       }});
  if (!fabric) return fabric.error();
  fabric_ = std::move(*fabric);
  const auto inner_port =
      publish_behind_gate(system_, caf::actor_cast<DoorHandle>(door_), options_.on_refused);
  if (!inner_port) return inner_port.error();
  auto gate = transport::Gate::open({.listen_host = options_.listen_host,
                                     .port = options_.listen_port,
                                     .inner_port = *inner_port,
                                     .secret = options_.secret,
                                     .version = TROUPE_VERSION,
                                     .tls_authority = tls_authority_,
                                     .on_refused = options_.on_refused,
                                     .on_admitted = [door = door_](const std::string& from) {
                                       caf::anon_send(door, NodeAdmitted{from});
                                     }});
  if (!gate) return gate.error();
  gate_ = std::move(*gate);
  return Done{};
}

Expected<NodesHere> Cluster::Impl::gather() {
  auto here = ask<NodesHere>(system_, door_, NodesWanted{}, options_.patience);
  if (!here) {
    return Error{Errc::peer_unreachable, "not all of the " + std::to_string(options_.node_count)
                                             + " nodes joined in "
                                             + std::to_string(options_.patience.count() / 1000)
                                             + " s: start the others, or ask for fewer"};
  }
  if (!here->failure.empty()) return Error{Errc::peer_unreachable, here->failure};
  return here;
}

Error Cluster::Impl::explain(Error fallback) {
  constexpr std::chrono::seconds patience{1};
  const auto loss = ask<Loss>(system_, door_, LossAwaited{}, patience);
  return loss ? Error{Errc::peer_unreachable, loss->sentence} : std::move(fallback);
}

void Cluster::Impl::end(Errc code, const std::string& sentence) {
  if (std::exchange(has_ended_, true)) return;
  caf::anon_send(door_, RunEnded{code, sentence});
}

Cluster::Cluster(std::unique_ptr<Impl> impl) : impl_{std::move(impl)} {}
Cluster::~Cluster() = default;

Expected<std::unique_ptr<Cluster>> Cluster::listen(const ClusterOptions& options) {
  Expected<transport::TlsAuthority> authority = transport::no_tls;
  if (options.tls) authority = check_tls_files(*options.tls, transport::TlsSide::director);
  if (!authority) return authority.error();
  auto impl = std::make_unique<Impl>(options, *authority);
  if (auto opened = impl->open(); !opened) return opened.error();
  return std::unique_ptr<Cluster>{new Cluster{std::move(impl)}};
}

void Cluster::close() {
  impl_->close();
}

std::uint16_t Cluster::port() const noexcept {
  return impl_->port();
}

void Cluster::tell_process_ended(std::uint32_t process, const std::string& what,
                                 const std::string& last_line) {
  caf::anon_send(impl_->door(), ProcessEnded{process, what, last_line});
}

}  // namespace troupe::actors
