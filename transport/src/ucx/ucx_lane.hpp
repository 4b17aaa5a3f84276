// transport/src/ucx/ucx_lane.hpp -- one end of a lane: what is posted, what has come, how it ends.
//
// A transfer, seen from both ends:
//
//   sender                                          receiver
//   post_send: UCX takes the bytes    -- data -->   arrive: matched by tag, now or when posted
//   completed: UCX has let go of them               fetched into the posted buffer
//   settle: the receiver's verdict   <-- settled -- complete
//   complete, after both
//
// A large one, where the receiver is able to read the sender's memory:
//
//   post_send: where the bytes lie   -- offer -->   arrive: matched by tag, now or when posted
//                                                   read into the posted buffer, in pieces
//   settle: the receiver's verdict   <-- settled -- complete
//   complete
//
// A send completes with the receiver's verdict, so both ends agree on how a transfer ended, and
// what a receiver keeps for later is bounded by what its peers have posted. UCX may let go of the
// bytes before or after the verdict comes. What was offered is the receiver's to read until it has
// settled, which it does at once when either end closes, or until its consent is withdrawn. The
// verdict on what is answered travels with the answer, unless that is long in coming.
#pragma once

#include <cstdint>
#include <future>
#include <optional>
#include <vector>

#include "troupe/transport/link.hpp"

#include "ucx/ucx_completion.hpp"
#include "ucx/ucx_header.hpp"
#include "ucx/ucx_news.hpp"
#include "ucx/ucx_pool.hpp"
#include "ucx/ucx_worker.hpp"

namespace troupe::transport {

class UcxLane;
class UcxPeer;

/// A posted send.
struct UcxSend final : UcxCompletion {
  void completed(ucs_status_t status) override;

  UcxLane* lane = nullptr;
  Tag tag{};
  UcxEnvelope envelope;
  UcxOfferBytes offer{};
  Buffer buffer;
  TransferDone done;
  bool let_go = false;          ///< UCX needs the buffer no longer.
  bool lent = false;            ///< The peer may be reading it.
  std::optional<Errc> verdict;  ///< How it ends, once that is known.
};

/// A posted receive.
struct UcxReceive final : UcxCompletion {
  void completed(ucs_status_t status) override;

  UcxLane* lane = nullptr;
  Tag tag{};
  Buffer buffer;
  TransferDone done;
  bool is_answered = false;  ///< The verdict may travel with what is sent next.
};

/// Lives as long as its fabric, closed or not, so that late messages for it are known to be late.
/// One thread at a time may call it.
class UcxLane {
public:
  UcxLane(UcxPeer& peer, std::uint64_t number) : peer_{peer}, number_{number} {}
  UcxLane(const UcxLane&) = delete;
  UcxLane& operator=(const UcxLane&) = delete;

  // What this end does.
  void post_send(Tag tag, Buffer source, TransferDone done);
  void post_receive(Tag tag, Buffer target, TransferDone done, bool is_answered);
  /// Closes, tells the peer, and fulfils `closed` once no buffer is in use any more. Completions
  /// may have to run yet.
  void close(std::promise<void> closed);

  // What the peer does.
  /// Takes in a message. Returns whether it keeps the arrival.
  bool arrive(Tag tag, const UcxArrival& arrival);
  void settle(Tag tag, Errc verdict);

  /// Completes everything with `code`, which later operations get too; what UCX still works on
  /// completes when UCX lets go of it, what the peer may be reading when the peer has settled it.
  /// The first call decides.
  void end(Errc code);

  /// Completes what the peer may have been reading; it is no longer able to.
  void take_back();

  /// Marks the lane as made by this end.
  void claim();
  [[nodiscard]] bool is_claimed() const noexcept { return claimed_; }

  /// Blocks until all completions have run of what has ended. Any thread may call it, except from a
  /// completion.
  void wait_until_told() const noexcept { untold_.wait(); }

private:
  friend UcxSend;
  friend UcxReceive;

  struct Waiting {
    Tag tag{};
    UcxArrival arrival;
  };

  /// Brings `arrival` into the buffer of `receive`. Returns whether it used the arrival up.
  bool deliver(UcxReceive& receive, const UcxArrival& arrival);
  void complete(UcxReceive& receive, Errc code);
  void complete_and_tell(UcxReceive& receive, Errc code);
  void let_go(UcxSend& send, ucs_status_t status);
  void fetched(UcxReceive& receive, ucs_status_t status);
  void complete_if_over(UcxSend& send);
  void refuse(Tag tag, const UcxArrival& arrival);
  void answer_closers();
  void count_no_longer_as_unclaimed();

  UcxPeer& peer_;
  std::uint64_t number_;
  bool claimed_ = false;
  Errc ended_ = Errc::none;  ///< Other than none: nothing is taken in any more.
  std::uint32_t fetching_ = 0;
  std::vector<UcxSend*> sends_;
  std::vector<UcxReceive*> receives_;  ///< Whose message has not come.
  std::vector<Waiting> waiting_;       ///< Messages whose receive is not posted.
  std::vector<std::promise<void>> closers_;
  UcxUntold untold_;
};

}  // namespace troupe::transport
