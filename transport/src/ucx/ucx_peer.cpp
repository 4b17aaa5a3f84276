#include "ucx/ucx_peer.hpp"

#include <algorithm>
#include <filesystem>
#include <system_error>

namespace troupe::transport {

namespace {

/// Lanes of one peer that it has used and this end has not made.
constexpr std::uint32_t unclaimed_lanes_max = 4096;

/// Less than some workers take: UCX 1.13 takes 4.2 MB for each.
constexpr std::uintmax_t little_bytes = std::uintmax_t{16} << 20U;

/// UCX does not say what there is too little of.
Error with_cause(const Error& error) {
  std::error_code unknown;
  const auto space = std::filesystem::space("/dev/shm", unknown);
  if (unknown || space.available > little_bytes) return error;
  return {error.code, "/dev/shm, the memory that processes share, has "
                          + std::to_string(space.available >> 10U)
                          + " KiB left, and each process needs about 4200 for each other that it "
                            "exchanges messages with: enlarge it, or give --no-shared-memory ("
                          + error.context + ")"};
}

}  // namespace

void UcxNote::completed(ucs_status_t /*status*/) {
  // A note that could not be sent was for a peer that is lost, as its endpoint says too.
  pool->give_back(*this);
}

UcxLane& UcxPeer::claim(std::uint64_t lane) {
  const auto [found, is_new] = lanes_.try_emplace(lane, *this, lane);
  auto& claimed = found->second;
  TROUPE_ASSERT(!claimed.is_claimed());  // A lane number serves a pair of fabrics once.
  if (!is_new) --unclaimed_lanes_;
  claimed.claim();
  if (ended_ != Errc::none) claimed.end(ended_);
  return claimed;
}

UcxLane* UcxPeer::lane_of(std::uint64_t number) {
  if (const auto found = lanes_.find(number); found != lanes_.end()) return &found->second;
  if (unclaimed_lanes_ == unclaimed_lanes_max) return nullptr;
  ++unclaimed_lanes_;
  return &lanes_.try_emplace(number, *this, number).first->second;
}

Expected<UcxCard> UcxPeer::card() {
  if (worker_ == nullptr) {
    auto worker = UcxWorker::make(shared_.context, *this, shared_.events);
    if (!worker) return shared_.shared_memory ? with_cause(worker.error()) : worker.error();
    worker_ = std::move(*worker);
  }
  auto address = worker_->address();
  if (!address) return address.error();
  return UcxCard{.number = shared_.self,
                 .memory = shared_.shared_memory ? consent_.key() : MemoryKey{},
                 .address = std::move(*address)};
}

Expected<Done> UcxPeer::connect(const UcxCard& card, UcxAcquaintancePtr acquaintance) {
  acquaintances_.push_back(std::move(acquaintance));
  if (endpoint_ != nullptr) return Done{};
  auto endpoint = UcxEndpoint::connect(*worker_, card.address, [this](ucs_status_t status) {
    shared_.failures.push_back({number_, status});
  });
  if (!endpoint) return endpoint.error();
  endpoint_ = std::move(*endpoint);
  if (shared_.shared_memory) reader_.open(card.memory);
  return Done{};
}

bool UcxPeer::progress() {
  send_what_was_kept_back();
  const bool progressed = worker_ != nullptr && worker_->progress();
  return reader_.progress() || progressed;
}

bool UcxPeer::arm() {
  return !reader_.has_in_flight() && (worker_ == nullptr || worker_->arm());
}

bool UcxPeer::take_begun() {
  const bool begun = worker_ != nullptr && worker_->take_begun();
  return begun || reader_.has_in_flight();
}

bool UcxPeer::has_in_flight() const {
  return reader_.has_in_flight() || (worker_ != nullptr && worker_->has_in_flight());
}

bool UcxPeer::forget(const UcxAcquaintancePtr& acquaintance) {
  std::erase(acquaintances_, acquaintance);
  return !acquaintances_.empty();
}

void UcxPeer::greet() {
  if (!std::exchange(greeted_, true)) send_at_once(UcxMessage::hello);
}

bool UcxPeer::take_in(std::span<const std::byte> bytes, const UcxArrival& arrival) {
  const auto headers = read_headers(bytes);
  if (!headers || headers->message.from != number_) {
    ++shared_.garbage;
    return false;
  }
  if (headers->verdict) (void)take_in(*headers->verdict, {});
  return take_in(headers->message, arrival);
}

bool UcxPeer::take_in(const UcxHeader& header, const UcxArrival& arrival) {
  if (endpoint_ == nullptr) return false;  // It is lost.
  if (header.kind == UcxMessage::hello) {
    send_at_once(UcxMessage::welcome);
    greet();
    return false;
  }
  if (header.kind == UcxMessage::welcome) {
    send_what_was_held();
    return false;
  }
  if (header.kind == UcxMessage::settled) {  // Also of what was still under way at its goodbye.
    if (auto* lane = lane_of(header.lane)) lane->settle(header.tag, header.code);
    return false;
  }
  if (state_ != State::alive) return false;
  if (header.kind == UcxMessage::reader) {
    reads_ = true;
    return false;
  }
  if (header.kind == UcxMessage::data) return take_in_data(header, arrival);
  if (header.kind == UcxMessage::offer) {
    take_in_offer(header, arrival);
    return false;
  }
  if (header.kind == UcxMessage::goodbye) {
    send_note(UcxMessage::goodbye, 0);
    end(State::departed, Errc::cancelled);
    return false;
  }
  if (auto* lane = lane_of(header.lane)) lane->end(Errc::cancelled);  // It is closed.
  return false;
}

void UcxPeer::take_in_offer(const UcxHeader& header, const UcxArrival& arrival) {
  const std::span bytes{static_cast<const std::byte*>(arrival.handle), arrival.kept_bytes()};
  const auto offer = read_offer(bytes);
  if (!offer || !reader_.is_open()) {
    ++shared_.garbage;
    return;
  }
  (void)take_in_data(header, {.handle = reinterpret_cast<void*>(offer->address),
                              .size_bytes = offer->size_bytes,
                              .place = UcxArrival::Place::offered});
}

bool UcxPeer::take_in_data(const UcxHeader& header, const UcxArrival& arrival) {
  auto* lane = lane_of(header.lane);
  if (lane != nullptr && lane->is_claimed()) return lane->arrive(header.tag, arrival);
  const auto bytes = arrival.kept_bytes();
  if (lane == nullptr || shared_.unclaimed_messages == ucx_unclaimed_messages_max
      || bytes > ucx_unclaimed_bytes_max - shared_.unclaimed_bytes) {
    ++shared_.refused;
    send_note(UcxMessage::settled, header.lane, header.tag, Errc::out_of_memory);
    return false;
  }
  if (!lane->arrive(header.tag, arrival)) return false;
  ++shared_.unclaimed_messages;
  shared_.unclaimed_bytes += bytes;
  return true;
}

void UcxPeer::send(UcxEnvelope& envelope, BufferView bytes, UcxCompletion& completion) {
  if (endpoint_ == nullptr && state_ != State::alive) {
    return completion.completed(UCS_ERR_NOT_CONNECTED);
  }
  if (const auto verdict = std::exchange(verdict_, std::nullopt)) envelope.add(*verdict);
  if (!welcome_) return held_.push_back({&envelope, bytes, &completion});
  endpoint_->send(envelope.bytes(), bytes, completion);
}

void UcxPeer::send_what_was_held() {
  welcome_ = true;
  if (reader_.is_open()) send_note(UcxMessage::reader, 0);
  for (const auto& [envelope, bytes, completion] : std::exchange(held_, {})) {
    endpoint_->send(envelope->bytes(), bytes, *completion);
  }
}

bool UcxPeer::withdraw(const UcxCompletion& completion) {
  return std::erase_if(held_, [&](const Held& held) { return held.completion == &completion; })
         != 0;
}

void UcxPeer::fetch(const UcxArrival& arrival, BufferView target, UcxCompletion& completion) {
  if (arrival.place == UcxArrival::Place::rendezvous) {
    return worker_->fetch(arrival, target, completion);
  }
  reader_.fetch(reinterpret_cast<std::uintptr_t>(arrival.handle), target, completion);
}

std::vector<UcxAcquaintancePtr> UcxPeer::disconnect() {
  consent_.withdraw();
  { const auto closed = std::exchange(endpoint_, nullptr); }  // Completes, and must find none.
  worker_.reset();
  for (const auto& held : std::exchange(held_, {})) {
    held.completion->completed(UCS_ERR_NOT_CONNECTED);
  }
  reader_.cancel();
  for (auto& [number, lane] : lanes_) lane.take_back();
  return std::exchange(acquaintances_, {});
}

UcxNote& UcxPeer::make_note(const UcxHeader& header) {
  auto& note = shared_.notes.take();
  note.pool = &shared_.notes;
  note.envelope = UcxEnvelope{header};
  return note;
}

void UcxPeer::send_note(UcxMessage kind, std::uint64_t lane, Tag tag, Errc code) {
  auto& note =
      make_note({.kind = kind, .code = code, .from = shared_.self, .lane = lane, .tag = tag});
  send(note.envelope, {}, note);
}

void UcxPeer::keep_back_verdict(std::uint64_t lane, Tag tag) {
  send_what_was_kept_back();
  verdict_ = {.kind = UcxMessage::settled, .from = shared_.self, .lane = lane, .tag = tag};
}

void UcxPeer::send_what_was_kept_back() {
  const auto verdict = std::exchange(verdict_, std::nullopt);
  if (verdict) send_note(verdict->kind, verdict->lane, verdict->tag);
}

void UcxPeer::send_at_once(UcxMessage kind) {
  auto& note = make_note({.kind = kind, .from = shared_.self});
  endpoint_->send(note.envelope.bytes(), {}, note);
}

void UcxPeer::end(State state, Errc code) {
  if (ended_ == Errc::none) ended_ = code;
  state_ = state;
  for (auto& [number, lane] : lanes_) lane.end(code);
}

void UcxPeer::wait_until_told() const noexcept {
  for (const auto& [number, lane] : lanes_) lane.wait_until_told();
}

std::string UcxPeer::print() const {
  return endpoint_ == nullptr ? std::string{} : endpoint_->print();
}

}  // namespace troupe::transport
