// What links between two processes of one machine carry: one-way latency of a ping-pong, and the
// bandwidth of a stream with a few messages in flight, receives posted beforehand. ucx_links.py
// compares it with ucx_perftest. Usage: link_bench <shared_memory|tcp> [<messages in flight>]
//
// Each message in flight has memory of its own on both sides: 2 unless told otherwise, as many as a
// stage has for what it sends.
//
// The other process is this program again: link_bench --peer <shared_memory|tcp> <n> <address>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "troupe/transport/ucx_fabric.hpp"

namespace {

using namespace troupe;
using namespace troupe::transport;
using Clock = std::chrono::steady_clock;

constexpr std::size_t huge_page_bytes = std::size_t{2} << 20U;

/// One transfer at a time, with memory of its own, in huge pages as a stage's is.
class Transfer {
public:
  explicit Transfer(std::size_t size_bytes)
      : memory_{allocate((size_bytes + huge_page_bytes - 1) / huge_page_bytes * huge_page_bytes)},
        buffer_{BufferView{memory_, size_bytes}} {}
  ~Transfer() { std::free(memory_); }
  Transfer(const Transfer&) = delete;
  Transfer& operator=(const Transfer&) = delete;

  void send(Link& link, std::uint64_t tag) { link.post_send(Tag{tag}, begin(), completion()); }
  void receive(Link& link, std::uint64_t tag) {
    link.post_receive(Tag{tag}, begin(), completion());
  }
  void receive_to_answer(Link& link, std::uint64_t tag) {
    link.post_receive_to_answer(Tag{tag}, begin(), completion());
  }

  /// Blocks until the transfer is over; returns at once if none was begun.
  void wait() const { over_.wait(false); }

private:
  static std::byte* allocate(std::size_t whole_pages_bytes) {
    auto* memory = static_cast<std::byte*>(std::aligned_alloc(huge_page_bytes, whole_pages_bytes));
    madvise(memory, whole_pages_bytes, MADV_HUGEPAGE);
    std::fill_n(memory, whole_pages_bytes, std::byte{1});
    return memory;
  }

  Buffer begin() {
    over_ = false;
    return std::move(buffer_);
  }

  TransferDone completion() {
    return [this](Delivery delivery) {
      if (delivery.code != Errc::none) {
        std::fprintf(stderr, "link_bench: a transfer failed with code %d\n",
                     static_cast<int>(delivery.code));
        std::_Exit(1);
      }
      buffer_ = std::move(delivery.buffer);
      over_ = true;
      over_.notify_one();
    };
  }

  std::byte* memory_;
  Buffer buffer_;
  std::atomic<bool> over_ = true;
};

/// One end of the link. Both processes call the same members in the same order.
class End {
public:
  End(Link& link, bool leads) : link_{link}, leads_{leads} {}

  /// Returns the median time of one way, in microseconds.
  double ping_pong(std::size_t size_bytes, std::uint32_t rounds) {
    Transfer out{size_bytes}, in{size_bytes};
    in.receive_to_answer(link_, ++tag_);
    meet();
    std::vector<double> ways_us;
    for (std::uint32_t round = 0; round < rounds; ++round) {
      const auto start = Clock::now();
      if (leads_) send_again(out);
      in.wait();
      if (round + 1 < rounds) in.receive_to_answer(link_, tag_ + 1);
      if (!leads_) send_again(out);
      ++tag_;
      ways_us.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count()
                        / 2);
    }
    out.wait();
    std::ranges::nth_element(ways_us, ways_us.begin() + rounds / 2);
    return ways_us[rounds / 2];
  }

  /// The leading end sends `count` messages. Returns its megabytes per second.
  double stream(std::size_t size_bytes, std::uint32_t count, std::size_t in_flight) {
    std::vector<std::unique_ptr<Transfer>> transfers;
    while (transfers.size() < in_flight)
      transfers.push_back(std::make_unique<Transfer>(size_bytes));
    if (!leads_) {
      for (std::uint32_t i = 0; i < in_flight; ++i) transfers[i]->receive(link_, tag_ + 1 + i);
    }
    meet();
    const auto start = Clock::now();
    for (std::uint32_t i = leads_ ? 0 : in_flight; i < count; ++i) {
      auto& transfer = *transfers[i % in_flight];
      transfer.wait();
      leads_ ? transfer.send(link_, tag_ + 1 + i) : transfer.receive(link_, tag_ + 1 + i);
    }
    for (const auto& transfer : transfers) transfer->wait();
    tag_ += count;
    const std::chrono::duration<double, std::micro> time = Clock::now() - start;
    return static_cast<double>(size_bytes) * count / time.count();
  }

private:
  void send_again(Transfer& transfer) {
    transfer.wait();
    transfer.send(link_, tag_);
  }

