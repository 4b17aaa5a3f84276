#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <future>
#include <numeric>
#include <optional>
#include <string>
#include <thread>

#include <dlfcn.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "troupe/engine/random.hpp"

#include "../scope.hpp"
#include "ucx/ucx_address.hpp"
#include "ucx/ucx_endpoint.hpp"
#include "ucx/ucx_meeting.hpp"
#include "ucx/ucx_reader.hpp"
#include "ucx_world.hpp"
#include "wire.hpp"

namespace troupe::transport {

INSTANTIATE_TYPED_TEST_SUITE_P(UcxSharedMemory, LinkConformance, UcxWorld<true>);
INSTANTIATE_TYPED_TEST_SUITE_P(UcxTcp, LinkConformance, UcxWorld<false>);

template <class World>
class UcxLinks : public testing::Test {
protected:
  TestArena arena_;
  World world_;
};
using UcxWorlds = testing::Types<UcxWorld<true>, UcxWorld<false>>;
TYPED_TEST_SUITE(UcxLinks, UcxWorlds);

TYPED_TEST(UcxLinks, CarriesEverySmallSizeAndTheEdgesOfUcxsProtocols) {
  std::vector<std::size_t> sizes(400);
  std::iota(sizes.begin(), sizes.end(), 0);
  for (const std::size_t edge : {1024U, 8185U, 8256U, 20553U, 65536U}) {
    for (std::size_t size = edge - 64; size < edge + 64; ++size) sizes.push_back(size);
  }
  auto [left, right] = this->world_.make_link();
  for (const auto size : sizes) {
    TestArena arena;
    std::optional<Delivery> sent, received;
    right->post_receive(Tag{size}, arena.make(size, 2), into(received));
    left->post_send(Tag{size}, arena.make(size, 1), into(sent));
    this->world_.progress_until([&] { return sent && received; });
    ASSERT_EQ(sent->code, Errc::none) << size;
    ASSERT_EQ(received->code, Errc::none) << size;
    ASSERT_TRUE(TestArena::holds(received->buffer, 1)) << size;
  }
}

/// Posts `count` sends of `size` bytes whose tags count from 0.
void send_all(Link& link, TestArena& arena, std::vector<std::optional<Delivery>>& sent,
              std::size_t size) {
  for (std::size_t i = 0; i < sent.size(); ++i) {
    link.post_send(Tag{i}, arena.make(size, static_cast<std::uint8_t>(i)), into(sent[i]));
  }
}

bool all_done(const std::vector<std::optional<Delivery>>& slots) {
  return std::ranges::all_of(slots, [](const auto& slot) { return slot.has_value(); });
}

TYPED_TEST(UcxLinks, KeepsWhatComesBeforeTheOtherEndIsMade) {
  auto& [lanes, left, right] = this->world_;
  for (const std::size_t size : {16U, 1U << 20U}) {
    std::vector<std::optional<Delivery>> sent(8), received(8);
    const auto early = link_to(*left, right->address(), ++lanes);
    send_all(*early, this->arena_, sent, size);
    // A transfer on another lane, after which the early ones must have come.
    auto [here, there] = this->world_.make_link();
    std::optional<Delivery> a, b;
    here->post_send(Tag{1}, this->arena_.make(8, 1), into(a));
    there->post_receive(Tag{1}, this->arena_.make(8, 2), into(b));
    this->world_.progress_until([&] { return a && b; });
    const auto late = link_to(*right, left->address(), lanes - 1);
    for (std::size_t i = received.size(); i-- > 0;) {
      late->post_receive(Tag{i}, this->arena_.make(size, 255), into(received[i]));
    }
    this->world_.progress_until([&] { return all_done(sent) && all_done(received); });
    for (std::size_t i = 0; i < received.size(); ++i) {
      EXPECT_TRUE(TestArena::holds(received[i]->buffer, static_cast<std::uint8_t>(i))) << i;
    }
  }
}

TYPED_TEST(UcxLinks, RefusesWhatIsTooMuchToKeepForALaneNobodyHasMade) {
  auto& [lanes, left, right] = this->world_;
  std::vector<std::optional<Delivery>> sent(ucx_unclaimed_messages_max + 2);
  const auto link = link_to(*left, right->address(), ++lanes);
  send_all(*link, this->arena_, sent, 8);
  const auto refused = [&] {
    return std::ranges::count_if(
        sent, [](const auto& slot) { return slot && slot->code == Errc::out_of_memory; });
  };
  this->world_.progress_until([&] { return refused() == 2; });
  EXPECT_EQ(right->counters().refused, 2U);
  link->close();
  EXPECT_TRUE(all_done(sent));
  EXPECT_EQ(refused(), 2);
}

TYPED_TEST(UcxLinks, ReportsASizeThatDiffersToBothEndsOfALargeTransfer) {
  auto [left, right] = this->world_.make_link();
  std::optional<Delivery> sent, received;
  left->post_send(Tag{3}, this->arena_.make(1U << 20U, 1), into(sent));
  right->post_receive(Tag{3}, this->arena_.make(1U << 21U, 2), into(received));
  this->world_.progress_until([&] { return sent && received; });
  EXPECT_EQ(sent->code, Errc::message_truncated);
  EXPECT_EQ(received->code, Errc::message_truncated);
}

TYPED_TEST(UcxLinks, ClosingALaneWithALargeSendThatNobodyFetchesReturns) {
  auto [left, right] = this->world_.make_link();
  std::optional<Delivery> sent;
  left->post_send(Tag{3}, this->arena_.make(1U << 22U, 1), into(sent));
  left->close();
  ASSERT_TRUE(sent.has_value());
  EXPECT_EQ(sent->code, Errc::cancelled);
}

TYPED_TEST(UcxLinks, AFabricThatEndsCancelsItsPeersOperationsAndIsNotMourned) {
  int mourned = 0;
  UcxOptions options;
  options.shared_memory = std::is_same_v<TypeParam, UcxWorld<true>>;
  options.on_peer_lost = [&](const std::string&, const std::string&) { ++mourned; };
  std::optional<Delivery> waiting, mine;
  std::unique_ptr<Link> link, other_end;
  {
    auto fabric = make_fabric(options);
    auto& left = this->world_.left;
    link = link_to(*fabric, left->address(), 1);
    other_end = link_to(*left, fabric->address(), 1);
    other_end->post_receive(Tag{1}, this->arena_.make(8, 1), into(waiting));
    link->post_receive(Tag{1}, this->arena_.make(8, 1), into(mine));
    left.reset();
    this->world_.progress_until([&] { return waiting && mine; });
  }
  EXPECT_EQ(waiting->code, Errc::cancelled);
  EXPECT_EQ(mine->code, Errc::cancelled);
  EXPECT_EQ(mourned, 0);
  std::optional<Delivery> late;
  link->post_send(Tag{2}, this->arena_.make(8, 1), into(late));
  ASSERT_TRUE(late.has_value()) << "a link outlives its fabric";
  EXPECT_EQ(late->code, Errc::cancelled);
}

TYPED_TEST(UcxLinks, APeerThatIsNotThereIsUnreachable) {
  const auto address = this->world_.right->address();
  this->world_.right.reset();
  const auto link = link_to(*this->world_.left, address, 1);
  std::optional<Delivery> sent, received;
  link->post_send(Tag{1}, this->arena_.make(8, 1), into(sent));
  link->post_receive(Tag{1}, this->arena_.make(8, 1), into(received));
  this->world_.progress_until([&] { return sent && received; });
  EXPECT_EQ(sent->code, Errc::peer_unreachable);
  EXPECT_EQ(received->code, Errc::peer_unreachable);
}

/// A visit to a fabric by somebody who is none.
struct Introduced {
  std::unique_ptr<boost::asio::io_context> io = std::make_unique<boost::asio::io_context>();
  std::unique_ptr<UcxMeeting> meeting;
  UcxCard card;  ///< The fabric's.
  UcxAcquaintancePtr host;
};

Introduced introduce(const std::string& fabric, const UcxCard& own) {
  struct Place final : UcxMeetingPlace {
    void on_guest(UcxCard, UcxAcquaintancePtr) override {}
    void on_host(UcxCard card, UcxAcquaintancePtr host) override {
      introduced.card = std::move(card);
      introduced.host = std::move(host);
    }
    void on_miss(std::uint64_t, std::string why) override { ADD_FAILURE() << why; }
    void on_end(std::uint64_t, UcxAcquaintancePtr, std::string why) override {
      ADD_FAILURE() << why;
    }
    Introduced introduced;
  } place;
  auto& introduced = place.introduced;
  introduced.meeting = std::make_unique<UcxMeeting>(
      *introduced.io,
      UcxMeetingOptions{.place = *address_of_interface("lo"), .secret = secret_of_tests}, place);
  introduced.meeting->visit(*parse_ucx_address(fabric), own);
  constexpr std::chrono::seconds guard{60};
  while (introduced.host == nullptr && !testing::Test::HasFailure()) {
    if (introduced.io->run_one_for(guard) == 0) ADD_FAILURE() << "nobody answers the visit";
  }
  return std::move(place.introduced);
}

/// A peer played by hand, which has visited `fabric`.
class Stranger final : UcxInbox {
public:
  static constexpr std::uint64_t number = 4711;

