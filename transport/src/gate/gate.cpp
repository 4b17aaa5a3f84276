#include "troupe/transport/gate.hpp"

#include <thread>
#include <utility>
#include <vector>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <pthread.h>

#include "gate/reception.hpp"
#include "gate/splice.hpp"

namespace troupe::transport {

using boost::asio::awaitable;
using boost::asio::redirect_error;
using boost::asio::use_awaitable;

class Gate::Impl {
public:
  Impl(GateOptions options, const Tcp::endpoint& place);

  Expected<Done> open() { return reception_.open(); }
  void start();
  void stop();

  [[nodiscard]] std::uint16_t port() const noexcept { return reception_.place().port(); }

private:
  awaitable<Expected<Done>> admit(Visitor& visitor, const Greetings& greetings);
  awaitable<Expected<Done>> connect_inside(Visitor& visitor, const Greetings& greetings);
  [[nodiscard]] bool is_full();
  void close();

  const GateOptions options_;
  const Credentials own_;
  boost::asio::io_context io_{1};
  Reception reception_;
  std::vector<std::weak_ptr<Splice>> admitted_;
  std::thread thread_;
};

Gate::Impl::Impl(GateOptions options, const Tcp::endpoint& place)
    : options_{std::move(options)},
      own_{.secret = options_.secret,
           .version = options_.version,
           .tls_authority = options_.tls_authority},
      reception_{io_,
                 {.place = place,
                  .place_given = to_text(options_.listen_host, options_.port),
                  .own = own_,
                  .waiting_max = options_.waiting_max,
                  .proof_time_max = options_.proof_time_max,
                  .on_refused = options_.on_refused},
                 [this](Visitor& visitor, const Greetings& greetings) {
                   return admit(visitor, greetings);
                 }} {}

void Gate::Impl::start() {
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
  reception_.close();
  for (const auto& admitted : admitted_) {
    if (const auto splice = admitted.lock()) splice->close();
  }
}

awaitable<Expected<Done>> Gate::Impl::admit(Visitor& visitor, const Greetings& greetings) {
  if (is_full()) {
    co_await answer(visitor.socket, own_, greetings, Verdict::full);
    co_return Error{Errc::invalid_config,
                    "has the secret but found " + std::to_string(options_.admitted_max)
                        + " connections admitted already: raise the limit or start fewer nodes"};
  }
  co_return co_await connect_inside(visitor, greetings);
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
  if (reception_.is_closed()) co_return Error{Errc::cancelled, "the gate closes"};
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

Gate::Gate(std::unique_ptr<Impl> impl) : impl_{std::move(impl)} {}
Gate::~Gate() {
  impl_->stop();
}

std::uint16_t Gate::port() const noexcept {
  return impl_->port();
}

Expected<std::unique_ptr<Gate>> Gate::open(GateOptions options) {
  if (auto checked = check(Credentials{options.secret, options.version, {}}); !checked) {
    return checked.error();
  }
  if (options.inner_port == 0 || options.waiting_max == 0 || options.admitted_max == 0) {
    return Error{Errc::invalid_config,
                 "a gate needs the port behind it and limits above 0: one of them is 0"};
  }
  const auto endpoints = resolve(options.listen_host, options.port);
  if (!endpoints) return Error{Errc::invalid_config, endpoints.error().context};
  auto impl = std::make_unique<Impl>(std::move(options), endpoints->front());
  if (auto opened = impl->open(); !opened) return opened.error();
  impl->start();
  return std::unique_ptr<Gate>{new Gate{std::move(impl)}};
}

}  // namespace troupe::transport
