#include "link_test.hpp"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <string_view>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "troupe/transport/linked_group.hpp"
#include "troupe/transport/secret.hpp"
#include "troupe/transport/ucx_fabric.hpp"

#include "child_processes.hpp"
#include "reduction_measurement.hpp"

namespace troupe::cli {

namespace {

using Clock = std::chrono::steady_clock;
using transport::Delivery;
using transport::Link;
using transport::Tag;
using transport::UcxFabric;

constexpr std::size_t small_bytes = 8;
constexpr std::size_t large_bytes = std::size_t{16} << 20U;
constexpr int small_round_count = 201;
constexpr int large_round_count = 7;

constexpr std::chrono::seconds message_patience{10};
constexpr std::chrono::seconds start_patience{20};
constexpr std::chrono::seconds test_patience{60};

constexpr std::string_view address_mark = "address ";
constexpr std::string_view result_mark = "result ";

// -- messages -------------------------------------------------------------------------------------

/// Who wrote a message, so that one that is returned cannot pass for an answer.
enum class Writer : std::uint8_t { first = 0x5a, second = 0xa5 };

/// A byte depends on its place, by which parts that were swapped or lost show.
std::byte byte_of(std::size_t place, Writer writer) {
  return static_cast<std::byte>((place ^ (place >> 8U) ^ (place >> 16U))
                                ^ static_cast<std::uint8_t>(writer));
}

/// A transfer that somebody waits for.
class Transfer {
public:
  transport::TransferDone done() {
    return [promise = std::move(promise_)](Delivery delivery) mutable {
      promise.set_value(std::move(delivery));
    };
  }

  /// Closes the link if the transfer takes too long.
  Expected<Buffer> wait(Link& link) {
    const bool in_time = future_.wait_for(message_patience) == std::future_status::ready;
    if (!in_time) link.close();
    auto delivery = future_.get();
    if (delivery.code == Errc::none) return std::move(delivery.buffer);
    if (in_time) {
      return Error{delivery.code, fmt::format("a message was lost: {}", to_string(delivery.code))};
    }
    return Error{Errc::internal, fmt::format("nothing arrived for {} s", message_patience.count())};
  }

private:
  std::promise<Delivery> promise_;
  std::future<Delivery> future_ = promise_.get_future();
};

/// This end of a link of its own for messages of one size, and memory for one each way.
class Conversation {
public:
  static Expected<std::unique_ptr<Conversation>> open(UcxFabric& fabric, const std::string& peer,
                                                      std::size_t size_bytes) {
    auto link = fabric.make_link(peer, size_bytes);
    if (!link) return link.error();
    return std::make_unique<Conversation>(std::move(*link), size_bytes);
  }

  Conversation(std::unique_ptr<Link> link, std::size_t size_bytes)
      : memory_(2 * size_bytes),
        link_{std::move(link)},
        incoming_{{memory_.data(), size_bytes}},
        outgoing_{{memory_.data() + size_bytes, size_bytes}} {}
  ~Conversation() { link_->close(); }
  Conversation(const Conversation&) = delete;
  Conversation& operator=(const Conversation&) = delete;

  void write_as(Writer writer) {
    for (std::size_t i = 0; i < outgoing_.size_bytes(); ++i) {
      outgoing_.data()[i] = byte_of(i, writer);
    }
  }
  [[nodiscard]] Expected<Done> check_written_by(Writer writer) const {
    for (std::size_t i = 0; i < incoming_.size_bytes(); ++i) {
      if (incoming_.data()[i] == byte_of(i, writer)) continue;
      return Error{Errc::internal,
                   fmt::format("byte {} of a message of {} bytes is not what was sent", i,
                               incoming_.size_bytes())};
    }
    return Done{};
  }
  /// What came in is to go out.
  void turn_round() { std::swap(incoming_, outgoing_); }