  struct Message {
    UcxHeader header;
    std::optional<UcxHeader> verdict;  ///< That travels along.
    std::vector<std::byte> bytes;
  };

  Stranger(UcxFabric& fabric, bool shared_memory, const MemoryKey& memory = {}) {
    UcxOptions options;
    options.shared_memory = shared_memory;
    auto context = UcxContext::make(settings_for(options)).value();
    worker_ = UcxWorker::make(std::move(context), *this, events_).value();
    card_ = {number, memory, *worker_->address()};
    introduced_ = visit(fabric);
    const auto& there = introduced_.card.address;
    endpoint_ = UcxEndpoint::connect(*worker_, there, [](ucs_status_t) {}).value();
  }
  ~Stranger() {
    endpoint_.reset();
    worker_.reset();
    close(events_);
  }

  /// By which the fabric makes links to it. Nobody visits it there.
  static std::string address() {
    auto place = address_of_interface("lo").value();
    place.set_port(1);
    return to_text({.fabric = number, .socket = place});
  }

  /// Once more.
  [[nodiscard]] Introduced visit(UcxFabric& fabric) const {
    return introduce(fabric.address(), card_);
  }
  /// Ends the connection of the first visit.
  void hang_up() { introduced_.host->socket.close(); }

  /// By which it reads the fabric's memory.
  [[nodiscard]] const MemoryKey& key() const { return introduced_.card.memory; }