  /// Returns when the other end has called it too.
  void meet() {
    constexpr std::uint64_t meetings = std::uint64_t{1} << 63U;
    Transfer out{8}, in{8};
    ++meeting_;
    in.receive(link_, meetings | meeting_);
    out.send(link_, meetings | meeting_);
    in.wait();
    out.wait();
  }

  Link& link_;
  bool leads_;
  std::uint64_t tag_ = 0;
  std::uint64_t meeting_ = 0;
};

/// Everything that is measured. The leading end prints one line for each.
void measure(End end, std::size_t in_flight, bool prints) {
  const auto print = [prints](const char* what, std::size_t size_bytes, double value) {
    if (prints) std::printf("%s,%zu,%.3f\n", what, size_bytes, value);
    std::fflush(stdout);
  };
  constexpr std::uint32_t rounds = 2000;
  end.ping_pong(8, rounds);  // Warms up.
  for (const std::size_t size : {std::size_t{8}, std::size_t{64} << 10U, std::size_t{1} << 20U}) {
    print("latency_us", size, end.ping_pong(size, rounds));
  }
  for (const auto& [size, count] :
       {std::pair{std::size_t{1} << 20U, 3000U}, std::pair{std::size_t{16} << 20U, 200U}}) {
    end.stream(size, count / 10, in_flight);  // Warms up.
    print("bandwidth_mb_per_s", size, end.stream(size, count, in_flight));
  }
}

template <class Value>
Value value_of(Expected<Value> expected) {
  if (expected) return std::move(*expected);
  std::fprintf(stderr, "link_bench: %s\n", expected.error().context.c_str());
  std::exit(1);
}

std::unique_ptr<UcxFabric> make_fabric(const std::string& transport) {
  UcxOptions options;
  options.secret = "of two processes that measure";
  options.shared_memory = transport == "shared_memory";
  return value_of(UcxFabric::make(options));
}

/// Each process has a core of its own: where the scheduler puts four threads decides more than what
/// they do.
void keep_to_core(unsigned core) {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  CPU_SET(core % std::max(1U, std::thread::hardware_concurrency()), &cores);
  if (sched_setaffinity(0, sizeof cores, &cores) != 0) std::perror("link_bench: affinity");
}

constexpr std::uint64_t lane = 1;

int follow(const std::string& transport, const std::string& in_flight, const std::string& leader) {
  keep_to_core(1);
  const auto fabric = make_fabric(transport);
  std::printf("%s\n", fabric->address().c_str());
  std::fflush(stdout);
  const auto link = value_of(fabric->make_link(leader, lane));
  measure({*link, false}, std::stoul(in_flight), false);
  return 0;
}

int lead(const std::string& transport, const std::string& in_flight) {
  keep_to_core(0);
  const auto fabric = make_fabric(transport);
  std::array<int, 2> ends{};
  if (pipe(ends.data()) != 0) return 1;
  const auto follower = fork();
  if (follower == 0) {
    dup2(ends[1], STDOUT_FILENO);
    execl("/proc/self/exe", "link_bench", "--peer", transport.c_str(), in_flight.c_str(),
          fabric->address().c_str(), nullptr);
    _exit(127);
  }
  close(ends[1]);
  auto* said = fdopen(ends[0], "r");
  std::array<char, 256> line{};
  if (std::fgets(line.data(), line.size(), said) == nullptr) return 1;
  const std::string address{line.data(), std::string_view{line.data()}.find('\n')};
  {
    const auto link = value_of(fabric->make_link(address, lane));
    measure({*link, true}, std::stoul(in_flight), true);
  }
  std::fclose(said);
  int status = 0;
  waitpid(follower, &status, 0);
  return status == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 5 && std::string_view{argv[1]} == "--peer") return follow(argv[2], argv[3], argv[4]);
  if (argc == 2 || argc == 3) return lead(argv[1], argc == 3 ? argv[2] : "2");
  std::fprintf(stderr, "usage: link_bench <shared_memory|tcp> [<messages in flight>]\n");
  return 2;
}
