// The schedules that keep backward passes whole: GPipe, 1F1B and what came of them.

#include <algorithm>
#include <string>
#include <utility>

#include "troupe/engine/check.hpp"
#include "troupe/engine/schedule_generators.hpp"

namespace troupe {

namespace {

/// `count` forward and backward passes in turn, after `warmup_count` forward passes and until no
/// backward pass is left. `forward(k)` and `backward(k)` are the k-th pass of either kind.
template <class Forward, class Backward>
std::vector<Action> one_forward_one_backward(std::uint32_t warmup_count, std::uint32_t count,
                                             Forward forward, Backward backward) {
  warmup_count = std::min(warmup_count, count);
  std::vector<Action> row;
  row.reserve(std::size_t{2} * count);
  for (std::uint32_t k = 0; k < warmup_count; ++k) row.push_back(forward(k));
  for (std::uint32_t k = warmup_count; k < count; ++k) {
    row.push_back(forward(k));
    row.push_back(backward(k - warmup_count));
  }
  for (std::uint32_t k = count - warmup_count; k < count; ++k) row.push_back(backward(k));
  return row;
}

/// One stage per rank, and `warmup_count(r)` forward passes on rank r before passes take turns.
template <class WarmupCount>
Schedule with_one_stage_per_rank(const char* name, std::uint32_t rank_count,
                                 std::uint32_t microbatch_count, WarmupCount warmup_count) {
  TROUPE_ASSERT(rank_count >= 1 && microbatch_count >= 1);
  Schedule schedule{.name = name,
                    .microbatch_count = microbatch_count,
                    .rank_of_stage = make_stage_map(StageMap::looped, rank_count, 1),
                    .ranks = std::vector<std::vector<Action>>(rank_count)};
  for (std::uint32_t r = 0; r < rank_count; ++r) {
    const auto pass_on_stage = [r](Pass pass) {
      return [r, pass](std::uint32_t k) { return Action{StageIndex{r}, pass, MicrobatchIndex{k}}; };
    };
    schedule.ranks[r] =
        one_forward_one_backward(warmup_count(r), microbatch_count, pass_on_stage(Pass::forward),
                                 pass_on_stage(Pass::backward));
  }
  return schedule;
}

/// Several stages per rank, looped, and microbatches in `group_count` groups as equal as can be,
/// larger ones first: a group passes through one chunk of the rank after the other, then the next.
template <class WarmupCount>
Expected<Schedule> with_looped_stages(const char* name, const char* name_without_chunks,
                                      const ScheduleRequest& request, std::uint32_t group_count,
                                      WarmupCount warmup_count) {
  const auto rank_count = request.rank_count;
  const auto microbatch_count = request.microbatch_count;
  const auto chunk_count = request.chunk_count;
  TROUPE_ASSERT(rank_count >= 1 && microbatch_count >= 1);
  if (chunk_count < 2) {
    return Error{Errc::invalid_config,
                 std::string{name} + " needs at least 2 chunks per rank, found "
                     + std::to_string(chunk_count) + "; with one stage per rank use "
                     + name_without_chunks};
  }
  struct Turn {
    std::uint32_t chunk;  ///< Of forward passes; backward passes take the chunks in reverse.
    MicrobatchIndex microbatch;
  };
  std::vector<Turn> turns;
  turns.reserve(std::size_t{microbatch_count} * chunk_count);
  std::uint32_t begin = 0;
  for (std::uint32_t g = 0; g < group_count; ++g) {
    const auto end =
        begin + microbatch_count / group_count + (g < microbatch_count % group_count ? 1U : 0U);
    for (std::uint32_t chunk = 0; chunk < chunk_count; ++chunk) {
      for (auto m = begin; m < end; ++m) turns.push_back({chunk, MicrobatchIndex{m}});
    }
    begin = end;
  }
  Schedule schedule{.name = name,
                    .microbatch_count = microbatch_count,
                    .rank_of_stage = make_stage_map(StageMap::looped, rank_count, chunk_count),
                    .ranks = std::vector<std::vector<Action>>(rank_count)};
  for (std::uint32_t r = 0; r < rank_count; ++r) {
    const auto forward = [&](std::uint32_t k) {
      const auto& turn = turns[k];
      return Action{StageIndex{turn.chunk * rank_count + r}, Pass::forward, turn.microbatch};
    };
    const auto backward = [&](std::uint32_t k) {
      const auto& turn = turns[k];
      const auto chunk = chunk_count - 1 - turn.chunk;
      return Action{StageIndex{chunk * rank_count + r}, Pass::backward, turn.microbatch};
    };
    schedule.ranks[r] = one_forward_one_backward(
        warmup_count(r), static_cast<std::uint32_t>(turns.size()), forward, backward);
  }
  return schedule;
}

}  // namespace

Schedule make_gpipe(std::uint32_t rank_count, std::uint32_t microbatch_count) {
  return with_one_stage_per_rank("gpipe", rank_count, microbatch_count,
                                 [=](std::uint32_t) { return microbatch_count; });
}

Schedule make_1f1b(std::uint32_t rank_count, std::uint32_t microbatch_count) {
  return with_one_stage_per_rank("1f1b", rank_count, microbatch_count,
                                 [=](std::uint32_t r) { return rank_count - 1 - r; });
}

Schedule make_eager_1f1b(std::uint32_t rank_count, std::uint32_t microbatch_count,
                         std::uint32_t memory_limit) {
  return with_one_stage_per_rank("eager-1f1b", rank_count, microbatch_count, [=](std::uint32_t r) {
    const auto ahead = 2 * (rank_count - 1 - r);
    return memory_limit == 0 ? ahead
                             : std::min(ahead, memory_limit - std::min(memory_limit, r + 1));
  });
}

Expected<Schedule> make_interleaved_1f1b(std::uint32_t rank_count, std::uint32_t microbatch_count,
                                         std::uint32_t chunk_count) {
  const auto group_count = std::max(1U, microbatch_count / rank_count);
  const auto group_size_max = (microbatch_count + group_count - 1) / group_count;
  return with_looped_stages("interleaved-1f1b", "1f1b", {rank_count, microbatch_count, chunk_count},
                            group_count, [=](std::uint32_t r) {
                              return 2 * (rank_count - 1 - r) + (chunk_count - 1) * group_size_max;
                            });
}

Expected<Schedule> make_looped_bfs(std::uint32_t rank_count, std::uint32_t microbatch_count,
                                   std::uint32_t chunk_count) {
  return with_looped_stages("looped-bfs", "gpipe", {rank_count, microbatch_count, chunk_count}, 1,
                            [=](std::uint32_t) { return microbatch_count * chunk_count; });
}

}  // namespace troupe
