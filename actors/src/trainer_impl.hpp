// actors/src/trainer_impl.hpp -- what a trainer is made of, wherever its ranks are performed.
#pragma once

#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <span>
#include <utility>

#include "troupe/actors/director.hpp"
#include "troupe/actors/trainer.hpp"

namespace troupe::actors {

/// A director that runs one step at a time for a thread that waits.
class Trainer::Impl {
public:
  virtual ~Impl() = default;
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  [[nodiscard]] virtual Expected<StepReport> run(const StepWanted& what) {
    return outcome_of(StepDue{what});
  }
  /// Waits until every step that has begun is over, or the run has failed.
  void await_steps() { (void)outcome_of(StepsAwaited{}); }
  [[nodiscard]] virtual Expected<Done> read_parameter(std::size_t index,
                                                      std::span<float> values) = 0;
  [[nodiscard]] virtual Expected<double> measure_peak_flops() = 0;

  [[nodiscard]] const Plan& plan() const noexcept { return *plan_; }
  [[nodiscard]] std::uint32_t next_step() noexcept { return ++step_; }

protected:
  explicit Impl(std::shared_ptr<const Plan> plan) : plan_{std::move(plan)} {}

  /// Spawned in `system`; what it reports reaches `run`.
  void spawn_director(caf::actor_system& system) {
    const auto done = std::make_shared<StepDone>([this](Expected<StepReport> outcome) {
      std::exchange(promise_, std::nullopt)->set_value(std::move(outcome));
    });
    director_ = system.spawn(director, plan_, done);
  }

  std::shared_ptr<const Plan> plan_;
  DirectorHandle director_;

private:
  template <class Question>
  Expected<StepReport> outcome_of(const Question& question) {
    promise_.emplace();
    auto outcome = promise_->get_future();
    caf::anon_send(director_, question);
    return outcome.get();
  }

  std::optional<std::promise<Expected<StepReport>>> promise_;
  std::uint32_t step_ = 0;
};

/// Where a parameter of the model is to be read: on which stage, and the how manieth it is there.
struct ParameterPlace {
  StageIndex stage;
  std::size_t index = 0;
};
/// Reads what shard `shard` of `Plan::weights_replica` holds of a parameter, as many values.
using PartReader = std::function<Expected<Done>(const ParameterPlace& place, std::uint32_t shard,
                                                std::span<float> values)>;

/// Puts the `index`-th of `parameters_of(plan.config.model)` together from what shards hold.
[[nodiscard]] Expected<Done> read_whole(const Plan& plan, std::size_t index,
                                        std::span<float> values, const PartReader& read_part);

}  // namespace troupe::actors
