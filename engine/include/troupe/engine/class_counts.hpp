// troupe/engine/class_counts.hpp -- how well a classification went, class by class.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace troupe {

/// Counts what sequences were and what they were taken for. With the sequences of a class that were
/// taken for it (TP), others that were (FP), and those of it that were taken for another (FN),
///   precision = TP / (TP + FP)
///   recall    = TP / (TP + FN)
///   F1        = 2 TP / (2 TP + FP + FN), the harmonic mean of both,
/// each 0 where it would be 0 / 0. A macro average is the mean over all classes, whatever their
/// sizes (scikit-learn's `classification_report`, given all labels, has the same figures).
class ClassCounts {
public:
  /// @param class_count At least 1.
  explicit ClassCounts(std::uint32_t class_count);

  /// Both below the number of classes.
  void add(std::uint32_t truth, std::uint32_t prediction);

  [[nodiscard]] std::uint32_t class_count() const noexcept {
    return static_cast<std::uint32_t>(classes_.size());
  }
  /// Sequences that were added.
  [[nodiscard]] std::uint64_t total() const noexcept { return total_; }
  /// Of these, those that are of class `c`.
  [[nodiscard]] std::uint64_t support(std::uint32_t c) const { return classes_.at(c).support; }

  /// The share that was taken for what it is; 0 if there is nothing.
  [[nodiscard]] double accuracy() const;
  [[nodiscard]] double precision(std::uint32_t c) const;
  [[nodiscard]] double recall(std::uint32_t c) const;
  [[nodiscard]] double f1(std::uint32_t c) const;

  [[nodiscard]] double macro_precision() const { return mean(&ClassCounts::precision); }
  [[nodiscard]] double macro_recall() const { return mean(&ClassCounts::recall); }
  [[nodiscard]] double macro_f1() const { return mean(&ClassCounts::f1); }

private:
  struct OfClass {
    std::uint64_t hits = 0;         ///< TP
    std::uint64_t support = 0;      ///< TP + FN
    std::uint64_t predictions = 0;  ///< TP + FP
  };

  [[nodiscard]] double mean(double (ClassCounts::*of)(std::uint32_t) const) const;

  std::vector<OfClass> classes_;
  std::uint64_t total_ = 0;
  std::uint64_t hits_ = 0;
};

}  // namespace troupe
