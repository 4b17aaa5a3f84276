// transport/src/gate/dial.hpp -- the way to a reception.
#pragma once

#include <string>
#include <utility>  // Asio 1.74 needs it, and includes it not.

#include <boost/asio/awaitable.hpp>

#include "gate/handshake.hpp"

namespace troupe::transport {

struct Destination {
  Tcp::endpoint address;
  std::string name;       ///< Host and port, for sentences.
  std::string bind_host;  ///< The address of this machine to connect from; empty: any.
};

/// Opens `socket` and connects it, proves that this process knows the secret, and has the other
/// side prove the same. Five seconds at most; who closes the socket meanwhile ends it. Fails with
/// `peer_unreachable` if it may go better another time, otherwise with `invalid_config`; then the
/// socket is closed.
boost::asio::awaitable<Expected<Done>> dial(boost::asio::io_context& io, Tcp::socket& socket,
                                            Destination destination, const Credentials& own);

}  // namespace troupe::transport
