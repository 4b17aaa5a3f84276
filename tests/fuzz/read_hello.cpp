// The reader of the hellos that a gate gets from anybody: it decides at the earliest byte and never
// takes the decision back, and what it accepts is written as the same bytes.

#include <algorithm>
#include <span>

#include "fuzz_target.hpp"
#include "gate/hello.hpp"

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size_bytes) {
  using namespace troupe;
  const auto bytes = std::as_bytes(std::span{data, size_bytes});
  bool refused = false;
  for (std::size_t size = 0; size <= std::min(size_bytes, transport::hello_bytes + 1); ++size) {
    const auto head = bytes.first(size);
    const auto hello = transport::read_hello(head);
    if (!hello) {
      check_refusal(hello.error(), Errc::invalid_file);
      refused = true;
      continue;
    }
    TROUPE_ASSERT(!refused && size <= transport::hello_bytes);
    if (!hello->has_value()) continue;
    TROUPE_ASSERT(transport::is_version((*hello)->version));
    if ((*hello)->protocol != transport::gate_protocol) continue;
    TROUPE_ASSERT(std::ranges::equal(transport::write_hello(**hello), head));
  }
  if (size_bytes >= transport::answer_bytes) {
    const auto head = bytes.first<transport::answer_bytes>();
    const auto answer = transport::read_answer(head);
    TROUPE_ASSERT(!answer || std::ranges::equal(transport::write_answer(*answer), head));
    if (!answer) check_refusal(answer.error(), Errc::invalid_file);
  }
  return 0;
}
