#include "schedule_source.hpp"

#include "troupe/engine/schedule_text.hpp"
#include "troupe/storage/text_file.hpp"

namespace troupe::cli {

Expected<Schedule> read_schedule(const std::string& path) {
  const auto text = storage::read_text(path);
  if (!text) return text.error();
  return from_csv(*text, path);
}

}  // namespace troupe::cli
