#include "troupe/actors/step_report.hpp"

#include <algorithm>
#include <vector>

namespace troupe::actors {

double StepReport::bubble_fraction() const {
  struct Extent {
    std::int64_t begin_ns = INT64_MAX;
    std::int64_t end_ns = INT64_MIN;
    double busy_ns = 0.0;
    double rank_count = 0.0;
  };
  std::vector<Extent> replicas;
  for (const auto& rank : ranks) {
    const auto r = rank.coordinate.replica;
    if (r >= replicas.size()) replicas.resize(r + 1);
    auto& replica = replicas[r];
    replica.rank_count += 1.0;
    for (const auto& entry : rank.trace) {
      if (entry.kind != TraceEntry::Kind::pass) continue;
      replica.begin_ns = std::min(replica.begin_ns, entry.begin_ns);
      replica.end_ns = std::max(replica.end_ns, entry.end_ns);
      replica.busy_ns += static_cast<double>(entry.end_ns - entry.begin_ns);
    }
  }
  double sum = 0.0;
  for (const auto& replica : replicas) {
    if (replica.end_ns <= replica.begin_ns) continue;
    const auto capacity_ns =
        static_cast<double>(replica.end_ns - replica.begin_ns) * replica.rank_count;
    sum += 1.0 - replica.busy_ns / capacity_ns;
  }
  return replicas.empty() ? 0.0 : sum / static_cast<double>(replicas.size());
}

StepReport StepReport::of_first_shards() const {
  auto report = *this;
  std::erase_if(report.ranks, [](const RankReport& rank) { return rank.coordinate.shard > 0; });
  return report;
}

}  // namespace troupe::actors
