// transport/src/ucx/ucx_peer.hpp -- another fabric: its connection, its lanes, and whether it
// lives.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "troupe/transport/ucx_fabric.hpp"

#include "ucx/ucx_endpoint.hpp"
#include "ucx/ucx_lane.hpp"
#include "ucx/ucx_meeting.hpp"
#include "ucx/ucx_news.hpp"
#include "ucx/ucx_reader.hpp"

namespace troupe::transport {

/// A message about transfers rather than of one.
struct UcxNote final : UcxCompletion {
  void completed(ucs_status_t status) override;

  UcxPool<UcxNote>* pool = nullptr;
  UcxEnvelope envelope;
};

/// A connection that has failed. Noted within a callback, dealt with outside.
struct UcxFailure {
  std::uint64_t peer = 0;
  ucs_status_t status = UCS_OK;  ///< What UCX said.
};

/// What the peers of a fabric share.
struct UcxShared {
  std::shared_ptr<const UcxContext> context;
  int events;          ///< Where workers report what wakes a sleeping thread.
  std::uint64_t self;  ///< This fabric's number, from which its messages come.
  bool shared_memory;
  std::vector<UcxFailure> failures{};
  UcxPool<UcxSend> sends{};
  UcxPool<UcxReceive> receives{};
  UcxPool<UcxNote> notes{};
  UcxNews news{};
  std::uint32_t unclaimed_messages = 0;  ///< Kept for lanes nobody has made yet.
  std::size_t unclaimed_bytes = 0;
  std::atomic<std::uint64_t> garbage{0};
  std::atomic<std::uint64_t> refused{0};
};

/// Has a worker of its own, so that what UCX cannot let go of when the peer is lost concerns no
/// other peer. One thread at a time may call it.
class UcxPeer final : UcxInbox {
public:
  enum class State : std::uint8_t {
    alive,
    departed,  ///< Has said goodbye.
    lost,
  };

  UcxPeer(UcxShared& shared, std::uint64_t number) : shared_{shared}, number_{number} {}
  UcxPeer(const UcxPeer&) = delete;
  UcxPeer& operator=(const UcxPeer&) = delete;

  [[nodiscard]] UcxShared& shared() noexcept { return shared_; }
  [[nodiscard]] std::uint64_t number() const noexcept { return number_; }
  [[nodiscard]] State state() const noexcept { return state_; }

  /// What drives the connection; null before `card` and after `disconnect`.
  [[nodiscard]] UcxWorker* worker() const noexcept { return worker_.get(); }

  /// Makes the worker for this peer, if need be, and returns what introduces it.
  [[nodiscard]] Expected<UcxCard> card();

  /// Connects to the peer's worker, if need be, and looks whether its memory can be read.
  /// `acquaintance` is kept until `disconnect`: there are two if both fabrics visited each other.
  Expected<Done> connect(const UcxCard& card, UcxAcquaintancePtr acquaintance);

  [[nodiscard]] bool is_connected() const noexcept { return endpoint_ != nullptr; }

  /// Whether it reads what is offered to it.
  [[nodiscard]] bool reads() const noexcept { return reads_; }

  /// Whether this process reads what the peer offers.
  [[nodiscard]] bool is_readable() const noexcept { return reader_.is_open(); }

  /// Does what can be done now. Returns whether there was anything.
  bool progress();

  /// Asks for an event when there is something to do again. Returns false if there is already.
  [[nodiscard]] bool arm();

  /// Whether something was begun since the last call that needs `progress` to end.
  [[nodiscard]] bool take_begun();

  /// Whether an operation has not completed.
  [[nodiscard]] bool has_in_flight() const;

  /// Takes note that a connection has ended. Returns whether another is kept.
  bool forget(const UcxAcquaintancePtr& acquaintance);

  /// Begins to send, unless this fabric has done so: to be called once the peer has connected too.
  void greet();

  /// Returns the lane, made for this end.
  UcxLane& claim(std::uint64_t lane);

  /// Sends a message, or holds it until the peer has welcomed this fabric: what UCX 1.13 is given
  /// while it still connects, it may send by the rules of another transport, and lose. A verdict
  /// that was kept back travels along. `envelope` must stay where it is until `completion` runs.
  void send(UcxEnvelope& envelope, BufferView bytes, UcxCompletion& completion);

  /// Takes a message back that is still held. Returns whether it was; then it does not complete.
  bool withdraw(const UcxCompletion& completion);
  void send_note(UcxMessage kind, std::uint64_t lane, Tag tag = {}, Errc code = Errc::none);

  /// Keeps back that the transfer `tag` has ended well, until the next message to the peer or the
  /// next `progress`. To be called within `progress`.
  void keep_back_verdict(std::uint64_t lane, Tag tag);
  [[nodiscard]] bool keeps_back() const noexcept { return verdict_.has_value(); }

  /// Fetches a message that lies with the peer into `target`. The arrival is used up.
  void fetch(const UcxArrival& arrival, BufferView target, UcxCompletion& completion);

  /// Ends every lane with `code` and remembers why there will be no others.
  void end(State state, Errc code);

  /// Closes the connection, and this process's memory to the peer. What was in flight has completed
  /// when this returns. Returns the acquaintances to part from.
  std::vector<UcxAcquaintancePtr> disconnect();

  /// Blocks until all completions have run of what has ended. Any thread may call it once nobody
  /// makes lanes any more.
  void wait_until_told() const noexcept;

  [[nodiscard]] std::string print() const;

private:
  struct Held {
    const UcxEnvelope* envelope = nullptr;
    BufferView bytes;
    UcxCompletion* completion = nullptr;
  };

  bool take_in(std::span<const std::byte> header, const UcxArrival& arrival) override;
  bool take_in(const UcxHeader& header, const UcxArrival& arrival);

  [[nodiscard]] UcxNote& make_note(const UcxHeader& header);
  void send_at_once(UcxMessage kind);
  void send_what_was_held();
  void send_what_was_kept_back();

  /// Returns the lane, made known if need be; null if there are too many that nobody has made.
  UcxLane* lane_of(std::uint64_t number);
  bool take_in_data(const UcxHeader& header, const UcxArrival& arrival);
  void take_in_offer(const UcxHeader& header, const UcxArrival& arrival);

  UcxShared& shared_;
  std::uint64_t number_;
  State state_ = State::alive;
  Errc ended_ = Errc::none;
  bool welcome_ = false;  ///< The peer has answered the hello.
  std::vector<Held> held_;
  std::optional<UcxHeader> verdict_;  ///< That is kept back.
  std::map<std::uint64_t, UcxLane> lanes_;
  std::uint32_t unclaimed_lanes_ = 0;
  bool greeted_ = false;  ///< The hello is on its way.
  std::unique_ptr<UcxWorker> worker_;
  std::unique_ptr<UcxEndpoint> endpoint_;
  std::vector<UcxAcquaintancePtr> acquaintances_;
  MemoryConsent consent_;  ///< That the peer reads what is offered to it.
  bool reads_ = false;     ///< The peer has said that it does.
  UcxReader reader_;
};

}  // namespace troupe::transport
