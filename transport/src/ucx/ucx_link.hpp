// transport/src/ucx/ucx_link.hpp -- the end of a lane that its user holds.
#pragma once

#include <future>
#include <memory>
#include <utility>

#include "troupe/transport/link.hpp"

#include "ucx/ucx_lane.hpp"
#include "ucx/ucx_loop.hpp"

namespace troupe::transport {

/// Passes what its user wants on to the lane, through the loop.
class UcxLink final : public Link {
public:
  explicit UcxLink(std::shared_ptr<UcxLoop> loop) : loop_{std::move(loop)} {}
  ~UcxLink() override { UcxLink::close(); }

  /// Connects the link with its lane, before anything else that the loop does for the link.
  void attach(UcxLane& lane) noexcept { lane_ = &lane; }

  void post_send(Tag tag, Buffer source, TransferDone done) override {
    loop_->post([this, tag, source = std::move(source), done = std::move(done)]() mutable {
      lane_->post_send(tag, std::move(source), std::move(done));
    });
  }

  void post_receive(Tag tag, Buffer target, TransferDone done) override {
    post_receive(tag, std::move(target), std::move(done), false);
  }

  void post_receive_to_answer(Tag tag, Buffer target, TransferDone done) override {
    post_receive(tag, std::move(target), std::move(done), true);
  }

  void close() override {
    std::promise<void> closed;
    auto is_closed = closed.get_future();
    loop_->post([this, closed = std::move(closed)]() mutable { lane_->close(std::move(closed)); });
    is_closed.wait();
    lane_->wait_until_told();
  }

private:
  void post_receive(Tag tag, Buffer target, TransferDone done, bool is_answered) {
    loop_->post(
        [this, tag, target = std::move(target), done = std::move(done), is_answered]() mutable {
          lane_->post_receive(tag, std::move(target), std::move(done), is_answered);
        });
  }

  std::shared_ptr<UcxLoop> loop_;
  UcxLane* lane_ = nullptr;
};

}  // namespace troupe::transport
