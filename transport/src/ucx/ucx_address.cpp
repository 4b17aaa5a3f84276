#include "ucx/ucx_address.hpp"

#include <array>
#include <charconv>
#include <cstring>
#include <memory>
#include <set>

#include <arpa/inet.h>
#include <ifaddrs.h>

namespace troupe::transport {

namespace {

constexpr std::string_view prefix = "ucx1:";
constexpr std::size_t id_digits = 16;

sockaddr_in& as_v4(SocketAddress& address) {
  return reinterpret_cast<sockaddr_in&>(address.storage);
}
sockaddr_in6& as_v6(SocketAddress& address) {
  return reinterpret_cast<sockaddr_in6&>(address.storage);
}
const sockaddr_in& as_v4(const SocketAddress& address) {
  return reinterpret_cast<const sockaddr_in&>(address.storage);
}
const sockaddr_in6& as_v6(const SocketAddress& address) {
  return reinterpret_cast<const sockaddr_in6&>(address.storage);
}

bool is_v6(const SocketAddress& address) {
  return address.storage.ss_family == AF_INET6;
}

/// Reads the whole of `text` as a number in `base`.
template <class Number>
bool read_number(std::string_view text, int base, Number& value) {
  const auto* end = text.data() + text.size();
  const auto [stopped, error] = std::from_chars(text.data(), end, value, base);
  return error == std::errc{} && stopped == end && !text.empty();
}

/// Reads `127.0.0.1` or `[::1]`.
bool read_host(std::string_view text, SocketAddress& address) {
  if (text.size() >= 2 && text.front() == '[' && text.back() == ']') {
    auto& v6 = as_v6(address);
    v6.sin6_family = AF_INET6;
    address.size_bytes = sizeof v6;
    const std::string host{text.substr(1, text.size() - 2)};
    return inet_pton(AF_INET6, host.c_str(), &v6.sin6_addr) == 1;
  }
  auto& v4 = as_v4(address);
  v4.sin_family = AF_INET;
  address.size_bytes = sizeof v4;
  return inet_pton(AF_INET, std::string{text}.c_str(), &v4.sin_addr) == 1;
}

std::string host_of(const SocketAddress& address) {
  std::array<char, INET6_ADDRSTRLEN> text{};
  if (!is_v6(address)) {
    inet_ntop(AF_INET, &as_v4(address).sin_addr, text.data(), text.size());
    return text.data();
  }
  inet_ntop(AF_INET6, &as_v6(address).sin6_addr, text.data(), text.size());
  return '[' + std::string{text.data()} + ']';
}

std::string in_hex(std::uint64_t id) {
  std::string digits(id_digits, '0');
  for (std::size_t i = id_digits; i-- > 0; id >>= 4U) digits[i] = "0123456789abcdef"[id & 15U];
  return digits;
}

/// An address of `entry` that a peer could connect to. A link-local one means nothing elsewhere.
bool take(const ifaddrs& entry, SocketAddress& address) {
  if (entry.ifa_addr == nullptr) return false;
  const auto family = entry.ifa_addr->sa_family;
  if (family != AF_INET && family != AF_INET6) return false;
  address.size_bytes = family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
  std::memcpy(&address.storage, entry.ifa_addr, address.size_bytes);
  address.set_port(0);
  return family == AF_INET || !IN6_IS_ADDR_LINKLOCAL(&as_v6(address).sin6_addr);
}

}  // namespace

std::uint16_t SocketAddress::port() const noexcept {
  return ntohs(is_v6(*this) ? as_v6(*this).sin6_port : as_v4(*this).sin_port);
}

void SocketAddress::set_port(std::uint16_t port) noexcept {
  (is_v6(*this) ? as_v6(*this).sin6_port : as_v4(*this).sin_port) = htons(port);
}

std::string to_text(const UcxAddress& address) {
  return std::string{prefix} + in_hex(address.fabric) + '@' + host_of(address.socket) + ':'
         + std::to_string(address.socket.port());
}

Expected<UcxAddress> parse_ucx_address(std::string_view text) {
  const Error malformed{Errc::invalid_config,
                        "'" + std::string{text.substr(0, 100)}
                            + "' is not the address of a fabric, which looks like "
                              "ucx1:0123456789abcdef@127.0.0.1:4711: pass what address() returned"};
  if (!text.starts_with(prefix)) return malformed;
  const auto rest = text.substr(prefix.size());
  const auto colon = rest.rfind(':');
  if (rest.find('@') != id_digits || colon == std::string_view::npos || colon <= id_digits) {
    return malformed;
  }
  UcxAddress address;
  std::uint16_t port = 0;
  if (!read_number(rest.substr(0, id_digits), 16, address.fabric)
      || !read_host(rest.substr(id_digits + 1, colon - id_digits - 1), address.socket)
      || !read_number(rest.substr(colon + 1), 10, port) || port == 0) {
    return malformed;
  }
  address.socket.set_port(port);
  return address;
}

Expected<SocketAddress> address_of_interface(const std::string& name) {
  ifaddrs* first = nullptr;
  if (getifaddrs(&first) != 0) {
    return Error{Errc::internal, "the system does not say which network interfaces it has: "
                                     + std::string{std::strerror(errno)}};
  }
  const std::unique_ptr<ifaddrs, void (*)(ifaddrs*)> owner{first, freeifaddrs};
  SocketAddress found, candidate;
  std::set<std::string> names;
  for (const auto* entry = first; entry != nullptr; entry = entry->ifa_next) {
    if (!take(*entry, candidate)) continue;
    names.insert(entry->ifa_name);
    const bool better = found.size_bytes == 0 || (is_v6(found) && !is_v6(candidate));
    if (entry->ifa_name == name && better) found = candidate;
  }
  if (found.size_bytes != 0) return found;
  std::string list;
  for (const auto& known : names) list += (list.empty() ? "" : ", ") + known;
  return Error{Errc::invalid_config, "the network interface '" + name
                                         + "' does not exist or has no address: choose one of "
                                         + list};
}

}  // namespace troupe::transport
