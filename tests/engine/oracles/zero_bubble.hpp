// Published bubble rates: Qi, Wan, Huang, Lin, "Zero Bubble Pipeline Parallelism", 2023, the table
// of profiled times and the table of bubble rates that follow from them, for its 1.5B and 6.2B
// models on 8 pipeline stages. The rate is (cost - m (TF + TB + TW)) / cost, where cost is the time
// from the first start to the last end on the longest rank; every hop between ranks takes Tcomm and
// holds up nobody. Their TB is the I of this project.
//
// What they call interleaved lets only the first microbatch of a group wait for the hop from the
// last rank to the first, which leaves out one hop per rank.
#pragma once

#include <array>
#include <cstdint>

namespace troupe::oracles {

struct ZeroBubbleRow {
  std::uint32_t rank_count;
  std::uint32_t microbatch_count;
  std::int64_t forward_ns;
  std::int64_t backward_input_ns;
  std::int64_t backward_weight_ns;
  std::int64_t link_ns;
  std::uint32_t chunk_count;  ///< Of the interleaved schedule.
  double rate_1f1b;           ///< The rates to four digits.
  double rate_interleaved;
  double rate_zb_h1;
  double rate_zb_h2;
};

inline constexpr std::array zero_bubble_rows{
    ZeroBubbleRow{8, 24, 18'522'000, 18'086'000, 9'337'000, 601'000, 3, 0.2431, 0.1055, 0.1585,
                  0.1083},
    ZeroBubbleRow{8, 32, 18'513'000, 18'086'000, 9'331'000, 626'000, 3, 0.1985, 0.0818, 0.1242,
                  0.0837},
    ZeroBubbleRow{8, 64, 18'546'000, 18'097'000, 9'321'000, 762'000, 3, 0.1240, 0.0443, 0.0674,
                  0.0444},
    ZeroBubbleRow{8, 24, 29'718'000, 29'444'000, 19'927'000, 527'000, 4, 0.2347, 0.0808, 0.1323,
                  0.0698},
    ZeroBubbleRow{8, 32, 29'802'000, 29'428'000, 19'530'000, 577'000, 4, 0.1898, 0.0628, 0.1045,
                  0.0559},
    ZeroBubbleRow{8, 64, 29'935'000, 29'621'000, 19'388'000, 535'000, 4, 0.1091, 0.0320, 0.0554,
                  0.0294},
};

}  // namespace troupe::oracles
