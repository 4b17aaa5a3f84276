// engine/src/two_stage_row.hpp -- writes the row of a rank that holds two stages, pass by pass.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <queue>
#include <utility>
#include <vector>

#include "troupe/engine/schedule.hpp"

namespace troupe {

/// A call appends the pass of the next microbatch of that stage. Microbatches beyond those of the
/// step are left out: a schedule stays valid without some of its microbatches, so a generator may
/// count on as many as its pattern needs.
class TwoStageRow {
public:
  enum Which : std::uint8_t { first, second };

  TwoStageRow(const Schedule& schedule, std::array<StageIndex, 2> stages) {
    for (const auto which : {first, second}) {
      const auto range = schedule.microbatches_of(stages[which]);
      parts_[which] = {stages[which], range, range.begin, range.begin};
    }
  }

  /// Calls `append_passes` `count` times, or as often as there are microbatches: then it has
  /// nothing left to append.
  template <class AppendPasses>
  void repeat(std::uint32_t count, AppendPasses append_passes) {
    const auto& range = parts_[first].microbatches;
    for (std::uint32_t k = 0; k < std::min(count, range.end - range.begin); ++k) append_passes();
  }

  void forward(Which which) {
    auto& part = parts_[which];
    append(part, Pass::forward, part.next_forward++);
  }
  void backward(Which which) {
    auto& part = parts_[which];
    append(part, Pass::backward, part.next_backward++);
  }
  void backward_input(Which which) {
    auto& part = parts_[which];
    put_off_.push({which, part.next_backward});
    append(part, Pass::backward_input, part.next_backward++);
  }
  /// The W that has been put off longest, if any.
  void backward_weight() {
    if (put_off_.empty()) return;
    append(parts_[put_off_.front().which], Pass::backward_weight, put_off_.front().microbatch);
    put_off_.pop();
  }
  /// Appends every W that is left.
  [[nodiscard]] std::vector<Action> finish() && {
    while (!put_off_.empty()) backward_weight();
    return std::move(row_);
  }

private:
  struct Part {
    StageIndex stage;
    MicrobatchRange microbatches;
    std::uint32_t next_forward = 0;
    std::uint32_t next_backward = 0;
  };
  struct PutOff {
    Which which;
    std::uint32_t microbatch;
  };

  void append(const Part& part, Pass pass, std::uint32_t microbatch) {
    const MicrobatchIndex index{microbatch};
    if (part.microbatches.contains(index)) row_.push_back({part.stage, pass, index});
  }

  std::array<Part, 2> parts_;
  std::queue<PutOff> put_off_;
  std::vector<Action> row_;
};

}  // namespace troupe
