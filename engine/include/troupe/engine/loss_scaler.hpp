// troupe/engine/loss_scaler.hpp -- what the loss is multiplied by, so that small gradients can be
// told from zero in half precision.
#pragma once

#include <cstdint>

#include "troupe/engine/config.hpp"

namespace troupe {

inline constexpr double loss_scale_max = 0x1p60;

/// Whether `number` is a power of two from 1 to `loss_scale_max`.
[[nodiscard]] bool is_loss_scale(double number) noexcept;

/// Dynamic loss scaling: Micikevicius et al. 2018, section 3.2, and Nvidia's rule for the factor.
/// It doubles after so many updates in a row, and halves whenever a gradient has overflown, when
/// the update is left out. Where nothing is rounded to half precision it is 1 and stays so.
class LossScaler {
public:
  /// @param train one that `validate` accepts.
  explicit LossScaler(const TrainConfig& train) noexcept;

  /// Of the step that comes next: a power of two from 1 to `loss_scale_max`.
  [[nodiscard]] double scale() const noexcept { return scale_; }

  /// The gradients of a step are finite.
  void on_update() noexcept;

  /// They are not. Returns false if the scale is 1, and so not what made them overflow.
  [[nodiscard]] bool on_overflow() noexcept;

private:
  double scale_;
  std::uint32_t interval_;
  std::uint32_t updates_in_a_row_ = 0;
};

}  // namespace troupe
