// V-half and V-min: a building block, repeated and squeezed.

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <queue>
#include <string>
#include <utility>
#include <vector>

#include "troupe/engine/check.hpp"
#include "troupe/engine/schedule_generators.hpp"

namespace troupe {

namespace {

/// The ways of a microbatch through the V, in order: forward down the ranks and up again, backward
/// down and up. Each way has a pass on every rank.
enum Way : std::uint8_t { forward_down, forward_up, backward_down, backward_up, way_count };

constexpr bool is_forward(std::size_t way) {
  return way <= forward_up;
}
constexpr bool goes_down(std::size_t way) {
  return way % 2 == 0;
}

/// One rank of a building block: by way, when its pass begins. The block is repeated for every
/// microbatch, `period` later each time, and leaves two units of a period free for weight passes.
using Block = std::array<std::uint32_t, way_count>;
constexpr std::uint32_t period = 6;  // Two stages, on each F, I and W.
constexpr auto never = std::numeric_limits<std::uint32_t>::max();

/// A pass of the repeated block: on which way, or none for a weight pass.
using PatternPass = std::optional<Way>;

/// What a rank does under the repeated block, in order: each weight pass, oldest first, in the next
/// unit of time that the block leaves free.
std::vector<PatternPass> repeat(const Block& block, std::uint32_t microbatch_count) {
  std::vector<std::pair<std::uint32_t, Way>> timed;
  for (const auto way : {forward_down, forward_up, backward_down, backward_up}) {
    for (std::uint32_t m = 0; m < microbatch_count; ++m) {
      timed.emplace_back(block[way] + period * m, way);
    }
  }
  std::ranges::sort(timed);
  std::vector<PatternPass> pattern;
  std::uint32_t put_off = 0;
  std::uint32_t free_from = 0;
  for (const auto& [begin, way] : timed) {
    for (; put_off > 0 && free_from < begin; --put_off, ++free_from) pattern.emplace_back();
    free_from = begin + 1;
    pattern.emplace_back(way);
    if (!is_forward(way)) ++put_off;
  }
  pattern.insert(pattern.end(), put_off, std::nullopt);
  return pattern;
}

/// The most microbatches in flight on a rank's two stages together.
std::uint32_t in_flight_max(const std::vector<PatternPass>& pattern) {
  std::uint32_t now = 0;
  std::uint32_t max = 0;
  for (const auto& pass : pattern) {
    if (!pass) --now;
    if (pass && is_forward(*pass)) max = std::max(max, ++now);
  }
  return max;
}

/// How many passes `forward_down` may run before their turn, one after the other, so that all
/// passes that they overtake still find room for one microbatch more.
std::uint32_t early_max(const std::vector<PatternPass>& pattern, std::uint32_t in_flight_max) {
  std::uint32_t early = 0;
  std::uint32_t overtaken = 0;  // In flight on the way up.
  std::uint32_t overtaken_max = 0;
  for (const auto& pass : pattern) {
    if (!pass) {
      --overtaken;
    } else if (*pass == forward_up) {
      overtaken_max = std::max(overtaken_max, ++overtaken);
    } else if (*pass == forward_down) {
      if (early + overtaken_max + 1 >= in_flight_max) break;
      ++early;
    }
  }
  return early;
}

/// Squeezes a repeated block: lets every rank begin, one pass per unit of time, the next pass of
/// the block whose input is there, or else a weight pass, so that units in which the block leaves
/// all ranks waiting vanish. Before its first microbatch has come back, a rank also runs ahead with
/// the forward passes that memory allows; after its last has set out, with backward passes.
class Squeeze {
public:
  Squeeze(Schedule schedule, std::vector<Block> blocks)
      : schedule_{std::move(schedule)}, blocks_{std::move(blocks)}, ranks_(blocks_.size()) {
    std::vector<std::uint32_t> peaks;
    for (const auto& block : blocks_) {
      peaks.push_back(in_flight_max(repeat(block, schedule_.microbatch_count)));
    }
    in_flight_max_ = std::ranges::max(peaks);
    for (std::size_t r = 0; r < ranks_.size(); ++r) {
      ranks_[r].early_max =
          early_max(repeat(blocks_[r], schedule_.microbatch_count), in_flight_max_);
    }
  }

  /// Only a rank that ran a pass, or whose neighbour did, may have something to run next.
  [[nodiscard]] Schedule run() && {
    std::vector<std::size_t> awake(ranks_.size());
    for (std::size_t r = 0; r < ranks_.size(); ++r) awake[r] = r;
    while (!awake.empty()) {
      std::vector<std::pair<std::size_t, PatternPass>> begun;
      for (const auto r : awake) {
        if (const auto way = next_way(r)) {
          begun.emplace_back(r, *way);
        } else if (!ranks_[r].put_off.empty()) {
          begun.emplace_back(r, std::nullopt);
        }
      }
      awake.clear();
      for (const auto& [r, pass] : begun) {
        perform(r, pass);
        for (auto near = r - std::min<std::size_t>(r, 1); near <= r + 1; ++near) {
          if (near < ranks_.size()) awake.push_back(near);
        }
      }
      std::ranges::sort(awake);
      awake.erase(std::unique(awake.begin(), awake.end()), awake.end());
    }
    return std::move(schedule_);
  }

private:
  struct Rank {
    std::array<std::uint32_t, way_count> done{};  ///< By way: microbatches that are through.
    std::uint32_t in_flight = 0;
    std::uint32_t early_max = 0;
    std::queue<Action> put_off;  ///< Weight passes.
  };

