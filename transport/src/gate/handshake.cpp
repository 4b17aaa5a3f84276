#include "gate/handshake.hpp"

#include <boost/asio/buffer.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>

namespace troupe::transport {

using boost::asio::awaitable;
using boost::asio::redirect_error;
using boost::asio::use_awaitable;

namespace {

const std::string tls_options = "--tls-certificate, --tls-key and --tls-authority";

struct Received {
  Hello hello;
  HelloBytes bytes{};
};

Error broken_off(const Failure& failure) {
  const bool ended = failure == boost::asio::error::eof;
  return {Errc::peer_unreachable, ended ? std::string{"closed the connection too early"}
                                        : "broke off: " + failure.message()};
}

/// Receives a hello, and stops at the first byte that cannot belong to one.
awaitable<Expected<Received>> receive_hello(Tcp::socket& peer) {
  Received received;
  std::size_t size_bytes = 0;
  for (;;) {
    Failure failure;
    const auto free = boost::asio::buffer(received.bytes) + size_bytes;
    size_bytes += co_await peer.async_read_some(free, redirect_error(use_awaitable, failure));
    if (failure) co_return broken_off(failure);
    auto hello = read_hello(std::span{received.bytes}.first(size_bytes));
    if (!hello) co_return hello.error();
    if (!hello->has_value()) continue;
    received.hello = **hello;
    co_return received;
  }
}

template <std::size_t size_bytes>
awaitable<Expected<Done>> send(Tcp::socket& peer, const std::array<std::byte, size_bytes>& bytes) {
  Failure failure;
  co_await boost::asio::async_write(peer, boost::asio::buffer(bytes),
                                    redirect_error(use_awaitable, failure));
  if (failure) co_return broken_off(failure);
  co_return Done{};
}

template <std::size_t size_bytes>
awaitable<Expected<Done>> receive(Tcp::socket& peer, std::array<std::byte, size_bytes>& bytes) {
  Failure failure;
  co_await boost::asio::async_read(peer, boost::asio::buffer(bytes),
                                   redirect_error(use_awaitable, failure));
  if (failure) co_return broken_off(failure);
  co_return Done{};
}

Expected<HelloBytes> make_hello(const Credentials& own) {
  Hello hello;
  hello.version = own.version;
  hello.tls_authority = own.tls_authority;
  if (const auto drawn = draw(hello.nonce); !drawn) return drawn.error();
  return write_hello(hello);
}

/// Whether one of the two wants links, and the other a director.
bool is_elsewhere(const Hello& hello, const Credentials& own) {
  return hello.version.starts_with(links_prefix) != own.version.starts_with(links_prefix);
}

bool speaks_as(const Hello& hello, const Credentials& own) {
  return hello.protocol == gate_protocol && hello.version == own.version;
}

std::string title(const Credentials& own) {
  return "the " + std::string{own.host_title} + " at ";
}

/// What a node reads if it does not speak TLS as its director does.
Expected<Done> compare_as_node(const Hello& gate, const Credentials& own,
                               const std::string& gate_name) {
  if (gate.tls_authority == own.tls_authority) return Done{};
  const auto director = "the director at " + gate_name;
  if (own.tls_authority == no_tls) {
    return Error{Errc::invalid_config,
                 director + " wants TLS, and this node has no certificate: give it " + tls_options};
  }
  if (gate.tls_authority == no_tls) {
    return Error{Errc::invalid_config, director + " runs without TLS, and this node with it: give "
                                           + tls_options + " to both or to neither"};
  }
  return Error{Errc::invalid_config, director
                                         + " trusts another TLS authority than this node: give "
                                           "both the same file as --tls-authority"};
}

/// What the director logs in that case.
Expected<Done> compare_as_gate(const Hello& node, const Credentials& own) {
  if (node.tls_authority == own.tls_authority) return Done{};
  if (node.tls_authority == no_tls) {
    return Error{Errc::invalid_config,
                 "runs troupe without TLS, this director with it: give the node " + tls_options};
  }
  if (own.tls_authority == no_tls) {
    return Error{Errc::invalid_config, "runs troupe with TLS, this director without: give "
                                           + tls_options + " to both or to neither"};
  }
  return Error{Errc::invalid_config,
               "runs troupe with another TLS authority than this director: give both the same "
               "file as --tls-authority"};
}

/// What a node makes of a gate's answer.
Expected<Done> judge(const AnswerBytes& bytes, const Credentials& own, const Greetings& greetings,
                     const std::string& gate_name) {
  const auto answer = read_answer(bytes);
  if (!answer) {
    return Error{Errc::invalid_config, gate_name + " " + answer.error().context
                                           + ": it is no gate of troupe; check host and port"};
  }
  switch (answer->verdict) {
    case Verdict::wrong_secret:
      return Error{
          Errc::invalid_config,
          title(own) + gate_name + " has another secret than this node: give both the same file"};
    case Verdict::full:
      return Error{
          Errc::peer_unreachable,
          title(own) + gate_name + " has admitted as many connections as it may: raise its limit"};
    case Verdict::not_ready:
      return Error{Errc::peer_unreachable,
                   title(own) + gate_name
                       + " lets this node in, but is not listening for it yet: see its log"};
    case Verdict::admitted:
      break;
  }
  if (is_same(answer->proof, prove(Role::gate, own.secret, greetings))) return Done{};
  return Error{Errc::invalid_config,
               gate_name + " lets this node in but does not know the secret itself: "
                           "it is not this run's "
                           + own.host_title + "; check host and port"};
}

}  // namespace

Expected<Done> check(const Credentials& own) {
  if (own.secret.size() < secret_min_bytes || own.secret.size() > secret_max_bytes) {
    return Error{Errc::invalid_config, "the secret of a run must have "
                                           + std::to_string(secret_min_bytes) + " to "
                                           + std::to_string(secret_max_bytes) + " bytes, and has "
                                           + std::to_string(own.secret.size())};
  }
  if (is_version(own.version)) return Done{};
  return Error{Errc::invalid_config,
               "the version '" + own.version + "' must be 1 to 32 printable characters, no space"};
}

awaitable<Expected<Greetings>> examine(Tcp::socket& node, const Credentials& own) {
  auto theirs = co_await receive_hello(node);
  if (!theirs) co_return theirs.error();
  auto ours = make_hello(own);
  if (!ours) co_return ours.error();
  auto sent = co_await send(node, *ours);
  if (!sent) co_return sent.error();
  if (is_elsewhere(theirs->hello, own)) {
    co_return Error{Errc::invalid_config,
                    "came to the wrong port: see which one it was told to join"};
  }
  if (!speaks_as(theirs->hello, own)) {
    co_return Error{Errc::invalid_config, "runs troupe " + theirs->hello.version + ", this "
                                              + own.host_title + " " + own.version
                                              + ": install the same version on every node"};
  }
  if (auto equal = compare_as_gate(theirs->hello, own); !equal) co_return equal.error();
  const Greetings greetings{.node = theirs->bytes, .gate = *ours};
  Proof proof{};
  auto received = co_await receive(node, proof);
  if (!received) co_return received.error();
  if (is_same(proof, prove(Role::node, own.secret, greetings))) co_return greetings;
  // Whether the node hears of it changes nothing here.
  co_await answer(node, own, greetings, Verdict::wrong_secret);
  co_return Error{Errc::invalid_config, "runs troupe with another secret than this "
                                            + std::string{own.host_title}
                                            + ": give both the same file"};
}

awaitable<Expected<Done>> answer(Tcp::socket& node, const Credentials& own,
                                 const Greetings& greetings, Verdict verdict) {
  Answer answer;
  answer.verdict = verdict;
  if (verdict == Verdict::admitted) answer.proof = prove(Role::gate, own.secret, greetings);
  const auto bytes = write_answer(answer);
  co_return co_await send(node, bytes);
}

awaitable<Expected<Done>> enter(Tcp::socket& gate, const Credentials& own,
                                const std::string& gate_name) {
  auto ours = make_hello(own);
  if (!ours) co_return ours.error();
  const auto named = [&gate_name](const Error& error) {
    if (error.code == Errc::peer_unreachable) {
      return Error{error.code, gate_name + " " + error.context};
    }
    return Error{Errc::invalid_config, gate_name + " " + error.context
                                           + ": it is no gate of troupe; check host and port"};
  };
  auto sent = co_await send(gate, *ours);
  if (!sent) co_return named(sent.error());
  auto theirs = co_await receive_hello(gate);
  if (!theirs) co_return named(theirs.error());
  if (is_elsewhere(theirs->hello, own)) {
    co_return Error{Errc::invalid_config, gate_name + " is a port for links, not the director's: "
                                                      "check host and port"};
  }
  if (!speaks_as(theirs->hello, own)) {
    co_return Error{Errc::invalid_config, title(own) + gate_name + " runs troupe "
                                              + theirs->hello.version + ", this node " + own.version
                                              + ": install the same version on every node"};
  }
  if (auto equal = compare_as_node(theirs->hello, own, gate_name); !equal) {
    co_return equal.error();
  }
  const Greetings greetings{.node = *ours, .gate = theirs->bytes};
  const auto proof = prove(Role::node, own.secret, greetings);
  sent = co_await send(gate, proof);
  if (!sent) co_return named(sent.error());
  AnswerBytes bytes{};
  auto received = co_await receive(gate, bytes);
  if (!received) co_return named(received.error());
  co_return judge(bytes, own, greetings, gate_name);
}

}  // namespace troupe::transport
