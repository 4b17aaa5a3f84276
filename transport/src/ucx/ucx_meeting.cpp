#include "ucx/ucx_meeting.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include <boost/asio/buffer.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>

namespace troupe::transport {

using boost::asio::awaitable;
using boost::asio::redirect_error;
using boost::asio::use_awaitable;

namespace {

/// In place of troupe's version, which nodes have compared at the gate: who connects to a fabric in
/// place of a gate, or the other way round, is told so.
const std::string protocol = std::string{links_prefix} + "3";

/// How long to visit again and again: a fabric that is stormed may drop a visitor unheard.
constexpr std::chrono::seconds patience{2};
constexpr std::chrono::milliseconds first_pause{10};
constexpr std::chrono::milliseconds longest_pause{320};

/// All fabrics of a run may come at the same time.
constexpr std::uint32_t waiting_max = 256;

/// How long a host may take from its proof to its card.
constexpr std::chrono::seconds card_time_max{5};

Tcp::endpoint to_endpoint(const SocketAddress& address) {
  Tcp::endpoint endpoint;
  std::memcpy(endpoint.data(), address.get(), address.size_bytes);
  endpoint.resize(address.size_bytes);
  return endpoint;
}

std::string name_of(const Tcp::endpoint& endpoint) {
  return to_text(to_text(endpoint.address()), endpoint.port());
}

awaitable<Expected<UcxCard>> receive_card(Tcp::socket& socket) {
  Failure failure;
  std::array<std::byte, ucx_card_head_bytes> head{};
  co_await boost::asio::async_read(socket, boost::asio::buffer(head),
                                   redirect_error(use_awaitable, failure));
  if (failure) co_return Error{Errc::peer_unreachable, "hung up instead of introducing itself"};
  auto card = read_card_head(head);
  if (!card) co_return card.error();
  co_await boost::asio::async_read(socket, boost::asio::buffer(card->address),
                                   redirect_error(use_awaitable, failure));
  if (failure) co_return Error{Errc::peer_unreachable, "hung up while it introduced itself"};
  co_return std::move(*card);
}

awaitable<Failure> send_card(Tcp::socket& socket, const UcxCard& card) {
  Failure failure;
  const auto bytes = write_card(card);
  co_await boost::asio::async_write(socket, boost::asio::buffer(bytes),
                                    redirect_error(use_awaitable, failure));
  co_return failure;
}

}  // namespace

UcxMeeting::UcxMeeting(boost::asio::io_context& io, UcxMeetingOptions options,
                       UcxMeetingPlace& place)
    : io_{io},
      place_{place},
      own_{.secret = std::move(options.secret), .version = protocol, .host_title = "process"},
      reception_{io,
                 {.place = to_endpoint(options.place),
                  .place_given = name_of(to_endpoint(options.place)),
                  .own = own_,
                  .waiting_max = waiting_max,
                  .on_refused = std::move(options.on_refused)},
                 [this](Visitor& visitor, const Greetings& greetings) {
                   return admit(visitor, greetings);
                 }} {}

Expected<Done> UcxMeeting::open() {
  if (auto checked = check(own_); !checked) return checked;
  return reception_.open();
}

SocketAddress UcxMeeting::address() const {
  const auto place = reception_.place();
  SocketAddress address;
  std::memcpy(&address.storage, place.data(), place.size());
  address.size_bytes = static_cast<socklen_t>(place.size());
  return address;
}

// -- as a host
// --------------------------------------------------------------------------------------

awaitable<Expected<Done>> UcxMeeting::admit(Visitor& visitor, const Greetings& greetings) {
  auto told = co_await transport::answer(visitor.socket, own_, greetings, Verdict::admitted);
  if (!told) co_return told;
  auto card = co_await receive_card(visitor.socket);
  if (!card) co_return Error{card.error().code, "has the secret but " + card.error().context};
  place_.on_guest(std::move(*card), keep(std::move(visitor.socket)));
  co_return Done{};
}

void UcxMeeting::greet(UcxAcquaintancePtr guest, std::uint64_t number, UcxCard own) {
  co_spawn(io_, answer(std::move(guest), number, std::move(own)), boost::asio::detached);
}

awaitable<void> UcxMeeting::answer(UcxAcquaintancePtr guest, std::uint64_t number, UcxCard own) {
  co_await send_card(guest->socket, own);  // Should it fail, the connection has ended.
  co_await watch(std::move(guest), number);
}

// -- as a guest
// -------------------------------------------------------------------------------------

void UcxMeeting::visit(const UcxAddress& address, UcxCard own) {
  co_spawn(io_, introduce(address, std::move(own)), boost::asio::detached);
}

awaitable<void> UcxMeeting::introduce(UcxAddress address, UcxCard own) {
  const auto deadline = std::chrono::steady_clock::now() + patience;
  const auto endpoint = to_endpoint(address.socket);
  const Destination destination{endpoint, name_of(endpoint), {}};
  boost::asio::steady_timer timer{io_};
  for (auto pause = first_pause; !reception_.is_closed();
       pause = std::min(2 * pause, longest_pause)) {
    const auto host = keep(Tcp::socket{io_});
    const auto admitted = co_await dial(io_, host->socket, destination, own_);
    if (admitted) {
      const auto met = co_await show_card(host, destination, address, own);
      if (met) co_return co_await watch(host, address.fabric);
      co_return place_.on_miss(address.fabric, met.error().context);
    }
    const auto& error = admitted.error();
    const bool is_over = std::chrono::steady_clock::now() + pause >= deadline;
    if (is_over || error.code != Errc::peer_unreachable) {
      co_return place_.on_miss(address.fabric, error.context);
    }
    Failure ignored;
    timer.expires_after(pause);
    co_await timer.async_wait(redirect_error(use_awaitable, ignored));
  }
}

/// Not to be tried again: the host may have connected.
awaitable<Expected<Done>> UcxMeeting::show_card(UcxAcquaintancePtr host,
                                                const Destination& destination,
                                                const UcxAddress& address, const UcxCard& own) {
  const Alarm alarm{io_, card_time_max, [&] { close(*host); }};
  co_await send_card(host->socket, own);
  auto card = co_await receive_card(host->socket);
  if (!card) co_return Error{card.error().code, destination.name + " " + card.error().context};
  if (card->number != address.fabric) {
    co_return Error{Errc::invalid_config, "another process has its address"};
  }
  place_.on_host(std::move(*card), std::move(host));
  co_return Done{};
}

// -- as either
// --------------------------------------------------------------------------------------

/// Ends with the connection, on which nothing is said any more.
awaitable<void> UcxMeeting::watch(UcxAcquaintancePtr acquaintance, std::uint64_t number) {
  prepare_to_carry(acquaintance->socket);
  Failure failure;
  std::array<std::byte, 1> byte{};
  co_await acquaintance->socket.async_read_some(boost::asio::buffer(byte),
                                                redirect_error(use_awaitable, failure));
  close(*acquaintance);
  std::string why = "it said something that nobody asked for";
  if (failure == boost::asio::error::eof) {
    why = "it closed its connection";
  } else if (failure) {
    why = "its connection broke: " + failure.message();
  }
  place_.on_end(number, std::move(acquaintance), std::move(why));
}

UcxAcquaintancePtr UcxMeeting::keep(Tcp::socket socket) {
  auto acquaintance = std::make_shared<UcxAcquaintance>(std::move(socket));
  std::erase_if(kept_, [](const auto& kept) { return kept.expired(); });
  kept_.push_back(acquaintance);
  return acquaintance;
}

void UcxMeeting::part(UcxAcquaintancePtr acquaintance) {
  boost::asio::post(io_, [acquaintance = std::move(acquaintance)] { close(*acquaintance); });
}

void UcxMeeting::close(UcxAcquaintance& acquaintance) {
  Failure ignored;
  acquaintance.socket.close(ignored);
}

void UcxMeeting::close() {
  reception_.close();
  for (const auto& kept : kept_) {
    if (const auto acquaintance = kept.lock()) close(*acquaintance);
  }
}

}  // namespace troupe::transport
