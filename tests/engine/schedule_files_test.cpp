// Schedules that PyTorch wrote. The files of tests/engine/schedules are what `_dump_csv` of
// torch.distributed.pipelining in PyTorch 2.7.1 leaves for two stages per rank, byte for byte. A
// row is a rank and ends with it, in CR LF; a column is a unit of time; cells stand without quotes,
// and empty while the rank is idle.

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <ostream>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include "troupe/engine/schedule_generators.hpp"
#include "troupe/engine/schedule_text.hpp"
#include "troupe/engine/schedule_validation.hpp"
#include "troupe/engine/simulate.hpp"

#include "schedule_scope.hpp"

namespace troupe {
namespace {

struct FileCase {
  const char* name;  ///< Of the file.
  const char* written_by;
  StageMap map;
  std::uint32_t rank_count;
  std::uint32_t microbatch_count;
  std::string_view passes;  ///< The letters that occur.

  friend std::ostream& operator<<(std::ostream& out, const FileCase& file) {
    return out << file.name;
  }
};

constexpr std::uint32_t chunk_count = 2;
constexpr FileCase file_cases[]{
    {"interleaved_1f1b", "ScheduleInterleaved1F1B", StageMap::looped, 4, 8, "FB"},
    {"interleaved_zero_bubble", "ScheduleInterleavedZeroBubble", StageMap::looped, 2, 4, "FIW"},
    {"looped_bfs", "ScheduleLoopedBFS", StageMap::looped, 2, 3, "FB"},
    {"v_zero_bubble", "ScheduleZBVZeroBubble", StageMap::v_shaped, 3, 6, "FIW"},
};

std::string text_of_file(const std::string& name) {
  std::ifstream file{TROUPE_SCHEDULES_DIR "/" + name + ".csv", std::ios::binary};
  return {std::istreambuf_iterator<char>{file}, {}};
}

Schedule read(const std::string& name) {
  return from_csv(text_of_file(name), name + ".csv").value();
}

/// The cells of every row, also the empty ones: what the reader should find.
std::vector<std::vector<std::string>> cells_of_file(const std::string& name) {
  std::vector<std::vector<std::string>> rows;
  std::istringstream lines{text_of_file(name)};
  for (std::string line; std::getline(lines, line);) {
    EXPECT_TRUE(line.ends_with('\r'));
    line.pop_back();
    rows.emplace_back();
    std::istringstream cells{line};
    for (std::string cell; std::getline(cells, cell, ',');) rows.back().push_back(cell);
  }
  return rows;
}

const CostModel one_column_each{.stages = {PassCosts{1, 1, 1, 1}}};

class PyTorchSchedule : public testing::TestWithParam<FileCase> {};

INSTANTIATE_TEST_SUITE_P(Files, PyTorchSchedule, testing::ValuesIn(file_cases),
                         [](const auto& test) { return std::string{test.param.written_by}; });

TEST_P(PyTorchSchedule, IsReadCellByCell) {
  const auto& file = GetParam();
  const auto schedule = read(file.name);
  EXPECT_EQ(schedule.kind, StepKind::training);
  EXPECT_EQ(schedule.microbatch_count, file.microbatch_count);
  EXPECT_EQ(schedule.rank_of_stage, make_stage_map(file.map, file.rank_count, chunk_count));
  EXPECT_EQ(schedule.action_count(),
            file.passes.size() * schedule.stage_count() * schedule.microbatch_count);
  auto rows = cells_of_file(file.name);
  ASSERT_EQ(rows.size(), file.rank_count);
  for (std::uint32_t r = 0; r < file.rank_count; ++r) {
    EXPECT_EQ(rows[r][r], to_string(Action{StageIndex{r}, Pass::forward, MicrobatchIndex{0}}))
        << "the first microbatch reaches a rank in each column";
    std::erase(rows[r], "");
    ASSERT_EQ(rows[r].size(), schedule.ranks[r].size());
    for (std::size_t i = 0; i < rows[r].size(); ++i) {
      const auto& action = schedule.ranks[r][i];
      EXPECT_EQ(to_string(action), rows[r][i]);
      EXPECT_NE(file.passes.find(to_letter(action.pass)), std::string_view::npos);
    }
  }
}

TEST_P(PyTorchSchedule, IsValidOnceItsWeightPassesAreInOrder) {
  const auto schedule = with_weight_passes_in_order(read(GetParam().name));
  const auto verdict = validate(schedule);
  ASSERT_TRUE(verdict) << verdict.error().context;
  const auto timeline = simulate(schedule, one_column_each);
  for (std::uint32_t r = 0; r < schedule.rank_count(); ++r) {
    EXPECT_EQ(timeline.ranks[r].size(), schedule.ranks[r].size());
  }
}

TEST(PyTorchSchedules, NoPassRunsLaterThanItsColumn) {
  for (const auto* name : {"interleaved_1f1b", "interleaved_zero_bubble", "v_zero_bubble"}) {
    const auto schedule = read(name);
    ASSERT_TRUE(validate(schedule)) << name;
    const auto timeline = simulate(schedule, one_column_each);
    const auto rows = cells_of_file(name);
    for (std::uint32_t r = 0; r < schedule.rank_count(); ++r) {
      for (const auto& pass : timeline.ranks[r]) {
        const auto cell = std::ranges::find(rows[r], to_string(pass.action));
        EXPECT_LE(pass.begin_ns, cell - rows[r].begin()) << name << ' ' << *cell;
      }
    }
  }
}

TEST(PyTorchSchedules, ZeroBubblesEndWithTheirLastColumn) {
  for (const auto* name : {"interleaved_zero_bubble", "v_zero_bubble"}) {
    std::size_t column_count = 0;
    for (const auto& row : cells_of_file(name)) column_count = std::max(column_count, row.size());
    EXPECT_EQ(simulate(read(name), one_column_each).makespan_ns, column_count) << name;
  }
}

TEST(PyTorchSchedules, InterleavedIsTheOneThatIsGeneratedHere) {
  EXPECT_EQ(read("interleaved_1f1b").ranks, make_interleaved_1f1b(4, 8, chunk_count)->ranks);
}

TEST(PyTorchSchedules, VZeroBubbleIsTheOneThatIsGeneratedHere) {
  auto theirs = read("v_zero_bubble");
  auto ours = make_zb_v(3, 6);
  for (std::uint32_t r = 0; r < 3; ++r) {
    // The weight passes left at the end go by stage there, here by the time that they have waited.
    for (auto* row : {&theirs.ranks[r], &ours.ranks[r]}) {
      const auto is_weight_pass = [](const Action& a) { return a.pass == Pass::backward_weight; };
      const auto last = std::find_if_not(row->rbegin(), row->rend(), is_weight_pass);
      std::ranges::sort(last.base(), row->end());
    }
    EXPECT_EQ(text_of(theirs.ranks[r]), text_of(ours.ranks[r]));
  }
}

TEST(PyTorchSchedules, VShapedIsWrittenBackByteForByte) {
  EXPECT_EQ(to_csv(read("v_zero_bubble")), text_of_file("v_zero_bubble"));
}

TEST(PyTorchSchedules, LoopedBreadthFirstAddsItsWeightGradientsBackwards) {
  const auto schedule = read("looped_bfs");
  EXPECT_EQ(validate(schedule).error().context,
            "weight order: rank 0 runs 2B2 before the weight pass of microbatch 0, but weight "
            "gradients add up in microbatch order [... 0F2 2F0 2F1 2F2 >2B2< 2B1 2B0 0B2 0B1 ...]");
  EXPECT_EQ(text_of(with_weight_passes_in_order(schedule).ranks[0]),
            "0F0 0F1 0F2 2F0 2F1 2F2 2I2 2I1 2B0 2W1 2W2 0I2 0I1 0B0 0W1 0W2");
}

}  // namespace
}  // namespace troupe
