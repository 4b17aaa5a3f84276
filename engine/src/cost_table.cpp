#include "cost_table.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

namespace troupe {

namespace {

std::int64_t rounded(double ns) noexcept {
  return std::llround(ns);
}

std::int64_t transfer_ns(std::int64_t bytes, double bytes_per_second) noexcept {
  return rounded(static_cast<double>(bytes) / bytes_per_second * 1e9);
}

/// The value below which a normal number with mean 0 and deviation 1 lies with `probability`, by
/// bisection.
double normal_quantile(double probability) noexcept {
  double low = -10.0;
  double high = 10.0;
  for (int i = 0; i < 60; ++i) {
    const auto middle = (low + high) / 2.0;
    const auto below = std::erfc(-middle / std::numbers::sqrt2) / 2.0;
    (below < probability ? low : high) = middle;
  }
  return low;
}

/// Normal numbers of equal probability: the middle of each of so many strata, ascending.
const Variation::Strata& normal_strata() {
  static const auto strata = [] {
    Variation::Strata made{};
    for (std::size_t i = 0; i < made.size(); ++i) {
      made[i] = normal_quantile((static_cast<double>(i) + 0.5) / static_cast<double>(made.size()));
    }
    return made;
  }();
  return strata;
}

/// The distinct ones of `values`, in ascending order.
template <class Value>
std::vector<Value> distinct(std::vector<Value> values) {
  std::ranges::sort(values);
  values.erase(std::unique(values.begin(), values.end()), values.end());
  return values;
}

template <class Value>
std::uint32_t place_of(const std::vector<Value>& sorted, const Value& value) {
  return static_cast<std::uint32_t>(std::ranges::lower_bound(sorted, value) - sorted.begin());
}

}  // namespace

Variation::Variation(Jitter::Shape shape, double spread) {
  if (spread == 0.0) return;
  const auto deviation =
      shape == Jitter::Shape::normal ? spread : std::sqrt(std::log1p(spread * spread));
  factors_.reserve(normal_strata().size());
  double sum = 0.0;
  for (const auto z : normal_strata()) {
    factors_.push_back(shape == Jitter::Shape::normal ? std::max(0.0, 1.0 + deviation * z)
                                                      : std::exp(deviation * z));
    sum += factors_.back();
  }
  for (auto& factor : factors_) factor *= static_cast<double>(factors_.size()) / sum;
}

std::int64_t times(std::int64_t ns, double factor) noexcept {
  return rounded(static_cast<double>(ns) * factor);
}

CostTable::CostTable(const Schedule& schedule, const CostModel& costs)
    : costs_{costs},
      pass_variation_{costs.jitter.shape, costs.jitter.pass_spread},
      transfer_variation_{costs.jitter.shape, costs.jitter.transfer_spread},
      reduces_{costs.replicas.count > 1 && schedule.kind == StepKind::training},
      rank_start_ns_{costs.rank_start_ns, schedule.rank_count()},
      measuring_ns_{costs.measuring_ns, schedule.rank_count()},
      optimizer_ns_{costs.optimizer_ns, schedule.rank_count()},
      bucket_bytes_{costs.replicas.bucket_bytes, schedule.stage_count()},
      ways_(schedule.stage_count()),
      slows_by_replica_{costs.slowdown.size() > std::max<std::size_t>(1, schedule.rank_count())} {
  TROUPE_ASSERT(schedule.stage_count() >= 1 && costs.replicas.count >= 1);
  find_ways(schedule);
  find_channels(schedule);
  if (!costs.network.interfaces.empty()) find_interfaces(schedule);
  find_pass_times(schedule);
  receivers_hold_up_ = may_hold_up(schedule);
  const auto seed_key = Random{costs.jitter.seed}.next();
  for (std::uint32_t d = 0; d < costs.replicas.count; ++d) {
    jitter_keys_.push_back(Random{seed_key ^ d}.next());
  }
}

void CostTable::find_ways(const Schedule& schedule) {
  const auto stage_count = schedule.stage_count();
  const auto& bounds = costs_.runtime.bounds;
  TROUPE_ASSERT(bounds.empty() || bounds.size() == stage_count);
  for (std::uint32_t s = 0; s < stage_count; ++s) {
    auto& [activation, gradient] = ways_[s];
    if (!schedule.is_last(StageIndex{s})) {
      activation.reader = s + 1;
      if (!bounds.empty()) activation.buffer_count = bounds[s].activations_out;
    }
    if (!schedule.is_first(StageIndex{s}) && schedule.kind == StepKind::training) {
      gradient.reader = s - 1;
      if (!bounds.empty()) gradient.buffer_count = bounds[s].gradients_out;
    }
    for (auto* const way : {&activation, &gradient}) {
      if (!way->leads_somewhere()) continue;
      TROUPE_ASSERT(bounds.empty() || way->buffer_count >= 1);
      way->reader_rank = schedule.rank_of_stage[way->reader].value();
    }
  }
}

void CostTable::find_channels(const Schedule& schedule) {
  using Ends = std::pair<std::uint32_t, std::uint32_t>;
  const auto& network = costs_.network;
  const auto boundary_count = schedule.stage_count() - 1;
  const PerIndex link_ns{costs_.link_ns, boundary_count};
  const PerIndex activation_bytes{network.activation_bytes, boundary_count};
  const PerIndex gradient_bytes{network.gradient_bytes, boundary_count};

  const auto ends_of = [&](std::uint32_t s, const Way& way) {
    return Ends{schedule.rank_of_stage[s].value(), way.reader_rank};
  };
  std::vector<Ends> used;
  for (std::uint32_t s = 0; s < schedule.stage_count(); ++s) {
    for (const auto& way : ways_[s]) {
      const auto ends = ends_of(s, way);
      if (way.leads_somewhere() && ends.first != ends.second) used.push_back(ends);
    }
  }
  used = distinct(std::move(used));
  channel_count_ = static_cast<std::uint32_t>(used.size());
  std::vector<Wire> wires(channel_count_, network.wire);
  for (const auto& channel : network.channels) {
    const auto place = place_of(used, Ends{channel.from.value(), channel.to.value()});
    if (place < channel_count_ && used[place] == Ends{channel.from.value(), channel.to.value()}) {
      wires[place] = channel.wire;
    }
  }
  for (std::uint32_t s = 0; s < schedule.stage_count(); ++s) {
    for (const auto edge : {Edge::activation, Edge::gradient}) {
      auto& way = ways_[s][static_cast<std::size_t>(edge)];
      const auto ends = ends_of(s, way);
      if (!way.leads_somewhere() || ends.first == ends.second) continue;
      way.channel = place_of(used, ends);
      const auto& wire = wires[way.channel];
      const auto boundary = std::min(s, way.reader);
      const auto bytes =
          edge == Edge::activation ? activation_bytes[boundary] : gradient_bytes[boundary];
      way.occupies_ns = transfer_ns(bytes, wire.bytes_per_second);
      way.travels_ns = wire.latency_ns + link_ns[boundary];
    }
  }
}

void CostTable::find_interfaces(const Schedule& schedule) {
  const auto& interfaces = costs_.network.interfaces;
  TROUPE_ASSERT(interfaces.size() == schedule.rank_count());
  const auto known = distinct(interfaces);
  interface_count_ = static_cast<std::uint32_t>(known.size());
  for (std::uint32_t s = 0; s < schedule.stage_count(); ++s) {
    for (auto& way : ways_[s]) {
      if (way.stays_on_rank()) continue;
      const auto from = place_of(known, interfaces[schedule.rank_of_stage[s].value()]);
      const auto to = place_of(known, interfaces[way.reader_rank]);
      if (from == to) continue;
      way.interface_out = from;
      way.interface_in = to;
    }
  }
}

void CostTable::find_pass_times(const Schedule& schedule) {
  const std::size_t rank_count = schedule.rank_count();
  const PerIndex stage_costs{costs_.stages, schedule.stage_count()};
  const PerIndex slowdown{costs_.slowdown,
                          slows_by_replica_ ? rank_count * costs_.replicas.count : rank_count};
  const auto listed_count = slows_by_replica_ ? costs_.replicas.count : 1;
  pass_ns_.reserve(std::size_t{listed_count} * schedule.stage_count());
  for (std::uint32_t d = 0; d < listed_count; ++d) {
    for (std::uint32_t s = 0; s < schedule.stage_count(); ++s) {
      const auto factor = slowdown[d * rank_count + schedule.rank_of_stage[s].value()];
      auto& row = pass_ns_.emplace_back();
      for (std::size_t pass = 0; pass < row.size(); ++pass) {
        const auto ns = stage_costs[s].of(static_cast<Pass>(pass));
        row[pass] = factor == 1.0 ? ns : times(ns, factor);
      }
    }
  }
}

/// In a training step a stage sends no more than it has in flight, and the stage behind it frees
/// what it has read before it sends the gradient on, or, if it splits its backward passes, holds no
/// more besides than it has in flight itself: see `bounds_of`.
bool CostTable::may_hold_up(const Schedule& schedule) const {
  const auto& bounds = costs_.runtime.bounds;
  if (bounds.empty()) return false;
  if (schedule.kind == StepKind::evaluation) return true;
  const auto used = in_flight_max(schedule, Pass::backward_weight);
  const auto gone = in_flight_max(schedule, Pass::backward_input);
  const auto share = schedule.microbatch_count / schedule.copy_count;
  for (std::uint32_t s = 0; s < schedule.stage_count(); ++s) {
    if (schedule.is_first(StageIndex{s})) continue;
    const auto held = bounds[s].splits_backward ? used[s] + gone[s - 1] : gone[s - 1];
    if (bounds[s].activations_in < std::min(held, share)) return true;
  }
  return false;
}

std::uint32_t CostTable::bucket_count(StageIndex stage) const noexcept {
  return reduces_ ? static_cast<std::uint32_t>(bucket_bytes_[stage.value()].size()) : 0;
}

std::int64_t CostTable::reduction_ns(StageIndex stage, std::uint32_t bucket) const noexcept {
  const auto& wire = costs_.replicas.wire;
  return wire.latency_ns + transfer_ns(bucket_bytes_[stage.value()][bucket], wire.bytes_per_second);
}

std::uint32_t CostTable::activations_in(StageIndex stage) const noexcept {
  const auto& bounds = costs_.runtime.bounds;
  return bounds.empty() ? 0 : bounds[stage.value()].activations_in;
}

std::uint64_t CostTable::key_of(std::uint32_t replica, StageIndex stage, std::uint64_t kind,
                                MicrobatchIndex microbatch) const noexcept {
  // Stages and microbatches have 20 bits each, kinds 3 (`ScheduleLimits`).
  const auto which = std::uint64_t{stage.value()} << 23U | kind << 20U | microbatch.value();
  return jitter_keys_[replica] ^ which;
}

}  // namespace troupe