  [[nodiscard]] Expected<Done> send() { return give_and_take(true, false); }
  [[nodiscard]] Expected<Done> receive() { return give_and_take(false, true); }
  [[nodiscard]] Expected<Done> send_and_receive() { return give_and_take(true, true); }

private:
  Expected<Done> give_and_take(bool give, bool take) {
    Transfer sending;
    Transfer receiving;
    if (take) link_->post_receive(Tag{taken_count_++}, std::move(incoming_), receiving.done());
    if (give) link_->post_send(Tag{given_count_++}, std::move(outgoing_), sending.done());
    if (give) {
      auto sent = sending.wait(*link_);
      if (!sent) return sent.error();
      outgoing_ = std::move(sent).value();
    }
    if (take) {
      auto received = receiving.wait(*link_);
      if (!received) return received.error();
      incoming_ = std::move(received).value();
    }
    return Done{};
  }

  std::vector<std::byte> memory_;
  std::unique_ptr<Link> link_;
  Buffer incoming_;
  Buffer outgoing_;
  std::uint64_t given_count_ = 0;
  std::uint64_t taken_count_ = 0;
};

/// Each writes a message for the other, who looks at every byte; then one of them goes to and fro.
/// Returns the median of one way, in nanoseconds.
Expected<double> lead(Conversation& conversation, int round_count) {
  conversation.write_as(Writer::first);
  if (auto done = conversation.send_and_receive(); !done) return done.error();
  if (auto right = conversation.check_written_by(Writer::second); !right) return right.error();
  std::vector<double> round_trips_ns;
  for (int round = 0; round < round_count; ++round) {
    conversation.turn_round();
    const auto begin = Clock::now();
    if (auto done = conversation.send_and_receive(); !done) return done.error();
    round_trips_ns.push_back(
        std::chrono::duration<double, std::nano>(Clock::now() - begin).count());
  }
  if (auto right = conversation.check_written_by(Writer::second); !right) return right.error();
  const auto middle = round_trips_ns.begin() + round_count / 2;
  std::ranges::nth_element(round_trips_ns, middle);
  return *middle / 2.0;
}

/// What the other one does meanwhile.
Expected<Done> follow(Conversation& conversation, int round_count) {
  if (auto done = conversation.receive(); !done) return done;
  if (auto right = conversation.check_written_by(Writer::first); !right) return right;
  conversation.write_as(Writer::second);
  if (auto done = conversation.send(); !done) return done;
  for (int round = 0; round < round_count; ++round) {
    if (auto done = conversation.receive(); !done) return done;
    conversation.turn_round();
    if (auto done = conversation.send(); !done) return done;
  }
  return Done{};
}

Expected<std::unique_ptr<UcxFabric>> make_fabric(const LinkTestOptions& options,
                                                 std::promise<std::string>* loss = nullptr) {
  return UcxFabric::make({.secret = options.secret,
                          .network_interface = options.network_interface,
                          .shared_memory = options.shared_memory,
                          .on_peer_lost = [loss](const std::string&, const std::string& sentence) {
                            if (loss != nullptr) loss->set_value(sentence);
                          }});
}

// -- processes ------------------------------------------------------------------------------------

ChildProgram program_of(const std::string& name, const LinkTestOptions& options,
                        std::vector<std::string> words) {
  words.insert(words.begin(), {"doctor", "--interface", options.network_interface});
  if (!options.shared_memory) words.emplace_back("--no-shared-memory");
  return {.name = name,
          .path = "/proc/self/exe",
          .arguments = std::move(words),
          .secret = options.secret};
}

/// A process and what it has said: one line that is waited for, and others.
class Partner {
public:
  /// @param mark What the line that is waited for begins with.
  static Expected<std::unique_ptr<Partner>> start(const ChildProgram& program,
                                                  std::string_view mark) {
    auto partner = std::unique_ptr<Partner>{new Partner{program.name, mark}};
    auto children = ChildProcesses::start(
        {program},
        {.on_line = [partner = partner.get()](std::string_view line, bool) { partner->hear(line); },
         .on_end = [partner = partner.get()](const ChildEnd& end) { partner->note(end); }});
    if (!children) return children.error();
    partner->children_ = std::move(*children);
    return partner;
  }

