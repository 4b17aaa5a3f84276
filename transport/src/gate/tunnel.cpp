#include "troupe/transport/tunnel.hpp"

#include <algorithm>
#include <thread>
#include <utility>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <pthread.h>

#include "troupe/transport/gate.hpp"

#include "gate/dial.hpp"
#include "gate/splice.hpp"

namespace troupe::transport {

using boost::asio::awaitable;
using boost::asio::redirect_error;
using boost::asio::use_awaitable;

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds first_pause{10};
constexpr std::chrono::milliseconds longest_pause{500};

}  // namespace

class Tunnel::Impl {
public:
  explicit Impl(TunnelOptions options)
      : options_{std::move(options)},
        own_{.secret = options_.secret,
             .version = options_.version,
             .tls_authority = options_.tls_authority},
        gate_name_{to_text(options_.host, options_.port)} {}

  /// Runs the loop on the caller's thread until it is known whether there is a way.
  Expected<Done> connect();
  Expected<Done> listen_locally();
  void start();
  void stop();

  [[nodiscard]] std::uint16_t local_port() const noexcept { return local_port_; }

private:
  awaitable<void> try_until(Clock::time_point deadline, Expected<Done>& outcome);
  awaitable<Expected<Done>> try_once();
  awaitable<void> receive_own();
  void close();

  const TunnelOptions options_;
  const Credentials own_;
  const std::string gate_name_;
  boost::asio::io_context io_{1};
  Tcp::socket outer_{io_};
  Tcp::acceptor acceptor_{io_};
  std::uint16_t local_port_ = 0;
  std::weak_ptr<Splice> splice_;
  std::thread thread_;
};

Expected<Done> Tunnel::Impl::connect() {
  Expected<Done> outcome = Done{};
  co_spawn(io_, try_until(Clock::now() + options_.patience, outcome), boost::asio::detached);
  io_.run();
  io_.restart();
  return outcome;
}

awaitable<void> Tunnel::Impl::try_until(Clock::time_point deadline, Expected<Done>& outcome) {
  boost::asio::steady_timer timer{io_};
  for (auto pause = first_pause;; pause = std::min(2 * pause, longest_pause)) {
    outcome = co_await try_once();
    if (outcome || outcome.error().code != Errc::peer_unreachable) co_return;
    if (Clock::now() + pause >= deadline) break;
    Failure ignored;
    timer.expires_after(pause);
    co_await timer.async_wait(redirect_error(use_awaitable, ignored));
  }
  outcome =
      Error{Errc::peer_unreachable,
            "no way to the director at " + gate_name_ + " within "
                + std::to_string(options_.patience.count()) + " ms: " + outcome.error().context
                + "; start the director, and check host, port and firewall"};
}

awaitable<Expected<Done>> Tunnel::Impl::try_once() {
  auto addresses = resolve(options_.host, options_.port);
  if (!addresses) co_return addresses.error();
  Expected<Done> outcome = Done{};
  for (const auto& address : *addresses) {
    const Destination gate{address, gate_name_, options_.bind_host};
    outcome = co_await dial(io_, outer_, gate, own_);
    if (outcome || outcome.error().code != Errc::peer_unreachable) break;
  }
  co_return outcome;
}

Expected<Done> Tunnel::Impl::listen_locally() {
  Failure failure;
  acceptor_ = listen(io_, on_loopback(0), failure);
  if (!failure) local_port_ = acceptor_.local_endpoint(failure).port();
  if (!failure) return Done{};
  return Error{Errc::internal, "cannot listen on 127.0.0.1: " + failure.message()};
}

void Tunnel::Impl::start() {
  co_spawn(io_, receive_own(), boost::asio::detached);
  thread_ = std::thread{[this] {
    pthread_setname_np(pthread_self(), "tunnel");
    io_.run();
  }};
}

/// The loop ends by itself when nothing is open any more.
void Tunnel::Impl::stop() {
  boost::asio::post(io_, [this] { close(); });
  thread_.join();
}

void Tunnel::Impl::close() {
  Failure ignored;
  acceptor_.close(ignored);
  if (const auto splice = splice_.lock()) splice->close();
}

awaitable<void> Tunnel::Impl::receive_own() {
  Failure failure;
  for (;;) {
    co_await acceptor_.async_wait(Tcp::acceptor::wait_read, redirect_error(use_awaitable, failure));
    if (failure) co_return;
    Tcp::endpoint peer;
    auto inner = accept(acceptor_, peer, failure);
    if (failure || !is_from_this_process(inner.native_handle())) continue;
    acceptor_.close(failure);
    const auto splice = std::make_shared<Splice>(std::move(outer_), std::move(inner));
    splice_ = splice;
    splice->start();
    co_return;
  }
}

Tunnel::Tunnel(std::unique_ptr<Impl> impl) : impl_{std::move(impl)} {}
Tunnel::~Tunnel() {
  impl_->stop();
}

std::uint16_t Tunnel::local_port() const noexcept {
  return impl_->local_port();
}

Expected<std::unique_ptr<Tunnel>> Tunnel::connect(TunnelOptions options) {
  if (auto checked = check(Credentials{options.secret, options.version, {}}); !checked) {
    return checked.error();
  }
  auto impl = std::make_unique<Impl>(std::move(options));
  if (auto connected = impl->connect(); !connected) return connected.error();
  if (auto listening = impl->listen_locally(); !listening) return listening.error();
  impl->start();
  return std::unique_ptr<Tunnel>{new Tunnel{std::move(impl)}};
}

}  // namespace troupe::transport
