// Plain blocking connections, for tests that play a peer by hand.
#pragma once

#include <cerrno>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

namespace troupe::transport {

inline sockaddr_in ipv4(const char* host, std::uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  ::inet_pton(AF_INET, host, &address.sin_addr);
  return address;
}

/// A connection. Whoever waits on it for a minute gives up: that is a guard, not a measure.
class Wire {
public:
  Wire() = default;
  explicit Wire(int descriptor) : descriptor_{descriptor} {
    const timeval guard{60, 0};
    ::setsockopt(descriptor_, SOL_SOCKET, SO_RCVTIMEO, &guard, sizeof guard);
    ::setsockopt(descriptor_, SOL_SOCKET, SO_SNDTIMEO, &guard, sizeof guard);
  }
  Wire(Wire&& other) noexcept : descriptor_{std::exchange(other.descriptor_, -1)} {}
  Wire& operator=(Wire&& other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    return *this;
  }
  ~Wire() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }

  /// Connects; an error shows in `is_open`.
  static Wire connect(std::uint16_t port, const char* host = "127.0.0.1") {
    Wire wire{::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    const auto address = ipv4(host, port);
    if (::connect(wire.descriptor_, reinterpret_cast<const sockaddr*>(&address), sizeof address)) {
      return {};
    }
    return wire;
  }

  [[nodiscard]] bool is_open() const { return descriptor_ >= 0; }
  [[nodiscard]] int descriptor() const { return descriptor_; }

  bool send(std::string_view bytes) const {
    while (!bytes.empty()) {
      const auto count = ::send(descriptor_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (count <= 0) return false;
      bytes.remove_prefix(static_cast<std::size_t>(count));
    }
    return true;
  }

  /// Returns `size_bytes` bytes, or fewer if the connection ends before.
  [[nodiscard]] std::string receive(std::size_t size_bytes) const {
    std::string bytes(size_bytes, '\0');
    std::size_t filled = 0;
    while (filled < size_bytes) {
      const auto count = ::recv(descriptor_, &bytes[filled], size_bytes - filled, 0);
      if (count <= 0) break;
      filled += static_cast<std::size_t>(count);
    }
    bytes.resize(filled);
    return bytes;
  }

  /// Reads on to the end and returns how it came: "ended", "broken", or something unexpected.
  [[nodiscard]] std::string end() const {
    char bytes[65536];
    ssize_t count = 0;
    while ((count = ::recv(descriptor_, bytes, sizeof bytes, 0)) > 0) {
    }
    if (count == 0) return "ended";
    return errno == ECONNRESET ? "broken" : "errno " + std::to_string(errno);
  }

  /// Whether nothing has come, and no end either.
  [[nodiscard]] bool is_silent() const {
    char byte = 0;
    return ::recv(descriptor_, &byte, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN;
  }

  /// Sends until nobody takes anything any more. Returns how much that was.
  [[nodiscard]] std::size_t stuff() const {
    const std::string bytes(65536, 's');
    std::size_t sent = 0;
    pollfd writable{descriptor_, POLLOUT, 0};
    while (::poll(&writable, 1, 200) == 1) {
      const auto count =
          ::send(descriptor_, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (count < 0) break;
      sent += static_cast<std::size_t>(count);
    }
    return sent;
  }

  /// Waits until the connection is known to be broken, whatever of it is still unread.
  [[nodiscard]] bool breaks() const {
    pollfd broken{descriptor_, 0, 0};
    return ::poll(&broken, 1, 60000) == 1 && (broken.revents & POLLERR) != 0;
  }

  void finish_sending() const { ::shutdown(descriptor_, SHUT_WR); }

  void break_off() {
    const linger at_once{1, 0};
    ::setsockopt(descriptor_, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    *this = Wire{};
  }

private:
  int descriptor_ = -1;
};

/// A server on 127.0.0.1.
class Server {
public:
  explicit Server(std::uint16_t port = 0)
      : descriptor_{::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)} {
    const int yes = 1;
    ::setsockopt(descriptor_, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    auto address = ipv4("127.0.0.1", port);
    auto* generic = reinterpret_cast<sockaddr*>(&address);
    socklen_t size_bytes = sizeof address;
    EXPECT_EQ(::bind(descriptor_, generic, size_bytes), 0) << errno;
    EXPECT_EQ(::listen(descriptor_, 128), 0);
    ::getsockname(descriptor_, generic, &size_bytes);
    port_ = ntohs(address.sin_port);
  }
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;
  ~Server() { ::close(descriptor_); }

  [[nodiscard]] std::uint16_t port() const { return port_; }

  [[nodiscard]] Wire accept() const {
    pollfd readable{descriptor_, POLLIN, 0};
    if (::poll(&readable, 1, 60000) != 1) return {};
    return Wire{::accept4(descriptor_, nullptr, nullptr, SOCK_CLOEXEC)};
  }

  /// Whether nobody has connected who is not accepted yet.
  [[nodiscard]] bool is_alone() const {
    pollfd readable{descriptor_, POLLIN, 0};
    return ::poll(&readable, 1, 0) == 0;
  }

private:
  int descriptor_;
  std::uint16_t port_ = 0;
};

}  // namespace troupe::transport
