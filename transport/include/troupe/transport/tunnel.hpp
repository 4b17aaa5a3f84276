// troupe/transport/tunnel.hpp -- a node's way through the gate of its director.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "troupe/engine/expected.hpp"
#include "troupe/transport/tls_files.hpp"

namespace troupe::transport {

struct TunnelOptions {
  std::string host;  ///< Of the gate: a name, an IPv4 or an IPv6 address.
  std::uint16_t port = 0;
  std::string bind_host;  ///< The address of this machine to connect from; empty: any.
  std::string secret;
  std::string version;
  TlsAuthority tls_authority = no_tls;        ///< Whom this node trusts. The director must, too.
  std::chrono::milliseconds patience{30000};  ///< How long to begin again while there is no gate.
};

/// One connection to a gate, offered to this process on 127.0.0.1.
///
/// Takes in one local connection, which must come from this very process, then stops listening and
/// carries bytes both ways on a thread of its own, named `tunnel`. When the gate's side ends, the
/// local one does, as described for `Gate`.
class Tunnel {
public:
  /// Connects, proves that this node knows the secret, and has the gate prove the same. Blocks. A
  /// gate that is absent, silent for 5 s, full or not ready is tried again. Fails with
  /// `peer_unreachable` when the last try before patience has run out did, and at once with
  /// `invalid_config` if the options are out of bounds, the director runs another version, has
  /// another secret or another idea of TLS, or what answers is no gate.
  static Expected<std::unique_ptr<Tunnel>> connect(TunnelOptions options);

  /// Closes everything.
  ~Tunnel();
  Tunnel(const Tunnel&) = delete;
  Tunnel& operator=(const Tunnel&) = delete;

  /// Where this process connects to, on 127.0.0.1, once.
  [[nodiscard]] std::uint16_t local_port() const noexcept;

private:
  class Impl;
  explicit Tunnel(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace troupe::transport
