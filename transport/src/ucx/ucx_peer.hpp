// transport/src/ucx/ucx_peer.hpp -- another fabric: its connections, its lanes, and whether it
// lives.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "troupe/transport/ucx_fabric.hpp"

#include "ucx/ucx_endpoint.hpp"
#include "ucx/ucx_lane.hpp"

namespace troupe::transport {

/// A message about transfers rather than of one.
struct UcxNote final : UcxCompletion {
  void completed(ucs_status_t status) override;

  UcxPool<UcxNote>* pool = nullptr;
  UcxHeaderBytes header{};
};

/// What the peers of a fabric share.
struct UcxShared {
  UcxWorker& worker;
  std::uint64_t self;  ///< This fabric's number, from which its messages come.
  UcxPool<UcxSend> sends{};
  UcxPool<UcxReceive> receives{};
  UcxPool<UcxNote> notes{};
  std::uint32_t unclaimed_messages = 0;  ///< Kept for lanes nobody has made yet.
  std::size_t unclaimed_bytes = 0;
  std::atomic<std::uint64_t> garbage{0};
  std::atomic<std::uint64_t> refused{0};
};

/// Belongs to the fabric's thread.
class UcxPeer {
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
  [[nodiscard]] bool is_connected() const noexcept { return !endpoints_.empty(); }

  /// Adds a connection. When both ends connect at the same time there are two, and each end sends
  /// all its messages on the one it had first.
  void add(std::unique_ptr<UcxEndpoint> endpoint) { endpoints_.push_back(std::move(endpoint)); }

  /// Returns the lane, made for this end.
  UcxLane& claim(std::uint64_t lane);

  /// Takes in a message of this peer. Returns whether it keeps the arrival.
  bool take_in(const UcxHeader& header, const UcxArrival& arrival);

  void send(const UcxHeaderBytes& header, BufferView bytes, UcxCompletion& completion);
  void send_note(UcxMessage kind, std::uint64_t lane, Tag tag = {}, Errc code = Errc::none);

  /// Ends every lane with `code` and remembers why there will be no others.
  void end(State state, Errc code);

  /// Closes the connections.
  void disconnect() { endpoints_.clear(); }

  [[nodiscard]] bool has_claimed_lanes() const;
  [[nodiscard]] std::string print() const;

private:
  /// Returns the lane, made known if need be; null if there are too many that nobody has made.
  UcxLane* lane_of(std::uint64_t number);
  bool take_in_data(const UcxHeader& header, const UcxArrival& arrival);

  UcxShared& shared_;
  std::uint64_t number_;
  State state_ = State::alive;
  Errc ended_ = Errc::none;
  std::vector<std::unique_ptr<UcxEndpoint>> endpoints_;
  std::map<std::uint64_t, UcxLane> lanes_;
  std::uint32_t unclaimed_lanes_ = 0;
};

}  // namespace troupe::transport