  void send(std::span<const std::byte> header, std::span<std::byte> bytes = {}) {
    struct Sent final : UcxCompletion {
      void completed(ucs_status_t) override { is_sent = true; }
      bool is_sent = false;
    } sent;
    endpoint_->send(header, {bytes.data(), bytes.size()}, sent);
    progress_until([&] { return sent.is_sent; });
  }
  void send(UcxHeader header, std::span<std::byte> bytes = {}) {
    header.from = number;
    send(write_header(header), bytes);
  }
  void offer(std::uint64_t lane, Tag tag, UcxOffer offer) {
    auto bytes = write_offer(offer);
    send({.kind = UcxMessage::offer, .lane = lane, .tag = tag}, bytes);
  }

  /// What a fabric does as well, so that each sends what it holds.
  void greet() {
    send({.kind = UcxMessage::hello});
    receive(UcxMessage::hello);
    send({.kind = UcxMessage::welcome});
  }

  /// Waits for the next message.
  Message receive() {
    progress_until([&] { return !received_.empty(); });
    auto first = std::move(received_.front());
    received_.erase(received_.begin());
    return first;
  }
  /// Waits for one of that kind, and forgets what came before.
  Message receive(UcxMessage kind) {
    for (;;) {
      if (auto message = receive(); message.header.kind == kind) return message;
    }
  }

  template <class Condition>
  void progress_until(Condition condition) {
    while (!condition()) worker_->progress();
  }

private:
  bool take_in(std::span<const std::byte> header, const UcxArrival& arrival) override {
    const auto* bytes = static_cast<const std::byte*>(arrival.handle);
    const auto headers = read_headers(header).value();
    received_.push_back({headers.message, headers.verdict, {bytes, bytes + arrival.kept_bytes()}});
    return false;
  }

