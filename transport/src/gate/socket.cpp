#include "gate/socket.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>

#include <netdb.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include "troupe/transport/gate.hpp"

namespace troupe::transport {

namespace {

Failure last_failure() {
  return {errno, boost::system::system_category()};
}

void set_option(Tcp::socket& socket, int level, int name, int value) {
  // A socket that refuses works all the same.
  ::setsockopt(socket.native_handle(), level, name, &value, sizeof value);
}

using NameOf = int (*)(int, sockaddr*, socklen_t*);

/// Returns the name that `name_of`, getsockname or getpeername, gives `descriptor`.
Tcp::endpoint name(NameOf name_of, int descriptor) {
  Tcp::endpoint endpoint;
  auto size_bytes = static_cast<socklen_t>(endpoint.capacity());
  if (name_of(descriptor, endpoint.data(), &size_bytes) != 0) return {};
  const auto family = endpoint.data()->sa_family;
  return family == AF_INET || family == AF_INET6 ? endpoint : Tcp::endpoint{};
}

}  // namespace

Expected<std::vector<Tcp::endpoint>> resolve(const std::string& host, std::uint16_t port) {
  addrinfo wanted{};
  wanted.ai_socktype = SOCK_STREAM;
  wanted.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const auto code = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &wanted, &found);
  if (code != 0) {
    return Error{Errc::peer_unreachable,
                 "the host name " + host + " has no address: " + ::gai_strerror(code)};
  }
  std::vector<Tcp::endpoint> endpoints;
  for (const auto* one = found; one != nullptr; one = one->ai_next) {
    auto& endpoint = endpoints.emplace_back();
    if (one->ai_addrlen > endpoint.capacity()) continue;
    endpoint.resize(one->ai_addrlen);
    std::copy_n(reinterpret_cast<const std::byte*>(one->ai_addr), one->ai_addrlen,
                reinterpret_cast<std::byte*>(endpoint.data()));
  }
  ::freeaddrinfo(found);
  return endpoints;
}

std::string to_text(const std::string& host, std::uint16_t port) {
  const bool is_ipv6 = host.find(':') != std::string::npos;
  return (is_ipv6 ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

std::string to_text(const boost::asio::ip::address& address) {
  using boost::asio::ip::make_address_v4;
  using boost::asio::ip::v4_mapped;
  if (!address.is_v6() || !address.to_v6().is_v4_mapped()) return address.to_string();
  return make_address_v4(v4_mapped, address.to_v6()).to_string();
}

Tcp::socket open_socket(boost::asio::io_context& io, const Tcp& protocol, Failure& failure) {
  Tcp::socket socket{io};
  const auto descriptor =
      ::socket(protocol.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_TCP);
  failure = descriptor < 0 ? last_failure() : Failure{};
  if (descriptor >= 0) socket.assign(protocol, descriptor, failure);
  return socket;
}

Tcp::acceptor listen(boost::asio::io_context& io, const Tcp::endpoint& endpoint, Failure& failure) {
  Tcp::acceptor acceptor{io};
  auto socket = open_socket(io, endpoint.protocol(), failure);
  if (!failure) socket.set_option(Tcp::socket::reuse_address{true}, failure);
  if (!failure) socket.bind(endpoint, failure);
  if (failure) return acceptor;
  acceptor.assign(endpoint.protocol(), socket.release(), failure);
  if (!failure) acceptor.listen(boost::asio::socket_base::max_listen_connections, failure);
  return acceptor;
}

Tcp::socket accept(Tcp::acceptor& acceptor, Tcp::endpoint& peer, Failure& failure) {
  auto size_bytes = static_cast<socklen_t>(peer.capacity());
  const auto descriptor =
      ::accept4(acceptor.native_handle(), peer.data(), &size_bytes, SOCK_CLOEXEC | SOCK_NONBLOCK);
  failure = descriptor < 0 ? last_failure() : Failure{};
  Tcp::socket socket{acceptor.get_executor()};
  if (descriptor >= 0) socket.assign(peer.protocol(), descriptor, failure);
  return socket;
}

void prepare_to_carry(Tcp::socket& socket) {
  set_option(socket, IPPROTO_TCP, TCP_NODELAY, 1);
  set_option(socket, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(socket, IPPROTO_TCP, TCP_KEEPIDLE, 10);
  set_option(socket, IPPROTO_TCP, TCP_KEEPINTVL, 5);
  set_option(socket, IPPROTO_TCP, TCP_KEEPCNT, 4);
}

void reset(Tcp::socket& socket) {
  Failure ignored;
  socket.set_option(Tcp::socket::linger{true, 0}, ignored);
  socket.close(ignored);
}

bool is_from_this_process(int socket) {
  const auto here = name(::getsockname, socket);
  const auto there = name(::getpeername, socket);
  if (here == Tcp::endpoint{} || there == Tcp::endpoint{}) return false;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator{"/proc/self/fd", ignored}) {
    const auto descriptor = std::atoi(entry.path().filename().c_str());
    if (name(::getsockname, descriptor) == there && name(::getpeername, descriptor) == here) {
      return true;
    }
  }
  return false;
}

Alarm::Alarm(boost::asio::io_context& io, std::chrono::steady_clock::duration after,
             std::function<void()> ring)
    : ring_{std::make_shared<std::function<void()>>(std::move(ring))}, timer_{io, after} {
  timer_.async_wait([ring = ring_](const Failure& failure) {
    if (!failure && *ring) (*ring)();
  });
}

}  // namespace troupe::transport
