// A slow cable between two networks of one machine, where the kernel cannot slow down a real one:
//   slow_wire FIRST SECOND DELAY_MS MBIT_PER_S QUEUE_MS
// makes two TAP devices of those names and carries every frame from either to the other. A frame
// waits for its turn at the limited rate and arrives DELAY_MS later; one whose turn would come
// later than after QUEUE_MS is dropped, as by a switch without room. Prints a line once both
// devices are there, and lives as long as they and the process that started it.

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <unistd.h>

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::nanoseconds;

constexpr std::size_t frame_bytes_max = 9216;  // A jumbo frame; the devices' own limit is lower.

struct Limits {
  nanoseconds delay;
  double bits_per_second;
  nanoseconds queue;
};

/// One direction of the wire.
class Lane {
public:
  Lane(int from, int to, const Limits& limits) : from_{from}, to_{to}, limits_{limits} {}

  /// Takes over every frame that is there. Returns false when the device is gone.
  bool take() {
    std::array<char, frame_bytes_max> bytes;
    for (;;) {
      const auto size = ::read(from_, bytes.data(), bytes.size());
      if (size < 0) return errno == EAGAIN || errno == EINTR || errno == EIO;  // EIO: it is down.
      accept(std::span{bytes}.first(static_cast<std::size_t>(size)), Clock::now());
    }
  }

  /// Hands over what has arrived by now. What a device that is down refuses is lost.
  void deliver() {
    while (!frames_.empty() && frames_.front().due <= Clock::now()) {
      const auto& bytes = frames_.front().bytes;
      [[maybe_unused]] const auto written = ::write(to_, bytes.data(), bytes.size());
      frames_.pop_front();
    }
  }

  [[nodiscard]] std::optional<Clock::time_point> next() const {
    return frames_.empty() ? std::nullopt : std::optional{frames_.front().due};
  }

private:
  struct Frame {
    Clock::time_point due;
    std::vector<char> bytes;
  };

  void accept(std::span<const char> bytes, Clock::time_point now) {
    const auto turn = std::max(now, free_at_);
    if (turn - now > limits_.queue) return;
    const auto bits = 8.0 * static_cast<double>(bytes.size());
    free_at_ = turn + nanoseconds{static_cast<std::int64_t>(bits / limits_.bits_per_second * 1e9)};
    frames_.push_back({free_at_ + limits_.delay, {bytes.begin(), bytes.end()}});
  }

  int from_;
  int to_;
  Limits limits_;
  Clock::time_point free_at_{};  ///< When the frame before has left.
  std::deque<Frame> frames_;     ///< In the order of `due`.
};

int make_tap(const char* name) {
  const int device = ::open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
  ifreq request{};
  std::strncpy(request.ifr_name, name, IFNAMSIZ - 1);
  request.ifr_flags = IFF_TAP | IFF_NO_PI;
  if (device >= 0 && ::ioctl(device, TUNSETIFF, &request) == 0) return device;
  std::fprintf(stderr, "slow_wire: cannot make the TAP device %s: %s\n", name,
               std::strerror(errno));
  std::exit(EXIT_FAILURE);
}

timespec time_until(Clock::time_point due) {
  const auto left = std::max(due - Clock::now(), Clock::duration::zero());
  const auto seconds = std::chrono::floor<std::chrono::seconds>(left);
  return {.tv_sec = seconds.count(), .tv_nsec = nanoseconds{left - seconds}.count()};
}

/// Carries frames until a device is gone.
void carry(int first, int second, const Limits& limits) {
  std::array lanes{Lane{first, second, limits}, Lane{second, first, limits}};
  for (;;) {
    auto due = lanes[0].next();
    if (const auto other = lanes[1].next(); !due || (other && *other < *due)) due = other;
    const auto wait = due ? time_until(*due) : timespec{};
    std::array<pollfd, 2> sources{{{first, POLLIN, 0}, {second, POLLIN, 0}}};
    ::ppoll(sources.data(), sources.size(), due ? &wait : nullptr, nullptr);
    for (auto& lane : lanes) {
      if (!lane.take()) return;
      lane.deliver();
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) {
    std::fprintf(stderr, "usage: slow_wire FIRST SECOND DELAY_MS MBIT_PER_S QUEUE_MS\n");
    return EXIT_FAILURE;
  }
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  const auto milliseconds = [](const char* text) {
    return std::chrono::duration_cast<nanoseconds>(
        std::chrono::duration<double, std::milli>{std::atof(text)});
  };
  const Limits limits{.delay = milliseconds(argv[3]),
                      .bits_per_second = std::atof(argv[4]) * 1e6,
                      .queue = milliseconds(argv[5])};
  const int first = make_tap(argv[1]);
  const int second = make_tap(argv[2]);
  std::printf("a wire of %s ms and %s Mbit/s each way, with room for %s ms\n", argv[3], argv[4],
              argv[5]);
  std::fflush(stdout);
  carry(first, second, limits);
  return EXIT_SUCCESS;
}
