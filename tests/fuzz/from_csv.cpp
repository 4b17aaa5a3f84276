// The reader of schedule files, and the validation of what it read.

#include <string>
#include <string_view>

#include "troupe/engine/schedule_text.hpp"
#include "troupe/engine/schedule_validation.hpp"

#include "fuzz_target.hpp"

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size_bytes) {
  using namespace troupe;
  const std::string_view text{reinterpret_cast<const char*>(data), size_bytes};
  const auto schedule = from_csv(text, "fuzz.csv");
  if (!schedule) {
    check_refusal(schedule.error(), Errc::invalid_file);
    return 0;
  }
  if (const auto valid = validate(*schedule); !valid) {
    // The sentence of this one goes on with the rows of the schedule.
    TROUPE_ASSERT(valid.error().code == Errc::invalid_schedule && !valid.error().context.empty());
    return 0;
  }
  const auto again = from_csv(to_csv(*schedule), "fuzz.csv");
  TROUPE_ASSERT(again && *again == *schedule);
  return 0;
}
