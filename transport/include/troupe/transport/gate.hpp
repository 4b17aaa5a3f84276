// troupe/transport/gate.hpp -- lets nodes in to what listens behind it, and nobody else.
//
//   node process                                   director process
//   CAF -> 127.0.0.1 -> Tunnel  ==== network ====  Gate -> 127.0.0.1 -> CAF
//
// A gate stands before a server that trusts whoever connects. It demands a proof that the visitor
// knows the secret of the run, gives one itself, and from then on carries bytes both ways. What a
// stranger sends is never passed on. Bytes are carried as they are, neither hidden nor signed:
// encryption, if wanted, belongs to those who talk through it.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "troupe/engine/expected.hpp"
#include "troupe/transport/tls_files.hpp"

namespace troupe::transport {

struct GateOptions {
  std::string listen_host = "127.0.0.1";  ///< A name or an address of this machine.
  std::uint16_t port = 0;                 ///< 0: any that is free.
  std::uint16_t inner_port = 0;           ///< Where the server listens, on 127.0.0.1.
  std::string secret;                     ///< See secret.hpp for its bounds.
  std::string version;  ///< Of this program: 1 to 32 printable characters without a space.
  /// Whom the server behind trusts, if it speaks TLS. A node that says otherwise is refused.
  TlsAuthority tls_authority = no_tls;

  std::uint32_t waiting_max = 64;  ///< Connections without a proof; beyond, the oldest is dropped.
  std::chrono::milliseconds proof_time_max{5000};
  std::uint32_t admitted_max = 1024;  ///< Connections that are carried.

  /// Told of each refusal in one sentence: from where, what was found, what to do. The same
  /// sentence comes once an hour at most, and 64 different ones. Runs on the gate's thread: post a
  /// message and return.
  std::function<void(const std::string& sentence)> on_refused{};
  /// Told from which address a node was let in. As above.
  std::function<void(const std::string& from)> on_admitted{};
};

/// Listens, examines and carries on one thread of its own, named `gate`.
///
/// The end of one side reaches the other at once: the end of its bytes as that, a broken connection
/// as a broken one. A side that reads slowly slows down the other; 64 KiB are kept for each
/// direction of a connection. Nothing waits for a stranger.
class Gate {
public:
  /// Starts listening. Fails with `invalid_config` if the options are out of bounds or the address
  /// cannot be listened on.
  static Expected<std::unique_ptr<Gate>> open(GateOptions options);

  /// Closes everything.
  ~Gate();
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;

  [[nodiscard]] std::uint16_t port() const noexcept;

private:
  class Impl;
  explicit Gate(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// Whether `socket`, a connection that came in on 127.0.0.1, was made by this process. The server
/// behind a gate asks it: who is not of this process has gone round the gate.
[[nodiscard]] bool is_from_this_process(int socket);

}  // namespace troupe::transport
