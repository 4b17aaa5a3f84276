#include "troupe/engine/class_counts.hpp"

#include <vector>

#include <gtest/gtest.h>

namespace troupe {
namespace {

ClassCounts counts_of(std::uint32_t class_count, const std::vector<std::uint32_t>& truths,
                      const std::vector<std::uint32_t>& predictions) {
  ClassCounts counts{class_count};
  for (std::size_t i = 0; i < truths.size(); ++i) counts.add(truths[i], predictions[i]);
  return counts;
}

/// The example in the documentation of scikit-learn's `classification_report`, which prints 0.50,
/// 1.00, 0.67; 0, 0, 0; 1.00, 0.67, 0.80; accuracy 0.60; and macro averages 0.50, 0.56, 0.49.
TEST(ClassCounts, GiveThePublishedReport) {
  const auto counts = counts_of(3, {0, 1, 2, 2, 2}, {0, 0, 2, 2, 1});
  EXPECT_EQ(counts.total(), 5U);
  EXPECT_DOUBLE_EQ(counts.accuracy(), 0.6);
  EXPECT_DOUBLE_EQ(counts.precision(0), 0.5);
  EXPECT_DOUBLE_EQ(counts.recall(0), 1.0);
  EXPECT_DOUBLE_EQ(counts.f1(0), 2.0 / 3);
  EXPECT_EQ(counts.support(0), 1U);
  EXPECT_DOUBLE_EQ(counts.precision(1), 0.0);
  EXPECT_DOUBLE_EQ(counts.recall(1), 0.0);
  EXPECT_DOUBLE_EQ(counts.f1(1), 0.0);
  EXPECT_EQ(counts.support(1), 1U);
  EXPECT_DOUBLE_EQ(counts.precision(2), 1.0);
  EXPECT_DOUBLE_EQ(counts.recall(2), 2.0 / 3);
  EXPECT_DOUBLE_EQ(counts.f1(2), 0.8);
  EXPECT_EQ(counts.support(2), 3U);
  EXPECT_DOUBLE_EQ(counts.macro_precision(), 0.5);
  EXPECT_DOUBLE_EQ(counts.macro_recall(), (1.0 + 0.0 + 2.0 / 3) / 3);
  EXPECT_DOUBLE_EQ(counts.macro_f1(), (2.0 / 3 + 0.0 + 0.8) / 3);
}

/// By hand: of class 0, TP 3, FP 1, FN 2; of class 1, TP 4, FP 2, FN 1. Precision and recall differ,
/// so that one taken for the other would show.
TEST(ClassCounts, TellPrecisionFromRecall) {
  const auto counts =
      counts_of(2, {0, 0, 0, 0, 0, 1, 1, 1, 1, 1}, {0, 0, 0, 1, 1, 1, 1, 1, 1, 0});
  EXPECT_DOUBLE_EQ(counts.accuracy(), 0.7);
  EXPECT_DOUBLE_EQ(counts.precision(0), 3.0 / 4);
  EXPECT_DOUBLE_EQ(counts.recall(0), 3.0 / 5);
  EXPECT_DOUBLE_EQ(counts.f1(0), 6.0 / 9);
  EXPECT_DOUBLE_EQ(counts.precision(1), 4.0 / 6);
  EXPECT_DOUBLE_EQ(counts.recall(1), 4.0 / 5);
  EXPECT_DOUBLE_EQ(counts.f1(1), 8.0 / 11);
  EXPECT_DOUBLE_EQ(counts.macro_f1(), (6.0 / 9 + 8.0 / 11) / 2);
}

TEST(ClassCounts, AreZeroWhereThereIsNothingToDivide) {
  const ClassCounts nothing{2};
  EXPECT_EQ(nothing.accuracy(), 0.0);
  EXPECT_EQ(nothing.macro_f1(), 0.0);
  const auto counts = counts_of(3, {0, 0}, {0, 1});
  EXPECT_EQ(counts.recall(1), 0.0) << "nothing is of class 1";
  EXPECT_EQ(counts.precision(2), 0.0) << "nothing is taken for class 2";
  EXPECT_DOUBLE_EQ(counts.macro_recall(), 0.5 / 3) << "a class that does not occur counts";
}

}  // namespace
}  // namespace troupe
