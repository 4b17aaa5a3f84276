// transport/src/gate/handshake.hpp -- both sides of the conversation that hello.hpp describes.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include <boost/asio/awaitable.hpp>

#include "troupe/transport/secret.hpp"

#include "gate/proof.hpp"
#include "gate/socket.hpp"

namespace troupe::transport {

/// What stands before the number in place of a version of troupe where fabrics meet for links.
inline constexpr std::string_view links_prefix = "links-";

/// What a process brings to the conversation.
struct Credentials {
  std::string secret;
  std::string version;
  TlsAuthority tls_authority{};
  const char* host_title = "director";  ///< What sentences call the process that listens.
};

/// Fails with `invalid_config` if they are out of bounds.
[[nodiscard]] Expected<Done> check(const Credentials& own);

/// The side of who listens, called gate below, up to the node's proof. An error says what the node
/// did, as the rest of a sentence that begins with its name.
boost::asio::awaitable<Expected<Greetings>> examine(Tcp::socket& node, const Credentials& own);

/// The gate's last word.
boost::asio::awaitable<Expected<Done>> answer(Tcp::socket& node, const Credentials& own,
                                              const Greetings& greetings, Verdict verdict);

/// The side of who connects, called node. `gate_name` is the gate's host and port. Fails with
/// `peer_unreachable` if it may go better another time, otherwise with `invalid_config`.
boost::asio::awaitable<Expected<Done>> enter(Tcp::socket& gate, const Credentials& own,
                                             const std::string& gate_name);

}  // namespace troupe::transport
