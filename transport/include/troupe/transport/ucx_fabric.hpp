// troupe/transport/ucx_fabric.hpp -- links between processes, carried by UCX.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "troupe/engine/expected.hpp"
#include "troupe/transport/link.hpp"

namespace troupe::transport {

/// How a process joins the others. What the user's own UCX_* environment variables say goes before
/// what these options imply.
struct UcxOptions {
  /// Shared by the fabrics of a run: who connects proves that it knows the secret, and has this
  /// side prove the same. See secret.hpp for its bounds.
  std::string secret{};

  /// The network interface whose address others connect to, and the only one that is used.
  std::string network_interface = "lo";

  /// Whether processes of one machine may exchange messages through shared memory, and read large
  /// ones out of each other's memory if the system lets them; a ptrace scope of 1 or more does not.
  /// They meet, and notice that one has died, by a connection over the interface all the same.
  bool shared_memory = true;

  /// How often UCX looks after idle connections.
  std::chrono::milliseconds keepalive{1000};

  /// Told of each connection that was turned away, in one sentence, as by `GateOptions`.
  std::function<void(const std::string& sentence)> on_refused{};

  /// Called once for each peer that was lost and to which a link had been made, with its address
  /// and one sentence. Runs on the thread that finds out: post a message and return.
  std::function<void(const std::string& peer, const std::string& sentence)> on_peer_lost{};
};

/// What a fabric has seen since it was made.
struct UcxCounters {
  std::uint64_t garbage = 0;  ///< Messages dropped for a header that is not ours.
  std::uint64_t refused = 0;  ///< Messages for lanes nobody has made yet, over the bound.
};

/// The most that is kept for lanes whose link this end has not made yet.
inline constexpr std::uint32_t ucx_unclaimed_messages_max = 4096;
inline constexpr std::size_t ucx_unclaimed_bytes_max = std::size_t{64} << 20U;

/// A process's place among the others: an address to be found under, and links to them.
///
/// One thread of the fabric's own drives UCX; it spins for 200 us after the last event and then
/// sleeps. While it has nothing to do, whoever posts to a link gives UCX the work. Completions run
/// one at a time. Every member may be called from any thread.
///
/// A peer is lost when its process dies or its machine cannot be reached: every operation pending
/// on its links completes with `peer_unreachable`, and so does every later one. A process that has
/// stopped without dying looks alive: whoever notices, by heartbeat, says so with `give_up`.
class UcxFabric {
public:
  /// Starts listening on a free port of the interface. Fails with `invalid_config` if there is no
  /// such interface or the secret is out of bounds, otherwise with what UCX said.
  static Expected<std::unique_ptr<UcxFabric>> make(UcxOptions options);

  /// Closes every link, says goodbye to every peer, and waits for them a second at most. Links may
  /// outlive the fabric; they answer `cancelled`.
  ~UcxFabric();
  UcxFabric(const UcxFabric&) = delete;
  UcxFabric& operator=(const UcxFabric&) = delete;

  /// What another process passes to its `make_link`: a short line of printable characters.
  [[nodiscard]] const std::string& address() const noexcept;

  /// Makes this end of a lane. The other end calls it with this fabric's address and the same
  /// `lane`, before or after, as late as it likes: messages for a lane nobody has made yet are
  /// kept, up to the bounds above; beyond them their senders complete with `out_of_memory`. A lane
  /// number serves a pair of fabrics once.
  ///
  /// Returns at once; a peer that cannot be reached shows in the link's operations. Fails with
  /// `invalid_config` if `peer` is not the address of another fabric.
  [[nodiscard]] Expected<std::unique_ptr<Link>> make_link(std::string_view peer,
                                                          std::uint64_t lane);

  /// Declares `peer` lost, for example because its heartbeat stopped. `reason` becomes part of the
  /// sentence that `on_peer_lost` gets. Returns at once.
  void give_up(std::string_view peer, std::string reason);

  [[nodiscard]] UcxCounters counters() const;

  /// Asks UCX what carries messages to `peer`, for example `posix/memory` or `tcp/lo`; empty if no
  /// link was made to it. `process_vm_readv` is among them if this process reads the peer's large
  /// messages out of its memory. Blocks for what the fabric is doing.
  [[nodiscard]] std::vector<std::string> transports_to(std::string_view peer) const;

  /// Asks UCX for what it offers under this fabric's settings. Blocks for what the fabric is doing.
  [[nodiscard]] std::vector<std::string> transports_offered() const;

private:
  class Impl;
  explicit UcxFabric(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;
};

}  // namespace troupe::transport
