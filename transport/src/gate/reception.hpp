// transport/src/gate/reception.hpp -- hears out whoever connects, and keeps who knows the secret.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <utility>  // Asio 1.74 needs it, and includes it not.

#include <boost/asio/awaitable.hpp>

#include "troupe/transport/refusals.hpp"

#include "gate/handshake.hpp"

namespace troupe::transport {

/// A connection that has yet to prove what it is.
struct Visitor {
  Visitor(Tcp::socket connection, std::string from)
      : socket{std::move(connection)}, name{std::move(from)} {}

  /// Closes the connection, which ends whatever waits for it.
  void drop(std::string why);

  Tcp::socket socket;
  std::string name;
  bool has_proved = false;  ///< That it knows the secret.
  std::string dropped_because;
};

struct ReceptionOptions {
  Tcp::endpoint place;      ///< Where to listen; port 0: any that is free.
  std::string place_given;  ///< As the user gave it, for sentences.
  Credentials own;
  std::uint32_t waiting_max = 64;  ///< Connections without a proof; beyond, the oldest is dropped.
  std::chrono::milliseconds proof_time_max{5000};
  /// Told of each refusal as `Refusals` passes it on.
  std::function<void(const std::string& sentence)> on_refused{};
};

/// Listens, has visitors prove that they know the secret, and hands over those who do. Nothing
/// waits for a stranger. Everything but construction and `open` runs on the loop's thread.
class Reception {
public:
  /// Deals with a visitor who has proved to know the secret: answers it, and takes its socket out
  /// of the visitor or fails with the rest of a sentence that begins with its name. The time for
  /// the proof runs on until then. Both arguments live until the returned coroutine ends.
  using Admit = std::function<boost::asio::awaitable<Expected<Done>>(Visitor& visitor,
                                                                     const Greetings& greetings)>;

  Reception(boost::asio::io_context& io, ReceptionOptions options, Admit admit);
  Reception(const Reception&) = delete;
  Reception& operator=(const Reception&) = delete;

  /// Begins to listen, and to receive once the loop runs. Fails with `invalid_config`.
  Expected<Done> open();

  /// Drops all visitors and takes no more.
  void close();

  [[nodiscard]] Tcp::endpoint place() const noexcept { return place_; }
  [[nodiscard]] bool is_closed() const noexcept { return is_closed_; }

private:
  using VisitorPtr = std::shared_ptr<Visitor>;

  boost::asio::awaitable<void> receive_visitors();
  void receive(VisitorPtr visitor);
  boost::asio::awaitable<void> examine_visitor(VisitorPtr visitor);
  boost::asio::awaitable<Expected<Done>> admit(Visitor& visitor);
  void refuse(const Visitor& visitor, const std::string& reason);
  [[nodiscard]] std::string here() const { return "port " + std::to_string(place_.port()); }

  boost::asio::io_context& io_;
  const ReceptionOptions options_;
  Admit admit_;
  Refusals refusals_;
  Tcp::acceptor acceptor_;
  boost::asio::steady_timer pause_;
  Tcp::endpoint place_;
  bool is_closed_ = false;
  std::list<VisitorPtr> waiting_;  ///< The oldest first.
};

}  // namespace troupe::transport