  int events_ = epoll_create1(EPOLL_CLOEXEC);
  std::vector<Message> received_;
  std::unique_ptr<UcxWorker> worker_;
  UcxCard card_;
  Introduced introduced_;
  std::unique_ptr<UcxEndpoint> endpoint_;
};

TYPED_TEST(UcxLinks, GarbageIsCountedAndDropped) {
  auto [here, there] = this->world_.make_link();
  auto& fabric = *this->world_.left;
  {
    Stranger stranger{fabric, std::is_same_v<TypeParam, UcxWorld<true>>};
    constexpr std::uint64_t seed = 99;
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random{seed};
    std::uint64_t count = 0;
    for (int i = 0; i < 64; ++i, ++count) {
      auto header = write_header({.from = Stranger::number, .lane = 1, .tag = Tag{1}});
      header[random.below(8)] ^= std::byte{0x80};
      stranger.send(header);
    }
    stranger.send(write_header({.from = Stranger::number + 1}));    // Not one of its peers.
    stranger.offer(1, Tag{1}, {.address = 4096, .size_bytes = 1});  // It showed no memory.
    count += 2;
    stranger.progress_until([&] { return fabric.counters().garbage == count; });
  }
  std::optional<Delivery> a, b;
  here->post_send(Tag{1}, this->arena_.make(8, 1), into(a));
  there->post_receive(Tag{1}, this->arena_.make(8, 2), into(b));
  this->world_.progress_until([&] { return a && b; });
  EXPECT_EQ(b->code, Errc::none);
}

/// Of messages that are answered, and a peer by hand. Their completions answer, which no user's
/// may: it stands for one who is told, and gets the core at once.
TYPED_TEST(UcxLinks, AVerdictTravelsWithTheAnswer) {
  auto& fabric = *this->world_.left;
  Stranger stranger{fabric, std::is_same_v<TypeParam, UcxWorld<true>>};
  const auto link = link_to(fabric, Stranger::address(), 1);
  stranger.greet();
  std::byte byte{};
  for (std::uint64_t tag = 1; tag <= 3; ++tag) {
    std::optional<Delivery> sent;
    link->post_receive_to_answer(Tag{tag}, this->arena_.make(1, 0), [&](Delivery) {
      link->post_send(Tag{tag}, this->arena_.make(8, 1), into(sent));
    });
    (void)fabric.transports_to(Stranger::address());  // The receive is posted.
    stranger.send({.lane = 1, .tag = Tag{tag}}, {&byte, 1});
    const auto answer = stranger.receive();
    ASSERT_EQ(answer.header.kind, UcxMessage::data) << "the verdict came by itself";
    ASSERT_TRUE(answer.verdict);
    EXPECT_EQ(answer.verdict->tag, Tag{tag});
    EXPECT_EQ(answer.verdict->code, Errc::none);
    stranger.send({.kind = UcxMessage::settled, .lane = 1, .tag = Tag{tag}});
    ASSERT_TRUE(Outcomes::wait_until([&] { return sent.has_value(); }));
  }
}

TYPED_TEST(UcxLinks, AVerdictDoesNotWaitForAnAnswerThatDoesNotCome) {
  auto& fabric = *this->world_.left;
  Stranger stranger{fabric, std::is_same_v<TypeParam, UcxWorld<true>>};
  const auto link = link_to(fabric, Stranger::address(), 1);
  stranger.greet();
  std::optional<Delivery> first, second, too_long, late, answer;
  link->post_receive_to_answer(Tag{1}, this->arena_.make(1, 0), into(first));
  link->post_receive_to_answer(Tag{2}, this->arena_.make(1, 0), into(second));
  link->post_receive_to_answer(Tag{3}, this->arena_.make(1, 0), into(too_long));
  std::array<std::byte, 2> bytes{};
  stranger.send({.lane = 1, .tag = Tag{1}}, std::span{bytes}.first(1));
  stranger.send({.lane = 1, .tag = Tag{2}}, std::span{bytes}.first(1));
  stranger.send({.lane = 1, .tag = Tag{3}}, bytes);
  stranger.send({.lane = 1, .tag = Tag{4}}, std::span{bytes}.first(1));
  std::vector<UcxHeader> verdicts;
  while (verdicts.size() < 3) {
    const auto message = stranger.receive();
    ASSERT_EQ(message.header.kind, UcxMessage::settled);
    if (message.verdict) verdicts.push_back(*message.verdict);
    verdicts.push_back(message.header);
  }
  std::ranges::sort(verdicts, {}, &UcxHeader::tag);
  for (std::size_t i = 0; i < verdicts.size(); ++i) {
    EXPECT_EQ(verdicts[i].tag, Tag{i + 1});
    EXPECT_EQ(verdicts[i].code, i < 2 ? Errc::none : Errc::message_truncated);
  }
  // What has come already is settled by who posts the receive: the fabric's thread sleeps.
  std::this_thread::sleep_for(std::chrono::milliseconds{20});
  link->post_receive_to_answer(Tag{4}, this->arena_.make(1, 0), into(late));
  link->post_send(Tag{5}, this->arena_.make(1, 0), into(answer));
  EXPECT_EQ(stranger.receive().header.tag, Tag{4}) << "the verdict has waited";
  EXPECT_FALSE(stranger.receive().verdict);
  stranger.send({.kind = UcxMessage::settled, .lane = 1, .tag = Tag{5}});
  ASSERT_TRUE(Outcomes::wait_until([&] { return answer.has_value(); }));
  ASSERT_TRUE(Outcomes::wait_until([&] { return first && second && too_long && late; }));
}

TYPED_TEST(UcxLinks, AVerdictThatTravelsAlongSettlesWhatItIsAbout) {
  auto& fabric = *this->world_.left;
  Stranger stranger{fabric, std::is_same_v<TypeParam, UcxWorld<true>>};
  const auto link = link_to(fabric, Stranger::address(), 1);
  stranger.greet();
  std::optional<Delivery> sent, received;
  link->post_receive(Tag{1}, this->arena_.make(1, 0), into(received));
  link->post_send(Tag{1}, this->arena_.make(8, 1), into(sent));
  stranger.receive(UcxMessage::data);
  UcxEnvelope envelope{{.from = Stranger::number, .lane = 1, .tag = Tag{1}}};
  envelope.add({.kind = UcxMessage::settled,
                .code = Errc::message_truncated,
                .from = Stranger::number,
                .lane = 1,
                .tag = Tag{1}});
  std::byte byte{};
  stranger.send(envelope.bytes(), {&byte, 1});
  ASSERT_TRUE(Outcomes::wait_until([&] { return sent && received; }));
  EXPECT_EQ(sent->code, Errc::message_truncated);
  EXPECT_EQ(received->code, Errc::none);
}

TYPED_TEST(UcxLinks, AreClosedOnceTheCompletionsOfAnotherThreadHaveRun) {
  auto [left, right] = this->world_.make_link();
  std::promise<void> entered;
  std::atomic<bool> ended = false;
  std::optional<Delivery> sent;
  right->post_receive(Tag{1}, this->arena_.make(8, 2), [&](Delivery) {
    entered.set_value();
    std::this_thread::sleep_for(std::chrono::milliseconds{50});  // So that `close` comes meanwhile.
    ended = true;
  });
  std::thread sending{
      [&, link = left.get()] { link->post_send(Tag{1}, this->arena_.make(8, 1), into(sent)); }};
  entered.get_future().wait();
  right->close();
  EXPECT_TRUE(ended);
  sending.join();
}

/// As after both have visited each other at once.
TYPED_TEST(UcxLinks, APeerIsLostWithTheLastConnectionOnWhichItWasMet) {
  auto& fabric = *this->world_.left;
  Stranger stranger{fabric, std::is_same_v<TypeParam, UcxWorld<true>>};
  auto second = stranger.visit(fabric);
  const auto link = link_to(fabric, Stranger::address(), 1);
  std::optional<Delivery> received;
  link->post_receive(Tag{1}, this->arena_.make(8, 1), into(received));
  stranger.hang_up();
  auto third = stranger.visit(fabric);  // Until then the fabric has seen the first end.
  ASSERT_FALSE(this->HasFailure());
  EXPECT_FALSE(received);
  second.host->socket.close();
  third.host->socket.close();
  ASSERT_TRUE(Outcomes::wait_until([&] { return received.has_value(); })) << "nobody was told";
  EXPECT_EQ(received->code, Errc::peer_unreachable);
}

TEST(UcxFabric, AVisitThatFailsHurtsNoConnectionThatStands) {
  std::vector<std::string> lost;
  UcxOptions options;
  options.on_peer_lost = [&](const std::string& peer, const std::string&) { lost.push_back(peer); };
  const auto left = make_fabric(options);
  const auto right = make_fabric(/*shared_memory=*/true);
  auto silent = std::make_unique<Server>();
  auto misled = *parse_ucx_address(right->address());
  misled.socket.set_port(silent->port());
  const auto link = link_to(*left, to_text(misled), 1);
  const auto other_end = link_to(*right, left->address(), 1);
  TestArena arena;
  const auto carries = [&](Tag tag) {
    std::optional<Delivery> sent, received;
    link->post_send(tag, arena.make(8, 1), into(sent));
    other_end->post_receive(tag, arena.make(8, 2), into(received));
    EXPECT_TRUE(Outcomes::wait_until([&] { return sent && received; }));
    return sent->code == Errc::none && received->code == Errc::none;
  };
  EXPECT_TRUE(carries(Tag{1})) << "the other's visit has connected them";
  // Whom nobody can reach is told of after the visit that began before.
  silent.reset();
  const auto nobody = to_text({Stranger::number, misled.socket});
  const auto unreachable = link_to(*left, nobody, 1);
  std::optional<Delivery> missed;
  unreachable->post_receive(Tag{1}, arena.make(8, 2), into(missed));
  ASSERT_TRUE(Outcomes::wait_until([&] { return missed.has_value(); }));
  EXPECT_EQ(lost, std::vector{nobody});
  EXPECT_TRUE(carries(Tag{2}));
}

// -- messages that are read out of the sender's memory --------------------------------------------

constexpr std::size_t large_bytes = std::size_t{3} << 20U;

struct Fetched final : UcxCompletion {
  void completed(ucs_status_t status) override { outcome = status; }
  std::optional<ucs_status_t> outcome;
};

TEST(UcxReader, ReadsAPieceARoundTheOldestMessageFirst) {
  TestArena arena;
  const MemoryConsent consent;
  UcxReader reader;
  reader.open(consent.key());
  const auto source = arena.make(UcxReader::piece_bytes + 1, 1);
  const auto target = arena.make(UcxReader::piece_bytes + 1, 2);
  const auto address = reinterpret_cast<std::uintptr_t>(source.data());
  Fetched first, second;
  reader.fetch(address, target.view(), first);
  reader.fetch(address, {target.data(), 1}, second);
  EXPECT_TRUE(reader.progress());
  EXPECT_FALSE(first.outcome.has_value());
  EXPECT_TRUE(reader.progress());
  EXPECT_EQ(first.outcome, UCS_OK);
  EXPECT_TRUE(TestArena::holds(target, 1));
  EXPECT_FALSE(second.outcome.has_value());
  EXPECT_TRUE(reader.progress());
  EXPECT_EQ(second.outcome, UCS_OK);
  EXPECT_FALSE(reader.progress());
}

TEST(UcxReader, CompletesWhatIsNotReadAsCancelled) {
  TestArena arena;
  const MemoryConsent consent;
  UcxReader reader;
  reader.open(consent.key());
  const auto bytes = arena.make(2 * UcxReader::piece_bytes, 1);
  Fetched first, second;
  for (auto* fetched : {&first, &second}) {
    reader.fetch(reinterpret_cast<std::uintptr_t>(bytes.data()), bytes.view(), *fetched);
  }
  reader.progress();
  reader.cancel();
  EXPECT_EQ(first.outcome, UCS_ERR_CANCELED);
  EXPECT_EQ(second.outcome, UCS_ERR_CANCELED);
  EXPECT_FALSE(reader.has_in_flight());
}

/// A fabric, and a peer by hand that shows its memory.
class UcxOffers : public testing::Test {
protected:
  /// Makes a link to the peer, which then says that it reads.
  std::unique_ptr<Link> link_to_reader() {
    auto link = link_to(*fabric_, Stranger::address(), lane_);
    stranger_.greet();
    stranger_.send({.kind = UcxMessage::reader});
    // The note and this come in order.
    std::optional<Delivery> received;
    link->post_receive(Tag{99}, arena_.make(1, 0), into(received));
    std::byte byte{};
    stranger_.send({.lane = lane_, .tag = Tag{99}}, {&byte, 1});
    stranger_.receive(UcxMessage::settled);
    EXPECT_TRUE(Outcomes::wait_until([&] { return received.has_value(); }));
    return link;
  }

