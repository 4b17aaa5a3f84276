#include <thread>

#include "troupe/transport/in_process.hpp"

#include "link_conformance.hpp"

namespace troupe::transport {

struct InProcessWorld {
  LinkPair make_link() { return make_in_process_link(); }

  template <class Condition>
  void progress_until(Condition condition) {
    ASSERT_TRUE(condition()) << "an in-process transfer completes when its second half is posted";
  }
};

INSTANTIATE_TYPED_TEST_SUITE_P(InProcess, LinkConformance, InProcessWorld);

TEST(InProcessLink, HandsTheSendersBufferOverWithoutACopy) {
  TestArena arena;
  auto [left, right] = make_in_process_link();
  auto source = arena.make(64, 1);
  auto target = arena.make(64, 2);
  const auto* source_bytes = source.data();
  const auto* target_bytes = target.data();
  std::optional<Delivery> sent, received;
  left->post_send(Tag{1}, std::move(source), into(sent));
  right->post_receive(Tag{1}, std::move(target), into(received));
  EXPECT_EQ(received->buffer.data(), source_bytes);
  EXPECT_EQ(sent->buffer.data(), target_bytes);
}

TEST(InProcessLink, CarriesMessagesBetweenThreads) {
  constexpr std::uint32_t count = 2000;
  TestArena arena;
  std::vector<Buffer> sources, targets;
  for (std::uint32_t i = 0; i < count; ++i) {
    sources.push_back(arena.make(16, static_cast<std::uint8_t>(i)));
    targets.push_back(arena.make(16, 255));
  }
  std::vector<std::optional<Delivery>> sent(count), received(count);
  auto pair = make_in_process_link();
  std::thread sender{[&] {
    for (std::uint32_t i = 0; i < count; ++i) {
      pair.first->post_send(Tag{i}, std::move(sources[i]), into(sent[i]));
    }
  }};
  for (std::uint32_t i = 0; i < count; ++i) {
    pair.second->post_receive(Tag{i}, std::move(targets[i]), into(received[i]));
  }
  sender.join();
  for (std::uint32_t i = 0; i < count; ++i) {
    ASSERT_TRUE(sent[i] && received[i]) << i;
    EXPECT_TRUE(TestArena::holds(received[i]->buffer, static_cast<std::uint8_t>(i)));
  }
}

}  // namespace troupe::transport
