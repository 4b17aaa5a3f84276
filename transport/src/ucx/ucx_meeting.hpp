// transport/src/ucx/ucx_meeting.hpp -- where fabrics get to know each other, and find out that one
// has died.
//
//   guest  -- proof of the secret, as at a gate -->  host        gate/hello.hpp
//   guest  <-- proof, as a gate's ---------------->  host
//   guest  -- card ------------------------------->  host        which connects to its worker,
//   guest  <-- card -------------------------------  host        and only then answers
//
// Then both keep the connection and say nothing on it. The operating system ends it when either
// process dies, which UCX notices late over shared memory, or not at all
// (docs/gotchas/ucx-does-not-notice-the-dead.md).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "gate/dial.hpp"
#include "gate/reception.hpp"
#include "ucx/ucx_address.hpp"
#include "ucx/ucx_card.hpp"

namespace troupe::transport {

/// Between two fabrics.
struct UcxAcquaintance {
  explicit UcxAcquaintance(Tcp::socket connection) : socket{std::move(connection)} {}
  Tcp::socket socket;
};
using UcxAcquaintancePtr = std::shared_ptr<UcxAcquaintance>;

/// Called on the loop's thread, also while another thread drives UCX: post, and return.
class UcxMeetingPlace {
public:
  /// A guest has introduced itself: `greet` or `part` from it.
  virtual void on_guest(UcxCard card, UcxAcquaintancePtr guest) = 0;
  /// The fabric that was visited has answered.
  virtual void on_host(UcxCard card, UcxAcquaintancePtr host) = 0;
  /// A visit to the fabric `number` has failed; `why` as the rest of a sentence after "the process
  /// ... is lost: ".
  virtual void on_miss(std::uint64_t number, std::string why) = 0;
  /// The connection with the fabric `number` has ended; `why` as above.
  virtual void on_end(std::uint64_t number, UcxAcquaintancePtr acquaintance, std::string why) = 0;

protected:
  ~UcxMeetingPlace() = default;
};

struct UcxMeetingOptions {
  SocketAddress place;  ///< Where to listen; port 0.
  std::string secret;
  std::function<void(const std::string& sentence)> on_refused{};
};

/// Any thread may call `visit`, `greet` and `part` while the loop runs; they return at once.
class UcxMeeting {
public:
  UcxMeeting(boost::asio::io_context& io, UcxMeetingOptions options, UcxMeetingPlace& place);

  /// Begins to listen. Fails with `invalid_config`.
  Expected<Done> open();

  [[nodiscard]] SocketAddress address() const;

  /// Introduces this fabric to the one at `address`, with `own` as its card.
  void visit(const UcxAddress& address, UcxCard own);

  /// Answers a guest of the fabric `number` with `own`, and keeps the connection.
  void greet(UcxAcquaintancePtr guest, std::uint64_t number, UcxCard own);

  /// Ends the connection.
  void part(UcxAcquaintancePtr acquaintance);

  /// Ends everything, when the loop runs no more.
  void close();

private:
  boost::asio::awaitable<Expected<Done>> admit(Visitor& visitor, const Greetings& greetings);
  boost::asio::awaitable<void> answer(UcxAcquaintancePtr guest, std::uint64_t number, UcxCard own);
  boost::asio::awaitable<void> introduce(UcxAddress address, UcxCard own);
  boost::asio::awaitable<Expected<Done>> show_card(UcxAcquaintancePtr host,
                                                   const Destination& destination,
                                                   const UcxAddress& address, const UcxCard& own);
  boost::asio::awaitable<void> watch(UcxAcquaintancePtr acquaintance, std::uint64_t number);
  UcxAcquaintancePtr keep(Tcp::socket socket);
  static void close(UcxAcquaintance& acquaintance);

  boost::asio::io_context& io_;
  UcxMeetingPlace& place_;
  const Credentials own_;
  Reception reception_;
  std::vector<std::weak_ptr<UcxAcquaintance>> kept_;
};

}  // namespace troupe::transport
