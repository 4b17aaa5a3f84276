// Published bubble rates of the automatic schedules: Qi, Wan, Huang, Lin, "Zero Bubble Pipeline
// Parallelism", 2023, the table of profiled times and the table of bubble rates that follow from
// them, for its 1.5B and 6.2B models on 8 pipeline stages. The rate is (cost - m (TF + TB + TW)) /
// cost, where cost is the time from the first start to the last end on the longest rank; every hop
// takes Tcomm and holds up nobody. Their TB is the I of this project.
//
// Memory is counted as there: of the activations of a layer, s (34 h + 5 a s) bytes for each
// sequence, B leaves the 32 s h that W needs. ZB-1p may hold p times the former, ZB-2p 2 p times.
#pragma once

#include <array>
#include <cstdint>

namespace troupe::oracles {

struct ZeroBubbleAutomaticRow {
  std::uint32_t rank_count;
  std::uint32_t microbatch_count;
  std::int64_t hidden;
  std::int64_t heads;
  std::int64_t sequence;
  std::int64_t forward_ns;
  std::int64_t backward_input_ns;
  std::int64_t backward_weight_ns;
  std::int64_t link_ns;
  double rate_1f1b;  ///< The rates to four digits.
  double rate_zb_1p;
  double rate_zb_2p;
};

inline constexpr std::array zero_bubble_automatic_rows{
    ZeroBubbleAutomaticRow{8, 24, 2304, 24, 1024, 18'522'000, 18'086'000, 9'337'000, 601'000,
                           0.2431, 0.1585, 0.0433},
    ZeroBubbleAutomaticRow{8, 32, 2304, 24, 1024, 18'513'000, 18'086'000, 9'331'000, 626'000,
                           0.1985, 0.1242, 0.0039},
    ZeroBubbleAutomaticRow{8, 64, 2304, 24, 1024, 18'546'000, 18'097'000, 9'321'000, 762'000,
                           0.1240, 0.0674, 0.0026},
    ZeroBubbleAutomaticRow{8, 24, 4096, 32, 1024, 29'718'000, 29'444'000, 19'927'000, 527'000,
                           0.2347, 0.1323, 0.0029},
    ZeroBubbleAutomaticRow{8, 32, 4096, 32, 1024, 29'802'000, 29'428'000, 19'530'000, 577'000,
                           0.1898, 0.1045, 0.0022},
    ZeroBubbleAutomaticRow{8, 64, 4096, 32, 1024, 29'935'000, 29'621'000, 19'388'000, 535'000,
                           0.1091, 0.0554, 0.0010},
};

}  // namespace troupe::oracles
