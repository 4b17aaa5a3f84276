// The reader of schedule files with communication, their validation, and the pictures of what that
// refuses: what is accepted is written as text that reads the same.

#include <string>
#include <string_view>

#include "troupe/engine/communication_validation.hpp"
#include "troupe/engine/counterexample.hpp"
#include "troupe/engine/schedule_text.hpp"
#include "troupe/engine/schedule_validation.hpp"

#include "fuzz_target.hpp"

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size_bytes) {
  using namespace troupe;
  const std::string_view text{reinterpret_cast<const char*>(data), size_bytes};
  const auto schedule = communication_from_csv(text, "fuzz.csv");
  if (!schedule) {
    check_refusal(schedule.error(), Errc::invalid_file);
    return 0;
  }
  const auto written = to_csv(*schedule);
  const auto again = communication_from_csv(written, "fuzz.csv");
  TROUPE_ASSERT(again && *again == *schedule && to_csv(*again) == written);

  bool was_valid = true;
  for (const auto matching : {Matching::tagged, Matching::ordered}) {
    const auto valid = validate(*schedule, matching);
    TROUPE_ASSERT(was_valid || !valid);  // Ordered matching is the stricter one.
    was_valid = valid.has_value();
    const auto picture = make_counterexample(*schedule, matching);
    TROUPE_ASSERT(!valid || !picture);
    if (picture) TROUPE_ASSERT(draw_text(*picture).find('>') != std::string::npos);
  }
  const auto passes = without_communication(*schedule);
  if (!validate(passes)) return 0;
  const auto lowered = with_communication(passes);
  TROUPE_ASSERT(validate(lowered, Matching::tagged) && validate(lowered, Matching::ordered));
  TROUPE_ASSERT(without_communication(lowered) == passes);
  return 0;
}
