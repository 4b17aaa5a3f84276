// Two processes add up arrays in place: this program and the same program again. Prints the median
// microseconds of an operation; bench/compare_all_reduce.py runs it in turns with Open MPI.
// Usage: all_reduce_bench [BYTES [OPERATIONS [CORE CORE [shared_memory|tcp [COMPUTE_US]]]]]
// Before each operation both compute for COMPUTE_US; without it they do not.
// It calls itself with all of them, and the address of rank 0 behind, for rank 1.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <future>
#include <iostream>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include "troupe/stages/cpu_device.hpp"
#include "troupe/transport/linked_group.hpp"
#include "troupe/transport/ucx_fabric.hpp"

namespace {

using namespace troupe;
using transport::UcxFabric;

constexpr std::uint64_t lane = 1;

struct Arguments {
  std::size_t size_bytes = std::size_t{16} << 20U;
  std::uint32_t operations = 50;
  std::vector<int> cores;  ///< By rank; empty: wherever the kernel puts them.
  std::string transport = "shared_memory";
  std::int64_t compute_us = 0;
  std::string peer_address;  ///< Of rank 0; empty on rank 0.
};

Arguments read(int argc, char** argv) {
  Arguments arguments;
  if (argc > 1) arguments.size_bytes = std::strtoull(argv[1], nullptr, 10);
  if (argc > 2) arguments.operations = static_cast<std::uint32_t>(std::atoi(argv[2]));
  if (argc > 4) arguments.cores = {std::atoi(argv[3]), std::atoi(argv[4])};
  if (argc > 5) arguments.transport = argv[5];
  if (argc > 6) arguments.compute_us = std::atoll(argv[6]);
  if (argc > 7) arguments.peer_address = argv[7];
  return arguments;
}

template <class T>
T value_or_stop(Expected<T> value) {
  if (value) return std::move(*value);
  fmt::print(stderr, "all_reduce_bench: {}\n", value.error().context);
  std::exit(EXIT_FAILURE);
}

void stop(std::string_view sentence) {
  fmt::print(stderr, "all_reduce_bench: {}\n", sentence);
  std::exit(EXIT_FAILURE);
}

/// Before any thread is started: they inherit it.
void stay_on(int core) {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  CPU_SET(static_cast<unsigned>(core), &cores);
  if (sched_setaffinity(0, sizeof cores, &cores) != 0) stop("there is no such core");
}

/// One member, with what it works with.
class Member {
public:
  Member(std::uint32_t rank, UcxFabric& fabric, std::string_view peer, std::size_t size_bytes)
      : stream_{device_->make_stream("additions", 1)},
        array_{value_or_stop(device_->allocate(size_bytes, MemorySpace::host))} {
    std::vector<std::unique_ptr<transport::Link>> links(2);
    links[1 - rank] = value_or_stop(fabric.make_link(peer, lane));
    collective_ = transport::make_linked_member(rank, std::move(links));
  }
  ~Member() {
    collective_->close();
    stream_->synchronize();
  }
  Member(const Member&) = delete;
  Member& operator=(const Member&) = delete;

  /// Adds up the arrays, and returns how long this took in microseconds.
  double all_reduce() {
    std::promise<Errc> promise;
    auto done = promise.get_future();
    const auto begin_ns = stages::steady_now_ns();
    collective_->all_reduce(*stream_, array_, [&promise](Errc code) { promise.set_value(code); });
    if (done.get() != Errc::none) stop("the other process is lost");
    return static_cast<double>(stages::steady_now_ns() - begin_ns) * 1e-3;
  }

  /// One operation on numbers that tell rank and place, to see that it does what is measured.
  void check(std::uint32_t rank) {
    auto values = floats();
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = number(rank, i);
    (void)all_reduce();
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (values[i] != number(0, i) + number(1, i)) stop("the sum is wrong");
    }
    std::ranges::fill(values, 0.0F);  // Sums of zeros stay zeros, however many.
  }

private:
  [[nodiscard]] std::span<float> floats() const {
    return {reinterpret_cast<float*>(array_.data), array_.size_bytes / sizeof(float)};
  }
  static float number(std::uint32_t rank, std::size_t i) {
    return static_cast<float>(i % 1000U) * (rank == 0 ? 1.0F : 1000.0F);
  }

