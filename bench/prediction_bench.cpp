// How long steps take and how long the simulator says they take, on a machine whose speed drifts:
// variants of a configuration are trained in turns, step by step, and after each such step comes
// one of the probes of `troupe profile`. Prints a JSON array with the mean milliseconds of each
// variant: measured, simulated by the profile that came out, and simulated as if its passes were
// even. Usage: prediction_bench CONFIG SECONDS [KEY=VALUE ...] [-- KEY=VALUE ...]...

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
      sum_ms_ += static_cast<double>(report->end_ns - report->begin_ns) * 1e-6;
      ++count_;
    }
    return Done{};
  }

  [[nodiscard]] double measured_ms() const { return sum_ms_ / count_; }
  [[nodiscard]] double simulated_ms(const Profile& profile) const {
    return simulate_uneven(plan_.training, costs_of(plan_, profile), profile.unevenness).mean_ns
           * 1e-6;
  }
  [[nodiscard]] double even_ms(const Profile& profile) const {
    return static_cast<double>(predict(plan_, profile).makespan_ns) * 1e-6;
  }

private:
  Plan plan_;
  std::unique_ptr<actors::Trainer> trainer_;
  double sum_ms_ = 0.0;
  std::uint32_t count_ = 0;
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
  std::size_t next = 0;
  const auto run_next = [&] { return variants[next++ % variants.size()].run_step(); };
  const auto profile =
      value_or_stop(cli::measure_profile(variants.front().plan(), std::atof(argv[2]), run_next));
  std::string separator = "[";
  for (auto& variant : variants) {
    fmt::print("{}{{\"measured\": {:.3f}, \"simulated\": {:.3f}, \"even\": {:.3f}}}", separator,
               variant.measured_ms(), variant.simulated_ms(profile), variant.even_ms(profile));
    separator = ", ";
  }
  fmt::print("]\n");
  return EXIT_SUCCESS;
}
