#include "network_interface.hpp"

#include <algorithm>
#include <memory>
#include <optional>

#include <arpa/inet.h>
#include <fmt/format.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

namespace troupe::cli {

namespace {

using Addresses = std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)>;
using Interfaces = std::unique_ptr<ifaddrs, decltype(&::freeifaddrs)>;

Addresses addresses_of(const std::string& host) {
  constexpr const char* any_port = "9";
  addrinfo hints{};
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* found = nullptr;
  if (::getaddrinfo(host.c_str(), any_port, &hints, &found) != 0) found = nullptr;
  return {found, &::freeaddrinfo};
}

/// The address that the system would send from. To connect a datagram socket sends nothing.
std::optional<sockaddr_storage> sender_towards(const addrinfo& target) {
  const int probe = ::socket(target.ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (probe < 0) return std::nullopt;
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  const bool found = ::connect(probe, target.ai_addr, target.ai_addrlen) == 0
                     && ::getsockname(probe, reinterpret_cast<sockaddr*>(&address), &length) == 0;
  ::close(probe);
  return found ? std::optional{address} : std::nullopt;
}

/// An address as text, without its port.
std::string text_of(const sockaddr* address) {
  char text[INET6_ADDRSTRLEN] = "";
  if (address->sa_family == AF_INET) {
    ::inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in*>(address)->sin_addr, text,
                sizeof text);
  } else if (address->sa_family == AF_INET6) {
    ::inet_ntop(AF_INET6, &reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr, text,
                sizeof text);
  }
  return text;
}

/// One entry for each address of each interface.
Interfaces all_interfaces() {
  ifaddrs* found = nullptr;
  if (::getifaddrs(&found) != 0) found = nullptr;
  return {found, &::freeifaddrs};
}

std::string owner_of(const std::string& address) {
  if (address.starts_with("127.") || address == "::1") return "lo";
  const auto all = all_interfaces();
  for (const auto* one = all.get(); one != nullptr; one = one->ifa_next) {
    if (one->ifa_addr != nullptr && text_of(one->ifa_addr) == address) return one->ifa_name;
  }
  return {};
}

bool is_link_local(const sockaddr* address) {
  return address->sa_family == AF_INET6
         && IN6_IS_ADDR_LINKLOCAL(&reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr);
}

}  // namespace

std::vector<NetworkInterface> network_interfaces() {
  const auto all = all_interfaces();
  std::vector<NetworkInterface> found;
  for (const auto* one = all.get(); one != nullptr; one = one->ifa_next) {
    auto known = std::ranges::find(found, one->ifa_name, &NetworkInterface::name);
    if (known == found.end()) {
      known = found.insert(known, {.name = one->ifa_name, .addresses = {}});
    }
    known->is_up = (one->ifa_flags & IFF_UP) != 0;
    if (one->ifa_addr == nullptr || is_link_local(one->ifa_addr)) continue;
    auto text = text_of(one->ifa_addr);
    if (text.empty()) continue;
    const bool is_ipv4 = one->ifa_addr->sa_family == AF_INET;
    auto& addresses = known->addresses;
    const auto first_ipv6 = std::ranges::find_if(
        addresses, [](const std::string& other) { return other.find(':') != std::string::npos; });
    addresses.insert(is_ipv4 ? first_ipv6 : addresses.end(), std::move(text));
  }
  return found;
}

Expected<std::string> network_interface_or(const std::string& given, const std::string& host) {
  if (!given.empty()) return given;
  const bool stands_for_all = host == "0.0.0.0" || host == "::";
  const auto addresses = stands_for_all ? Addresses{nullptr, &::freeaddrinfo} : addresses_of(host);
  for (const auto* one = addresses.get(); one != nullptr; one = one->ai_next) {
    const auto sender = sender_towards(*one);
    if (!sender) continue;
    auto name = owner_of(text_of(reinterpret_cast<const sockaddr*>(&*sender)));
    if (!name.empty()) return name;
  }
  return Error{Errc::invalid_config,
               fmt::format("no network interface follows from the host {}; give --interface NAME, "
                           "see `ip -brief address`",
                           host)};
}

Expected<Done> check_network_interface(const std::string& name) {
  std::vector<std::string> names;
  for (const auto& interface : network_interfaces()) {
    if (interface.addresses.empty()) continue;
    if (interface.name == name) return Done{};
    names.push_back(interface.name);
  }
  return Error{Errc::invalid_config,
               fmt::format("--interface {}: this machine has no network interface of that name "
                           "with an address; choose one of {}",
                           name, fmt::join(names, ", "))};
}

}  // namespace troupe::cli
