// troupe/transport/link.hpp -- a lane between two neighbouring virtual stages.
#pragma once

#include <utility>

#include "troupe/engine/expected.hpp"
#include "troupe/engine/inline_function.hpp"
#include "troupe/engine/memory.hpp"
#include "troupe/transport/tag.hpp"

namespace troupe::transport {

/// How a transfer ended.
struct Delivery {
  /// A buffer of the size that was posted, now the caller's. For a receive it holds the message;
  /// for a send its content is unspecified. It need not be the buffer that was posted: within a
  /// process the two ends swap theirs.
  Buffer buffer;
  Errc code = Errc::none;  ///< `none`, or why the transfer did not happen.
};

/// Called exactly once per posted operation, from whatever thread completes it.
///
/// It must not block and must not call back into the transport: post a message and return.
/// Completions of different operations may run at the same time.
using TransferDone = InlineFunction<void(Delivery)>;

/// A reliable, tag-matched lane to one peer.
///
/// Thread safety: every member may be called from any thread. Ordering: operations with different
/// tags may complete in any order; a tag must not be reused before its operation completed.
/// Bounded: never more than the receives and sends its users posted; it allocates nothing per
/// message once as many operations have been pending as ever will be.
class Link {
public:
  virtual ~Link() = default;
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  /// Starts sending `source`, which the link owns until `done` runs. Completes with `cancelled` if
  /// either end closed first, with `peer_unreachable` if the peer was lost.
  virtual void post_send(Tag tag, Buffer source, TransferDone done) = 0;

  /// Starts receiving into `target`, whose size must be the message's. Completes with
  /// `message_truncated` on both ends otherwise.
  virtual void post_receive(Tag tag, Buffer target, TransferDone done) = 0;

  /// As `post_receive`, for one who sends on this link right after `done`, within microseconds:
  /// what tells the peer that its message was taken may then travel with the answer.
  virtual void post_receive_to_answer(Tag tag, Buffer target, TransferDone done) {
    post_receive(tag, std::move(target), std::move(done));
  }

  /// Cancels what is pending on this end, runs every outstanding completion, then returns.
  /// Operations posted later complete with `cancelled` at once. Idempotent.
  virtual void close() = 0;

protected:
  Link() = default;
};

}  // namespace troupe::transport
