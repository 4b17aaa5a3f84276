#include "gate/dial.hpp"

#include <utility>

#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>

namespace troupe::transport {

using boost::asio::awaitable;
using boost::asio::redirect_error;
using boost::asio::use_awaitable;

namespace {

/// How long one address may take to answer.
constexpr std::chrono::seconds attempt_max{5};

Expected<Done> bind(Tcp::socket& socket, const Destination& destination) {
  if (destination.bind_host.empty()) return Done{};
  Failure failure;
  const auto address = boost::asio::ip::make_address(destination.bind_host, failure);
  if (!failure) socket.bind({address, 0}, failure);
  if (!failure) return Done{};
  return Error{Errc::invalid_config, "cannot connect to " + destination.name + " from "
                                         + destination.bind_host + ": " + failure.message()
                                         + "; give an address of this machine, of the same kind"};
}

awaitable<Expected<Done>> connect(Tcp::socket& socket, const Destination& destination) {
  Failure failure;
  co_await socket.async_connect(destination.address, redirect_error(use_awaitable, failure));
  // TCP connects a socket to itself if the system happens to give it the port that nobody is at.
  if (!failure && socket.local_endpoint(failure) == destination.address) {
    reset(socket);
    failure = boost::asio::error::connection_refused;
  }
  if (!failure) co_return Done{};
  co_return Error{Errc::peer_unreachable, destination.name + " says " + failure.message()};
}

}  // namespace

awaitable<Expected<Done>> dial(boost::asio::io_context& io, Tcp::socket& socket,
                               Destination destination, const Credentials& own) {
  Failure failure;
  socket = open_socket(io, destination.address.protocol(), failure);
  if (failure) co_return Error{Errc::peer_unreachable, "no socket: " + failure.message()};
  bool late = false;
  const Alarm alarm{io, attempt_max, [&] {
                      Failure ignored;
                      late = true;
                      socket.close(ignored);
                    }};
  auto outcome = bind(socket, destination);
  if (outcome) outcome = co_await connect(socket, destination);
  if (outcome) outcome = co_await enter(socket, own, destination.name);
  if (!outcome) socket.close(failure);
  if (late) co_return Error{Errc::peer_unreachable, destination.name + " does not answer"};
  co_return outcome;
}

}  // namespace troupe::transport
