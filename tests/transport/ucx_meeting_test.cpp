// Meetings in one thread, whose loop the test turns; strangers speak through plain sockets.

#include "ucx/ucx_meeting.hpp"

#include <algorithm>
#include <functional>
#include <string>
#include <utility>  // Asio 1.74 needs it, and includes it not.
#include <vector>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <gtest/gtest.h>

#include "gate/dial.hpp"
#include "wire.hpp"

namespace troupe::transport {

UcxWorkerAddress worker_address(std::size_t size_bytes, std::uint8_t first) {
  UcxWorkerAddress address(size_bytes);
  for (auto& byte : address) byte = std::byte{first++};
  return address;
}

TEST(UcxCard, ReadsWhatItWrote) {
  for (const std::size_t size_bytes : {std::size_t{1}, std::size_t{300}, std::size_t{65535}}) {
    const UcxCard card{
        .number = 0x0123456789abcdef,
        .memory = {.process = 4711, .address = 0x1112131415161718, .number = {~0ULL, 2}},
        .address = worker_address(size_bytes, 7)};
    const auto bytes = write_card(card);
    auto read = read_card_head(std::span{bytes}.first<ucx_card_head_bytes>());
    ASSERT_TRUE(read);
    ASSERT_EQ(read->address.size(), size_bytes);
    std::copy(bytes.begin() + ucx_card_head_bytes, bytes.end(), read->address.begin());
    EXPECT_EQ(*read, card);
  }
}

TEST(UcxCard, WithoutAnAddressIsRefused) {
  const std::array<std::byte, ucx_card_head_bytes> head{};
  const auto card = read_card_head(head);
  ASSERT_FALSE(card);
  EXPECT_EQ(card.error().context, "sent the card of a fabric without a worker's address");
}

/// A meeting, and what it was told.
class Fabric final : public UcxMeetingPlace {
public:
  Fabric(boost::asio::io_context& io, std::uint64_t number,
         const std::string& secret = "which all fabrics know")
      : number_{number},
        meeting_{io,
                 {.place = *address_of_interface("lo"),
                  .secret = secret,
                  .on_refused = [this](const std::string& s) { refusals.push_back(s); }},
                 *this} {
    const auto opened = meeting_.open();
    if (!opened) ADD_FAILURE() << opened.error().context;
  }

  void on_guest(UcxCard card, UcxAcquaintancePtr guest) override {
    guests.push_back(card);
    acquaintances.push_back(guest);
    if (receives) meeting_.greet(guest, card.number, own());
  }
  void on_host(UcxCard card, UcxAcquaintancePtr host) override {
    hosts.push_back(std::move(card));
    acquaintances.push_back(std::move(host));
  }
  void on_miss(std::uint64_t number, std::string why) override {
    misses.push_back(std::to_string(number) + ": " + why);
  }
  void on_end(std::uint64_t number, UcxAcquaintancePtr, std::string why) override {
    ends.push_back(std::to_string(number) + ": " + why);
  }

  [[nodiscard]] UcxCard own() const { return {number_, {}, worker_address(100, 1)}; }
  [[nodiscard]] UcxAddress address() const { return {number_, meeting_.address()}; }
  [[nodiscard]] std::string port() const { return std::to_string(meeting_.address().port()); }
  UcxMeeting& meeting() { return meeting_; }

  bool receives = true;
  std::vector<UcxCard> guests, hosts;
  std::vector<UcxAcquaintancePtr> acquaintances;
  std::vector<std::string> misses, ends, refusals;

private:
  std::uint64_t number_;
  UcxMeeting meeting_;
};

class UcxMeetings : public testing::Test {
protected:
  void turn_until(const std::function<bool()>& condition) {
    constexpr std::chrono::seconds guard{60};
    while (!condition()) ASSERT_NE(io_.run_one_for(guard), 0U) << "nothing comes any more";
  }

  Tcp::socket connect_to(const Fabric& fabric) {
    Tcp::socket socket{io_};
    socket.connect(on_loopback(fabric.address().socket.port()));
    return socket;
  }

