#include "gate/splice.hpp"

#include <vector>

#include <boost/asio/buffer.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <sys/socket.h>

namespace troupe::transport {

using boost::asio::awaitable;
using boost::asio::redirect_error;
using boost::asio::use_awaitable;

namespace {

constexpr std::size_t carried_max_bytes = std::size_t{64} << 10U;

}  // namespace

void Splice::start() {
  prepare_to_carry(one_);
  prepare_to_carry(other_);
  const auto self = shared_from_this();
  const auto executor = one_.get_executor();
  for (auto* socket : {&one_, &other_}) {
    auto& peer = socket == &one_ ? other_ : one_;
    co_spawn(executor, carry(self, *socket, peer), boost::asio::detached);
    co_spawn(executor, watch(self, *socket), boost::asio::detached);
  }
}

void Splice::close() {
  Failure ignored;
  one_.close(ignored);
  other_.close(ignored);
}

awaitable<void> Splice::carry(std::shared_ptr<Splice> self, Tcp::socket& from, Tcp::socket& to) {
  std::vector<std::byte> bytes(carried_max_bytes);
  Failure failure;
  while (!failure) {
    const auto count = co_await from.async_read_some(boost::asio::buffer(bytes),
                                                     redirect_error(use_awaitable, failure));
    if (failure) break;
    co_await boost::asio::async_write(to, boost::asio::buffer(bytes, count),
                                      redirect_error(use_awaitable, failure));
  }
  if (failure == boost::asio::error::eof) {
    self->end_direction(to);
  } else {
    self->break_both();
  }
}

/// A direction that waits to write does not read, and would not learn that its source is gone.
awaitable<void> Splice::watch(std::shared_ptr<Splice> self, Tcp::socket& socket) {
  Failure failure;
  co_await socket.async_wait(Tcp::socket::wait_error, redirect_error(use_awaitable, failure));
  if (failure) co_return;
  int error = 0;
  socklen_t size_bytes = sizeof error;
  ::getsockopt(socket.native_handle(), SOL_SOCKET, SO_ERROR, &error, &size_bytes);
  if (error != 0) self->break_both();
}

void Splice::end_direction(Tcp::socket& to) {
  Failure ignored;
  to.shutdown(Tcp::socket::shutdown_send, ignored);
  if (++ended_directions_ == 2) close();
}

void Splice::break_both() {
  reset(one_);
  reset(other_);
}

}  // namespace troupe::transport
