#include "troupe/actors/node.hpp"

#include <future>
#include <thread>
#include <utility>

#include <caf/io/all.hpp>
#include <caf/openssl/manager.hpp>
#include <unistd.h>

#include "troupe/transport/orphaned_segments.hpp"
#include "troupe/transport/tunnel.hpp"

#include "ask.hpp"
#include "network_settings.hpp"
#include "node_actor.hpp"

namespace troupe::actors {

namespace {

NodeFacts facts_of(const NodeOptions& options, const transport::UcxFabric& fabric) {
  char host[256] = "";
  ::gethostname(host, sizeof host - 1);
  return {.host = host,
          .process = static_cast<std::uint32_t>(::getpid()),
          .core_count = std::max(1U, std::thread::hardware_concurrency()),
          .available_memory_bytes = options.available_memory_bytes,
          .fabric_address = fabric.address()};
}

Error at_director(const NodeOptions& options, const std::string& what) {
  return {Errc::peer_unreachable, "the director at " + options.director_host + ":"
                                      + std::to_string(options.director_port) + " " + what};
}

/// A node from its start to its end.
class Node {
public:
  Node(const NodeOptions& options, const transport::TlsAuthority& tls_authority,
       const SourceFactory& make_source, RankParts parts)
      : options_{options}, tls_authority_{tls_authority} {
    stock_.make_source = make_source;
    stock_.parts = std::move(parts);
    stock_.custom_layer = options.custom_layer;
    stock_.on_ended = [this](Expected<Done> outcome) {
      if (options_.on_ended) options_.on_ended(outcome);
      ended_.set_value(std::move(outcome));
    };
  }

  ~Node() {
    if (stock_.ranks) stock_.ranks->close_lanes();
    if (stock_.weights) stock_.weights->close();
    stock_.fabric.reset();  // It posts to the actor.
    if (actor_) caf::anon_send_exit(actor_, caf::exit_reason::user_shutdown);
    actor_ = nullptr;
    system_.await_all_actors_done();
    if (stock_.ranks) stock_.ranks->empty_streams();  // Nobody is left who would enqueue more.
    transport::remove_orphaned_segments();
  }

  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

  Expected<Done> perform() {
    if (auto ready = reach_out(); !ready) return ready;
    if (auto joined = join(); !joined) return joined;
    return ended_.get_future().get();
  }

private:
  Expected<Done> reach_out() {
    transport::remove_orphaned_segments();
    actor_ = system_.spawn(node_actor, &stock_);
    auto fabric = transport::UcxFabric::make(
        {.secret = options_.secret,
         .network_interface = options_.network_interface,
         .shared_memory = options_.shared_memory,
         .on_refused = options_.on_refused,
         .on_peer_lost = [this](const std::string& peer, const std::string& sentence) {
           caf::anon_send(actor_, PeerCut{peer, sentence});
         }});
    if (!fabric) return fabric.error();
    stock_.fabric = std::move(*fabric);
    return Done{};
  }

  Expected<Done> join() {
    auto tunnel = transport::Tunnel::connect({.host = options_.director_host,
                                              .port = options_.director_port,
                                              .bind_host = {},
                                              .secret = options_.secret,
                                              .version = TROUPE_VERSION,
                                              .tls_authority = tls_authority_,
                                              .patience = options_.patience});
    if (!tunnel) return tunnel.error();
    tunnel_ = std::move(*tunnel);
    const auto door = find_door();
    if (!door) return door.error();
    begin_heartbeat(system_, options_.heartbeat);
    const auto answer = ask<JoinAnswered>(
        system_, *door, JoinAsked{facts_of(options_, *stock_.fabric), NodeHandle{actor_}},
        options_.patience);
    if (!answer) return lost_director(answer.error().context);
    if (!answer->refusal.empty()) {
      return at_director(options_, "refuses this node: " + answer->refusal);
    }
    caf::anon_send(actor_, DoorPassed{*door, answer->node});
    return Done{};
  }

  /// The gate was open a moment ago: a director that does not answer now hangs.
  Expected<DoorHandle> find_door() {
    const auto& connector = options_.tls ? system_.openssl_manager().actor_handle()
                                         : system_.middleman().actor_handle();
    auto connect = caf::make_function_view(connector, caf::duration{options_.heartbeat.timeout});
    const auto met = connect(caf::connect_atom_v, std::string{"127.0.0.1"}, tunnel_->local_port());
    if (!met) tunnel_.reset();  // CAF does not end before it has written, or cannot any more.
    if (!met && options_.tls) return no_tls_with_director(system_.render(met.error()));
    if (!met) return lost_director(system_.render(met.error()));
    return caf::actor_cast<DoorHandle>(std::get<caf::strong_actor_ptr>(*met));
  }

  [[nodiscard]] Error lost_director(const std::string& reason) const {
    return at_director(options_,
                       "is lost: it let this node in, then its connection broke off, or "
                       "it stopped answering ("
                           + reason + ")");
  }

  [[nodiscard]] Error no_tls_with_director(const std::string& reason) const {
    return at_director(options_, "let this node in, but no TLS came about (" + reason
                                     + "): its log may say why; compare both clocks");
  }

  const NodeOptions& options_;
  const transport::TlsAuthority tls_authority_;
  NodeStock stock_;
  std::promise<Expected<Done>> ended_;
  std::unique_ptr<transport::Tunnel> tunnel_;
  NetworkSettings settings_{options_.tls};
  caf::actor_system system_{settings_};
  WatchedNodeHandle actor_;
};

}  // namespace

Expected<Done> perform_as_node(const NodeOptions& options, const SourceFactory& make_source,
                               RankParts parts) {
  Expected<transport::TlsAuthority> authority = transport::no_tls;
  if (options.tls) authority = check_tls_files(*options.tls, transport::TlsSide::node);
  if (!authority) return authority.error();
  Node node{options, *authority, make_source, std::move(parts)};
  return node.perform();
}

}  // namespace troupe::actors
