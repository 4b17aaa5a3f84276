#include "troupe/transport/delayed_link.hpp"

#include <chrono>
#include <optional>

#include <gtest/gtest.h>

#include "troupe/transport/in_process.hpp"

#include "link_conformance.hpp"

namespace troupe::transport {

using namespace std::chrono_literals;

struct DelayedWorld {
  LinkPair make_link() {
    auto [left, right] = make_in_process_link();
    return {make_delayed_link(std::move(left), 1ms), make_delayed_link(std::move(right), 1ms)};
  }

  template <class Condition>
  void progress_until(Condition condition) {
    ASSERT_TRUE(Outcomes::wait_until(condition)) << "nothing comes any more";
  }
};

INSTANTIATE_TYPED_TEST_SUITE_P(Delayed, LinkConformance, DelayedWorld);

TEST(DelayedLink, AMessageComesLaterByTheDelayAndNotEarlier) {
  TestArena arena;
  std::optional<Delivery> sent, received;
  auto [left, right] = make_in_process_link();
  const auto slow = make_delayed_link(std::move(left), 30ms);
  right->post_receive(Tag{1}, arena.make(64, 2), into(received));
  const auto posted = std::chrono::steady_clock::now();
  slow->post_send(Tag{1}, arena.make(64, 1), into(sent));
  DelayedWorld{}.progress_until([&] { return received.has_value(); });
  EXPECT_GE(std::chrono::steady_clock::now() - posted, 30ms);
  EXPECT_TRUE(TestArena::holds(received->buffer, 1));
}

TEST(DelayedLink, ClosingDoesNotWaitForTheDelay) {
  TestArena arena;
  std::optional<Delivery> sent;
  auto [left, right] = make_in_process_link();
  const auto slow = make_delayed_link(std::move(left), 24h);
  slow->post_send(Tag{1}, arena.make(64, 1), into(sent));
  slow->close();
  ASSERT_TRUE(sent.has_value());
  EXPECT_EQ(sent->code, Errc::cancelled);
}

}  // namespace troupe::transport
