// Replicas that run ahead of each other, against the serial run with delayed gradients: the
// gradient of a step is of exactly the weights that it is to be of, whatever the speed of whom.

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "troupe/stages/cpu_device.hpp"

#include "stage_in_disguise.hpp"
#include "tiny_training.hpp"

namespace troupe::actors {
namespace {

Config stale_config(std::uint32_t staleness, const GridExtent& parallel, bool tied) {
  auto config = tiny_config(tied);
  config.train.steps = 20;
  config.parallel = parallel;
  config.schedule.microbatches /= parallel.data;
  config.train.synchronization = Synchronization::parameter_server;
  config.train.staleness = staleness;
  config.train.validation_interval = 0;
  return config;
}

using Weights = std::vector<std::vector<float>>;

Weights weights_of(Trainer& trainer) {
  Weights weights;
  const auto parameters = parameters_of(trainer.plan().config.model);
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    weights.emplace_back(parameters[i].element_count());
    EXPECT_TRUE(trainer.read_parameter(i, weights.back()));
  }
  return weights;
}

/// Without actors, replicas or pipelines: one stage that holds the whole model computes the
/// gradients of all replicas, another keeps the weights and updates them.
class DelayedGradients {
public:
  explicit DelayedGradients(const Config& config) : config_{config}, source_{source_of(config)} {
    config_.train.synchronization = Synchronization::all_reduce;
    config_.train.staleness = 0;
    for (auto* stage : {&worker_, &keeper_}) {
      auto made =
          stages::make_transformer_stage(*device_, *stream_,
                                         {.model = config.model,
                                          .spec = {.layer_begin = 0,
                                                   .layer_end = config.model.layers,
                                                   .has_embedding = true,
                                                   .has_head = true},
                                          .bounds = {.slots = 1},
                                          .microbatch_count = config.schedule.microbatches,
                                          .microbatch_size = config.schedule.microbatch_size,
                                          .train = config_.train});
      *stage = std::move(made).value();
    }
    versions_.push_back(weights_of_keeper());
  }

  /// Of the next step, on the weights after `weights_of` updates.
  void step(std::uint32_t weights_of) {
    ++step_;
    write(versions_.at(weights_of));
    double loss = 0.0;
    for (std::uint32_t r = 0; r < config_.parallel.data; ++r) {
      loss = run(StepKind::training, step_, r, loss);
      const auto from = worker_->parameters();
      const auto to = keeper_->parameters();
      for (std::size_t i = 0; i < from.size(); ++i) {
        for (std::size_t e = 0; e < from[i].gradients.size(); ++e) {
          auto& sum = to[i].gradients[e];
          sum = r == 0 ? from[i].gradients[e] : sum + from[i].gradients[e];
        }
      }
    }
    losses_.push_back(loss / target_count_);
    update();
    versions_.push_back(weights_of_keeper());
  }

  /// The mean loss of held-out batch `index` after so many updates.
  double evaluate(std::uint32_t updates, std::uint32_t index) {
    write(versions_.at(updates));
    double loss = 0.0;
    for (std::uint32_t r = 0; r < config_.parallel.data; ++r) {
      loss = run(StepKind::evaluation, index, r, loss);
    }
    return loss / target_count_;
  }

  [[nodiscard]] const std::vector<double>& losses() const { return losses_; }
  [[nodiscard]] const std::vector<double>& norms() const { return norms_; }
  /// By the number of updates.
  [[nodiscard]] const Weights& version(std::uint32_t updates) const {
    return versions_.at(updates);
  }

private:
  static constexpr auto ignore = [](Errc, const stages::DeviceSpan&) {};

  /// All passes of a replica's batch. Adds its losses to `sum`, in the director's order.
  double run(StepKind kind, std::uint32_t step, std::uint32_t replica, double sum) {
    const auto& schedule = config_.schedule;
    const auto samples = schedule.microbatches * schedule.microbatch_size;
    stages::Batch batch{.microbatch_count = schedule.microbatches,
                        .microbatch_size = schedule.microbatch_size,
                        .sequence = config_.model.sequence,
                        .tokens = std::vector<std::int32_t>(samples * config_.model.sequence),
                        .targets = std::vector<std::int32_t>(samples * config_.model.sequence)};
    target_count_ = samples * config_.model.sequence * config_.parallel.data;
    batch.target_count = target_count_;
    source_(kind, step, replica, batch);
    worker_->begin_step(
        {.step = step, .kind = kind, .batch = &batch, .first_sample = replica * samples});
    for (std::uint32_t m = 0; m < schedule.microbatches; ++m) {
      for (const auto pass : {Pass::forward, Pass::backward}) {
        if (kind == StepKind::evaluation && pass == Pass::backward) continue;
        const Action action{StageIndex{0}, pass, MicrobatchIndex{m}};
        worker_->enqueue(action, ignore);
        stream_->synchronize();
        worker_->finish(action);
      }
    }
    for (const auto loss : worker_->losses()) sum += loss;
    return sum;
  }

