#include "door_port.hpp"

#include <exception>
#include <memory>
#include <utility>
#include <vector>

#include <caf/detail/socket_guard.hpp>
#include <caf/io/all.hpp>
#include <caf/io/basp_broker.hpp>
#include <caf/io/network/default_multiplexer.hpp>
#include <caf/io/network/doorman_impl.hpp>
#include <caf/io/network/stream_impl.hpp>
#include <caf/openssl/session.hpp>
#include <openssl/err.h>
#include <sys/socket.h>

#include "troupe/transport/gate.hpp"
#include "troupe/transport/refusals.hpp"

// CAF's own TLS listener is not used: docs/gotchas/caf-tls-failures-spread.md. Its sessions are.

namespace troupe::actors {

namespace {

using caf::io::network::default_multiplexer;
using caf::io::network::native_socket;
using caf::io::network::rw_state;

/// Shared by the listener and its connections; all of them live on CAF's thread.
using SharedRefusals = std::shared_ptr<transport::Refusals>;

void refuse(const SharedRefusals& refusals, const std::string& sentence) {
  refusals->note(sentence, transport::Refusals::Clock::now());
}

void refuse_tls(const SharedRefusals& refusals, const std::string& why) {
  refuse(refusals, "a node was let in, but no TLS came about: " + why
                       + "; see its certificate, and compare both clocks");
}

std::string last_tls_error() {
  const char* reason = ::ERR_reason_error_string(::ERR_peek_last_error());
  return reason == nullptr ? "the connection ended" : reason;
}

/// Moves bytes through a TLS session. OpenSSL takes an error that an earlier call has left on the
/// thread, of whatever connection, for one of this call.
class TlsStream {
public:
  TlsStream(caf::openssl::session_ptr session, SharedRefusals refusals)
      : session_{std::move(session)}, refusals_{std::move(refusals)} {}

  rw_state read_some(std::size_t& count, native_socket socket, void* bytes, std::size_t size) {
    ::ERR_clear_error();
    const auto state = session_->read_some(count, socket, bytes, size);
    if (state == rw_state::failure && !has_received_) refuse_tls(refusals_, last_tls_error());
    has_received_ = has_received_ || count > 0;
    return state;
  }

  rw_state write_some(std::size_t& count, native_socket socket, const void* bytes,
                      std::size_t size) {
    ::ERR_clear_error();
    return session_->write_some(count, socket, bytes, size);
  }

  [[nodiscard]] bool must_read_more(native_socket socket, std::size_t threshold) {
    return session_->must_read_more(socket, threshold);
  }

private:
  caf::openssl::session_ptr session_;
  SharedRefusals refusals_;
  bool has_received_ = false;
};

/// A node's connection. It is silent until the node has said something under TLS: what is waiting
/// to be written before the handshake is over would keep CAF's thread busy, which then tries
/// without a pause. Handshakes are answered while reading.
class TlsConnection final : public caf::io::scribe {
public:
  TlsConnection(default_multiplexer& multiplexer, native_socket socket, TlsStream stream)
      : scribe{caf::io::network::conn_hdl_from_socket(socket)},
        stream_{multiplexer, socket, std::move(stream)} {}

  void configure_read(caf::io::receive_policy::config config) override {
    stream_.configure_read(config);
    if (!std::exchange(is_started_, true)) stream_.start(this);
  }
  bool consume(caf::execution_unit* unit, const void* bytes, std::size_t size) override {
    has_received_ = true;
    const bool goes_on = scribe::consume(unit, bytes, size);
    if (goes_on) flush();
    return goes_on;
  }
  void flush() override {
    if (has_received_) stream_.flush(this);
  }
  void graceful_shutdown() override {
    stream_.graceful_shutdown();
    detach(&stream_.backend(), false);
  }

