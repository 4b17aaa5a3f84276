// Fabrics for tests: two in one process, and one in a process of its own.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "troupe/transport/ucx_fabric.hpp"

#include "link_conformance.hpp"

namespace troupe::transport {

inline const std::string secret_of_tests = "known to every fabric here";

inline std::unique_ptr<UcxFabric> make_fabric(UcxOptions options) {
  options.secret = secret_of_tests;
  auto fabric = UcxFabric::make(std::move(options));
  if (!fabric) ADD_FAILURE() << fabric.error().context;
  return std::move(fabric.value());
}

inline std::unique_ptr<UcxFabric> make_fabric(bool shared_memory) {
  UcxOptions options;
  options.shared_memory = shared_memory;
  return make_fabric(std::move(options));
}

inline std::unique_ptr<Link> link_to(UcxFabric& from, const std::string& to, std::uint64_t lane) {
  auto link = from.make_link(to, lane);
  if (!link) ADD_FAILURE() << link.error().context;
  return std::move(link.value());
}

/// Two fabrics of one process, a lane of its own for each link.
template <bool shared_memory>
struct UcxWorld {
  LinkPair make_link() {
    ++lanes;
    auto left_end = link_to(*left, right->address(), lanes);
    return {std::move(left_end), link_to(*right, left->address(), lanes)};
  }

  template <class Condition>
  void progress_until(Condition condition) {
    ASSERT_TRUE(Outcomes::wait_until(condition)) << "nothing comes any more";
  }

  std::uint64_t lanes = 0;
  std::unique_ptr<UcxFabric> left = make_fabric(shared_memory);
  std::unique_ptr<UcxFabric> right = make_fabric(shared_memory);
};

}  // namespace troupe::transport
