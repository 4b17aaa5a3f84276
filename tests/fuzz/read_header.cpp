// The reader of the header in front of every message between fabrics: what it accepts is written as
// the same bytes, and what it refuses is told in one line.

#include <algorithm>
#include <span>

#include "fuzz_target.hpp"
#include "ucx/ucx_header.hpp"

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size_bytes) {
  using namespace troupe;
  const auto bytes = std::as_bytes(std::span{data, size_bytes});
  const auto header = transport::read_header(bytes);
  TROUPE_ASSERT(!header || std::ranges::equal(transport::write_header(*header), bytes));
  if (!header) check_refusal(header.error(), Errc::invalid_file);
  return 0;
}
