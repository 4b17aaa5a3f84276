#include "troupe/engine/loss_scaler.hpp"

#include <algorithm>
#include <cmath>

namespace troupe {

bool is_loss_scale(double number) noexcept {
  int exponent = 0;
  return number >= 1.0 && number <= loss_scale_max && std::frexp(number, &exponent) == 0.5;
}

LossScaler::LossScaler(const TrainConfig& train) noexcept
    : scale_{train.precision == Precision::fp16 ? train.loss_scale : 1.0},
      interval_{train.precision == Precision::fp16 ? train.loss_scale_interval : 0} {}

void LossScaler::on_update() noexcept {
  if (interval_ == 0 || ++updates_in_a_row_ < interval_) return;
  updates_in_a_row_ = 0;
  scale_ = std::min(2.0 * scale_, loss_scale_max);
}

bool LossScaler::on_overflow() noexcept {
  updates_in_a_row_ = 0;
  if (scale_ == 1.0) return false;
  scale_ /= 2.0;
  return true;
}

}  // namespace troupe