  /// Returns what the fabric says of its large message.
  UcxOffer receive_offer() { return *read_offer(stranger_.receive(UcxMessage::offer).bytes); }

  /// Returns when the fabric has done what it was asked to.
  void let_fabric_finish() { (void)fabric_->transports_to(Stranger::address()); }

  const std::uint64_t lane_ = 5;
  TestArena arena_;
  std::unique_ptr<UcxFabric> fabric_ = make_fabric(/*shared_memory=*/true);
  MemoryConsent consent_;
  Stranger stranger_{*fabric_, true, consent_.key()};
  std::optional<Delivery> sent_, received_;
};

TEST_F(UcxOffers, AreReadOutOfTheSendersMemoryAndSettled) {
  const auto link = link_to_reader();
  auto source = arena_.make(large_bytes, 1);
  link->post_receive(Tag{1}, arena_.make(large_bytes, 2), into(received_));
  stranger_.offer(
      lane_, Tag{1},
      {.address = reinterpret_cast<std::uintptr_t>(source.data()), .size_bytes = large_bytes});
  EXPECT_EQ(stranger_.receive(UcxMessage::settled).header.code, Errc::none);
  ASSERT_TRUE(Outcomes::wait_until([&] { return received_.has_value(); }));
  EXPECT_TRUE(TestArena::holds(received_->buffer, 1));
}

TEST(UcxFabric, SaysThatItReadsBeforeAnythingElseIfItIsAbleTo) {
  for (const bool is_able : {true, false}) {
    const auto fabric = make_fabric(/*shared_memory=*/true);
    const MemoryConsent consent;
    auto key = consent.key();
    if (!is_able) ++key.number[0];
    Stranger stranger{*fabric, true, key};
    const auto link = link_to(*fabric, Stranger::address(), 1);
    TestArena arena;
    std::optional<Delivery> sent;
    link->post_send(Tag{1}, arena.make(1, 1), into(sent));
    stranger.greet();
    EXPECT_EQ(stranger.receive().header.kind, is_able ? UcxMessage::reader : UcxMessage::data);
    fabric->give_up(Stranger::address(), "it does not answer");
  }
}

TEST_F(UcxOffers, OfWhomNobodyReadsAreNotMade) {
  const auto link = link_to(*fabric_, Stranger::address(), lane_);
  stranger_.greet();
  link->post_send(Tag{1}, arena_.make(large_bytes, 1), into(sent_));
  EXPECT_EQ(stranger_.receive(UcxMessage::data).header.tag, Tag{1});
}

TEST_F(UcxOffers, AMalformedOneIsGarbage) {
  const auto link = link_to_reader();
  stranger_.offer(lane_, Tag{1}, {.address = 4096});
  std::array<std::byte, 17> bytes{};
  for (const std::size_t size : {0U, 1U, 15U, 17U}) {
    stranger_.send({.kind = UcxMessage::offer, .lane = lane_}, std::span{bytes}.first(size));
  }
  std::vector<std::byte> large(large_bytes);
  stranger_.send({.kind = UcxMessage::offer, .lane = lane_}, large);
  stranger_.progress_until([&] { return fabric_->counters().garbage == 6; });
}

TEST_F(UcxOffers, OfAnotherSizeOrOfNoMemoryFailOnBothEnds) {
  const auto link = link_to_reader();
  const auto take = [&](Tag tag, UcxOffer offer) {
    received_.reset();
    link->post_receive(tag, arena_.make(large_bytes, 2), into(received_));
    stranger_.offer(lane_, tag, offer);
    const auto told = stranger_.receive(UcxMessage::settled).header.code;
    EXPECT_TRUE(Outcomes::wait_until([&] { return received_.has_value(); }));
    EXPECT_EQ(received_->code, told);
    return told;
  };
  EXPECT_EQ(take(Tag{1}, {.address = 4096, .size_bytes = large_bytes - 1}),
            Errc::message_truncated);
  EXPECT_EQ(take(Tag{2}, {.address = 4096, .size_bytes = large_bytes}), Errc::peer_unreachable);
}

TEST_F(UcxOffers, WhoseSenderNoLongerConsentsFail) {
  const auto link = link_to_reader();
  auto source = arena_.make(large_bytes, 1);
  consent_.withdraw();
  stranger_.offer(
      lane_, Tag{1},
      {.address = reinterpret_cast<std::uintptr_t>(source.data()), .size_bytes = large_bytes});
  link->post_receive(Tag{1}, arena_.make(large_bytes, 2), into(received_));
  EXPECT_EQ(stranger_.receive(UcxMessage::settled).header.code, Errc::peer_unreachable);
}

TEST_F(UcxOffers, ThatWaitAreRefusedWhenTheirReceiverClosesAndAfterThat) {
  const auto link = link_to_reader();
  stranger_.offer(lane_, Tag{1}, {.address = 4096, .size_bytes = 4096});
  std::byte byte{};
  link->post_receive(Tag{2}, arena_.make(1, 0), into(received_));
  stranger_.send({.lane = lane_, .tag = Tag{2}}, {&byte, 1});
  stranger_.receive(UcxMessage::settled);  // So the offer has come too.
  ASSERT_TRUE(Outcomes::wait_until([&] { return received_.has_value(); }));
  link->close();
  stranger_.offer(lane_, Tag{3}, {.address = 4096, .size_bytes = 4096});
  for (const auto tag : {Tag{1}, Tag{3}}) {
    const auto header = stranger_.receive(UcxMessage::settled).header;
    EXPECT_EQ(header.tag, tag);
    EXPECT_EQ(header.code, Errc::cancelled);
  }
}

TEST_F(UcxOffers, KeepTheBufferOfAClosedLinkUntilThePeerHasSettled) {
  auto link = link_to_reader();
  link->post_send(Tag{1}, arena_.make(large_bytes, 1), into(sent_));
  const auto offer = receive_offer();
  std::thread closing{[&] { link->close(); }};
  stranger_.receive(UcxMessage::closed);
  let_fabric_finish();
  EXPECT_FALSE(Outcomes::is_there(sent_)) << "the peer may be reading it";
  auto target = arena_.make(large_bytes, 2);
  EXPECT_TRUE(read_memory(stranger_.key(), offer.address, target.view()));
  EXPECT_TRUE(TestArena::holds(target, 1));
  stranger_.send({.kind = UcxMessage::settled, .lane = lane_, .tag = Tag{1}});
  closing.join();
  ASSERT_TRUE(sent_.has_value());
  EXPECT_EQ(sent_->code, Errc::cancelled);
}

TEST_F(UcxOffers, AreSettledAlsoByAPeerThatHasSaidGoodbye) {
  const auto link = link_to_reader();
  link->post_send(Tag{1}, arena_.make(large_bytes, 1), into(sent_));
  (void)receive_offer();
  stranger_.send({.kind = UcxMessage::goodbye});
  stranger_.receive(UcxMessage::goodbye);
  let_fabric_finish();
  EXPECT_FALSE(Outcomes::is_there(sent_)) << "the peer may be reading it";
  stranger_.send({.kind = UcxMessage::settled, .lane = lane_, .tag = Tag{1}});
  ASSERT_TRUE(Outcomes::wait_until([&] { return sent_.has_value(); }));
  EXPECT_EQ(sent_->code, Errc::cancelled);
}

TEST_F(UcxOffers, GiveTheBufferBackWhenThePeerIsLostWhoCanThenReadNoMore) {
  const auto link = link_to_reader();
  link->post_send(Tag{1}, arena_.make(large_bytes, 1), into(sent_));
  const auto offer = receive_offer();
  std::byte byte{};
  EXPECT_TRUE(read_memory(stranger_.key(), offer.address, {&byte, 1}));
  fabric_->give_up(Stranger::address(), "its heartbeat stopped");
  ASSERT_TRUE(Outcomes::wait_until([&] { return sent_.has_value(); }));
  EXPECT_EQ(sent_->code, Errc::peer_unreachable);
  EXPECT_FALSE(read_memory(stranger_.key(), offer.address, {&byte, 1}));
}

TEST_F(UcxOffers, DoNotKeepAFabricWhosePeerSaysNothing) {
  const auto link = link_to_reader();
  link->post_send(Tag{1}, arena_.make(large_bytes, 1), into(sent_));
  (void)receive_offer();
  fabric_.reset();
  ASSERT_TRUE(sent_.has_value());
  EXPECT_EQ(sent_->code, Errc::cancelled);
}

/// Two fabrics that read each other's memory.
class UcxFabricsThatRead : public testing::Test {
protected:
  UcxFabricsThatRead() {
    // Behind it comes whatever the fabrics say when they have met.
    const auto [left, right] = world_.make_link();
    for (auto* link : {left.get(), right.get()}) {
      auto* const other = link == left.get() ? right.get() : left.get();
      std::optional<Delivery> sent, received;
      link->post_send(Tag{1}, arena_.make(1, 1), into(sent));
      other->post_receive(Tag{1}, arena_.make(1, 1), into(received));
      world_.progress_until([&] { return sent && received; });
    }
  }