  /// Blocks until the line is there, without its mark. Fails if the process has ended without it,
  /// or is silent for `patience`.
  Expected<std::string> await(std::chrono::seconds patience) {
    std::unique_lock lock{mutex_};
    const bool in_time =
        changed_.wait_for(lock, patience, [&] { return answer_ || !how_.empty(); });
    if (answer_) return *answer_;
    return Error{Errc::internal, in_time ? end()
                                         : fmt::format("one of the processes says nothing for {} s",
                                                       patience.count())};
  }

  /// Gives the process a little time to end, and returns how it did; empty if all was well.
  std::string farewell() {
    constexpr std::chrono::seconds patience{2};
    (void)children_->wait_for_all(patience);
    const std::lock_guard lock{mutex_};
    return succeeded_ ? "" : end();
  }

  /// The other lines, each once, from the word UCX on: process and time stand before it.
  std::vector<std::string> remarks() {
    const std::lock_guard lock{mutex_};
    return remarks_;
  }

private:
  Partner(const std::string& name, std::string_view mark)
      : prefix_bytes_{name.size() + std::string_view{"[] "}.size()}, mark_{mark} {}

  void hear(std::string_view line) {
    constexpr std::string_view complaint = "troupe: ";
    line.remove_prefix(prefix_bytes_);
    if (line.ends_with('\n')) line.remove_suffix(1);
    const std::lock_guard lock{mutex_};
    if (line.starts_with(mark_)) {
      answer_ = line.substr(mark_.size());
      changed_.notify_all();
    } else if (line.starts_with(complaint)) {
      sentence_ = line.substr(complaint.size());
    } else {
      line.remove_prefix(std::min(line.size(), line.find("UCX")));
      if (!line.empty() && std::ranges::find(remarks_, line) == remarks_.end()) {
        remarks_.emplace_back(line);
      }
    }
  }

  void note(const ChildEnd& end) {
    const std::lock_guard lock{mutex_};
    how_ = end.how;
    succeeded_ = end.succeeded;
    changed_.notify_all();
  }

  [[nodiscard]] std::string end() const {
    if (!sentence_.empty()) return sentence_;
    return "one of the processes " + (how_.empty() ? std::string{"does not end"} : how_);
  }