  std::unique_ptr<stages::Device> device_ = stages::make_cpu_device();
  std::unique_ptr<stages::Stream> stream_;
  BufferView array_;
  std::unique_ptr<transport::Collective> collective_;
};

/// Keeps the core busy.
void compute(std::int64_t time_us) {
  const auto end_ns = stages::steady_now_ns() + time_us * 1000;
  while (stages::steady_now_ns() < end_ns) continue;
}

void measure(std::uint32_t rank, UcxFabric& fabric, std::string_view peer,
             const Arguments& arguments) {
  Member member{rank, fabric, peer, arguments.size_bytes};
  member.check(rank);
  constexpr int warmup_count = 5;
  for (int i = 0; i < warmup_count; ++i) (void)member.all_reduce();
  std::vector<double> times_us;
  for (std::uint32_t i = 0; i < arguments.operations; ++i) {
    compute(arguments.compute_us);
    times_us.push_back(member.all_reduce());
  }
  if (rank != 0) return;
  std::ranges::sort(times_us);
  fmt::print("{:.1f}\n", times_us[times_us.size() / 2]);
}

/// Runs this program again as rank 1, and returns what it prints: its address.
class OtherProcess {
public:
  OtherProcess(const Arguments& arguments, const std::string& address) {
    int ends[2];
    if (::pipe(ends) != 0) stop("there is no pipe");
    pid_ = ::fork();
    if (pid_ == 0) become(arguments, address, ends[1]);
    ::close(ends[1]);
    output_ = ::fdopen(ends[0], "r");
  }
  ~OtherProcess() {
    std::fclose(output_);
    ::waitpid(pid_, nullptr, 0);
  }
  OtherProcess(const OtherProcess&) = delete;
  OtherProcess& operator=(const OtherProcess&) = delete;

  std::string read_address() {
    char line[4096];
    if (std::fgets(line, sizeof line, output_) == nullptr) stop("the other process has ended");
    std::string address{line};
    address.pop_back();
    return address;
  }

private:
  [[noreturn]] static void become(const Arguments& arguments, const std::string& address,
                                  int output) {
    ::dup2(output, STDOUT_FILENO);
    const auto size = std::to_string(arguments.size_bytes);
    const auto operations = std::to_string(arguments.operations);
    const auto compute_us = std::to_string(arguments.compute_us);
    const auto core_of = [&](std::size_t rank) {
      return std::to_string(arguments.cores.empty() ? -1 : arguments.cores[rank]);
    };
    ::execl("/proc/self/exe", "all_reduce_bench", size.c_str(), operations.c_str(),
            core_of(0).c_str(), core_of(1).c_str(), arguments.transport.c_str(), compute_us.c_str(),
            address.c_str(), nullptr);
    ::_exit(127);
  }

  pid_t pid_ = -1;
  std::FILE* output_ = nullptr;
};

}  // namespace

int main(int argc, char** argv) {
  const auto arguments = read(argc, argv);
  const std::uint32_t rank = arguments.peer_address.empty() ? 0 : 1;
  if (!arguments.cores.empty() && arguments.cores[rank] >= 0) stay_on(arguments.cores[rank]);
  transport::UcxOptions options;
  options.secret = "of two processes that measure";
  options.shared_memory = arguments.transport == "shared_memory";
  const auto fabric = value_or_stop(UcxFabric::make(options));
  if (rank == 1) {
    std::cout << fabric->address() << std::endl;
    measure(rank, *fabric, arguments.peer_address, arguments);
    return EXIT_SUCCESS;
  }
  OtherProcess other{arguments, fabric->address()};
  measure(rank, *fabric, other.read_address(), arguments);
  return EXIT_SUCCESS;
}
