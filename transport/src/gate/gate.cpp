#include "troupe/transport/gate.hpp"

#include <array>
#include <list>
#include <thread>
#include <utility>
#include <vector>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <pthread.h>

#include "gate/handshake.hpp"
#include "gate/refusals.hpp"
#include "gate/splice.hpp"

namespace troupe::transport {

using boost::asio::awaitable;
using boost::asio::redirect_error;
using boost::asio::use_awaitable;

namespace {

/// How long to wait when the process has no descriptor left for a visitor.
constexpr std::chrono::milliseconds accept_pause{100};

/// A connection that has yet to prove what it is.
struct Visitor {
  Visitor(Tcp::socket connection, std::string from)
      : socket{std::move(connection)}, name{std::move(from)} {}

  void drop(std::string why) {
    Failure ignored;
    dropped_because = std::move(why);
    socket.close(ignored);
  }

  Tcp::socket socket;
  std::string name;
  std::string dropped_because;
};

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

class Gate::Impl {
public:
  explicit Impl(GateOptions options)
      : options_{std::move(options)},
        own_{.secret = options_.secret, .version = options_.version},
        refusals_{options_.on_refused} {}

  Expected<Done> listen_at(const Tcp::endpoint& endpoint);
  void start();
  void stop();

  [[nodiscard]] std::uint16_t port() const noexcept { return port_; }

private:
  using VisitorPtr = std::shared_ptr<Visitor>;

  awaitable<void> receive_visitors();
  void receive(VisitorPtr visitor);
  awaitable<void> examine_visitor(VisitorPtr visitor);
  awaitable<Expected<Done>> admit(Visitor& visitor);
  awaitable<Expected<Done>> connect_inside(Visitor& visitor, const Greetings& greetings);
  [[nodiscard]] bool is_full();
  void close();
  void refuse(const Visitor& visitor, const std::string& reason);
  [[nodiscard]] std::string here() const { return "port " + std::to_string(port_); }

