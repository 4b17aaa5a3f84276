// transport/src/gate/socket.hpp -- sockets of Asio that no child process inherits.
//
// Asio makes descriptors that survive an exec. These are made here and handed to Asio.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>  // Asio 1.74 needs it, and includes it not.
#include <vector>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>

#include "troupe/engine/expected.hpp"

namespace troupe::transport {

using Tcp = boost::asio::ip::tcp;
using Failure = boost::system::error_code;

/// Looks up a name or an address. Blocks. Fails with `peer_unreachable`.
[[nodiscard]] Expected<std::vector<Tcp::endpoint>> resolve(const std::string& host,
                                                           std::uint16_t port);

/// Returns `host:port`, or `[host]:port`.
[[nodiscard]] std::string to_text(const std::string& host, std::uint16_t port);

/// Returns the address alone, an IPv4 one as such even where it came in by IPv6.
[[nodiscard]] std::string to_text(const boost::asio::ip::address& address);

[[nodiscard]] inline Tcp::endpoint on_loopback(std::uint16_t port) {
  return {boost::asio::ip::address_v4::loopback(), port};
}

[[nodiscard]] Tcp::socket open_socket(boost::asio::io_context& io, const Tcp& protocol,
                                      Failure& failure);
[[nodiscard]] Tcp::acceptor listen(boost::asio::io_context& io, const Tcp::endpoint& endpoint,
                                   Failure& failure);

/// Takes in a connection that waits, and says from where, even if it is broken already. Fails with
/// `try_again` if there is none.
[[nodiscard]] Tcp::socket accept(Tcp::acceptor& acceptor, Tcp::endpoint& peer, Failure& failure);

/// Sends small messages at once, and notices within half a minute that the peer's machine is gone.
void prepare_to_carry(Tcp::socket& socket);

/// Closes so that the peer sees a broken connection.
void reset(Tcp::socket& socket);

/// Calls `ring` on the loop's thread when its time has come, if it still lives.
class Alarm {
public:
  Alarm(boost::asio::io_context& io, std::chrono::steady_clock::duration after,
        std::function<void()> ring);
  ~Alarm() { *ring_ = nullptr; }
  Alarm(const Alarm&) = delete;
  Alarm& operator=(const Alarm&) = delete;

private:
  std::shared_ptr<std::function<void()>> ring_;
  boost::asio::steady_timer timer_;
};

}  // namespace troupe::transport
