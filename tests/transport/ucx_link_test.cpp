#include <algorithm>
#include <csignal>
#include <numeric>
#include <string>

#include <dlfcn.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "troupe/engine/random.hpp"

#include "ucx/ucx_address.hpp"
#include "ucx/ucx_endpoint.hpp"
#include "ucx/ucx_meeting.hpp"
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

/// Somebody of whom fabrics think that it is one.
class Stranger {
public:
  explicit Stranger(bool shared_memory) {
    UcxOptions options;
    options.shared_memory = shared_memory;
    context_ = UcxContext::make(settings_for(options)).value();
    worker_ = UcxWorker::make(context_, deaf_, events_).value();
  }
  ~Stranger() {
    worker_.reset();
    close(events_);
  }
  Stranger(const Stranger&) = delete;
  Stranger& operator=(const Stranger&) = delete;

  static constexpr std::uint64_t number = 4711;
  [[nodiscard]] UcxCard card() const { return {number, worker_->address().value()}; }
  UcxWorker& worker() { return *worker_; }

private:
  struct Deaf final : UcxInbox {
    bool take_in(std::span<const std::byte>, const UcxArrival&) override { return false; }
  };
  Deaf deaf_;
  int events_ = epoll_create1(EPOLL_CLOEXEC);
  std::shared_ptr<const UcxContext> context_;
  std::unique_ptr<UcxWorker> worker_;
};

TYPED_TEST(UcxLinks, GarbageIsCountedAndDropped) {
  auto [here, there] = this->world_.make_link();
  Stranger stranger{std::is_same_v<TypeParam, UcxWorld<true>>};
  const auto introduced = introduce(this->world_.left->address(), stranger.card());
  ASSERT_NE(introduced.host, nullptr);
  auto endpoint =
      UcxEndpoint::connect(stranger.worker(), introduced.card.address, [](ucs_status_t) {});
  ASSERT_TRUE(endpoint);
  struct Sent final : UcxCompletion {
    void completed(ucs_status_t) override { is_sent = true; }
    bool is_sent = false;
  };
  constexpr std::uint64_t seed = 99;
  SCOPED_TRACE("seed " + std::to_string(seed));
  Random random{seed};
  std::vector<UcxHeaderBytes> headers;
  for (int i = 0; i < 64; ++i) {
    headers.push_back(write_header({.from = Stranger::number, .lane = 1, .tag = Tag{1}}));
    headers.back()[random.below(8)] ^= std::byte{0x80};
  }
  headers.push_back(write_header({.from = Stranger::number + 1}));  // Not one of its peers.
  std::vector<Sent> sent(headers.size());
  (*endpoint)->send(headers.front(), {}, sent.front());
  while (this->world_.left->counters().garbage != 1) stranger.worker().progress();
  for (std::size_t i = 1; i < headers.size(); ++i) (*endpoint)->send(headers[i], {}, sent[i]);
  while (!std::ranges::all_of(sent, &Sent::is_sent)
         || this->world_.left->counters().garbage != headers.size()) {
    stranger.worker().progress();
  }
  endpoint->reset();
  std::optional<Delivery> a, b;
  here->post_send(Tag{1}, this->arena_.make(8, 1), into(a));
  there->post_receive(Tag{1}, this->arena_.make(8, 2), into(b));
  this->world_.progress_until([&] { return a && b; });
  EXPECT_EQ(b->code, Errc::none);
}

/// As after both have visited each other at once.
TYPED_TEST(UcxLinks, APeerIsLostWithTheLastConnectionOnWhichItWasMet) {
  auto& fabric = *this->world_.left;
  const Stranger stranger{std::is_same_v<TypeParam, UcxWorld<true>>};
  const auto meet = [&] { return introduce(fabric.address(), stranger.card()); };
  auto first = meet();
  auto second = meet();
  const auto any_socket = parse_ucx_address(this->world_.right->address())->socket;
  const auto link = link_to(fabric, to_text({Stranger::number, any_socket}), 1);
  std::optional<Delivery> received;
  link->post_receive(Tag{1}, this->arena_.make(8, 1), into(received));
  first.host->socket.close();
  auto third = meet();  // Until then the fabric has seen the first end.
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
