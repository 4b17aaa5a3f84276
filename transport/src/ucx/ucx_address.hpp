// transport/src/ucx/ucx_address.hpp -- where a fabric listens, and how that is written.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include <netinet/in.h>
#include <sys/socket.h>

#include "troupe/engine/expected.hpp"

namespace troupe::transport {

/// An address of the Internet with its port, as the operating system takes it.
struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t size_bytes = 0;

  [[nodiscard]] const sockaddr* get() const noexcept {
    return reinterpret_cast<const sockaddr*>(&storage);
  }
  [[nodiscard]] std::uint16_t port() const noexcept;
  void set_port(std::uint16_t port) noexcept;
};

/// A fabric and where it listens. Written `ucx1:0123456789abcdef@127.0.0.1:4711`, or with `[::1]`.
struct UcxAddress {
  std::uint64_t fabric = 0;  ///< Drawn at random when the fabric was made.
  SocketAddress socket;
};

[[nodiscard]] std::string to_text(const UcxAddress& address);

/// Reads what `to_text` wrote. Fails with `invalid_config` otherwise.
[[nodiscard]] Expected<UcxAddress> parse_ucx_address(std::string_view text);

/// Returns an address of the network interface, IPv4 before IPv6, with port 0. Fails with
/// `invalid_config`, naming the interfaces there are.
[[nodiscard]] Expected<SocketAddress> address_of_interface(const std::string& name);

}  // namespace troupe::transport
