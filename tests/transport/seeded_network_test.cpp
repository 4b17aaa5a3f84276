#include "troupe/transport/seeded_network.hpp"

#include <string>

#include "link_conformance.hpp"

namespace troupe::transport {

struct SeededWorld {
  LinkPair make_link() { return network.make_link(); }

  template <class Condition>
  void progress_until(Condition condition) {
    while (!condition()) ASSERT_TRUE(network.deliver_one()) << "nothing left to deliver";
  }

  SeededNetwork network{/*seed=*/42};
};

INSTANTIATE_TYPED_TEST_SUITE_P(Seeded, LinkConformance, SeededWorld);

/// The order in which eight transfers complete under `seed`.
std::string order_of(std::uint64_t seed) {
  TestArena arena;
  SeededNetwork network{seed};
  auto [left, right] = network.make_link();
  std::string order;
  for (std::uint32_t i = 0; i < 8; ++i) {
    left->post_send(Tag{i}, arena.make(4, 0), [](Delivery) {});
    right->post_receive(Tag{i}, arena.make(4, 0),
                        [&order, i](Delivery) { order += std::to_string(i); });
  }
  while (network.deliver_one()) {
  }
  return order;
}

TEST(SeededNetwork, DeliversInAnOrderThatTheSeedAloneDecides) {
  EXPECT_EQ(order_of(1), order_of(1));
  EXPECT_NE(order_of(1), order_of(2));
  EXPECT_NE(order_of(1), "01234567");
}

}  // namespace troupe::transport
