#include "gate/reception.hpp"

#include <array>
#include <utility>

#include <boost/asio/buffer.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>

namespace troupe::transport {

using boost::asio::awaitable;
using boost::asio::redirect_error;
using boost::asio::use_awaitable;

namespace {

/// How long to wait when the process has no descriptor left for a visitor.
constexpr std::chrono::milliseconds accept_pause{100};

/// Lets a peer that was refused read why before the connection ends, and read no more than it takes
/// for that: closing while its bytes are unread would take back what was sent.
awaitable<void> part_from(Tcp::socket& peer) {
  Failure failure;
  peer.shutdown(Tcp::socket::shutdown_send, failure);
  std::array<std::byte, 4096> bytes{};
  for (auto reads = 0; reads < 16 && !failure; ++reads) {
    co_await peer.async_read_some(boost::asio::buffer(bytes),
                                  redirect_error(use_awaitable, failure));
  }
}

}  // namespace

void Visitor::drop(std::string why) {
  Failure ignored;
  dropped_because = std::move(why);
  socket.close(ignored);
}

Reception::Reception(boost::asio::io_context& io, ReceptionOptions options, Admit admit)
    : io_{io},
      options_{std::move(options)},
      admit_{std::move(admit)},
      refusals_{options_.on_refused},
      acceptor_{io},
      pause_{io} {}

Expected<Done> Reception::open() {
  Failure failure;
  acceptor_ = listen(io_, options_.place, failure);
  if (!failure) place_ = acceptor_.local_endpoint(failure);
  if (failure) {
    return Error{Errc::invalid_config,
                 "cannot listen on " + options_.place_given + ": " + failure.message()
                     + "; choose an address of this machine and a port that no program uses"};
  }
  co_spawn(io_, receive_visitors(), boost::asio::detached);
  return Done{};
}

void Reception::close() {
  Failure ignored;
  is_closed_ = true;
  acceptor_.close(ignored);
  pause_.cancel(ignored);
  for (const auto& visitor : waiting_) visitor->drop("");
}

awaitable<void> Reception::receive_visitors() {
  for (;;) {
    Failure failure;
    co_await acceptor_.async_wait(Tcp::acceptor::wait_read, redirect_error(use_awaitable, failure));
    if (failure) co_return;
    Tcp::endpoint peer;
    auto socket = accept(acceptor_, peer, failure);
    if (!failure) {
      receive(std::make_shared<Visitor>(std::move(socket), to_text(peer.address())));
      continue;
    }
    if (failure != boost::asio::error::no_descriptors
        && failure != boost::asio::error::no_buffer_space
        && failure != boost::asio::error::no_memory) {
      continue;  // The visitor has gone.
    }
    refusals_.note("no visitor can be received at " + here() + ": " + failure.message()
                       + "; raise the limit with  ulimit -n",
                   Refusals::Clock::now());
    pause_.expires_after(accept_pause);
    co_await pause_.async_wait(redirect_error(use_awaitable, failure));
  }
}

void Reception::receive(VisitorPtr visitor) {
  waiting_.push_back(visitor);
  if (waiting_.size() > options_.waiting_max) {
    waiting_.front()->drop("was dropped unheard from " + here() + ", where more than "
                           + std::to_string(options_.waiting_max)
                           + " connections waited without a proof: find out who opens them");
    waiting_.pop_front();
  }
  co_spawn(io_, examine_visitor(std::move(visitor)), boost::asio::detached);
}

awaitable<void> Reception::examine_visitor(VisitorPtr visitor) {
  const Alarm alarm{io_, options_.proof_time_max, [&] {
                      const auto time = std::to_string(options_.proof_time_max.count()) + " ms";
                      visitor->drop(visitor->has_proved
                                        ? "has the secret but got no further at " + here()
                                              + " within " + time + ": see what it printed"
                                        : "proved nothing at " + here() + " within " + time
                                              + ": only nodes of troupe may connect there");
                    }};
  auto admitted = co_await admit(*visitor);
  if (!admitted) {
    const auto& because = visitor->dropped_because;
    refuse(*visitor, because.empty() ? admitted.error().context : because);
    if (visitor->socket.is_open()) co_await part_from(visitor->socket);
  }
  waiting_.remove(visitor);
}

awaitable<Expected<Done>> Reception::admit(Visitor& visitor) {
  auto greetings = co_await examine(visitor.socket, options_.own);
  if (greetings) {
    visitor.has_proved = true;
    co_return co_await admit_(visitor, *greetings);
  }
  const auto& error = greetings.error();
  if (error.code == Errc::invalid_config) co_return error;
  co_return Error{error.code,
                  error.context + " at " + here() + ": only nodes of troupe may connect there"};
}

void Reception::refuse(const Visitor& visitor, const std::string& reason) {
  if (!is_closed_) refusals_.note(visitor.name + " " + reason, Refusals::Clock::now());
}

}  // namespace troupe::transport
