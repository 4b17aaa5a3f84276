// What processes that were let in send each other: an input is messages one after another, each
// behind a byte that chooses its type. What can be read goes to who receives it in a run: a
// director in the middle of a step, the door, or the checks before ranks are built. None may
// abort, and no memory may be allocated for a length that is only claimed.

#include <array>
#include <memory>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include <caf/all.hpp>
#include <caf/binary_deserializer.hpp>
#include <caf/scheduler/test_coordinator.hpp>

#include "troupe/actors/director.hpp"

#include "door.hpp"
#include "fuzz_target.hpp"
#include "message_checks.hpp"
#include "messages.hpp"

namespace {

using namespace troupe;
using namespace troupe::actors;

struct SystemConfig : caf::actor_system_config {
  SystemConfig() { set("scheduler.policy", caf::atom("testing")); }
};

/// One for all inputs, for to make one takes longer than to use it. It is never destroyed: what CAF
/// itself keeps in static variables is gone before.
caf::actor_system& actor_system() {
  static auto& system = *new caf::actor_system{*new SystemConfig};
  return system;
}

std::shared_ptr<const Plan> two_by_two(Synchronization synchronization) {
  Config config;
  config.model = {.layers = 2, .heads = 1, .hidden = 4, .sequence = 4, .vocabulary = 256};
  config.parallel = {.data = 2, .tensor = 1, .pipeline = 2};
  config.schedule.microbatches = 2;
  config.train.synchronization = synchronization;
  if (synchronization == Synchronization::parameter_server) config.train.staleness = 1;
  return std::make_shared<const Plan>(make_plan(config).value());
}

/// A director in the middle of a step.
class Led {
public:
  explicit Led(std::shared_ptr<const Plan> plan) {
    auto& system = actor_system();
    const auto done = std::make_shared<StepDone>([this](Expected<StepReport> outcome) {
      TROUPE_ASSERT(!std::exchange(is_done_, true));
      if (outcome) {
        TROUPE_ASSERT(outcome->bubble_fraction() <= 1.0);
      } else {
        TROUPE_ASSERT(!outcome.error().context.empty());
      }
    });
    director_ = system.spawn(director, plan, done);
    auto leads = std::vector<std::int64_t>(plan->rank_count());
    leads.back() = clock_max_ns;
    leads.front() = -clock_max_ns;
    caf::anon_send(director_, GroupChosen{{}, std::vector<StageHandle>(leads.size()), leads});
    caf::anon_send(director_, StepDue{{1, StepKind::training}});
  }
  ~Led() { caf::anon_send_exit(director_, caf::exit_reason::user_shutdown); }
  Led(const Led&) = delete;
  Led& operator=(const Led&) = delete;

  template <class Message>
  void take(const Message& message) {
    caf::anon_send(director_, message);
  }

private:
  bool is_done_ = false;
  DirectorHandle director_;
};

/// The actors of a director's process, of a run without parameter servers and of one with them.
/// Those of the ranks are played by the input.
class Receivers {
public:
  Receivers() {
    auto& system = actor_system();
    constexpr std::uint32_t node_count = 2;
    door_ = system.spawn(door, node_count, std::chrono::milliseconds{1000},
                         [](const NodeFacts&, const std::string&) {});
    run();
  }
  ~Receivers() {
    run();
    for (auto* led : {&alone_, &served_}) led->reset();
    caf::anon_send_exit(door_, caf::exit_reason::user_shutdown);
    run();
  }
  Receivers(const Receivers&) = delete;
  Receivers& operator=(const Receivers&) = delete;

  void take(StepReported& message) { lead(message); }
  void take(RankFinished& message) { lead(message); }
  void take(RankFailed& message) { lead(message); }
  void take(LoadFailed& message) { lead(message); }
  void take(JoinAsked& message) { caf::anon_send(door_, std::move(message)); }
  void take(PeerGone& message) { caf::anon_send(door_, std::move(message)); }
  void take(RanksReady& message) { (void)misfit_of(message, 2); }
  void take(ClockTold& message) { (void)misfit_of(message); }
  void take(StepWanted& message) {
    (void)misfit_of(*plan_of(Synchronization::parameter_server), message);
  }
  void take(RanksGiven& message) {
    const auto plan = actors::plan_of(message, nullptr);
    if (!plan) {
      TROUPE_ASSERT(!plan.error().context.empty());
      return;
    }
    for (const auto node : message.node_of_rank) TROUPE_ASSERT(node < message.nodes.size());
    TROUPE_ASSERT(message.node_of_rank.size() == plan->rank_count());
  }
  /// Of the others every value has a meaning, or is looked up where it arrives.
  template <class Message>
  void take(Message&) {}

private:
  template <class Message>
  void lead(const Message& message) {
    for (const auto* led : {&alone_, &served_}) (*led)->take(message);
  }

  static void run() {
    auto& scheduler = dynamic_cast<caf::scheduler::test_coordinator&>(actor_system().scheduler());
    do {
      scheduler.run();
    } while (scheduler.trigger_timeouts() > 0);
  }

  static const std::shared_ptr<const Plan>& plan_of(Synchronization synchronization) {
    static const std::array plans{two_by_two(Synchronization::all_reduce),
                                  two_by_two(Synchronization::parameter_server)};
    return plans.at(static_cast<std::size_t>(synchronization));
  }

  std::unique_ptr<Led> alone_ = std::make_unique<Led>(plan_of(Synchronization::all_reduce));
  std::unique_ptr<Led> served_ = std::make_unique<Led>(plan_of(Synchronization::parameter_server));
  WatchedDoorHandle door_;
};

using Source = caf::binary_deserializer;

template <class Message>
bool read(Source& source, Receivers& receivers) {
  Message message;
  if (source(message)) return false;
  receivers.take(message);
  return true;
}

template <class... Messages>
constexpr auto readers_of(std::type_identity<std::tuple<Messages...>> /*list*/) {
  return std::array{&read<Messages>...};
}
constexpr auto readers = readers_of(std::type_identity<FuzzedMessages>{});

}  // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size_bytes) {
  Receivers receivers;
  Source source{actor_system(), reinterpret_cast<const char*>(data), size_bytes};
  for (std::uint8_t choice = 0; source.remaining() > 0;) {
    if (source(choice)) break;
    if (!readers[choice % readers.size()](source, receivers)) break;
  }
  return 0;
}
