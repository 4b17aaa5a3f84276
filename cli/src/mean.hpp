// cli/src/mean.hpp -- what durations are taken by.
#pragma once

namespace troupe::cli {

/// That of a step is the sum of those of its passes, however uneven the machine makes them, as no
/// other middle is.
class Mean {
public:
  void add(double value, double weight = 1.0) {
    sum_ += weight * value;
    weight_ += weight;
  }

  /// 0 if there are none.
  [[nodiscard]] double value() const { return weight_ > 0.0 ? sum_ / weight_ : 0.0; }
  [[nodiscard]] double weight() const { return weight_; }

private:
  double sum_ = 0.0;
  double weight_ = 0.0;
};

}  // namespace troupe::cli