  void update() {
    const auto& train = config_.train;
    keeper_->measure_gradients(ignore);
    stream_->synchronize();
    double squares = 0.0;
    for (const auto square : keeper_->gradient_squares()) squares += square;
    norms_.push_back(std::sqrt(squares));
    const auto scale = std::min(1.0, train.clip_norm / (norms_.back() + 1e-6));
    keeper_->optimize({.update = step_,
                       .learning_rate = static_cast<float>(learning_rate_at(train, step_)),
                       .gradient_scale = static_cast<float>(scale)},
                      ignore);
    stream_->synchronize();
  }

  void write(const Weights& weights) {
    for (std::size_t i = 0; i < weights.size(); ++i) worker_->write_parameter(i, weights[i]);
  }

  [[nodiscard]] Weights weights_of_keeper() const {
    Weights weights;
    for (const auto& parameter : keeper_->parameters()) {
      weights.emplace_back(parameter.values.begin(), parameter.values.end());
    }
    return weights;
  }

  Config config_;
  BatchSource source_;
  std::unique_ptr<stages::Device> device_ = stages::make_cpu_device();
  std::unique_ptr<stages::Stream> stream_ = device_->make_stream("delayed", 1);
  std::unique_ptr<stages::TransformerStage> worker_;
  std::unique_ptr<stages::TransformerStage> keeper_;
  std::vector<Weights> versions_;
  std::vector<double> losses_;
  std::vector<double> norms_;
  std::uint32_t step_ = 0;
  std::uint32_t target_count_ = 0;
};

std::uint32_t weights_of_step(const Config& config, std::uint32_t step) {
  const auto& [staleness, interval] =
      std::pair{config.train.staleness, config.train.validation_interval};
  const auto barrier = interval == 0 ? 0 : (step - 1) / interval * interval;
  return std::max(step - 1 > staleness ? step - 1 - staleness : 0, barrier);
}

DelayedGradients delayed(const Config& config) {
  DelayedGradients expected{config};
  for (std::uint32_t step = 1; step <= config.train.steps; ++step) {
    expected.step(weights_of_step(config, step));
  }
  return expected;
}

void expect_as_delayed(const Config& config) {
  const auto expected = delayed(config);
  const auto trainer = Trainer::make(make_plan(config).value(), source_of(config)).value();
  for (std::uint32_t step = 1; step <= config.train.steps; ++step) {
    const auto report = trainer->train_step();
    ASSERT_TRUE(report) << report.error().context;
    EXPECT_EQ(report->step, step);
    EXPECT_EQ(report->loss, expected.losses()[step - 1]) << "step " << step;
    EXPECT_EQ(report->gradient_norm, expected.norms()[step - 1]) << "step " << step;
  }
  EXPECT_TRUE(weights_of(*trainer) == expected.version(config.train.steps));
}

TEST(Staleness, EqualsTheSerialRunWithDelayedGradients) {
  struct Case {
    std::uint32_t staleness;
    GridExtent parallel;
    bool tied;
    std::uint32_t validation_interval;
    const char* schedule = "1f1b";
    OptimizerKind optimizer = OptimizerKind::adamw;
  };
  for (const auto& of :
       {Case{0, {2, 1, 1}, true, 0}, Case{1, {2, 1, 1}, true, 0}, Case{2, {2, 1, 2}, true, 0},
        Case{2, {3, 1, 1}, true, 7}, Case{3, {2, 1, 3}, true, 5, "zb-h1"},
        Case{1, {4, 1, 1}, true, 1}, Case{5, {2, 1, 2}, true, 4, "gpipe", OptimizerKind::sgd},
        Case{1, {2, 1, 2}, false, 0, "1f1b", OptimizerKind::adafactor},
        Case{16, {2, 1, 1}, false, 0}}) {
    auto config = stale_config(of.staleness, of.parallel, of.tied);
    config.schedule.name = of.schedule;
    config.train.validation_interval = of.validation_interval;
    config.train.optimizer = of.optimizer;
    config.model.dropout = of.staleness % 2 == 0 ? 0.1 : 0.0;
    SCOPED_TRACE(to_toml(config));
    expect_as_delayed(config);
  }
}

TEST(Staleness, OnShardsIsThatOfTheSerialRunUpToRounding) {
  auto config = stale_config(2, {2, 2, 2}, true);
  config.schedule.policy = Policy::backward_first;
  config.train.optimizer = OptimizerKind::sgd;
  config.train.learning_rate = 0.05;
  const auto expected = delayed(config);
  const auto outcome = train(config);
  for (std::size_t i = 0; i < outcome.losses.size(); ++i) {
    EXPECT_NEAR(outcome.losses[i], expected.losses()[i], 1e-5 * expected.losses()[i]);
    EXPECT_NEAR(outcome.norms[i], expected.norms()[i], 1e-5 * expected.norms()[i]);
  }
  EXPECT_TRUE(train(config) == outcome);
}

/// Who is late in a step: it waits until another is as far ahead as it may be.
using Late = std::optional<std::uint32_t> (*)(std::uint32_t step);

/// How far replicas are, as those see it who run their passes.
struct Race {
  Config config;
  Late late;
  std::array<std::atomic<std::uint32_t>, 3> begun{};  ///< By replica: its last step.
  std::array<std::atomic<std::uint32_t>, 3> ended{};  ///< By replica: its last step.
  std::atomic<std::uint32_t> most_ahead = 0;          ///< Of any before the slowest.
  std::atomic<bool> has_waited_in_vain = false;
};

/// The last step that may begin before `step` is over.
std::uint32_t last_beside(const Config& config, std::uint32_t step) {
  const auto& train = config.train;
  const auto last = std::min(step + train.staleness, train.steps);
  const auto interval = train.validation_interval;
  return interval == 0 ? last : std::min(last, (step + interval - 1) / interval * interval);
}

/// A stage that tells when its steps begin and end, and is late when it is its turn.
class RacingStage final : public StageInDisguise {
public:
  RacingStage(std::unique_ptr<stages::Stage> stage, stages::Stream& stream, Race& race,
              std::uint32_t replica)
      : StageInDisguise{std::move(stage)}, stream_{stream}, race_{race}, replica_{replica} {}

