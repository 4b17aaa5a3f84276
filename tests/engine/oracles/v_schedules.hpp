// Idle time and memory of V-shaped schedules with F = I = W = 1 and links that take no time, as the
// program behind Qi, Wan, Amar, Lin, "Pipeline Parallelism with Controllable Memory", 2024, finds
// them. Idle is the longest wait of a rank between its first pass and its last.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace troupe::oracles {

struct VScheduleRow {
  std::string_view name;
  std::uint32_t rank_count;
  std::uint32_t microbatch_count;
  std::int64_t idle;
  std::int64_t busy;
  std::uint32_t in_flight_max;  ///< On a rank, each of its two stages counting half.
};

inline constexpr std::array v_schedule_rows{
    VScheduleRow{"zb-v", 4, 8, 0, 48, 4},      VScheduleRow{"v-half", 4, 8, 5, 48, 3},
    VScheduleRow{"v-min", 4, 8, 11, 48, 2},    VScheduleRow{"zb-v", 4, 16, 0, 96, 4},
    VScheduleRow{"v-half", 4, 16, 5, 96, 3},   VScheduleRow{"v-min", 4, 16, 11, 96, 2},
    VScheduleRow{"zb-v", 8, 16, 0, 96, 8},     VScheduleRow{"v-half", 8, 16, 17, 96, 5},
    VScheduleRow{"v-min", 8, 16, 27, 96, 4},   VScheduleRow{"zb-v", 8, 32, 0, 192, 8},
    VScheduleRow{"v-half", 8, 32, 17, 192, 5}, VScheduleRow{"v-min", 8, 32, 27, 192, 4},
};

}  // namespace troupe::oracles
