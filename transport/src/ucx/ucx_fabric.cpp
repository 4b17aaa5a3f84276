#include "troupe/transport/ucx_fabric.hpp"

#include <algorithm>
#include <future>
#include <random>
#include <thread>

#include <boost/asio/steady_timer.hpp>

#include "ucx/ucx_address.hpp"
#include "ucx/ucx_context.hpp"
#include "ucx/ucx_error.hpp"
#include "ucx/ucx_link.hpp"
#include "ucx/ucx_loop.hpp"
#include "ucx/ucx_meeting.hpp"
#include "ucx/ucx_peer.hpp"
#include "ucx/ucx_print.hpp"

namespace troupe::transport {

namespace {

/// How long a fabric that ends waits for its peers to say goodbye.
constexpr std::chrono::seconds farewell_max{1};

std::uint64_t draw_number() {
  std::random_device device;
  return (std::uint64_t{device()} << 32U) | device();
}

}  // namespace

/// Brings together the peers and the loop. Members belong to what the loop runs, except for those
/// that never change and `loop_`, through which everybody else speaks to it.
class UcxFabric::Impl final : UcxMeetingPlace,
                              UcxDriven,
                              public std::enable_shared_from_this<UcxFabric::Impl> {
public:
  static Expected<std::shared_ptr<Impl>> make(UcxOptions options);

  [[nodiscard]] const std::string& address() const noexcept { return address_; }
  [[nodiscard]] std::uint64_t number() const noexcept { return shared_->self; }
  [[nodiscard]] UcxCounters counters() const {
    return {.garbage = shared_->garbage, .refused = shared_->refused};
  }

  std::unique_ptr<Link> make_link(const UcxAddress& peer, std::string name, std::uint64_t lane);
  void give_up(std::uint64_t peer, std::string reason);
  std::vector<std::string> transports_to(std::uint64_t peer);
  std::string print_context();
  void shut_down();

private:
  explicit Impl(UcxOptions options) : options_{std::move(options)} {}
  Expected<Done> start();

  void on_guest(UcxCard card, UcxAcquaintancePtr guest) override;
  void on_host(UcxCard card, UcxAcquaintancePtr host) override;
  void on_miss(std::uint64_t number, std::string why) override;
  void on_end(std::uint64_t number, UcxAcquaintancePtr acquaintance, std::string why) override;

  bool progress() override;
  bool arm() override;
  bool leave() override;
  [[nodiscard]] bool awaits_answers() const override;
  [[nodiscard]] bool has_news() const override { return shared_->news.any(); }
  void tell() override { shared_->news.tell(); }

  /// Deals with connections that have failed. Returns whether there were any.
  bool deal_with_failures();
  void receive_guest(const UcxCard& card, UcxAcquaintancePtr guest);
  void join_host(const UcxCard& card, UcxAcquaintancePtr host);
  void visit(UcxPeer& peer, const UcxAddress& address);
  UcxLane& claim(const UcxAddress& address, const std::string& name, std::uint64_t lane);
  /// The peer's process is to blame.
  void lose(std::uint64_t number, const std::string& reason);
  /// This process is to blame.
  void fail_to_reach(std::uint64_t number, const Error& error);
  /// Ends everything with the peer and, if it was alive, has it told: `before`, its name, `after`.
  void end(std::uint64_t number, const std::string& before, const std::string& after);
  /// Once a link was made to the peer, whose name is not known before.
  void tell_of_end(std::uint64_t number);
  void say_goodbye();
  /// Whether nobody is left and nothing in flight, so that a fabric that leaves may end.
  [[nodiscard]] bool has_left();
  UcxPeer& peer_of(std::uint64_t number);

  /// Runs `ask` on the loop's thread and returns its answer.
  template <class Ask>
  auto answer(Ask ask);

  UcxOptions options_;
  std::string address_;
  std::shared_ptr<const UcxContext> context_;
  std::unique_ptr<UcxShared> shared_;
  std::map<std::uint64_t, UcxPeer> peers_;
  std::map<std::uint64_t, std::string> names_;  ///< Addresses of the peers that links were made to.
  std::map<std::uint64_t, std::pair<std::string, std::string>> untold_;  ///< Ends, by `end`.
  bool leaving_ = false;
  std::unique_ptr<UcxLoop> loop_;
  std::unique_ptr<UcxMeeting> meeting_;
  std::unique_ptr<boost::asio::steady_timer> farewell_;
  std::thread thread_;
};

// -- making
// -----------------------------------------------------------------------------------------

Expected<std::shared_ptr<UcxFabric::Impl>> UcxFabric::Impl::make(UcxOptions options) {
  std::shared_ptr<Impl> impl{new Impl{std::move(options)}};
  if (auto started = impl->start(); !started) return started.error();
  return impl;
}

Expected<Done> UcxFabric::Impl::start() {
  auto where = address_of_interface(options_.network_interface);
  if (!where) return where.error();
  release_signals();
  auto context = UcxContext::make(without_users_own(settings_for(options_)));
  if (!context) return context.error();
  context_ = std::move(*context);
  auto loop = UcxLoop::make(*this);
  if (!loop) return loop.error();
  loop_ = std::move(*loop);
  const auto number = draw_number();
  shared_ = std::make_unique<UcxShared>(context_, loop_->events(), number, options_.shared_memory);
  UcxMeetingOptions meeting{
      .place = *where, .secret = options_.secret, .on_refused = options_.on_refused};
  UcxMeetingPlace& place = *this;
  meeting_ = std::make_unique<UcxMeeting>(loop_->io(), std::move(meeting), place);
  if (auto opened = meeting_->open(); !opened) return opened.error();
  address_ = to_text({.fabric = number, .socket = meeting_->address()});
  farewell_ = std::make_unique<boost::asio::steady_timer>(loop_->io());
  thread_ = std::thread{[this] { loop_->run(); }};
  return Done{};
}

// -- from any thread
// --------------------------------------------------------------------------------

std::unique_ptr<Link> UcxFabric::Impl::make_link(const UcxAddress& peer, std::string name,
                                                 std::uint64_t lane) {
  struct Request {
    UcxAddress peer;
    std::string name;
    std::uint64_t lane;
  };
  auto link = std::make_unique<UcxLink>(std::shared_ptr<UcxLoop>{shared_from_this(), loop_.get()});
  auto request = std::make_unique<Request>(Request{peer, std::move(name), lane});
  loop_->post([this, link = link.get(), request = std::move(request)] {
    link->attach(claim(request->peer, request->name, request->lane));
  });
  return link;
}

void UcxFabric::Impl::give_up(std::uint64_t peer, std::string reason) {
  loop_->post([this, peer, reason = std::move(reason)] { lose(peer, reason); });
}

template <class Ask>
auto UcxFabric::Impl::answer(Ask ask) {
  std::promise<decltype(ask())> promise;
  auto future = promise.get_future();
  loop_->post([promise = std::move(promise), &ask]() mutable { promise.set_value(ask()); });
  return future.get();
}

std::vector<std::string> UcxFabric::Impl::transports_to(std::uint64_t peer) {
  return answer([this, peer] {
    const auto found = peers_.find(peer);
    if (found == peers_.end()) return std::vector<std::string>{};
    auto names = transports_in(found->second.print());
    if (found->second.is_readable()) names.emplace_back("process_vm_readv");
    return names;
  });
}

std::string UcxFabric::Impl::print_context() {
  return answer([this] { return context_->print(); });
}

void UcxFabric::Impl::shut_down() {
  loop_->post([this] { say_goodbye(); });
  thread_.join();
  meeting_->close();
  loop_->io().poll();  // Whoever waited for a connection hears that it is over.
  loop_->post([this] {
    for (auto& [number, peer] : peers_) peer.disconnect();
    context_.reset();
  });
  for (const auto& [number, peer] : peers_) peer.wait_until_told();  // By others who post.
}

// -- in the loop
// ------------------------------------------------------------------------------------

bool UcxFabric::Impl::progress() {
  bool progressed = false;
  for (auto& [number, peer] : peers_) {
    if (peer.progress()) progressed = true;
  }
  return deal_with_failures() || progressed;
}

bool UcxFabric::Impl::arm() {
  return std::ranges::all_of(peers_, [](auto& entry) { return entry.second.arm(); });
}

bool UcxFabric::Impl::leave() {
  bool begun = leaving_;
  for (auto& [number, peer] : peers_) {
    if (peer.take_begun()) begun = true;
  }
  return begun;
}

bool UcxFabric::Impl::awaits_answers() const {
  return std::ranges::any_of(peers_, [](const auto& entry) { return entry.second.keeps_back(); });
}

bool UcxFabric::Impl::deal_with_failures() {
  const auto failures = std::exchange(shared_->failures, {});
  for (const auto& [peer, status] : failures) {
    lose(peer, "UCX says '" + std::string{ucs_status_string(status)} + "'");
  }
  if (leaving_ && has_left()) loop_->stop();
  return !failures.empty();
}

UcxPeer& UcxFabric::Impl::peer_of(std::uint64_t number) {
  return peers_.try_emplace(number, *shared_, number).first->second;
}

void UcxFabric::Impl::on_guest(UcxCard card, UcxAcquaintancePtr guest) {
  loop_->post([this, card = std::make_unique<UcxCard>(std::move(card)),
               guest = std::move(guest)]() mutable { receive_guest(*card, std::move(guest)); });
}

void UcxFabric::Impl::on_host(UcxCard card, UcxAcquaintancePtr host) {
  loop_->post([this, card = std::make_unique<UcxCard>(std::move(card)),
               host = std::move(host)]() mutable { join_host(*card, std::move(host)); });
}

void UcxFabric::Impl::on_miss(std::uint64_t number, std::string why) {
  loop_->post([this, number, why = std::move(why)] {
    // Its own visit may have succeeded.
    if (!peer_of(number).is_connected()) lose(number, why);
  });
}

void UcxFabric::Impl::on_end(std::uint64_t number, UcxAcquaintancePtr acquaintance,
                             std::string why) {
  loop_->post([this, number, acquaintance = std::move(acquaintance), why = std::move(why)] {
    if (!peer_of(number).forget(acquaintance)) lose(number, why);
  });
}

void UcxFabric::Impl::receive_guest(const UcxCard& card, UcxAcquaintancePtr guest) {
  // Who leaves still lets those in whose answer to its goodbye may come this way.
  const bool is_late = leaving_ && !peers_.contains(card.number);
  if (is_late || card.number == shared_->self) return meeting_->part(std::move(guest));
  auto& peer = peer_of(card.number);
  if (peer.state() != UcxPeer::State::alive) return meeting_->part(std::move(guest));
  const auto own = peer.card();
  if (!own) return fail_to_reach(card.number, own.error());
  if (const auto done = peer.connect(card, guest); !done) {
    return fail_to_reach(card.number, done.error());
  }
  meeting_->greet(std::move(guest), card.number, *own);
}

void UcxFabric::Impl::join_host(const UcxCard& card, UcxAcquaintancePtr host) {
  auto& peer = peer_of(card.number);
  if (peer.state() != UcxPeer::State::alive) return meeting_->part(std::move(host));
  if (const auto done = peer.connect(card, std::move(host)); !done) {
    return fail_to_reach(card.number, done.error());
  }
  peer.greet();
}

void UcxFabric::Impl::visit(UcxPeer& peer, const UcxAddress& address) {
  auto own = peer.card();
  if (!own) return fail_to_reach(address.fabric, own.error());
  meeting_->visit(address, std::move(*own));
}

UcxLane& UcxFabric::Impl::claim(const UcxAddress& address, const std::string& name,
                                std::uint64_t lane) {
  auto& peer = peer_of(address.fabric);
  names_.try_emplace(address.fabric, name);
  tell_of_end(address.fabric);
  auto& claimed = peer.claim(lane);
  if (peer.worker() == nullptr && peer.state() == UcxPeer::State::alive) visit(peer, address);
  return claimed;
}

void UcxFabric::Impl::lose(std::uint64_t number, const std::string& reason) {
  end(number, "the process behind ",
      " is lost: " + reason + "; see whether it still runs, and what it printed last");
}

void UcxFabric::Impl::fail_to_reach(std::uint64_t number, const Error& error) {
  end(number, "no messages to ", ": " + error.context);
}

void UcxFabric::Impl::end(std::uint64_t number, const std::string& before,
                          const std::string& after) {
  auto& peer = peer_of(number);
  if (peer.state() == UcxPeer::State::alive) {
    untold_.insert_or_assign(number, std::pair{before, after});
    tell_of_end(number);
    peer.end(UcxPeer::State::lost, Errc::peer_unreachable);
  }
  for (auto& acquaintance : peer.disconnect()) meeting_->part(std::move(acquaintance));
}

void UcxFabric::Impl::tell_of_end(std::uint64_t number) {
  const auto name = names_.find(number);
  if (leaving_ || name == names_.end() || !options_.on_peer_lost) return;
  const auto words = untold_.extract(number);
  if (words.empty()) return;
  const auto& [before, after] = words.mapped();
  options_.on_peer_lost(name->second, before + name->second + after);
}

void UcxFabric::Impl::say_goodbye() {
  leaving_ = true;
  for (auto& [number, peer] : peers_) {
    if (peer.state() != UcxPeer::State::alive) continue;
    peer.send_note(UcxMessage::goodbye, 0);
    peer.end(UcxPeer::State::alive, Errc::cancelled);
  }
  farewell_->expires_after(farewell_max);
  farewell_->async_wait([this](const boost::system::error_code& error) {
    if (error) return;
    loop_->post([this] {
      for (auto& [number, peer] : peers_) lose(number, "it did not answer a goodbye");
    });
  });
}

bool UcxFabric::Impl::has_left() {
  return std::ranges::none_of(peers_, [](const auto& entry) {
    const auto& peer = entry.second;
    return peer.state() == UcxPeer::State::alive || peer.has_in_flight();
  });
}

// -- the public face
// --------------------------------------------------------------------------------

Expected<std::unique_ptr<UcxFabric>> UcxFabric::make(UcxOptions options) {
  auto impl = Impl::make(std::move(options));
  if (!impl) return impl.error();
  return std::unique_ptr<UcxFabric>{new UcxFabric{std::move(*impl)}};
}

UcxFabric::UcxFabric(std::shared_ptr<Impl> impl) : impl_{std::move(impl)} {}

UcxFabric::~UcxFabric() {
  impl_->shut_down();
}

const std::string& UcxFabric::address() const noexcept {
  return impl_->address();
}

Expected<std::unique_ptr<Link>> UcxFabric::make_link(std::string_view peer, std::uint64_t lane) {
  const auto address = parse_ucx_address(peer);
  if (!address) return address.error();
  if (address->fabric == impl_->number()) {
    return Error{Errc::invalid_config, "a link from " + std::string{peer}
                                           + " to itself: both ends of a lane in one process are "
                                             "what make_in_process_link is for"};
  }
  return impl_->make_link(*address, std::string{peer}, lane);
}

void UcxFabric::give_up(std::string_view peer, std::string reason) {
  if (const auto address = parse_ucx_address(peer)) {
    impl_->give_up(address->fabric, std::move(reason));
  }
}

UcxCounters UcxFabric::counters() const {
  return impl_->counters();
}

std::vector<std::string> UcxFabric::transports_to(std::string_view peer) const {
  const auto address = parse_ucx_address(peer);
  return address ? impl_->transports_to(address->fabric) : std::vector<std::string>{};
}

std::vector<std::string> UcxFabric::transports_offered() const {
  return transports_in(impl_->print_context());
}

}  // namespace troupe::transport
