#include <cstdlib>
#include <string>
#include <utility>

#include "troupe/transport/ucx_fabric.hpp"

#include "link_conformance.hpp"

namespace troupe::transport {

std::unique_ptr<UcxFabric> make_fabric(bool shared_memory) {
  UcxOptions options;
  options.shared_memory = shared_memory;
  auto fabric = UcxFabric::make(std::move(options));
  if (!fabric) ADD_FAILURE() << fabric.error().context;
  return std::move(fabric.value());
}

std::unique_ptr<Link> link_to(UcxFabric& from, const UcxFabric& to, std::uint64_t lane) {
  auto link = from.make_link(to.address(), lane);
  if (!link) ADD_FAILURE() << link.error().context;
  return std::move(link.value());
}

/// Two fabrics of one process, a lane of its own for each link.
template <bool shared_memory>
struct UcxWorld {
  LinkPair make_link() {
    ++lanes;
    auto left_end = link_to(*left, *right, lanes);
    return {std::move(left_end), link_to(*right, *left, lanes)};
  }

  template <class Condition>
  void progress_until(Condition condition) {
    ASSERT_TRUE(Outcomes::wait_until(condition)) << "nothing comes any more";
  }

  std::uint64_t lanes = 0;
  std::unique_ptr<UcxFabric> left = make_fabric(shared_memory);
  std::unique_ptr<UcxFabric> right = make_fabric(shared_memory);
};

INSTANTIATE_TYPED_TEST_SUITE_P(UcxSharedMemory, LinkConformance, UcxWorld<true>);
INSTANTIATE_TYPED_TEST_SUITE_P(UcxTcp, LinkConformance, UcxWorld<false>);

template <class World>
class UcxLink : public testing::Test {
protected:
  TestArena arena_;
  World world_;
};
using UcxWorlds = testing::Types<UcxWorld<true>, UcxWorld<false>>;
TYPED_TEST_SUITE(UcxLink, UcxWorlds);

TYPED_TEST(UcxLink, CarriesEverySmallSizeAndTheEdgesOfUcxsProtocols) {
  std::vector<std::size_t> sizes(400);
  std::iota(sizes.begin(), sizes.end(), 0);
  for (const std::size_t edge : {1024U, 8185U, 8256U, 20553U, 65536U}) {
    for (std::size_t size = edge - 64; size < edge + 64; ++size) sizes.push_back(size);
  }
  auto [left, right] = this->world_.make_link();
  for (const auto size : sizes) {
    TestArena arena;
    std::optional<Delivery> sent, received;
    right->post_receive(Tag{size}, arena.make(size, 2), into(received));
    left->post_send(Tag{size}, arena.make(size, 1), into(sent));
    this->world_.progress_until([&] { return sent && received; });
    ASSERT_EQ(sent->code, Errc::none) << size;
    ASSERT_EQ(received->code, Errc::none) << size;
    ASSERT_TRUE(TestArena::holds(received->buffer, 1)) << size;
  }
}

}  // namespace troupe::transport