  const GateOptions options_;
  const Credentials own_;
  Refusals refusals_;
  boost::asio::io_context io_{1};
  Tcp::acceptor acceptor_{io_};
  boost::asio::steady_timer pause_{io_};
  std::uint16_t port_ = 0;
  bool closing_ = false;
  std::list<VisitorPtr> waiting_;  ///< The oldest first.
  std::vector<std::weak_ptr<Splice>> admitted_;
  std::thread thread_;
};

Expected<Done> Gate::Impl::listen_at(const Tcp::endpoint& endpoint) {
  Failure failure;
  acceptor_ = listen(io_, endpoint, failure);
  if (!failure) port_ = acceptor_.local_endpoint(failure).port();
  if (!failure) return Done{};
  return Error{Errc::invalid_config,
               "cannot listen on " + to_text(options_.listen_host, options_.port) + ": "
                   + failure.message()
                   + "; choose an address of this machine and a port that no program uses"};
}

void Gate::Impl::start() {
  co_spawn(io_, receive_visitors(), boost::asio::detached);
  thread_ = std::thread{[this] {
    pthread_setname_np(pthread_self(), "gate");
    io_.run();
  }};
}

/// The loop ends by itself when nothing is open any more.
void Gate::Impl::stop() {
  boost::asio::post(io_, [this] { close(); });
  thread_.join();
}

void Gate::Impl::close() {
  Failure ignored;
  closing_ = true;
  acceptor_.close(ignored);
  pause_.cancel(ignored);
  for (const auto& visitor : waiting_) visitor->drop("");
  for (const auto& admitted : admitted_) {
    if (const auto splice = admitted.lock()) splice->close();
  }
}

awaitable<void> Gate::Impl::receive_visitors() {
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

void Gate::Impl::receive(VisitorPtr visitor) {
  waiting_.push_back(visitor);
  if (waiting_.size() > options_.waiting_max) {
    waiting_.front()->drop("was dropped unheard from " + here() + ", where more than "
                           + std::to_string(options_.waiting_max)
                           + " connections waited without a proof: find out who opens them");
    waiting_.pop_front();
  }
  co_spawn(io_, examine_visitor(std::move(visitor)), boost::asio::detached);
}

awaitable<void> Gate::Impl::examine_visitor(VisitorPtr visitor) {
  const Alarm alarm{io_, options_.proof_time_max, [&] {
                      visitor->drop("proved nothing at " + here() + " within "
                                    + std::to_string(options_.proof_time_max.count())
                                    + " ms: only nodes of troupe may connect there");
                    }};
  auto admitted = co_await admit(*visitor);
  if (!admitted) {
    const auto& because = visitor->dropped_because;
    refuse(*visitor, because.empty() ? admitted.error().context : because);
    if (visitor->socket.is_open()) co_await part_from(visitor->socket);
  }
  waiting_.remove(visitor);
}

awaitable<Expected<Done>> Gate::Impl::admit(Visitor& visitor) {
  auto greetings = co_await examine(visitor.socket, own_);
  if (!greetings) {
    const auto& error = greetings.error();
    if (error.code == Errc::invalid_config) co_return error;
    co_return Error{error.code,
                    error.context + " at " + here() + ": only nodes of troupe may connect there"};
  }
  if (is_full()) {
    co_await answer(visitor.socket, own_, *greetings, Verdict::full);
    co_return Error{Errc::invalid_config,
                    "has the secret but found " + std::to_string(options_.admitted_max)
                        + " connections admitted already: raise the limit or start fewer nodes"};
  }
  co_return co_await connect_inside(visitor, *greetings);
}

awaitable<Expected<Done>> Gate::Impl::connect_inside(Visitor& visitor, const Greetings& greetings) {
  Failure failure;
  const auto endpoint = on_loopback(options_.inner_port);
  auto inner = open_socket(io_, endpoint.protocol(), failure);
  if (!failure) co_await inner.async_connect(endpoint, redirect_error(use_awaitable, failure));
  if (failure) {
    co_await answer(visitor.socket, own_, greetings, Verdict::not_ready);
    co_return Error{Errc::peer_unreachable, "has the secret but was let in to nothing: port "
                                                + std::to_string(options_.inner_port)
                                                + " behind the gate says " + failure.message()};
  }
  auto told = co_await answer(visitor.socket, own_, greetings, Verdict::admitted);
  if (!told) co_return told.error();
  if (closing_) co_return Error{Errc::cancelled, "the gate closes"};
  const auto splice = std::make_shared<Splice>(std::move(visitor.socket), std::move(inner));
  admitted_.push_back(splice);
  splice->start();
  if (options_.on_admitted) options_.on_admitted(visitor.name);
  co_return Done{};
}

bool Gate::Impl::is_full() {
  std::erase_if(admitted_, [](const auto& splice) { return splice.expired(); });
  return admitted_.size() >= options_.admitted_max;
}

void Gate::Impl::refuse(const Visitor& visitor, const std::string& reason) {
  if (!closing_) refusals_.note(visitor.name + " " + reason, Refusals::Clock::now());
}

Gate::Gate(std::unique_ptr<Impl> impl) : impl_{std::move(impl)} {}
Gate::~Gate() {
  impl_->stop();
}

std::uint16_t Gate::port() const noexcept {
  return impl_->port();
}

Expected<std::unique_ptr<Gate>> Gate::open(GateOptions options) {
  if (auto checked = check(Credentials{options.secret, options.version}); !checked) {
    return checked.error();
  }
  if (options.inner_port == 0 || options.waiting_max == 0 || options.admitted_max == 0) {
    return Error{Errc::invalid_config,
                 "a gate needs the port behind it and limits above 0: one of them is 0"};
  }
  const auto endpoints = resolve(options.listen_host, options.port);
  if (!endpoints) return Error{Errc::invalid_config, endpoints.error().context};
  auto impl = std::make_unique<Impl>(std::move(options));
  if (auto listening = impl->listen_at(endpoints->front()); !listening) return listening.error();
  impl->start();
  return std::unique_ptr<Gate>{new Gate{std::move(impl)}};
}

}  // namespace troupe::transport
