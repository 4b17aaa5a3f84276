// One fabric here and one in a process of its own, which is this program again, called as
//   ucx_process_test --peer <shared_memory|tcp> <address of the fabric here> <seed>

#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <string_view>

#include <sys/wait.h>
#include <unistd.h>

#include "troupe/engine/random.hpp"

#include "../scope.hpp"
#include "ucx_world.hpp"

namespace troupe::transport {

constexpr std::uint64_t lane = 7;

/// The transfers both processes agree on: number i has tag i and pattern i, in either direction.
std::vector<std::size_t> sizes_of(std::uint64_t seed) {
  Random random{seed};
  std::vector<std::size_t> sizes{1, std::size_t{16} << 20U};
  while (sizes.size() < 40) sizes.push_back(1 + random.below(std::uint64_t{1} << random.below(21)));
  return sizes;
}

std::vector<std::size_t> shuffled(std::size_t count, Random& random) {
  std::vector<std::size_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  for (auto i = count; i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
  return order;
}

/// Before this, nothing large is read out of the sender's memory. Both processes do so for odd
/// seeds.
void meet_if_odd(Link& link, std::uint64_t seed) {
  if (seed % 2 == 0) return;
  TestArena arena;
  std::optional<Delivery> sent, received;
  link.post_send(Tag{5000}, arena.make(1, 1), into(sent));
  link.post_receive(Tag{5000}, arena.make(1, 1), into(received));
  EXPECT_TRUE(Outcomes::wait_until([&] { return sent && received; }));
}

/// Every transfer of a seed, both ways, posted in an order drawn from another seed.
class Exchange {
public:
  Exchange(Link& link, std::uint64_t seed, std::uint64_t order_seed)
      : sizes_{sizes_of(seed)}, sent_(sizes_.size()), received_(sizes_.size()) {
    Random random{order_seed};
    for (const auto i : shuffled(sizes_.size(), random)) {
      link.post_send(Tag{i}, arena_.make(sizes_[i], static_cast<std::uint8_t>(i)), into(sent_[i]));
    }
    for (const auto i : shuffled(sizes_.size(), random)) {
      link.post_receive(Tag{i}, arena_.make(sizes_[i], 255), into(received_[i]));
    }
  }

  [[nodiscard]] std::size_t done() const {
    return count([](const Delivery&) { return true; });
  }
  [[nodiscard]] std::size_t ended_with(Errc code) const {
    return count([code](const Delivery& delivery) { return delivery.code == code; });
  }
  [[nodiscard]] std::size_t size() const { return 2 * sizes_.size(); }

  /// Names what has not completed, for example `send 3 of 1024 bytes`.
  [[nodiscard]] std::string pending() const {
    std::string text;
    for (std::size_t i = 0; i < sizes_.size(); ++i) {
      const auto bytes = ' ' + std::to_string(i) + " of " + std::to_string(sizes_[i]) + " bytes; ";
      if (!sent_[i]) text += "send" + bytes;
      if (!received_[i]) text += "receive" + bytes;
    }
    return text;
  }

  [[nodiscard]] bool holds_what_was_sent() const {
    for (std::size_t i = 0; i < sizes_.size(); ++i) {
      if (!TestArena::holds(received_[i]->buffer, static_cast<std::uint8_t>(i))) return false;
    }
    return true;
  }

private:
  template <class Condition>
  std::size_t count(Condition condition) const {
    std::size_t found = 0;
    for (const auto* slots : {&sent_, &received_}) {
      for (const auto& slot : *slots) found += slot && condition(*slot) ? 1U : 0U;
    }
    return found;
  }

  TestArena arena_;
  std::vector<std::size_t> sizes_;
  std::vector<std::optional<Delivery>> sent_, received_;
};

/// The other process. Says its address, takes its part, and returns 0 if all bytes were right.
int run_peer(bool shared_memory, const std::string& address, std::uint64_t seed) {
  const auto fabric = make_fabric(shared_memory);
  std::printf("%s\n", fabric->address().c_str());
  std::fflush(stdout);
  const auto link = link_to(*fabric, address, lane);
  meet_if_odd(*link, seed);
  const Exchange exchange{*link, seed, seed + 1};
  const bool over = Outcomes::wait_until([&] { return exchange.done() == exchange.size(); });
  const bool right =
      over && exchange.ended_with(Errc::none) == exchange.size() && exchange.holds_what_was_sent();
  return right ? 0 : 1;
}

/// A process, killed and buried when it goes out of scope.
class Process {
public:
  Process(bool shared_memory, const std::string& address, std::uint64_t seed) {
    int ends[2];
    EXPECT_EQ(pipe(ends), 0);
    const auto seed_text = std::to_string(seed);
    pid_ = fork();
    if (pid_ == 0) {
      dup2(ends[1], STDOUT_FILENO);
      execl("/proc/self/exe", "ucx_process_test", "--peer", shared_memory ? "shared_memory" : "tcp",
            address.c_str(), seed_text.c_str(), nullptr);
      _exit(127);
    }
    close(ends[1]);
    output_ = fdopen(ends[0], "r");
  }
  ~Process() {
    if (pid_ > 0) end_with(SIGKILL);
    std::fclose(output_);
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  std::string read_line() {
    std::string line;
    for (int c = std::fgetc(output_); c != '\n' && c != EOF; c = std::fgetc(output_)) {
      line += static_cast<char>(c);
    }
    return line;
  }

  void send_signal(int signal) const { kill(pid_, signal); }

  int wait_for_exit() {
    int status = 0;
    waitpid(std::exchange(pid_, -1), &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

  void end_with(int signal) {
    send_signal(signal);
    wait_for_exit();
  }

private:
  pid_t pid_ = -1;
  std::FILE* output_ = nullptr;
};

/// The files of shared memory that this process has mapped.
std::set<std::string> mapped_segments() {
  std::set<std::string> segments;
  std::ifstream maps{"/proc/self/maps"};
  for (std::string line; std::getline(maps, line);) {
    const auto at = line.find("/dev/shm/");
    if (at == std::string::npos) continue;
    segments.insert(line.substr(at, line.find(' ', at) - at));
  }
  return segments;
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(LinkConformance);

class UcxProcesses : public testing::TestWithParam<bool> {
protected:
  void SetUp() override {
    UcxOptions options;
    options.shared_memory = GetParam();
    options.on_peer_lost = [this](const std::string& peer, const std::string& sentence) {
      const std::scoped_lock lock{mutex_};
      lost_.push_back(peer);
      sentence_ = sentence;
    };
    fabric_ = make_fabric(options);
  }

  std::vector<std::string> lost() {
    const std::scoped_lock lock{mutex_};
    return lost_;
  }

  std::string sentence_;
  std::unique_ptr<UcxFabric> fabric_;

private:
  std::mutex mutex_;
  std::vector<std::string> lost_;
};

INSTANTIATE_TEST_SUITE_P(Over, UcxProcesses, testing::Values(true, false),
                         [](const auto& over) { return over.param ? "SharedMemory" : "Tcp"; });

TEST_P(UcxProcesses, CarryEverySizeBothWaysInAnyOrder) {
  for (const std::uint64_t seed : {1U, 2U, 3U}) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Process peer{GetParam(), fabric_->address(), seed};
    const auto link = link_to(*fabric_, peer.read_line(), lane);
    meet_if_odd(*link, seed);
    const Exchange exchange{*link, seed, seed + 2};
    ASSERT_TRUE(Outcomes::wait_until([&] { return exchange.done() == exchange.size(); }));
    EXPECT_EQ(exchange.ended_with(Errc::none), exchange.size());
    EXPECT_TRUE(exchange.holds_what_was_sent());
    EXPECT_EQ(peer.wait_for_exit(), 0) << "the other process found something wrong";
  }
  EXPECT_TRUE(lost().empty()) << sentence_;
}

TEST_P(UcxProcesses, AKilledPeerEndsEverythingPendingOnceAtWhateverMomentItDies) {
  std::set<std::string> segments;
  for (std::uint64_t seed = 1; seed <= scope(8U, 4U); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random{seed};
    Process peer{GetParam(), fabric_->address(), seed};
    const auto address = peer.read_line();
    const auto link = link_to(*fabric_, address, lane);
    meet_if_odd(*link, seed);
    const Exchange exchange{*link, seed, seed + 2};
    const auto moment = random.below(exchange.size());
    ASSERT_TRUE(Outcomes::wait_until([&] { return exchange.done() >= moment; }));
    segments.merge(mapped_segments());
    peer.end_with(SIGKILL);
    ASSERT_TRUE(Outcomes::wait_until([&] { return exchange.done() == exchange.size(); }))
        << "still pending: " << exchange.pending();
    EXPECT_EQ(exchange.ended_with(Errc::none) + exchange.ended_with(Errc::peer_unreachable),
              exchange.size());
    TestArena arena;
    std::optional<Delivery> late, receive;
    link->post_receive(Tag{1000}, arena.make(8, 1), into(receive));
    ASSERT_TRUE(Outcomes::wait_until([&] { return receive.has_value(); }));
    link->post_send(Tag{1000}, arena.make(8, 1), into(late));
    ASSERT_TRUE(Outcomes::wait_until([&] { return late.has_value(); }));
    EXPECT_EQ(late->code, Errc::peer_unreachable);
    EXPECT_EQ(receive->code, Errc::peer_unreachable);
    EXPECT_EQ(lost().size(), seed) << "told once for each";
    EXPECT_EQ(lost().back(), address);
    EXPECT_NE(sentence_.find(address), std::string::npos) << sentence_;
  }
  fabric_.reset();
  for (const auto& segment : segments) EXPECT_FALSE(std::filesystem::exists(segment)) << segment;
}

/// By the connection on which they met.
TEST_P(UcxProcesses, AKilledPeerIsLostThoughUcxLooksAfterNobody) {
  UcxOptions options;
  options.shared_memory = GetParam();
  options.keepalive = std::chrono::hours{1};
  const auto fabric = make_fabric(options);
  Process peer{GetParam(), fabric->address(), 1};
  const auto link = link_to(*fabric, peer.read_line(), lane);
  meet_if_odd(*link, 1);
  TestArena arena;
  std::optional<Delivery> first, never;
  link->post_receive(Tag{0}, arena.make(sizes_of(1)[0], 1), into(first));
  ASSERT_TRUE(Outcomes::wait_until([&] { return first.has_value(); }));
  link->post_receive(Tag{1000}, arena.make(8, 1), into(never));
  peer.send_signal(SIGKILL);
  ASSERT_TRUE(Outcomes::wait_until([&] { return never.has_value(); })) << "nobody was told";
  EXPECT_EQ(never->code, Errc::peer_unreachable);
}

TEST_P(UcxProcesses, AStoppedPeerIsLostWhenSomebodySaysSo) {
  Process peer{GetParam(), fabric_->address(), 1};
  const auto address = peer.read_line();
  peer.send_signal(SIGSTOP);
  const auto link = link_to(*fabric_, address, lane);
  const Exchange exchange{*link, 1, 2};
  fabric_->give_up(address, "its heartbeat stopped");
  ASSERT_TRUE(Outcomes::wait_until([&] { return exchange.done() == exchange.size(); }));
  EXPECT_EQ(lost(), std::vector<std::string>{address});
  EXPECT_EQ(sentence_, "the process behind " + address
                           + " is lost: its heartbeat stopped; see whether it still runs, and what "
                             "it printed last");
}

TEST_P(UcxProcesses, AFabricEndsThoughAPeerHasStopped) {
  Process peer{GetParam(), fabric_->address(), 1};
  const auto link = link_to(*fabric_, peer.read_line(), lane);
  meet_if_odd(*link, 1);
  const Exchange exchange{*link, 1, 2};
  ASSERT_TRUE(Outcomes::wait_until([&] { return exchange.done() > 0; }));
  peer.send_signal(SIGSTOP);
  fabric_.reset();
  EXPECT_EQ(exchange.done(), exchange.size());
}

}  // namespace troupe::transport

int main(int argc, char** argv) {
  if (argc == 5 && std::string_view{argv[1]} == "--peer") {
    return troupe::transport::run_peer(std::string_view{argv[2]} == "shared_memory", argv[3],
                                       std::stoull(argv[4]));
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
