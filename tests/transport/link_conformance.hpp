// tests/transport/link_conformance.hpp -- what every Link must do, whatever carries the bytes.
//
// A backend joins with a world, `make_link()` and `progress_until(condition)`, and one line:
// INSTANTIATE_TYPED_TEST_SUITE_P(InProcess, LinkConformance, InProcessWorld);
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <numeric>
#include <optional>
#include <vector>

#include <gtest/gtest.h>

#include "troupe/transport/in_process.hpp"

namespace troupe::transport {

/// Memory that outlives every buffer of a test; each buffer is filled with a pattern of its own.
class TestArena {
public:
  Buffer make(std::size_t size_bytes, std::uint8_t pattern) {
    auto& bytes = blocks_.emplace_back(size_bytes);
    for (std::size_t i = 0; i < size_bytes; ++i) bytes[i] = at(pattern, i);
    return Buffer{{bytes.data(), size_bytes, MemorySpace::host}};
  }

  static bool holds(const Buffer& buffer, std::uint8_t pattern) {
    for (std::size_t i = 0; i < buffer.size_bytes(); ++i) {
      if (buffer.data()[i] != at(pattern, i)) return false;
    }
    return true;
  }

private:
  /// Encodes message and position, so that a swapped or shifted buffer is visible.
  static std::byte at(std::uint8_t pattern, std::size_t i) {
    return static_cast<std::byte>(pattern * 31U + i * 7U + (i >> 8U) * 13U + (i >> 20U) * 5U);
  }
  std::vector<std::vector<std::byte>> blocks_;
};

/// Where the completions of a test meet its thread, whatever thread they run on.
class Outcomes {
public:
  static void record(std::optional<Delivery>& slot, Delivery delivery) {
    const std::scoped_lock lock{mutex};
    ASSERT_FALSE(slot.has_value()) << "a completion ran twice";
    slot.emplace(std::move(delivery));
    changed.notify_all();
  }

  /// Whether an outcome is there that may come at any moment.
  [[nodiscard]] static bool is_there(const std::optional<Delivery>& slot) {
    const std::scoped_lock lock{mutex};
    return slot.has_value();
  }