  void ack_writes(bool enable) override { stream_.ack_writes(enable); }
  std::vector<char>& wr_buf() override { return stream_.wr_buf(); }
  std::vector<char>& rd_buf() override { return stream_.rd_buf(); }
  void add_to_loop() override { stream_.activate(this); }
  void remove_from_loop() override { stream_.passivate(); }
  [[nodiscard]] std::string addr() const override {
    const auto address = caf::io::network::remote_addr_of_fd(stream_.fd());
    return address ? *address : "";
  }
  [[nodiscard]] std::uint16_t port() const override {
    const auto port = caf::io::network::remote_port_of_fd(stream_.fd());
    return port ? *port : std::uint16_t{0};
  }

private:
  caf::io::network::stream_impl<TlsStream> stream_;
  bool is_started_ = false;
  bool has_received_ = false;
};

/// Whether a peer has gone before it said anything.
bool has_left(native_socket socket) {
  char byte = 0;
  const auto count = ::recv(socket, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  return count == 0 || (count < 0 && errno != EAGAIN);
}

class DoorPort final : public caf::io::network::doorman_impl {
public:
  DoorPort(default_multiplexer& multiplexer, native_socket socket, SharedRefusals refusals)
      : doorman_impl{multiplexer, socket}, refusals_{std::move(refusals)} {}

  bool new_connection() override {
    if (detached()) return false;
    const auto socket = acceptor_.accepted_socket();
    if (!transport::is_from_this_process(socket)) {
      if (!has_left(socket)) {  // As the gate's own may have.
        refuse(refusals_, "a program of this machine went round the gate, to port "
                              + std::to_string(port())
                              + ": it was not heard; nodes connect to the port of --listen");
      }
      caf::io::network::close_socket(socket);
      return false;
    }
    if (!parent()->system().has_openssl_manager()) return doorman_impl::new_connection();
    return new_tls_connection(socket);
  }

private:
  /// CAF reads the certificate's files anew for each session, and throws if it cannot.
  bool new_tls_connection(native_socket socket) {
    caf::detail::socket_guard guard{socket};
    caf::io::network::nonblocking(socket, true);
    std::string why;
    caf::openssl::session_ptr session;
    ::ERR_clear_error();
    try {
      session = caf::openssl::make_session(parent()->system(), socket, true);
      if (!session) why = last_tls_error();
    } catch (const std::exception& error) {
      why = error.what() + std::string{" ("} + last_tls_error() + ")";
    }
    if (!session) {
      refuse_tls(refusals_, why);
      return false;
    }
    auto& multiplexer = acceptor_.backend();
    auto connection = caf::make_counted<TlsConnection>(multiplexer, socket,
                                                       TlsStream{std::move(session), refusals_});
    guard.release();
    const auto handle = connection->hdl();
    parent()->add_scribe(std::move(connection));
    return doorman::new_connection(&multiplexer, handle);
  }

  SharedRefusals refusals_;
};

}  // namespace

Expected<std::uint16_t> publish_behind_gate(
    caf::actor_system& system, const DoorHandle& door,
    std::function<void(const std::string& sentence)> on_refused) {
  const auto socket = caf::io::network::new_tcp_acceptor_impl(0, "127.0.0.1", false);
  if (!socket) {
    return Error{Errc::internal,
                 "CAF cannot listen on 127.0.0.1: " + system.render(socket.error())};
  }
  auto& multiplexer = dynamic_cast<default_multiplexer&>(system.middleman().backend());
  caf::io::doorman_ptr listener = caf::make_counted<DoorPort>(
      multiplexer, *socket, std::make_shared<transport::Refusals>(std::move(on_refused)));
  const auto port = listener->port();
  const auto broker = system.middleman().named_broker<caf::io::basp_broker>(caf::atom("BASP"));
  caf::anon_send(broker, caf::publish_atom_v, std::move(listener), port,
                 caf::actor_cast<caf::strong_actor_ptr>(door), system.message_types(door));
  return port;
}

}  // namespace troupe::actors