  TestArena arena_;
  UcxWorld<true> world_;
};

TEST_F(UcxFabricsThatRead, SaySo) {
  for (const auto& [one, other] : {std::pair{world_.left.get(), world_.right.get()},
                                   {world_.right.get(), world_.left.get()}}) {
    const auto names = one->transports_to(other->address());
    EXPECT_NE(std::ranges::find(names, "process_vm_readv"), names.end());
  }
}

TEST_F(UcxFabricsThatRead, CloseWhateverIsUnderWayOnEitherEnd) {
  constexpr std::uint64_t seed = 4;
  SCOPED_TRACE("seed " + std::to_string(seed));
  Random random{seed};
  for (int round = 0; round < scope(50, 20); ++round) {
    auto [left, right] = world_.make_link();
    std::vector<std::optional<Delivery>> outcomes(8);
    for (std::size_t i = 0; i < outcomes.size(); i += 2) {
      auto* const sender = i % 4 == 0 ? left.get() : right.get();
      auto* const receiver = i % 4 == 0 ? right.get() : left.get();
      sender->post_send(Tag{i}, arena_.make(large_bytes / 8, 1), into(outcomes[i]));
      receiver->post_receive(Tag{i}, arena_.make(large_bytes / 8, 2), into(outcomes[i + 1]));
    }
    const auto done = random.below(outcomes.size());
    world_.progress_until([&] {
      return std::ranges::count_if(outcomes, [](const auto& o) { return o.has_value(); })
             >= static_cast<std::ptrdiff_t>(done);
    });
    std::thread closing{[&] { left->close(); }};
    right->close();
    closing.join();
    ASSERT_TRUE(all_done(outcomes));
    for (std::size_t i = 0; i < outcomes.size(); ++i) {
      EXPECT_TRUE(outcomes[i]->code == Errc::none || outcomes[i]->code == Errc::cancelled);
    }
  }
}

TEST_F(UcxFabricsThatRead, CloseALaneThatTheOtherEndNeverMade) {
  const auto link = link_to(*world_.left, world_.right->address(), ++world_.lanes);
  std::optional<Delivery> sent;
  link->post_send(Tag{1}, arena_.make(large_bytes, 1), into(sent));
  link->close();
  ASSERT_TRUE(sent.has_value());
  EXPECT_EQ(sent->code, Errc::cancelled);
}

TEST(UcxFabric, ALinkToItselfIsRefused) {
  auto fabric = make_fabric(/*shared_memory=*/true);
  const auto link = fabric->make_link(fabric->address(), 1);
  ASSERT_FALSE(link);
  EXPECT_EQ(link.error().context, "a link from " + fabric->address()
                                      + " to itself: both ends of a lane in one process are what "
                                        "make_in_process_link is for");
}

TEST(UcxFabric, SaysWhichTransportsItUses) {
  UcxWorld<true> shared_memory;
  UcxWorld<false> tcp;
  const auto a = shared_memory.make_link();
  const auto b = tcp.make_link();
  const auto has = [](const std::vector<std::string>& names, const std::string& name) {
    return std::ranges::find(names, name) != names.end();
  };
  EXPECT_TRUE(has(shared_memory.left->transports_offered(), "posix/memory"));
  EXPECT_FALSE(has(tcp.left->transports_offered(), "posix/memory"));
  EXPECT_TRUE(has(tcp.left->transports_offered(), "tcp/lo"));
  std::optional<Delivery> sent, received;
  TestArena arena;
  b.first->post_send(Tag{1}, arena.make(8, 1), into(sent));
  b.second->post_receive(Tag{1}, arena.make(8, 2), into(received));
  tcp.progress_until([&] { return sent && received; });
  EXPECT_EQ(tcp.left->transports_to(tcp.right->address()), std::vector<std::string>{"tcp/lo"});
  EXPECT_TRUE(tcp.left->transports_to(shared_memory.left->address()).empty());
}

TEST(UcxFabric, LeavesSignalsToTheProgram) {
  const auto fabric = make_fabric(/*shared_memory=*/true);
  for (const int number : {SIGHUP, SIGSEGV}) {
    struct sigaction action {};
    sigaction(number, nullptr, &action);
    Dl_info where{};
    const auto* handler = reinterpret_cast<void*>(action.sa_handler);
    const bool known = handler != nullptr && dladdr(handler, &where) != 0;
    EXPECT_TRUE(!known || std::string{where.dli_fname}.find("libucs") == std::string::npos);
  }
}

}  // namespace troupe::transport