  /// Waits until `condition` holds, which is looked at after each outcome. Returns false after a
  /// time that only a hanging test takes.
  template <class Condition>
  [[nodiscard]] static bool wait_until(Condition condition) {
    std::unique_lock lock{mutex};
    return changed.wait_for(lock, std::chrono::seconds{60}, condition);
  }

private:
  static inline std::mutex mutex;
  static inline std::condition_variable changed;
};

/// Returns a completion that stores its outcome in `slot` and rejects a second call.
inline TransferDone into(std::optional<Delivery>& slot) {
  return [&slot](Delivery delivery) { Outcomes::record(slot, std::move(delivery)); };
}

template <class World>
class LinkConformance : public testing::Test {
protected:
  TestArena arena_;  // Before the world: links may hold buffers until they are gone.
  World world_;
};
TYPED_TEST_SUITE_P(LinkConformance);

TYPED_TEST_P(LinkConformance, DeliversBytesWhicheverSideArrivesFirst) {
  for (const std::size_t size : {1U, 64U, 100'000U}) {
    for (const bool send_first : {true, false}) {
      auto [left, right] = this->world_.make_link();
      std::optional<Delivery> sent, received;
      if (send_first) left->post_send(Tag{7}, this->arena_.make(size, 1), into(sent));
      right->post_receive(Tag{7}, this->arena_.make(size, 2), into(received));
      if (!send_first) left->post_send(Tag{7}, this->arena_.make(size, 1), into(sent));
      this->world_.progress_until([&] { return sent && received; });
      EXPECT_EQ(sent->code, Errc::none);
      EXPECT_EQ(received->code, Errc::none);
      EXPECT_TRUE(TestArena::holds(received->buffer, 1));
    }
  }
}

TYPED_TEST_P(LinkConformance, GivesBothEndsABufferOfTheSameSizeAndNeverTheSameOne) {
  auto [left, right] = this->world_.make_link();
  std::optional<Delivery> sent, received;
  left->post_send(Tag{7}, this->arena_.make(64, 1), into(sent));
  right->post_receive(Tag{7}, this->arena_.make(64, 2), into(received));
  this->world_.progress_until([&] { return sent && received; });
  EXPECT_EQ(sent->buffer.size_bytes(), 64U);
  EXPECT_EQ(received->buffer.size_bytes(), 64U);
  EXPECT_NE(sent->buffer.data(), received->buffer.data());
}

TYPED_TEST_P(LinkConformance, MatchesByTagNotByOrder) {
  auto [left, right] = this->world_.make_link();
  constexpr std::uint32_t count = 20;
  std::array<std::optional<Delivery>, count> sent, received;
  for (std::uint32_t i = 0; i < count; ++i) {
    left->post_send(Tag{i}, this->arena_.make(32, static_cast<std::uint8_t>(i)), into(sent[i]));
  }
  for (std::uint32_t i = count; i-- > 0;) {
    right->post_receive(Tag{i}, this->arena_.make(32, 200), into(received[i]));
  }
  const auto all = [](const auto& slots) {
    return std::ranges::all_of(slots, [](const auto& slot) { return slot.has_value(); });
  };
  this->world_.progress_until([&] { return all(sent) && all(received); });
  for (std::uint32_t i = 0; i < count; ++i) {
    EXPECT_TRUE(TestArena::holds(received[i]->buffer, static_cast<std::uint8_t>(i))) << i;
  }
}

TYPED_TEST_P(LinkConformance, CarriesBothDirectionsUnderOneTag) {
  auto [left, right] = this->world_.make_link();
  std::optional<Delivery> sent_left, sent_right, received_left, received_right;
  left->post_send(Tag{5}, this->arena_.make(32, 1), into(sent_left));
  right->post_send(Tag{5}, this->arena_.make(32, 2), into(sent_right));
  left->post_receive(Tag{5}, this->arena_.make(32, 3), into(received_left));
  right->post_receive(Tag{5}, this->arena_.make(32, 4), into(received_right));
  this->world_.progress_until(
      [&] { return sent_left && sent_right && received_left && received_right; });
  EXPECT_TRUE(TestArena::holds(received_left->buffer, 2));
  EXPECT_TRUE(TestArena::holds(received_right->buffer, 1));
}

TYPED_TEST_P(LinkConformance, ATagMayBeUsedAgainOnceItIsDone) {
  auto [left, right] = this->world_.make_link();
  for (std::uint8_t round = 1; round < 5; ++round) {
    std::optional<Delivery> sent, received;
    left->post_send(Tag{1}, this->arena_.make(16, round), into(sent));
    right->post_receive(Tag{1}, this->arena_.make(16, 0), into(received));
    this->world_.progress_until([&] { return sent && received; });
    EXPECT_TRUE(TestArena::holds(received->buffer, round));
  }
}

TYPED_TEST_P(LinkConformance, ReportsASizeThatDiffersToBothEnds) {
  auto [left, right] = this->world_.make_link();
  std::optional<Delivery> sent, received;
  left->post_send(Tag{3}, this->arena_.make(32, 1), into(sent));
  right->post_receive(Tag{3}, this->arena_.make(16, 2), into(received));
  this->world_.progress_until([&] { return sent && received; });
  EXPECT_EQ(sent->code, Errc::message_truncated);
  EXPECT_EQ(received->code, Errc::message_truncated);
  EXPECT_EQ(sent->buffer.size_bytes(), 32U) << "everyone gets a buffer of the size posted";
  EXPECT_EQ(received->buffer.size_bytes(), 16U);
}

TYPED_TEST_P(LinkConformance, CloseCompletesWhatIsPendingExactlyOnce) {
  auto [left, right] = this->world_.make_link();
  std::optional<Delivery> received, sent;
  right->post_receive(Tag{9}, this->arena_.make(8, 1), into(received));
  right->post_send(Tag{10}, this->arena_.make(8, 2), into(sent));
  right->close();
  right->close();
  ASSERT_TRUE(received.has_value());
  ASSERT_TRUE(sent.has_value());
  EXPECT_EQ(received->code, Errc::cancelled);
  EXPECT_EQ(sent->code, Errc::cancelled);
  EXPECT_TRUE(static_cast<bool>(received->buffer));
}

TYPED_TEST_P(LinkConformance, OperationsAfterCloseAreCancelledOnEitherEnd) {
  auto [left, right] = this->world_.make_link();
  std::optional<Delivery> waiting, sent, received;
  left->post_receive(Tag{1}, this->arena_.make(8, 1), into(waiting));
  right->close();
  left->post_send(Tag{2}, this->arena_.make(8, 2), into(sent));
  right->post_receive(Tag{2}, this->arena_.make(8, 3), into(received));
  this->world_.progress_until([&] { return waiting && sent && received; });
  EXPECT_EQ(waiting->code, Errc::cancelled);
  EXPECT_EQ(sent->code, Errc::cancelled);
  EXPECT_EQ(received->code, Errc::cancelled);
}

TYPED_TEST_P(LinkConformance, CarriesMessagesAndTheirAnswers) {
  auto [left, right] = this->world_.make_link();
  for (std::uint64_t i = 0; i < 50; ++i) {
    const auto pattern = static_cast<std::uint8_t>(i);
    std::optional<Delivery> asked, question, answered, answer;
    right->post_receive_to_answer(Tag{i}, this->arena_.make(8, 255), into(question));
    left->post_receive_to_answer(Tag{i}, this->arena_.make(16, 255), into(answer));
    left->post_send(Tag{i}, this->arena_.make(8, pattern), into(asked));
    this->world_.progress_until([&] { return question.has_value(); });
    right->post_send(Tag{i}, this->arena_.make(16, pattern), into(answered));
    this->world_.progress_until([&] { return asked && answered && answer; });
    for (const auto* outcome : {&asked, &question, &answered, &answer}) {
      ASSERT_EQ((*outcome)->code, Errc::none) << i;
    }
    ASSERT_TRUE(TestArena::holds(question->buffer, pattern)) << i;
    ASSERT_TRUE(TestArena::holds(answer->buffer, pattern)) << i;
  }
}

REGISTER_TYPED_TEST_SUITE_P(LinkConformance, DeliversBytesWhicheverSideArrivesFirst,
                            GivesBothEndsABufferOfTheSameSizeAndNeverTheSameOne,
                            MatchesByTagNotByOrder, CarriesBothDirectionsUnderOneTag,
                            ATagMayBeUsedAgainOnceItIsDone, CarriesMessagesAndTheirAnswers,
                            ReportsASizeThatDiffersToBothEnds,
                            CloseCompletesWhatIsPendingExactlyOnce,
                            OperationsAfterCloseAreCancelledOnEitherEnd);

}  // namespace troupe::transport
