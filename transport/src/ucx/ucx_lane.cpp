#include "ucx/ucx_lane.hpp"

#include <algorithm>
#include <cstring>

#include "ucx/ucx_error.hpp"
#include "ucx/ucx_peer.hpp"

namespace troupe::transport {

namespace {

/// Takes the element at `found` out of `elements`, whose order does not matter.
template <class Elements, class Position>
auto take(Elements& elements, Position found) {
  auto element = *found;
  *found = elements.back();
  elements.pop_back();
  return element;
}

/// Less is copied twice in the time that an offer takes (bench/results/links.md).
constexpr std::size_t offered_min_bytes = std::size_t{8} << 10U;

constexpr auto has_tag = [](Tag tag) {
  return [tag](const auto* posted) { return posted->tag == tag; };
};

}  // namespace

void UcxSend::completed(ucs_status_t status) {
  lane->let_go(*this, status);
}

void UcxReceive::completed(ucs_status_t status) {
  lane->fetched(*this, status);
}

void UcxLane::post_send(Tag tag, Buffer source, TransferDone done) {
  if (ended_ != Errc::none) return done({std::move(source), ended_});
  TROUPE_ASSERT(std::ranges::none_of(sends_, has_tag(tag)));
  auto& send = peer_.shared().sends.take();
  send.lane = this;
  send.tag = tag;
  send.buffer = std::move(source);
  send.done = std::move(done);
  send.let_go = false;
  send.lent = peer_.reads() && send.buffer.size_bytes() >= offered_min_bytes;
  send.verdict.reset();
  send.envelope = UcxEnvelope{{.kind = send.lent ? UcxMessage::offer : UcxMessage::data,
                               .from = peer_.shared().self,
                               .lane = number_,
                               .tag = tag}};
  sends_.push_back(&send);
  if (!send.lent) return peer_.send(send.envelope, send.buffer.view(), send);
  send.offer = write_offer({.address = reinterpret_cast<std::uintptr_t>(send.buffer.data()),
                            .size_bytes = send.buffer.size_bytes()});
  peer_.send(send.envelope, {send.offer.data(), send.offer.size()}, send);
}

void UcxLane::post_receive(Tag tag, Buffer target, TransferDone done, bool is_answered) {
  if (ended_ != Errc::none) return done({std::move(target), ended_});
  TROUPE_ASSERT(std::ranges::none_of(receives_, has_tag(tag)));
  auto& receive = peer_.shared().receives.take();
  receive.lane = this;
  receive.tag = tag;
  receive.buffer = std::move(target);
  receive.done = std::move(done);
  const auto found = std::ranges::find(waiting_, tag, &Waiting::tag);
  receive.is_answered = is_answered && found == waiting_.end();
  if (found == waiting_.end()) return receives_.push_back(&receive);
  const auto arrival = take(waiting_, found).arrival;
  if (!deliver(receive, arrival)) peer_.worker()->release(arrival);
}

bool UcxLane::arrive(Tag tag, const UcxArrival& arrival) {
  if (ended_ != Errc::none) {  // The note that the lane is closed is on its way.
    refuse(tag, arrival);
    return false;
  }
  const auto found = std::ranges::find_if(receives_, has_tag(tag));
  if (found != receives_.end()) return deliver(*take(receives_, found), arrival);
  waiting_.push_back({tag, arrival});
  return true;
}

bool UcxLane::deliver(UcxReceive& receive, const UcxArrival& arrival) {
  if (arrival.size_bytes != receive.buffer.size_bytes()) {
    complete_and_tell(receive, Errc::message_truncated);
    return false;
  }
  if (arrival.place != UcxArrival::Place::here) {
    ++fetching_;
    peer_.fetch(arrival, receive.buffer.view(), receive);
    return true;
  }
  if (arrival.size_bytes != 0) {
    std::memcpy(receive.buffer.data(), arrival.handle, arrival.size_bytes);
  }
  complete_and_tell(receive, Errc::none);
  return false;
}

void UcxLane::fetched(UcxReceive& receive, ucs_status_t status) {
  --fetching_;
  const auto failure = ended_ != Errc::none ? ended_ : Errc::peer_unreachable;
  complete_and_tell(receive, status == UCS_OK ? Errc::none : failure);
  answer_closers();
}

void UcxLane::complete_and_tell(UcxReceive& receive, Errc code) {
  const auto tag = receive.tag;
  const bool is_answered = receive.is_answered;
  complete(receive, code);
  if (is_answered && code == Errc::none) return peer_.keep_back_verdict(number_, tag);
  peer_.send_note(UcxMessage::settled, number_, tag, code);
}

void UcxLane::complete(UcxReceive& receive, Errc code) {
  auto& shared = peer_.shared();
  shared.news.add(untold_, std::move(receive.done), {std::move(receive.buffer), code});
  shared.receives.give_back(receive);
}

void UcxLane::settle(Tag tag, Errc verdict) {
  const auto found = std::ranges::find_if(sends_, has_tag(tag));
  if (found == sends_.end()) return;  // Cancelled in the meantime.
  auto& send = **found;
  send.lent = false;
  if (!send.verdict) send.verdict = verdict;
  complete_if_over(send);
}

void UcxLane::let_go(UcxSend& send, ucs_status_t status) {
  send.let_go = true;
  // Cancelled means that the receiver has refused a rendezvous; its verdict says why.
  if (status != UCS_OK && status != UCS_ERR_CANCELED && !send.verdict) {
    send.verdict = to_errc(status);
  }
  complete_if_over(send);
}

void UcxLane::complete_if_over(UcxSend& send) {
  if (!send.let_go || send.lent || !send.verdict) return;
  take(sends_, std::ranges::find(sends_, &send));
  auto& shared = peer_.shared();
  shared.news.add(untold_, std::move(send.done), {std::move(send.buffer), *send.verdict});
  shared.sends.give_back(send);
  answer_closers();
}

void UcxLane::end(Errc code) {
  if (ended_ != Errc::none) return;
  ended_ = code;
  if (!claimed_) count_no_longer_as_unclaimed();
  for (const auto& [tag, arrival] : std::exchange(waiting_, {})) {
    refuse(tag, arrival);
    peer_.worker()->release(arrival);
  }
  for (auto* receive : std::exchange(receives_, {})) complete(*receive, code);
  const auto sends = sends_;
  for (auto* send : sends) {
    if (!send->verdict) send->verdict = code;
    if (peer_.withdraw(*send)) {
      send->let_go = true;
      send->lent = false;
    }
    complete_if_over(*send);
  }
}

void UcxLane::take_back() {
  const auto sends = sends_;
  for (auto* send : sends) {
    send->lent = false;
    complete_if_over(*send);
  }
}

/// The sender of what it has offered keeps it until it hears of it.
void UcxLane::refuse(Tag tag, const UcxArrival& arrival) {
  if (arrival.place != UcxArrival::Place::offered) return;
  peer_.send_note(UcxMessage::settled, number_, tag, Errc::cancelled);
}

void UcxLane::close(std::promise<void> closed) {
  if (ended_ == Errc::none) peer_.send_note(UcxMessage::closed, number_);
  end(Errc::cancelled);
  closers_.push_back(std::move(closed));
  answer_closers();
}

void UcxLane::answer_closers() {
  if (ended_ == Errc::none || fetching_ != 0 || !sends_.empty()) return;
  for (auto& closer : std::exchange(closers_, {})) closer.set_value();
}

void UcxLane::claim() {
  count_no_longer_as_unclaimed();
  claimed_ = true;
}

void UcxLane::count_no_longer_as_unclaimed() {
  auto& shared = peer_.shared();
  for (const auto& message : waiting_) {
    --shared.unclaimed_messages;
    shared.unclaimed_bytes -= message.arrival.kept_bytes();
  }
}

}  // namespace troupe::transport
