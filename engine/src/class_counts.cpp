#include "troupe/engine/class_counts.hpp"

#include "troupe/engine/check.hpp"

namespace troupe {

namespace {

double ratio(std::uint64_t part, std::uint64_t whole) {
  return whole == 0 ? 0.0 : static_cast<double>(part) / static_cast<double>(whole);
}

}  // namespace

ClassCounts::ClassCounts(std::uint32_t class_count) : classes_(class_count) {
  TROUPE_ASSERT(class_count >= 1);
}

void ClassCounts::add(std::uint32_t truth, std::uint32_t prediction) {
  TROUPE_ASSERT(truth < class_count() && prediction < class_count());
  ++total_;
  ++classes_[truth].support;
  ++classes_[prediction].predictions;
  if (truth != prediction) return;
  ++hits_;
  ++classes_[truth].hits;
}

double ClassCounts::accuracy() const {
  return ratio(hits_, total_);
}
double ClassCounts::precision(std::uint32_t c) const {
  return ratio(classes_.at(c).hits, classes_.at(c).predictions);
}
double ClassCounts::recall(std::uint32_t c) const {
  return ratio(classes_.at(c).hits, classes_.at(c).support);
}
double ClassCounts::f1(std::uint32_t c) const {
  const auto& [hits, support, predictions] = classes_.at(c);
  return ratio(2 * hits, support + predictions);
}

double ClassCounts::mean(double (ClassCounts::*of)(std::uint32_t) const) const {
  double sum = 0.0;
  for (std::uint32_t c = 0; c < class_count(); ++c) sum += (this->*of)(c);
  return sum / class_count();
}

}  // namespace troupe