  void begin_step(const stages::StepInfo& info) override {
    step_ = info.step;
    StageInDisguise::begin_step(info);
  }
  void enqueue(const Action& action, stages::DeviceDone done) override {
    const auto last = race_.config.schedule.microbatches - 1;
    if (action.pass == Pass::forward && action.microbatch == MicrobatchIndex{0}) {
      stream_.enqueue([this, step = step_] { begin(step); });
    }
    StageInDisguise::enqueue(action, std::move(done));
    if (action.pass == Pass::backward && action.microbatch == MicrobatchIndex{last}) {
      stream_.enqueue([this, step = step_] { race_.ended.at(replica_) = step; });
    }
  }

private:
  void begin(std::uint32_t step) {
    race_.begun.at(replica_) = step;
    auto slowest = step - 1;
    for (const auto& ended : race_.ended) slowest = std::min(slowest, ended.load());
    const auto ahead = step - 1 - slowest;
    auto most = race_.most_ahead.load();
    while (most < ahead && !race_.most_ahead.compare_exchange_weak(most, ahead)) {
    }
    if (race_.late(step) == replica_) wait_for_another(last_beside(race_.config, step));
  }

  void wait_for_another(std::uint32_t step) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds{20};
    const auto has_begun = [step](const auto& begun) { return begun >= step; };
    while (!std::ranges::any_of(race_.begun, has_begun)) {
      if (std::chrono::steady_clock::now() > deadline) race_.has_waited_in_vain = true;
      if (race_.has_waited_in_vain) return;
      std::this_thread::yield();
    }
  }

  stages::Stream& stream_;
  Race& race_;
  std::uint32_t replica_;
  std::uint32_t step_ = 0;
};

Outcome run(Race& race) {
  RankParts parts;
  parts.make_stage =
      [&race](const Plan& plan, const StagePlan& stage, stages::Device& device,
              stages::Stream& stream,
              const stages::StagePeers& peers) -> Expected<std::unique_ptr<stages::Stage>> {
    auto made =
        stages::make_transformer_stage(device, stream, stages::StageProps::of(plan, stage, peers));
    if (!made) return made.error();
    std::unique_ptr<stages::Stage> model = std::move(*made);
    const auto holder = peers.holders.group->rank();
    if (holder == plan.config.parallel.data) return model;
    return {std::make_unique<RacingStage>(std::move(model), stream, race, holder)};
  };
  const auto plan = make_plan(race.config).value();
  return train(*Trainer::make(plan, source_of(race.config), std::move(parts)).value());
}