  std::size_t prefix_bytes_;
  std::string_view mark_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<std::string> answer_;
  std::string sentence_;  ///< Why it failed, in its own words.
  std::string how_;       ///< How it ended; empty while it runs.
  bool succeeded_ = false;
  std::vector<std::string> remarks_;
  std::unique_ptr<ChildProcesses> children_;
};

/// The lane of the group of both; others have the size of their messages for a number.
constexpr std::uint64_t group_lane = 1;

Expected<std::unique_ptr<transport::Collective>> join_group(UcxFabric& fabric,
                                                            const std::string& peer,
                                                            std::uint32_t rank) {
  auto link = fabric.make_link(peer, group_lane);
  if (!link) return link.error();
  std::vector<std::unique_ptr<Link>> links(2);
  links[1 - rank] = std::move(*link);
  return transport::make_linked_member(rank, std::move(links));
}

Expected<Done> measure(UcxFabric& fabric, const std::string& peer, LinkTestResult& result) {
  auto small = Conversation::open(fabric, peer, small_bytes);
  if (!small) return small.error();
  auto large = Conversation::open(fabric, peer, large_bytes);
  if (!large) return large.error();
  auto group = join_group(fabric, peer, 0);
  if (!group) return group.error();
  const auto hop_ns = lead(**small, small_round_count);
  if (!hop_ns) return hop_ns.error();
  result.hop_ns = *hop_ns;
  result.carried_by = fabric.transports_to(peer);  // While the second must still be there.
  const auto large_ns = lead(**large, large_round_count);
  if (!large_ns) return large_ns.error();
  result.bytes_per_second = large_bytes * 1e9 / *large_ns;
  const auto reduction = measure_reduction(**group);
  if (!reduction) return reduction.error();
  result.reduction = *reduction;
  return Done{};
}

Expected<Done> exchange(const LinkTestOptions& options, LinkTestResult& result) {
  std::promise<std::string> loss;
  auto lost = loss.get_future();
  auto fabric = make_fabric(options, &loss);
  if (!fabric) return fabric.error();
  result.offered = (*fabric)->transports_offered();
  auto second = Partner::start(
      program_of("the second process", options, {"--self-test", "--peer", (*fabric)->address()}),
      address_mark);
  if (!second) return second.error();
  auto outcome = [&]() -> Expected<Done> {
    auto address = (*second)->await(start_patience);
    if (!address) return address.error();
    return measure(**fabric, *address, result);
  }();
  const auto end = (*second)->farewell();
  for (const auto& remark : (*second)->remarks()) fmt::print("{}\n", remark);
  if (outcome || outcome.error().code == Errc::internal) return outcome;
  // The end of a link has a cause, which UCX knows best, and then the other process.
  if (lost.wait_for(std::chrono::seconds{0}) == std::future_status::ready) {
    return Error{Errc::peer_unreachable, lost.get()};
  }
  return end.empty() ? outcome : Error{outcome.error().code, end};
}

}  // namespace

LinkTestResult test_links(LinkTestOptions options) {
  LinkTestResult result;
  auto secret = transport::make_secret();
  if (!secret) {
    result.failure = secret.error().context;
    return result;
  }
  options.secret = std::move(*secret);
  auto first =
      Partner::start(program_of("the first process", options, {"--self-test"}), result_mark);
  if (!first) {
    result.failure = first.error().context;
    return result;
  }
  const auto answer = (*first)->await(test_patience);
  result.remarks = (*first)->remarks();
  if (!answer) {
    result.failure = answer.error().context;
    return result;
  }
  const auto json = nlohmann::json::parse(*answer);
  json.at("offered").get_to(result.offered);
  json.at("carried_by").get_to(result.carried_by);
  json.at("hop_ns").get_to(result.hop_ns);
  json.at("bytes_per_second").get_to(result.bytes_per_second);
  json.at("reduction_ns").get_to(result.reduction.latency_ns);
  json.at("reduced_bytes_per_second").get_to(result.reduction.bytes_per_second);
  json.at("failure").get_to(result.failure);
  return result;
}

Expected<Done> be_first_of_link_test(const LinkTestOptions& options) {
  LinkTestResult result;
  if (auto done = exchange(options, result); !done) result.failure = done.error().context;
  const nlohmann::json json{{"offered", result.offered},
                            {"carried_by", result.carried_by},
                            {"hop_ns", result.hop_ns},
                            {"bytes_per_second", result.bytes_per_second},
                            {"reduction_ns", result.reduction.latency_ns},
                            {"reduced_bytes_per_second", result.reduction.bytes_per_second},
                            {"failure", result.failure}};
  constexpr auto whatever_it_is = nlohmann::json::error_handler_t::replace;
  fmt::print("{}{}\n", result_mark, json.dump(-1, ' ', false, whatever_it_is));
  return Done{};
}

Expected<Done> be_second_of_link_test(const LinkTestOptions& options, const std::string& peer) {
  auto fabric = make_fabric(options);
  if (!fabric) return fabric.error();
  auto small = Conversation::open(**fabric, peer, small_bytes);
  if (!small) return small.error();
  auto large = Conversation::open(**fabric, peer, large_bytes);
  if (!large) return large.error();
  auto group = join_group(**fabric, peer, 1);
  if (!group) return group.error();
  fmt::print("{}{}\n", address_mark, (*fabric)->address());
  std::fflush(stdout);
  if (auto done = follow(**small, small_round_count); !done) return done;
  if (auto done = follow(**large, large_round_count); !done) return done;
  const auto reduction = measure_reduction(**group);
  return reduction ? Expected<Done>{Done{}} : reduction.error();
}

}  // namespace troupe::cli
