#include "schedule_source.hpp"

#include <cstdio>

#include <fmt/format.h>

#include "troupe/engine/schedule_generators.hpp"
#include "troupe/engine/schedule_text.hpp"
#include "troupe/engine/schedule_validation.hpp"
#include "troupe/storage/text_file.hpp"

namespace troupe::cli {

Expected<Schedule> read_schedule(const std::string& path) {
  const auto text = storage::read_text(path);
  if (!text) return text.error();
  auto schedule = from_csv(*text, path);
  if (!schedule) return schedule;
  const auto as_written = validate(*schedule);
  if (as_written) return schedule;
  auto in_order = with_weight_passes_in_order(*schedule);
  if (!validate(in_order)) {
    return Error{as_written.error().code, path + ": " + as_written.error().context
                                              + "; correct the file, or write a new one with "
                                                "`troupe schedule NAME --format csv`"};
  }
  fmt::print(stderr, "note: {}: weight passes now run in microbatch order\n", path);
  return in_order;
}

}  // namespace troupe::cli
