// How long steps take and how long the simulator says they take, on a machine whose speed drifts:
// variants of a configuration are trained in turns, step by step, and between those steps the
// probes of `troupe profile` are. Prints a JSON array with the median milliseconds of each variant,
// measured, and simulated by the profile that came out. Usage:
// prediction_bench CONFIG SECONDS [KEY=VALUE ...] [-- KEY=VALUE ...]...

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "troupe/actors/trainer.hpp"
#include "troupe/engine/profile.hpp"

#include "empty_stages.hpp"
#include "profile_measurement.hpp"
#include "run_inputs.hpp"

namespace {

using namespace troupe;

constexpr std::uint32_t warmup_steps = 2;  // In which matrix products are compiled.

template <class T>
T value_or_stop(Expected<T> value) {
  if (value) return std::move(*value);
  fmt::print(stderr, "prediction_bench: {}\n", value.error().context);
  std::exit(EXIT_FAILURE);
}

class Variant {
public:
  Variant(std::string config_path, std::vector<std::string> overrides)
      : plan_{value_or_stop(cli::load_plan({std::move(config_path), std::move(overrides)}))},
        trainer_{value_or_stop(actors::Trainer::make(plan_, empty_batch))} {}

  [[nodiscard]] const Plan& plan() const noexcept { return plan_; }

  Expected<Done> run_step() {
    const auto report = trainer_->train_step();
    if (!report) return report.error();
    if (report->step > warmup_steps) {
      step_ms_.push_back(static_cast<double>(report->end_ns - report->begin_ns) * 1e-6);
    }
    return Done{};
  }

  [[nodiscard]] double measured_ms() {
    const auto middle = step_ms_.begin() + static_cast<std::ptrdiff_t>(step_ms_.size() / 2);
    std::ranges::nth_element(step_ms_, middle);
    return *middle;
  }

  [[nodiscard]] double simulated_ms(const Profile& profile) const {
    return static_cast<double>(predict(plan_, profile).makespan_ns) * 1e-6;
  }

private:
  Plan plan_;
  std::unique_ptr<actors::Trainer> trainer_;
  std::vector<double> step_ms_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    fmt::print(stderr,
               "usage: prediction_bench CONFIG SECONDS [KEY=VALUE ...] [-- KEY=VALUE ...]...\n");
    return EXIT_FAILURE;
  }
  std::vector<std::vector<std::string>> overrides(1);
  for (const std::string_view word : std::vector<std::string_view>(argv + 3, argv + argc)) {
    if (word == "--") {
      overrides.emplace_back();
    } else {
      overrides.back().emplace_back(word);
    }
  }
  std::vector<Variant> variants;
  for (auto& of_variant : overrides) variants.emplace_back(argv[1], std::move(of_variant));
  const auto profile = value_or_stop(
      cli::measure_profile(variants.front().plan(), std::atof(argv[2]), [&]() -> Expected<Done> {
        for (auto& variant : variants) {
          if (auto done = variant.run_step(); !done) return done.error();
        }
        return Done{};
      }));
  std::string separator = "[";
  for (auto& variant : variants) {
    fmt::print("{}{{\"measured\": {:.3f}, \"simulated\": {:.3f}}}", separator,
               variant.measured_ms(), variant.simulated_ms(profile));
    separator = ", ";
  }
  fmt::print("]\n");
  return EXIT_SUCCESS;
}