  boost::asio::io_context io_;
  Fabric one_{io_, 1};
  Fabric other_{io_, 2};
};

TEST_F(UcxMeetings, ExchangeCardsThenTellOfTheEnd) {
  one_.meeting().visit(other_.address(), one_.own());
  turn_until([&] { return !one_.hosts.empty(); });
  EXPECT_EQ(one_.hosts, std::vector{other_.own()});
  EXPECT_EQ(other_.guests, std::vector{one_.own()});
  one_.meeting().part(one_.acquaintances.front());
  turn_until([&] { return !other_.ends.empty() && !one_.ends.empty(); });
  EXPECT_EQ(other_.ends, std::vector<std::string>{"1: it closed its connection"});
}

TEST_F(UcxMeetings, ABrokenConnectionIsAnEnd) {
  one_.meeting().visit(other_.address(), one_.own());
  turn_until([&] { return !one_.hosts.empty(); });
  reset(one_.acquaintances.front()->socket);
  turn_until([&] { return !other_.ends.empty(); });
  EXPECT_EQ(other_.ends,
            std::vector<std::string>{"1: its connection broke: Connection reset by peer"});
}

TEST_F(UcxMeetings, BothMayVisitEachOtherAtOnce) {
  one_.meeting().visit(other_.address(), one_.own());
  other_.meeting().visit(one_.address(), other_.own());
  turn_until([&] { return !one_.hosts.empty() && !other_.hosts.empty(); });
  EXPECT_EQ(one_.guests, std::vector{other_.own()});
  EXPECT_EQ(other_.guests, std::vector{one_.own()});
}

TEST_F(UcxMeetings, NobodyAtTheAddressIsTold) {
  auto gone = std::make_unique<Fabric>(io_, 3);
  const auto address = gone->address();
  gone->meeting().close();
  io_.poll();
  gone.reset();
  one_.meeting().visit(address, one_.own());
  turn_until([&] { return !one_.misses.empty(); });
  EXPECT_EQ(one_.misses,
            std::vector<std::string>{"3: 127.0.0.1:" + std::to_string(address.socket.port())
                                     + " says Connection refused"});
}

TEST_F(UcxMeetings, AreClosedWithTheVisitsThatHaveNotBeenAnswered) {
  const Server silent;
  auto address = other_.address();
  address.socket.set_port(silent.port());
  one_.meeting().visit(address, one_.own());
  io_.poll();
  const auto visit = silent.accept();
  one_.meeting().close();
  io_.poll();
  EXPECT_EQ(visit.end(), "ended");
}

TEST_F(UcxMeetings, AnotherProcessAtTheAddressIsTold) {
  auto address = other_.address();
  address.fabric = 99;
  one_.meeting().visit(address, one_.own());
  turn_until([&] { return !one_.misses.empty(); });
  EXPECT_EQ(one_.misses, std::vector<std::string>{"99: another process has its address"});
}

TEST_F(UcxMeetings, WhoHasAnotherSecretIsSentAway) {
  Fabric stranger{io_, 3, "which only strangers know"};
  stranger.meeting().visit(other_.address(), stranger.own());
  turn_until([&] { return !stranger.misses.empty() && !other_.refusals.empty(); });
  EXPECT_EQ(stranger.misses, std::vector<std::string>{
                                 "2: the process at 127.0.0.1:" + other_.port()
                                 + " has another secret than this node: give both the same file"});
  EXPECT_EQ(other_.refusals,
            std::vector<std::string>{"127.0.0.1 runs troupe with another secret than this process: "
                                     "give both the same file"});
  EXPECT_TRUE(other_.guests.empty());
}

TEST_F(UcxMeetings, ZerosAndNoiseAreRefusedOnceEach) {
  for (int round = 0; round < 2; ++round) {
    for (const auto& bytes : {std::string(16, '\0'), std::string(17, '\0'),
                              std::string{"GET / HTTP/1.1\r\n\r\n"}, std::string{"troupe"}}) {
      auto socket = connect_to(other_);
      boost::asio::write(socket, boost::asio::buffer(bytes));
      socket.shutdown(Tcp::socket::shutdown_send);
      bool hung_up = false;
      char byte = 0;
      socket.async_read_some(boost::asio::buffer(&byte, 1),
                             [&](const Failure&, std::size_t) { hung_up = true; });
      turn_until([&] { return hung_up; });
    }
  }
  const auto only = " at port " + other_.port() + ": only nodes of troupe may connect there";
  EXPECT_EQ(other_.refusals,
            (std::vector<std::string>{
                "127.0.0.1 spoke an unknown protocol instead of troupe's greeting" + only,
                "127.0.0.1 spoke HTTP instead of troupe's greeting" + only,
                "127.0.0.1 closed the connection too early" + only}));
  EXPECT_TRUE(other_.guests.empty());
  one_.meeting().visit(other_.address(), one_.own());
  turn_until([&] { return !one_.hosts.empty(); });
}

/// Shows `card` to `host` with the right secret, then ends what it says.
void show(boost::asio::io_context& io, const Fabric& host, std::vector<std::byte> card) {
  const auto place = on_loopback(host.address().socket.port());
  boost::asio::co_spawn(
      io,
      [](boost::asio::io_context& loop, Tcp::endpoint to,
         std::vector<std::byte> bytes) -> boost::asio::awaitable<void> {
        const Credentials own{.secret = "which all fabrics know", .version = "links-3"};
        const Destination destination{to, "the host", {}};
        Tcp::socket socket{loop};
        const auto admitted = co_await dial(loop, socket, destination, own);
        EXPECT_TRUE(admitted);
        if (!admitted) co_return;
        boost::asio::write(socket, boost::asio::buffer(bytes));
        socket.shutdown(Tcp::socket::shutdown_send);
        char byte = 0;
        Failure ignored;
        co_await socket.async_read_some(
            boost::asio::buffer(&byte, 1),
            boost::asio::redirect_error(boost::asio::use_awaitable, ignored));
      }(io, place, std::move(card)),
      boost::asio::detached);
}

TEST_F(UcxMeetings, AGuestWithoutAWholeCardIsRefused) {
  auto half = write_card(one_.own());
  half.pop_back();
  show(io_, other_, half);
  show(io_, other_, {std::byte{1}});
  show(io_, other_, std::vector<std::byte>(ucx_card_head_bytes));
  turn_until([&] { return other_.refusals.size() == 3; });
  std::ranges::sort(other_.refusals);
  EXPECT_EQ(other_.refusals,
            (std::vector<std::string>{
                "127.0.0.1 has the secret but hung up instead of introducing itself",
                "127.0.0.1 has the secret but hung up while it introduced itself",
                "127.0.0.1 has the secret but sent the card of a fabric without a worker's address",
            }));
  EXPECT_TRUE(other_.guests.empty());
}

TEST_F(UcxMeetings, WhoComesToAGateInsteadIsToldSo) {
  const Credentials node{.secret = "which all fabrics know", .version = "0.1.0"};
  const auto place = on_loopback(other_.address().socket.port());
  std::string told;
  boost::asio::co_spawn(
      io_,
      [](boost::asio::io_context& loop, Tcp::endpoint to, const Credentials& own,
         std::string& sentence) -> boost::asio::awaitable<void> {
        const Destination destination{to, "the host", {}};
        Tcp::socket socket{loop};
        const auto admitted = co_await dial(loop, socket, destination, own);
        sentence = admitted ? "let in" : admitted.error().context;
      }(io_, place, node, told),
      boost::asio::detached);
  turn_until([&] { return !told.empty() && !other_.refusals.empty(); });
  EXPECT_EQ(told, "the host is a port for links, not the director's: check host and port");
  EXPECT_EQ(other_.refusals,
            std::vector<std::string>{
                "127.0.0.1 came to the wrong port: see which one it was told to join"});
}

TEST_F(UcxMeetings, WhatIsSaidAfterTheCardEndsTheAcquaintance) {
  auto card = write_card(one_.own());
  card.push_back(std::byte{1});
  show(io_, other_, card);
  turn_until([&] { return !other_.ends.empty(); });
  EXPECT_EQ(other_.ends, std::vector<std::string>{"1: it said something that nobody asked for"});
}

}  // namespace troupe::transport
