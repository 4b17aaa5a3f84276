// cli/src/link_test.hpp -- two processes of this machine that exchange messages, to see whether it
// works, and how fast.
#pragma once

#include <string>
#include <vector>

#include "troupe/engine/cost_model.hpp"
#include "troupe/engine/expected.hpp"

namespace troupe::cli {

struct LinkTestOptions {
  std::string network_interface;
  bool shared_memory = true;
  std::string secret{};  ///< Of the two; for `test_links`, which draws it, of no interest.
};

struct LinkTestResult {
  std::vector<std::string> offered;         ///< Transports that UCX has under these options.
  std::vector<std::string> carried_by;      ///< Those it chose between the two processes.
  double hop_ns = 0.0;                      ///< One way of 8 bytes, thread to thread; median.
  double bytes_per_second = 0.0;            ///< Of 16 MiB, one way at a time; median.
  Wire reduction{.bytes_per_second = 0.0};  ///< All-reduces between the two.
  std::string failure;                      ///< Empty if every message arrived as it was sent.
  std::vector<std::string> remarks;         ///< What UCX printed.
};

/// Starts this program twice, as `troupe doctor --self-test`, and lets the two send each other
/// 8 bytes and 16 MiB, and sum numbers. UCX runs in neither but them: should it crash or hang, they
/// end and the result says so. Blocks, usually for less than a second, for a minute at most.
[[nodiscard]] LinkTestResult test_links(LinkTestOptions options);

/// What the first of the two does: starts the second, measures, prints the result for `test_links`.
[[nodiscard]] Expected<Done> be_first_of_link_test(const LinkTestOptions& options);

/// What the second does: prints its address, and answers the first, whose address is `peer`.
[[nodiscard]] Expected<Done> be_second_of_link_test(const LinkTestOptions& options,
                                                    const std::string& peer);

}  // namespace troupe::cli