  [[nodiscard]] StageIndex stage_of(std::size_t r, Way way) const {
    const auto rank = static_cast<std::uint32_t>(r);
    const bool on_lower = way == forward_down || way == backward_up;
    return StageIndex{on_lower ? rank : schedule_.stage_count() - 1 - rank};
  }

  /// Whether the next pass of rank `r` on `way` has its input, which comes from the neighbour, or
  /// where the way begins, from the way before.
  [[nodiscard]] bool has_input(std::size_t r, Way way) const {
    const auto count = ranks_[r].done[way];
    if (count == schedule_.microbatch_count) return false;
    const bool begins = goes_down(way) ? r == 0 : r + 1 == ranks_.size();
    if (begins) return way == forward_down || count < ranks_[r].done[way - 1U];
    return count < ranks_[goes_down(way) ? r - 1 : r + 1].done[way];
  }

  [[nodiscard]] std::optional<Way> next_way(std::size_t r) const {
    const auto& rank = ranks_[r];
    std::array<std::pair<std::uint32_t, Way>, way_count> next;
    for (const auto way : {forward_down, forward_up, backward_down, backward_up}) {
      const bool is_through = rank.done[way] == schedule_.microbatch_count;
      next[way] = {is_through ? never : blocks_[r][way] + period * rank.done[way], way};
    }
    std::ranges::sort(next);
    const bool fills = rank.done[backward_up] == 0;
    const bool drains = rank.done[forward_down] == schedule_.microbatch_count;
    for (const auto& [begin, way] : next) {
      const bool has_turn = way == next.front().second;
      const bool may_overtake =
          is_forward(way) ? fills && way == forward_down && rank.done[way] < rank.early_max
                          : drains;
      const bool has_room = !is_forward(way) || rank.in_flight < in_flight_max_;
      if ((has_turn || may_overtake) && has_room && has_input(r, way)) return way;
    }
    return std::nullopt;
  }

  void perform(std::size_t r, PatternPass pass) {
    auto& rank = ranks_[r];
    auto& row = schedule_.ranks[r];
    if (!pass) {
      row.push_back(rank.put_off.front());
      rank.put_off.pop();
      --rank.in_flight;
      return;
    }
    const auto stage = stage_of(r, *pass);
    const MicrobatchIndex microbatch{rank.done[*pass]++};
    if (is_forward(*pass)) {
      row.push_back({stage, Pass::forward, microbatch});
      ++rank.in_flight;
    } else {
      row.push_back({stage, Pass::backward_input, microbatch});
      rank.put_off.push({stage, Pass::backward_weight, microbatch});
    }
  }

  Schedule schedule_;
  std::vector<Block> blocks_;  ///< By rank.
  std::vector<Rank> ranks_;
  std::uint32_t in_flight_max_ = 0;
};

/// @param block_of the building block of `rank_count` ranks on a rank.
Schedule make_v_schedule(const char* name, std::uint32_t rank_count, std::uint32_t microbatch_count,
                         Block (*block_of)(std::uint32_t rank_count, std::uint32_t rank)) {
  TROUPE_ASSERT(rank_count >= 1 && microbatch_count >= 1);
  std::vector<Block> blocks;
  for (std::uint32_t r = 0; r < rank_count; ++r) blocks.push_back(block_of(rank_count, r));
  return Squeeze{{.name = name,
                  .microbatch_count = microbatch_count,
                  .rank_of_stage = make_stage_map(StageMap::v_shaped, rank_count, 2),
                  .ranks = std::vector<std::vector<Action>>(rank_count)},
                 std::move(blocks)}
      .run();
}

/// From rank to rank a microbatch takes two units of time down and one up. With an even number of
/// ranks the way down would meet the way up in the same unit, were there no pause at rank 0.
Block v_half_block(std::uint32_t p, std::uint32_t r) {
  const auto pause = p % 2 == 0 ? 3U : 0U;
  return {2 * r, 3 * p - 2 - r, 3 * p - 1 + 2 * r + pause, 6 * p - 2 - r + pause};
}

/// From rank to rank a microbatch takes one unit of time, down and up. With a multiple of three
/// ranks forward and backward ways would meet in the same unit, were there no pause at rank 0.
Block v_min_block(std::uint32_t p, std::uint32_t r) {
  const auto pause = p % 3 == 0 ? 2U : 0U;
  return {r, 2 * p - 1 - r, 2 * p + r + pause, 4 * p - 1 - r + pause};
}

}  // namespace

Schedule make_v_half(std::uint32_t rank_count, std::uint32_t microbatch_count) {
  return make_v_schedule("v-half", rank_count, microbatch_count, &v_half_block);
}

Schedule make_v_min(std::uint32_t rank_count, std::uint32_t microbatch_count) {
  return make_v_schedule("v-min", rank_count, microbatch_count, &v_min_block);
}

}  // namespace troupe
