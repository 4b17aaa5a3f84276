// troupe/engine/optimizer_sharding.hpp -- who of those that hold the same parameters keeps the
// optimizer's state of which, and updates them (Rajbhandari et al. 2020).
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "troupe/engine/stage_graph.hpp"

namespace troupe {

enum class OptimizerSharding : std::uint8_t {
  none,   ///< Everybody keeps the state of all parameters.
  zero1,  ///< Each keeps the state of its part of every bucket, updates that, and hands it out.
  zero2,  ///< The same, and of gradients, too, each keeps the sums of its part alone.
};

/// As they are written in files, by value.
inline constexpr std::array<std::string_view, 3> optimizer_sharding_names{"none", "zero1", "zero2"};

/// How replicas stay equal.
enum class Synchronization : std::uint8_t {
  all_reduce,        ///< They sum up their gradients among themselves, and each updates.
  parameter_server,  ///< They give them to a server, which updates and gives the weights back.
};

/// As they are written in files, by value.
inline constexpr std::array<std::string_view, 2> synchronization_names{"all_reduce",
                                                                       "parameter_server"};

/// The most that `TrainConfig::staleness` may be: of so many more steps gradients and weights are
/// kept.
inline constexpr std::uint32_t staleness_max = 16;

/// One of the stages that hold the same parameters: in another replica, or another copy of the
/// model; or their server, which is the last of them.
struct Holder {
  std::uint32_t index = 0;
  std::uint32_t count = 1;
  bool has_server = false;

  [[nodiscard]] bool is_server() const noexcept { return has_server && index + 1 == count; }

  friend bool operator==(const Holder&, const Holder&) = default;
};

/// Elements `[begin, end)` of an array.
struct ElementRange {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;

  [[nodiscard]] std::uint64_t size() const noexcept { return end - begin; }
  friend bool operator==(const ElementRange&, const ElementRange&) = default;
};

/// Where the parameters of a bucket lie in it, in floats: tensors begin at multiples of
/// `tensor_alignment_bytes`.
struct BucketLayout {
  std::vector<std::uint64_t> begins;  ///< By parameter, from `Bucket::begin` on.
  std::uint64_t size = 0;             ///< Up to the end of the last.
};
[[nodiscard]] BucketLayout layout_of(const StageGraph& graph, const Bucket& bucket);

/// The part of a bucket that is the holder's, in floats.
[[nodiscard]] ElementRange part_of_bucket(const BucketLayout& layout, const Holder& holder);

/// The elements of each parameter that `holder` updates, for a stage that trains: a server all, and
/// those that have one none.
[[nodiscard]] std::vector<ElementRange> updated_by(const StageGraph& graph, const Holder& holder,
                                                   OptimizerSharding sharding);

/// By bucket: whether its gradients are summed over the holders microbatch by microbatch, and only
/// a part is kept. So it is under `zero2`, but for a tied parameter, which has gradients from two
/// ends, and what is computed along with it.
[[nodiscard]] std::vector<bool> kept_in_parts(const StageGraph& graph, const Holder& holder,
                                              OptimizerSharding sharding);

/// Gradients that are kept in parts are computed in one of this many places, bucket by bucket in
/// turn, so that one can be summed while the next is computed.
inline constexpr std::uint32_t gradient_place_count = 2;

}  // namespace troupe
