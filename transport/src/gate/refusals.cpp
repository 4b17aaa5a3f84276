#include "troupe/transport/refusals.hpp"

#include <utility>

namespace troupe::transport {

void Refusals::note(const std::string& sentence, Clock::time_point now) {
  if (said_.empty() || now - begin_ >= period) {
    said_.clear();
    begin_ = now;
  }
  if (said_.size() > sentences_max || !said_.insert(sentence).second || !report_) return;
  if (said_.size() <= sentences_max) return report_(sentence);
  report_("connections were refused for " + std::to_string(sentences_max)
          + " different reasons within an hour: others are not reported before it is over");
}

}  // namespace troupe::transport
