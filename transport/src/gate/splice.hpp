// transport/src/gate/splice.hpp -- two connections made one.
#pragma once

#include <memory>
#include <utility>

#include <boost/asio/awaitable.hpp>

#include "gate/socket.hpp"

namespace troupe::transport {

/// Carries bytes between two sockets, both ways, and each side's end to the other: the end of its
/// bytes as that, a broken connection as a broken one. Lives until both directions have ended. Used
/// by the loop's thread alone.
class Splice : public std::enable_shared_from_this<Splice> {
public:
  Splice(Tcp::socket one, Tcp::socket other) : one_{std::move(one)}, other_{std::move(other)} {}

  void start();

  /// Closes both. What is on its way may be lost.
  void close();

private:
  static boost::asio::awaitable<void> carry(std::shared_ptr<Splice> self, Tcp::socket& from,
                                            Tcp::socket& to);
  static boost::asio::awaitable<void> watch(std::shared_ptr<Splice> self, Tcp::socket& socket);
  void end_direction(Tcp::socket& to);
  void break_both();

  Tcp::socket one_;
  Tcp::socket other_;
  unsigned ended_directions_ = 0;
};

}  // namespace troupe::transport