TEST(Staleness, BoundsHowFarAReplicaIsAheadAndLeavesNoTraceOfWhoIsLate) {
  constexpr std::array<std::pair<const char*, Late>, 3> cases{
      {{"nobody", [](std::uint32_t) { return std::optional<std::uint32_t>{}; }},
       {"always the same", [](std::uint32_t) { return std::optional{2U}; }},
       {"one after the other", [](std::uint32_t step) { return std::optional{step % 3}; }}}};
  for (const std::uint32_t staleness : {0U, 1U, 2U}) {
    auto config = stale_config(staleness, {3, 1, 1}, true);
    config.train.validation_interval = 8;
    const auto expected = train(config);
    for (const auto& [who, late] : cases) {
      SCOPED_TRACE(testing::Message() << "staleness=" << staleness << " late: " << who);
      Race race{.config = config, .late = late};
      EXPECT_TRUE(run(race) == expected);
      EXPECT_FALSE(race.has_waited_in_vain) << "nobody may be so far ahead";
      EXPECT_LE(race.most_ahead, staleness);
      if (late(1)) {
        EXPECT_EQ(race.most_ahead, staleness);
      }
    }
  }
}

TEST(Staleness, ValidationsAreOfWeightsWithEveryUpdate) {
  auto config = stale_config(2, {2, 1, 2}, true);
  config.train.validation_interval = 6;
  auto expected = delayed(config);
  const auto trainer = Trainer::make(make_plan(config).value(), source_of(config)).value();
  for (std::uint32_t step = 1; step <= config.train.steps; ++step) {
    const auto report = trainer->train_step();
    ASSERT_TRUE(report) << report.error().context;
    EXPECT_EQ(report->loss, expected.losses()[step - 1]) << "step " << step;
    // Two steps are ahead, but not of a validation, and not of the last step.
    const auto barrier = std::min((step + 5) / 6 * 6, config.train.steps);
    const auto updates = std::min(step + 2, barrier);
    if (step % 3 != 0) continue;
    const auto evaluated = trainer->evaluate_step(step);
    ASSERT_TRUE(evaluated) << evaluated.error().context;
    EXPECT_EQ(evaluated->kind, StepKind::evaluation);
    EXPECT_EQ(evaluated->loss, expected.evaluate(updates, step)) << "step " << step;
    EXPECT_TRUE(weights_of(*trainer) == expected.version(updates)) << "step " << step;
  }
}

TEST(Staleness, TellsStepsThatAreOverBeforeTheFailureOfALaterOne) {
  const auto config = stale_config(2, {2, 1, 1}, false);
  const auto trainer =
      Trainer::make(make_plan(config).value(), [source = source_of(config)](
                                                   StepKind kind, std::uint32_t step,
                                                   std::uint32_t replica, stages::Batch& batch) {
        if (step == 3) throw std::runtime_error{"the tape broke"};
        source(kind, step, replica, batch);
      }).value();
  for (std::uint32_t step = 1; step <= 2; ++step) EXPECT_TRUE(trainer->train_step());
  for (int again = 0; again < 2; ++again) {
    const auto report = trainer->train_step();
    ASSERT_FALSE(report);
    EXPECT_EQ(report.error().code, Errc::invalid_batch);
    EXPECT_EQ(report.error().context, "step 3: the tape broke");
  }
}

TEST(Staleness, TimesOfStepsThatOverlapAddUpToTheTimeOfAll) {
  const auto config = stale_config(2, {2, 1, 1}, false);
  const auto trainer = Trainer::make(make_plan(config).value(), source_of(config)).value();
  std::int64_t end_ns = 0;
  for (std::uint32_t step = 1; step <= config.train.steps; ++step) {
    const auto report = trainer->train_step().value();
    EXPECT_LE(report.begin_ns, report.end_ns);
    EXPECT_GE(report.begin_ns, end_ns);
    if (step > 1 && step + 2 <= config.train.steps) {
      EXPECT_EQ(report.begin_ns, end_ns) << "step " << step << " had begun before";
    }
    end_ns = report.end_ns;
  }
}

}  // namespace
}  // namespace troupe::actors
