#include "value_places.hpp"

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <vector>

#include "troupe/engine/check.hpp"

namespace troupe {
namespace {

/// A stretch of memory that grows, given out piece by piece.
class Stretch {
public:
  std::uint64_t take(std::uint64_t size_bytes) {
    auto best = holes_.end();
    for (auto hole = holes_.begin(); hole != holes_.end(); ++hole) {
      if (hole->second >= size_bytes && (best == holes_.end() || hole->second < best->second)) {
        best = hole;
      }
    }
    if (best == holes_.end()) return grow(size_bytes);
    const auto [offset, hole_bytes] = *best;
    holes_.erase(best);
    if (hole_bytes > size_bytes) holes_.emplace(offset + size_bytes, hole_bytes - size_bytes);
    return offset;
  }

  void give(std::uint64_t offset, std::uint64_t size_bytes) {
    const auto after = holes_.lower_bound(offset);
    if (after != holes_.end() && after->first == offset + size_bytes) {
      size_bytes += after->second;
      holes_.erase(after);
    }
    const auto next = holes_.lower_bound(offset);
    if (next != holes_.begin()) {
      const auto before = std::prev(next);
      if (before->first + before->second == offset) {
        before->second += size_bytes;
        return;
      }
    }
    holes_.emplace(offset, size_bytes);
  }

  [[nodiscard]] std::uint64_t size_bytes() const { return end_; }

private:
  /// Beginning in the hole at the end, if there is one.
  std::uint64_t grow(std::uint64_t size_bytes) {
    auto offset = end_;
    if (!holes_.empty()) {
      const auto last = std::prev(holes_.end());
      if (last->first + last->second == end_) {
        offset = last->first;
        holes_.erase(last);
      }
    }
    end_ = offset + size_bytes;
    return offset;
  }

  std::map<std::uint64_t, std::uint64_t> holes_;  ///< Size by offset.
  std::uint64_t end_ = 0;
};

constexpr std::size_t operand_count = 8;

std::array<ValueIndex, operand_count> operands_of(const KernelCall& call) {
  return {call.x,        call.residual, call.y,  call.saved[0],
          call.saved[1], call.dy,       call.dx, call.d_residual};
}

bool is_on_edge(const Value& value) {
  return value.place != ValuePlace::slot && value.place != ValuePlace::workspace;
}

/// The calls that use a value, counted over all passes.
struct Life {
  std::uint32_t first = 0;
  std::uint32_t last = 0;
  std::uint32_t first_pass = 0;
  std::uint32_t last_pass = 0;
};

}  // namespace

void place_values(StageGraph& graph) {
  const std::array passes{&graph.forward, &graph.backward, &graph.backward_input,
                          &graph.backward_weight};
  std::vector<std::optional<Life>> lives(graph.values.size());
  std::uint32_t now = 0;
  for (std::uint32_t pass = 0; pass < passes.size(); ++pass) {
    for (const auto& call : *passes[pass]) {
      for (const auto value : operands_of(call)) {
        if (value == no_value) continue;
        auto& life = lives[value];
        if (!life) life = Life{.first = now, .first_pass = pass};
        life->last = now;
        life->last_pass = pass;
      }
      ++now;
    }
  }

  Stretch slot;
  now = 0;
  for (std::uint32_t pass = 0; pass < passes.size(); ++pass) {
    Stretch workspace;
    for (const auto& call : *passes[pass]) {
      const auto for_each_placed_here = [&](auto visit) {
        auto operands = operands_of(call);
        std::ranges::sort(operands);
        const auto* const end = std::unique(operands.begin(), operands.end());
        for (const auto* at = operands.begin(); at != end; ++at) {
          if (*at == no_value) continue;
          auto& value = graph.values[*at];
          if (is_on_edge(value)) continue;
          const auto& life = *lives[*at];
          value.place =
              life.first_pass == life.last_pass ? ValuePlace::workspace : ValuePlace::slot;
          visit(value, life, value.place == ValuePlace::slot ? slot : workspace);
        }
      };
      for_each_placed_here([&](Value& value, const Life& life, Stretch& stretch) {
        if (life.first == now) value.offset_bytes = stretch.take(padded(value.size_bytes));
      });
      for_each_placed_here([&](Value& value, const Life& life, Stretch& stretch) {
        if (life.last == now) stretch.give(value.offset_bytes, padded(value.size_bytes));
      });
      ++now;
    }
    graph.workspace_bytes = std::max(graph.workspace_bytes, workspace.size_bytes());
  }
  graph.slot_bytes = slot.size_bytes();
}

}  // namespace troupe
