// engine/src/cost_table.hpp -- a cost model looked up for one schedule: every default filled in.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "troupe/engine/check.hpp"
#include "troupe/engine/cost_model.hpp"
#include "troupe/engine/random.hpp"
#include "troupe/engine/schedule.hpp"

namespace troupe {

/// A list in which one value stands for `count` equal ones.
template <class Value>
class PerIndex {
public:
  PerIndex(const std::vector<Value>& values, std::size_t count)
      : values_{values.data()}, is_list_{values.size() != 1} {
    TROUPE_ASSERT(values.size() == 1 || values.size() == count);
  }
  const Value& operator[](std::size_t i) const noexcept { return values_[is_list_ ? i : 0]; }

private:
  const Value* values_;
  bool is_list_;
};

/// What a stage makes for its neighbours: activations for the next, gradients for the previous.
enum class Edge : std::uint8_t { activation, gradient };
inline constexpr std::size_t edge_count = 2;

/// Of a pass that makes something.
[[nodiscard]] constexpr Edge edge_of(Pass pass) noexcept {
  return pass == Pass::forward ? Edge::activation : Edge::gradient;
}

/// The way that the outputs of one stage take over one of its edges.
struct Way {
  static constexpr std::uint32_t none = std::numeric_limits<std::uint32_t>::max();

  std::uint32_t reader = none;  ///< The stage at its end; `none` at the ends of the model.
  std::uint32_t reader_rank = none;
  std::uint32_t channel = none;        ///< `none` within a rank.
  std::uint32_t interface_out = none;  ///< `none` if nothing is shared.
  std::uint32_t interface_in = none;
  std::int64_t occupies_ns = 0;
  std::int64_t travels_ns = 0;
  std::uint32_t buffer_count = 0;  ///< Of the sender; 0: as many as are needed.

  [[nodiscard]] bool leads_somewhere() const noexcept { return reader != none; }
  [[nodiscard]] bool stays_on_rank() const noexcept { return channel == none; }
};

/// How long a transfer takes.
struct TransferTime {
  std::int64_t occupies_ns = 0;
  std::int64_t travels_ns = 0;
};

/// Factors with mean 1, drawn from so many strata of equal probability: to compute a normal number
/// for each pass would take longer than to simulate it.
class Variation {
public:
  static constexpr unsigned strata_bits = 12;
  using Strata = std::array<double, std::size_t{1} << strata_bits>;

  Variation(Jitter::Shape shape, double spread);

  [[nodiscard]] bool varies() const noexcept { return !factors_.empty(); }
  /// The one that belongs to `key`.
  [[nodiscard]] double factor(std::uint64_t key) const noexcept {
    return factors_[Random{key}.next() >> (64U - strata_bits)];
  }

private:
  std::vector<double> factors_;  ///< By stratum; none if nothing varies.
};

/// `ns` times a factor that is not negative, rounded.
[[nodiscard]] std::int64_t times(std::int64_t ns, double factor) noexcept;

class CostTable {
public:
  CostTable(const Schedule& schedule, const CostModel& costs);

  [[nodiscard]] const CostModel& model() const noexcept { return costs_; }
  [[nodiscard]] const Way& way(StageIndex stage, Edge edge) const noexcept {
    return ways_[stage.value()][static_cast<std::size_t>(edge)];
  }
  [[nodiscard]] std::uint32_t channel_count() const noexcept { return channel_count_; }
  [[nodiscard]] std::uint32_t interface_count() const noexcept { return interface_count_; }

  [[nodiscard]] std::int64_t pass_ns(std::uint32_t replica, const Action& action) const noexcept {
    const auto usual_ns = pass_ns_[(slows_by_replica_ ? replica * ways_.size() : 0)
                                   + action.stage.value()][static_cast<std::size_t>(action.pass)];
    if (!pass_variation_.varies()) return usual_ns;
    const auto key =
        key_of(replica, action.stage, static_cast<std::uint64_t>(action.pass), action.microbatch);
    return times(usual_ns, pass_variation_.factor(key));
  }
  /// Of the output that `stage` sends over `edge`.
  [[nodiscard]] TransferTime transfer(std::uint32_t replica, StageIndex stage, Edge edge,
                                      MicrobatchIndex microbatch) const noexcept {
    const auto& usual = way(stage, edge);
    if (!transfer_variation_.varies()) return {usual.occupies_ns, usual.travels_ns};
    constexpr std::uint64_t pass_count = 4;
    const auto kind = pass_count + static_cast<std::uint64_t>(edge);
    const auto factor = transfer_variation_.factor(key_of(replica, stage, kind, microbatch));
    return {times(usual.occupies_ns, factor), times(usual.travels_ns, factor)};
  }

  [[nodiscard]] std::int64_t rank_start_ns(std::uint32_t rank) const noexcept {
    return rank_start_ns_[rank];
  }
  [[nodiscard]] std::int64_t measuring_ns(std::uint32_t rank) const noexcept {
    return measuring_ns_[rank];
  }
  [[nodiscard]] std::int64_t optimizer_ns(std::uint32_t rank) const noexcept {
    return optimizer_ns_[rank];
  }

  /// The buckets that replicas reduce; none if there is one replica or nothing is trained.
  [[nodiscard]] std::uint32_t bucket_count(StageIndex stage) const noexcept;
  [[nodiscard]] std::int64_t reduction_ns(StageIndex stage, std::uint32_t bucket) const noexcept;

  /// Whether a transfer may find its receiver without a buffer, so that it waits.
  [[nodiscard]] bool receivers_hold_up() const noexcept { return receivers_hold_up_; }
  /// Buffers for what comes into `stage`; 0: as many as are needed.
  [[nodiscard]] std::uint32_t activations_in(StageIndex stage) const noexcept;

private:
  void find_ways(const Schedule& schedule);
  void find_channels(const Schedule& schedule);
  void find_interfaces(const Schedule& schedule);
  void find_pass_times(const Schedule& schedule);
  [[nodiscard]] bool may_hold_up(const Schedule& schedule) const;
  /// What the jitter of one pass or transfer depends on.
  [[nodiscard]] std::uint64_t key_of(std::uint32_t replica, StageIndex stage, std::uint64_t kind,
                                     MicrobatchIndex microbatch) const noexcept;

  const CostModel& costs_;
  Variation pass_variation_;
  Variation transfer_variation_;
  bool reduces_;
  PerIndex<std::int64_t> rank_start_ns_;
  PerIndex<std::int64_t> measuring_ns_;
  PerIndex<std::int64_t> optimizer_ns_;
  PerIndex<std::vector<std::int64_t>> bucket_bytes_;
  std::vector<std::array<Way, edge_count>> ways_;     ///< By stage.
  std::vector<std::array<std::int64_t, 4>> pass_ns_;  ///< By stage, by replica before if they
                                                      ///< differ: by pass, without jitter.
  bool slows_by_replica_;
  std::vector<std::uint64_t> jitter_keys_;  ///< By replica.
  std::uint32_t channel_count_ = 0;
  std::uint32_t interface_count_ = 0;
  bool receivers_hold_up_ = false;
};

}  // namespace troupe
