// Real actors, real messages, a seeded network and streams that run when they are told to, all in
// one thread under CAF's test scheduler. Goal: for every order in which messages, transfers and
// device work may happen, training and evaluation steps complete, and leave what the serial run
// leaves.

#include "troupe/actors/stage_actor.hpp"

#include <array>
#include <cmath>
#include <deque>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <caf/scheduler/test_coordinator.hpp>
#include <gtest/gtest.h>

#include "troupe/actors/director.hpp"
#include "troupe/actors/loader.hpp"
#include "troupe/engine/random.hpp"
#include "troupe/engine/schedule_generators.hpp"
#include "troupe/stages/counting_stage.hpp"
#include "troupe/transport/in_process.hpp"
#include "troupe/transport/seeded_network.hpp"

#include "../engine/v_schedule.hpp"
#include "../stages/inline_device.hpp"

namespace troupe::actors {
namespace {

/// A stream whose work runs piece by piece, when the test says so.
class SteppedStream final : public stages::Stream {
public:
  void enqueue(Work work) override { queue_.push_back(std::move(work)); }
  void record(stages::Event&) override {}
  void wait(stages::Event&) override {}
  void synchronize() override {
    while (step()) {
    }
  }
  bool step() {
    if (queue_.empty()) return false;
    auto work = std::move(queue_.front());
    queue_.pop_front();
    work();
    return true;
  }

private:
  std::deque<Work> queue_;
};

/// A device of such streams, which it shows to the test.
class SteppedDevice final : public stages::InlineDevice {
public:
  explicit SteppedDevice(std::vector<SteppedStream*>& streams) : streams_{streams} {}
  std::unique_ptr<stages::Stream> make_stream(std::string_view, std::uint32_t) override {
    auto stream = std::make_unique<SteppedStream>();
    streams_.push_back(stream.get());
    return stream;
  }

private:
  std::vector<SteppedStream*>& streams_;
};

Config config_of(const std::string& schedule, std::uint32_t replicas, std::uint32_t ranks,
                 std::uint32_t microbatches, std::uint32_t chunks, bool split, bool tied) {
  Config config;
  config.model = {.layers = 8,
                  .heads = 1,
                  .hidden = 4,
                  .sequence = 2,
                  .vocabulary = 256,
                  .tie_embeddings = tied};
  config.parallel = {.data = replicas, .tensor = 1, .pipeline = ranks};
  config.schedule.name = schedule;
  config.schedule.microbatches = microbatches;
  config.schedule.microbatch_size = 1;
  config.schedule.chunks = chunks;
  config.schedule.split_backward = split;
  return config;
}

/// Between shards the director adds up gradients parameter by parameter.
std::uint32_t reported_by(const Plan& plan, const StagePlan& stage) {
  if (plan.config.parallel.tensor.most() == 1) return 1;
  const auto parameters = parameters_of(plan.config.model, stage.spec);
  return static_cast<std::uint32_t>(std::ranges::count(parameters, true, &ParameterSpec::owned));
}

/// What is left after some steps: everything that could differ.
struct Outcome {
  std::vector<double> losses;
  std::vector<double> norms;
  std::vector<std::vector<float>> values;  ///< By stage.
  friend bool operator==(const Outcome&, const Outcome&) = default;
};

/// A whole grid in one thread; which thing happens next is drawn from a seed.
class Rehearsal {
public:
  Rehearsal(const Config& config, std::uint64_t seed)
      : Rehearsal{make_plan(config).value(), seed} {}
  Rehearsal(const Plan& plan, std::uint64_t seed)
      : plan_{std::make_shared<const Plan>(plan)}, random_{seed}, network_{seed} {
    RankParts parts;
    parts.make_device = [this] { return std::make_unique<SteppedDevice>(streams_); };
    parts.make_stage = [](const Plan& of, const StagePlan& stage, stages::Device& device,
                          stages::Stream& stream, const stages::StagePeers& peers) {
      return stages::make_counting_stage(device, stream,
                                         {.stage = stage.stage,
                                          .stage_count = of.training.stages_per_copy(),
                                          .bounds = stage.bounds,
                                          .microbatch_count = of.training.microbatch_count,
                                          .tie_ends = of.config.model.tie_embeddings,
                                          .holders = peers.holders,
                                          .has_server = of.has_servers(),
                                          .staleness = of.config.train.staleness,
                                          .reported_count = reported_by(of, stage)});
    };
    parts.make_link = [this](transport::HandOver) { return network_.make_link(); };
    ranks_ = LocalRanks::make(plan_, LocalRanks::all_of(plan), std::move(parts)).value();
    const auto done = std::make_shared<StepDone>(
        [this](Expected<StepReport> outcome) { outcomes_.push_back(std::move(outcome)); });
    director_ = system_.spawn(director, plan_, done);
    std::vector<PlacedStage> placed;
    for (auto& rank : ranks_->ranks()) {
      stages_.push_back(system_.spawn(stage_actor, plan_, &rank, director_));
      placed.push_back({rank.rank, stages_.back()});
    }
    const BatchSource source = [](StepKind, std::uint32_t step, std::uint32_t replica,
                                  stages::Batch& batch) {
      for (std::size_t i = 0; i < batch.tokens.size(); ++i) {
        batch.tokens[i] = static_cast<std::int32_t>((50 * replica + 10 * step + i) % 256);
      }
    };
    loader_ = system_.spawn(loader, plan_, source, placed, &ranks_->batches(), director_);
    caf::anon_send(director_, GroupChosen{{loader_}, stages_});
  }

  ~Rehearsal() {
    ranks_->close_lanes();
    ranks_->empty_streams();
    coordinator().run();
    for (const auto& actor : stages_) caf::anon_send_exit(actor, caf::exit_reason::user_shutdown);
    caf::anon_send_exit(director_, caf::exit_reason::user_shutdown);
    caf::anon_send_exit(loader_, caf::exit_reason::user_shutdown);
    coordinator().run();
  }

  Rehearsal(const Rehearsal&) = delete;
  Rehearsal& operator=(const Rehearsal&) = delete;

  /// Runs one step to its end; returns nothing if something got stuck. The director hears `lies`
  /// as soon as the step has begun, whatever it takes from this process.
  template <class... Lies>
  std::optional<Expected<StepReport>> run(StepWanted what, Lies... lies) {
    outcomes_.clear();
    caf::anon_send(director_, StepDue{what});
    (caf::anon_send(caf::actor_cast<caf::actor>(director_), lies), ...);
    settle();
    if (outcomes_.size() != 1) return std::nullopt;
    return std::move(outcomes_.front());
  }

  Outcome train(std::uint32_t step_count) {
    Outcome outcome;
    for (std::uint32_t step = 1; step <= step_count; ++step) {
      const auto report = run({step, StepKind::training});
      if (!report || !report->has_value()) {
        ADD_FAILURE() << "step " << step << " did not end: "
                      << (report ? report->error().context : "nothing is left to happen");
        return outcome;
      }
      outcome.losses.push_back((*report)->loss);
      outcome.norms.push_back((*report)->gradient_norm);
      const auto ranks = plan_->config.parallel.rank_count();
      EXPECT_EQ((*report)->ranks.size(), ranks);
      EXPECT_EQ((*report)->servers.size(), plan_->rank_count() - ranks);
    }
    for (const auto& stage : plan_->stages) {
      const auto values = held(0, stage.stage).stage->parameters()[0].values;
      outcome.values.emplace_back(values.begin(), values.end());
    }
    return outcome;
  }

  /// Lets everything happen that can.
  void settle() {
    while (happen()) {
    }
  }

  const StageHandle& first_stage() const { return stages_.front(); }
  const LoaderHandle& first_loader() const { return loader_; }
  void close_a_link() { ranks_->ranks()[0].stages[0].next.front().link->close(); }
  const Plan& plan() const { return *plan_; }
  HeldStage& held(std::uint32_t replica, StageIndex stage, std::uint32_t shard = 0) {
    return *ranks_->find({replica, shard, stage});
  }

private:
  struct SystemConfig : caf::actor_system_config {
    SystemConfig() { set("scheduler.policy", caf::atom("testing")); }
  };

  caf::scheduler::test_coordinator& coordinator() {
    return dynamic_cast<caf::scheduler::test_coordinator&>(system_.scheduler());
  }

  /// Lets one thing happen: a message, a transfer, or a piece of device work. Tries the kinds in a
  /// drawn order.
  bool happen() {
    const auto first = random_.below(streams_.size() + 2);
    for (std::size_t i = 0; i < streams_.size() + 2; ++i) {
      const auto choice = (first + i) % (streams_.size() + 2);
      if (choice == streams_.size()) {
        if (coordinator().try_run_once()) return true;
      } else if (choice == streams_.size() + 1) {
        if (network_.deliver_one()) return true;
      } else if (streams_[choice]->step()) {
        return true;
      }
    }
    return false;
  }

  std::shared_ptr<const Plan> plan_;
  Random random_;
  transport::SeededNetwork network_;
  std::vector<SteppedStream*> streams_;
  std::unique_ptr<LocalRanks> ranks_;
  std::vector<Expected<StepReport>> outcomes_;
  SystemConfig system_config_;
  caf::actor_system system_{system_config_};
  std::vector<StageHandle> stages_;
  DirectorHandle director_;
  LoaderHandle loader_;
};

TEST(StageActor, EveryScheduleLeavesWhatTheSerialOrderLeavesUnderEveryInterleaving) {
  for (const bool tied : {false, true}) {
    // Four virtual stages in every case: what a stage computes does not depend on where it runs.
    const auto expected = Rehearsal{config_of("gpipe", 1, 4, 4, 1, false, tied), 0}.train(3);
    ASSERT_EQ(expected.losses.size(), 3U);
    const std::vector<Config> configs{config_of("1f1b", 1, 4, 4, 1, false, tied),
                                      config_of("1f1b", 1, 4, 4, 1, true, tied),
                                      config_of("gpipe", 1, 4, 4, 1, true, tied),
                                      config_of("interleaved-1f1b", 1, 2, 4, 2, false, tied),
                                      config_of("interleaved-1f1b", 1, 2, 4, 2, true, tied),
                                      config_of("interleaved-1f1b", 1, 1, 4, 4, false, tied)};
    for (const auto& config : configs) {
      for (std::uint64_t seed = 1; seed <= 25; ++seed) {
        Rehearsal rehearsal{config, seed};
        SCOPED_TRACE(testing::Message()
                     << rehearsal.plan().training.name << " ranks=" << config.parallel.pipeline
                     << " tied=" << tied << " split=" << config.schedule.split_backward
                     << " seed=" << seed);
        EXPECT_EQ(rehearsal.train(3), expected);
        if (testing::Test::HasFailure()) return;
      }
    }
  }
}

TEST(StageActor, AVShapedPipelineLeavesWhatTheSerialOrderLeavesUnderEveryInterleaving) {
  for (const std::uint32_t ranks : {2U, 3U}) {
    for (const bool tied : {false, true}) {  // Tied ends meet on rank 0.
      const auto expected =
          Rehearsal{config_of("gpipe", 1, 2 * ranks, 6, 1, false, tied), 0}.train(3);
      const auto whole = make_v_schedule(ranks, 6);
      for (const auto& schedule : {whole, split_backward(whole)}) {
        const auto plan = make_plan(config_of("1f1b", 1, ranks, 6, 1, false, tied), schedule);
        ASSERT_TRUE(plan.has_value()) << plan.error().context;
        for (std::uint64_t seed = 1; seed <= 25; ++seed) {
          SCOPED_TRACE(testing::Message() << schedule.name << " ranks=" << ranks << " tied=" << tied
                                          << " seed=" << seed);
          Rehearsal rehearsal{*plan, seed};
          EXPECT_EQ(rehearsal.train(3), expected);
          const auto evaluated = rehearsal.run({1, StepKind::evaluation});
          ASSERT_TRUE(evaluated && evaluated->has_value());
        }
      }
    }
  }
}

TEST(StageActor, ReplicasEndWithTheSameWeightsUnderEveryInterleaving) {
  const auto config = config_of("1f1b", 3, 2, 4, 1, false, true);
  const auto expected = Rehearsal{config, 0}.train(3);
  for (std::uint64_t seed = 1; seed <= 50; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed=" << seed);
    Rehearsal rehearsal{config, seed};
    EXPECT_EQ(rehearsal.train(3), expected);
    for (std::uint32_t r = 1; r < 3; ++r) {
      for (std::uint32_t v = 0; v < 2; ++v) {
        const auto values = rehearsal.held(r, StageIndex{v}).stage->parameters()[0].values;
        EXPECT_EQ(std::vector<float>(values.begin(), values.end()), expected.values[v]);
      }
    }
  }
}

TEST(ParameterServers, LeaveWhatReplicasAloneLeaveUnderEveryInterleaving) {
  for (const bool tied : {false, true}) {
    auto config = config_of("interleaved-1f1b", 3, 2, 4, 2, false, tied);
    const auto expected = Rehearsal{config, 0}.train(3);
    config.train.synchronization = Synchronization::parameter_server;
    for (std::uint64_t seed = 1; seed <= 50; ++seed) {
      SCOPED_TRACE(testing::Message() << "tied=" << tied << " seed=" << seed);
      Rehearsal rehearsal{config, seed};
      EXPECT_TRUE(*rehearsal.run({1, StepKind::evaluation}));
      EXPECT_EQ(rehearsal.train(3), expected);
      for (std::uint32_t r = 1; r <= 3; ++r) {
        for (std::uint32_t v = 0; v < 4; ++v) {
          const auto values = rehearsal.held(r, StageIndex{v}).stage->parameters()[0].values;
          EXPECT_EQ(std::vector<float>(values.begin(), values.end()), expected.values[v]);
        }
      }
      if (testing::Test::HasFailure()) return;
    }
  }
}

/// What counting stages compute does not depend on their weights: steps that overlap leave the
/// same, if none loses its gradients to another.
TEST(ParameterServers, LetStepsOverlapUnderEveryInterleaving) {
  auto config = config_of("interleaved-1f1b", 3, 2, 4, 2, false, true);
  config.train.steps = 7;
  const auto expected = Rehearsal{config, 0}.train(7);
  config.train.synchronization = Synchronization::parameter_server;
  for (const std::uint32_t staleness : {1U, 2U, 6U}) {
    config.train.staleness = staleness;
    for (const std::uint32_t interval : {0U, 3U}) {
      config.train.validation_interval = interval;
      for (std::uint64_t seed = 1; seed <= 25; ++seed) {
        SCOPED_TRACE(testing::Message()
                     << "staleness=" << staleness << " interval=" << interval << " seed=" << seed);
        Rehearsal rehearsal{config, seed};
        EXPECT_TRUE(*rehearsal.run({1, StepKind::evaluation}));
        EXPECT_EQ(rehearsal.train(7), expected);
        if (testing::Test::HasFailure()) return;
      }
    }
  }
}

/// These shards never wait for each other within a pass: only their lanes, and under a policy the
/// choices of the first of them, hold them together.
TEST(Shards, OfUnequalCountsLeaveWhatTheSerialOrderLeavesUnderEveryInterleaving) {
  const auto config_with = [](const ShardCounts& tensor, std::uint32_t chunks, bool split) {
    auto config =
        config_of(chunks > 1 ? "interleaved-1f1b" : "1f1b", 1,
                  static_cast<std::uint32_t>(tensor.by_rank.size()), 4, chunks, split, false);
    // A counting stage's buffer, [2, 8] floats, is what an edge of this model carries.
    config.model.heads = 4;
    config.model.hidden = 8;
    config.parallel.tensor = tensor;
    return config;
  };
  const auto expected = Rehearsal{config_with({1, 1, 1, 1}, 1, false), 0}.train(3);
  ASSERT_EQ(expected.losses.size(), 3U);
  for (const auto& config :
       {config_with({2, 1, 4, 2}, 1, false), config_with({1, 4, 2, 1}, 1, true),
        config_with({2, 1}, 2, false), config_with({1, 4}, 2, true)}) {
    for (const auto policy : {Policy::in_order, Policy::backward_first, Policy::forward_first}) {
      for (std::uint64_t seed = 1; seed <= 25; ++seed) {
        auto chosen = config;
        chosen.schedule.policy = policy;
        SCOPED_TRACE(testing::Message()
                     << chosen.schedule.name << " tensor=" << to_string(config.parallel.tensor)
                     << " " << policy_names[static_cast<std::size_t>(policy)] << " seed=" << seed);
        Rehearsal rehearsal{chosen, seed};
        EXPECT_TRUE(*rehearsal.run({1, StepKind::evaluation}));
        const auto outcome = rehearsal.train(3);
        EXPECT_EQ(outcome.losses, expected.losses);
        for (const auto& stage : rehearsal.plan().stages) {
          for (std::uint32_t s = 0; s < rehearsal.plan().shard_count(stage.stage); ++s) {
            const auto values = rehearsal.held(0, stage.stage, s).stage->parameters()[0].values;
            EXPECT_TRUE(std::ranges::equal(values, expected.values[stage.stage.value()]))
                << "shard " << s << " of stage " << stage.stage.value();
          }
        }
        if (testing::Test::HasFailure()) return;
      }
    }
  }
}

/// To the byte, and not a byte more.
TEST(Shards, OfUnequalCountsAllocateWhatThePlanAnnounced) {
  for (const ShardCounts& tensor : {ShardCounts{2, 1}, ShardCounts{1, 4}, ShardCounts{4, 2}}) {
    for (const bool divides_rows : {false, true}) {
      SCOPED_TRACE(testing::Message() << to_string(tensor) << " rows " << divides_rows);
      auto config = config_of("interleaved-1f1b", 1, 2, 4, 2, false, true);
      config.model.heads = 4;
      config.model.hidden = 64;
      config.model.sequence = 4;
      config.parallel.tensor = tensor;
      config.train.sequence_parallel = divides_rows;
      const auto plan = std::make_shared<const Plan>(make_plan(config).value());
      std::uint64_t announced = 0;
      for (std::uint32_t p = 0; p < 2; ++p) {
        announced += tensor.of(RankIndex{p}) * plan->bytes_of(RankIndex{p});
      }
      const auto build = [&](std::uint64_t bytes) {
        RankParts parts;
        parts.make_device = [bytes] { return std::make_unique<stages::InlineDevice>(bytes); };
        return LocalRanks::make(plan, LocalRanks::all_of(*plan), std::move(parts)).has_value();
      };
      EXPECT_TRUE(build(announced));
      EXPECT_FALSE(build(announced - 1));
    }
  }
}

/// Gradients of the counting stages are whole numbers below 1024, and many overflow at first.
TEST(StageActor, ReplicasSkipTheSameStepsUnderEveryInterleaving) {
  auto config = config_of("1f1b", 3, 2, 4, 1, false, true);
  config.train.precision = Precision::fp16;
  config.train.loss_scale = 0x1p10;
  constexpr std::uint32_t step_count = 8;
  constexpr std::uint64_t seed_count = 26;
  const auto values_of = [](Rehearsal& rehearsal, std::uint32_t replica, std::uint32_t stage) {
    const auto values = rehearsal.held(replica, StageIndex{stage}).stage->parameters()[0].values;
    return std::vector<float>(values.begin(), values.end());
  };
  std::vector<bool> expected;
  for (std::uint64_t seed = 0; seed < 2 * seed_count; ++seed) {
    config.train.synchronization =
        seed < seed_count ? Synchronization::all_reduce : Synchronization::parameter_server;
    SCOPED_TRACE(testing::Message() << "seed=" << seed);
    Rehearsal rehearsal{config, seed};
    std::vector<bool> skipped;
    double scale = config.train.loss_scale;
    for (std::uint32_t step = 1; step <= step_count; ++step) {
      const std::array before{values_of(rehearsal, 0, 0), values_of(rehearsal, 0, 1)};
      const auto report = rehearsal.run({step, StepKind::training});
      ASSERT_TRUE(report && report->has_value());
      EXPECT_EQ((*report)->loss_scale, scale);
      skipped.push_back((*report)->is_skipped);
      for (std::uint32_t v = 0; v < 2; ++v) {
        const auto values = values_of(rehearsal, 0, v);
        EXPECT_EQ(values == before[v], skipped.back());
        for (std::uint32_t r = 1; r < 3; ++r) EXPECT_EQ(values_of(rehearsal, r, v), values);
      }
      if (skipped.back()) scale /= 2.0;
      const auto evaluated = rehearsal.run({step, StepKind::evaluation});
      ASSERT_TRUE(evaluated && evaluated->has_value());
      EXPECT_EQ((*evaluated)->loss_scale, 1.0);
    }
    if (seed == 0) expected = skipped;
    EXPECT_EQ(skipped, expected);
    EXPECT_TRUE(skipped.front());
    EXPECT_FALSE(skipped.back());
  }
}

/// Their counting stages' gradients add up to more than fp16 holds, which only fp16 may mind.
TEST(StageActor, GradientsOfManyReplicasAreFiniteInSinglePrecision) {
  Rehearsal rehearsal{config_of("1f1b", 200, 1, 1, 1, false, false), 0};
  const auto report = rehearsal.run({1, StepKind::training});
  ASSERT_TRUE(report && report->has_value());
  EXPECT_GT((*report)->gradient_norm, 65'504.0);
  EXPECT_TRUE(std::isfinite((*report)->gradient_norm));
  EXPECT_FALSE((*report)->is_skipped);
}

TEST(StageActor, EvaluationBetweenTrainingStepsChangesNothing) {
  const auto config = config_of("interleaved-1f1b", 2, 2, 4, 2, false, true);
  const auto expected = Rehearsal{config, 0}.train(2);
  for (std::uint64_t seed = 1; seed <= 25; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed=" << seed);
    Rehearsal rehearsal{config, seed};
    Outcome outcome;
    for (std::uint32_t step = 1; step <= 2; ++step) {
      const auto evaluated = rehearsal.run({1, StepKind::evaluation});
      ASSERT_TRUE(evaluated && evaluated->has_value());
      EXPECT_GT((*evaluated)->loss, 0.0);
      const auto trained = rehearsal.run({step, StepKind::training});
      ASSERT_TRUE(trained && trained->has_value());
      outcome.losses.push_back((*trained)->loss);
    }
    EXPECT_EQ(outcome.losses, expected.losses);
  }
}

TEST(StageActor, ReportsEveryPassAndEveryNanosecondUnderEveryInterleaving) {
  const auto config = config_of("1f1b", 2, 3, 6, 1, false, false);
  for (std::uint64_t seed = 1; seed <= 10; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed=" << seed);
    Rehearsal rehearsal{config, seed};
    std::vector<std::int64_t> end_ns(config.parallel.rank_count(), 0);
    for (std::uint32_t step = 1; step <= 3; ++step) {
      const auto report = rehearsal.run({step, StepKind::training});
      ASSERT_TRUE(report && report->has_value());
      for (std::size_t r = 0; r < end_ns.size(); ++r) {
        const auto& [coordinate, account, trace] = (*report)->ranks[r];
        const auto pass_count =
            std::ranges::count(trace, TraceEntry::Kind::pass, &TraceEntry::kind);
        EXPECT_EQ(pass_count, 2 * 6);
        const auto buckets =
            rehearsal.held(0, StageIndex{coordinate.pipeline.value()}).stage->bucket_count();
        EXPECT_EQ(trace.size(), 2U * 6U + buckets + 1U) << "passes, reductions, the optimizer";
        EXPECT_EQ(account.total_ns(), account.end_ns - account.begin_ns);
        EXPECT_TRUE(step == 1 || account.begin_ns == end_ns[r]) << "time between two steps is lost";
        end_ns[r] = account.end_ns;
      }
    }
  }
}

TEST(StageActor, ALaneThatClosesEndsTheStepWithTheNameOfTheTransfer) {
  for (std::uint64_t seed = 0; seed < 25; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed=" << seed);
    Rehearsal rehearsal{config_of("1f1b", 1, 3, 4, 1, false, true), seed};
    ASSERT_TRUE(rehearsal.run({1, StepKind::training})->has_value());
    rehearsal.close_a_link();
    const auto report = rehearsal.run({2, StepKind::training});
    ASSERT_TRUE(report.has_value()) << "the step must end";
    ASSERT_FALSE(report->has_value());
    EXPECT_EQ(report->error().code, Errc::cancelled);
    EXPECT_NE(report->error().context.find("ing the "), std::string::npos)
        << report->error().context;
  }
}

TEST(Director, StopsWhenALossIsNotANumberOrGradientsAreNoneOfTheLossScale) {
  constexpr auto infinity = std::numeric_limits<double>::infinity();
  struct Case {
    Precision precision;
    double loss_scale;
    double loss;
    double square;
  };
  for (const auto& [precision, loss_scale, loss, square] :
       {Case{Precision::fp32, 65536.0, std::nan(""), 1.0},
        Case{Precision::fp32, 65536.0, 1.0, infinity},
        Case{Precision::bf16, 65536.0, 1.0, std::nan("")},
        Case{Precision::fp16, 65536.0, infinity, 1.0}, Case{Precision::fp16, 1.0, 1.0, infinity}}) {
    auto config = config_of("1f1b", 1, 1, 1, 1, false, false);
    config.train.precision = precision;
    config.train.loss_scale = loss_scale;
    const auto plan = std::make_shared<const Plan>(make_plan(config).value());
    std::vector<Expected<StepReport>> outcomes;
    DirectorState state;
    state.start(nullptr, plan,
                [&](Expected<StepReport> outcome) { outcomes.push_back(std::move(outcome)); });
    state.on(GroupChosen{{}, {StageHandle{}}});
    state.on(StepDue{{7, StepKind::training}});
    StepReported reported{.rank = 0, .losses = {loss}, .squares = {{square}}, .target_count = 1};
    state.on(reported);
    ASSERT_EQ(outcomes.size(), 1U);
    ASSERT_FALSE(outcomes[0].has_value());
    EXPECT_EQ(outcomes[0].error().code, Errc::diverged);
    EXPECT_EQ(outcomes[0].error().context,
              "step 7: the loss or the gradient norm is not a finite number; lower "
              "train.learning_rate or set train.clip_norm");
  }
}

TEST(Director, TellsTheFirstFailureAlone) {
  const auto plan =
      std::make_shared<const Plan>(make_plan(config_of("1f1b", 1, 2, 2, 1, false, false)).value());
  std::vector<Expected<StepReport>> outcomes;
  DirectorState state;
  state.start(nullptr, plan,
              [&](Expected<StepReport> outcome) { outcomes.push_back(std::move(outcome)); });
  state.on(GroupChosen{{}, {StageHandle{}, StageHandle{}}});
  state.on(StepDue{{1, StepKind::training}});
  state.on(RankFailed{1, Errc::device_failure, "the pass 1F0"});
  state.on(RankFailed{0, Errc::peer_unreachable, "the pass 0B0"});
  ASSERT_EQ(outcomes.size(), 1U);
  EXPECT_EQ(outcomes[0].error().context,
            "step 1: pipeline rank 1 of replica 0 failed at the pass 1F0: the device reported a "
            "failure");
}

TEST(Director, TellsTimesOfOtherProcessesByItsOwnClock) {
  const auto plan =
      std::make_shared<const Plan>(make_plan(config_of("1f1b", 1, 2, 1, 1, false, false)).value());
  std::vector<Expected<StepReport>> outcomes;
  DirectorState state;
  state.start(nullptr, plan,
              [&](Expected<StepReport> outcome) { outcomes.push_back(std::move(outcome)); });
  state.on(GroupChosen{{}, {StageHandle{}, StageHandle{}}, {0, 1000}});
  state.on(StepDue{{1, StepKind::evaluation}});
  for (std::uint32_t rank = 0; rank < 2; ++rank) {
    StepReported reported{.rank = rank, .losses = {}, .squares = {{}}};
    if (rank == 1) reported.losses = {1.0};
    state.on(reported);
    const Action pass{StageIndex{rank}, Pass::forward, MicrobatchIndex{0}};
    RankFinished finished{
        .rank = rank, .account = {}, .trace = {{.action = pass, .begin_ns = 1500, .end_ns = 1700}}};
    finished.account.begin_ns = 1400;
    finished.account.end_ns = 1800;
    state.on(finished);
  }
  ASSERT_EQ(outcomes.size(), 1U);
  const auto& ranks = outcomes[0]->ranks;
  EXPECT_EQ(ranks[0].trace[0].begin_ns, 1500);
  EXPECT_EQ(ranks[1].trace[0].begin_ns, 500) << "its clock is 1000 ns ahead";
  EXPECT_EQ(ranks[1].trace[0].end_ns, 700);
  EXPECT_EQ(ranks[1].account.begin_ns, 400);
  EXPECT_EQ(ranks[1].account.end_ns, 800);
}

TEST(Director, ALostNodeEndsTheStepAndEveryLaterOne) {
  const auto plan =
      std::make_shared<const Plan>(make_plan(config_of("1f1b", 1, 2, 1, 1, false, false)).value());
  std::vector<Expected<StepReport>> outcomes;
  DirectorState state;
  state.start(nullptr, plan,
              [&](Expected<StepReport> outcome) { outcomes.push_back(std::move(outcome)); });
  state.on(GroupChosen{{}, {StageHandle{}, StageHandle{}}});
  state.on(StepDue{{3, StepKind::training}});
  state.on(NodeLost{"node 1 is lost: it was killed"});
  state.on(StepDue{{4, StepKind::training}});
  ASSERT_EQ(outcomes.size(), 2U);
  for (const auto& outcome : outcomes) {
    EXPECT_EQ(outcome.error().code, Errc::peer_unreachable);
    EXPECT_EQ(outcome.error().context, "node 1 is lost: it was killed, in step 3");
  }
}

// -- what a rank of another process may say -------------------------------------------------------

template <class... Lies>
void expect_refused(const std::string& what, Lies... lies) {
  Rehearsal rehearsal{config_of("1f1b", 1, 2, 2, 1, false, false), 1};
  const auto outcome = rehearsal.run({1, StepKind::training}, lies...);
  ASSERT_TRUE(outcome && !outcome->has_value()) << what;
  EXPECT_EQ(outcome->error().code, Errc::internal);
  EXPECT_EQ(outcome->error().context, "step 1: a rank has reported " + what + ", which is a bug");
}

TEST(Director, BeginsNoStepForOthersThanItsTrainer) {
  Rehearsal rehearsal{config_of("1f1b", 1, 2, 2, 1, false, false), 1};
  const auto outcome = rehearsal.run({1, StepKind::training}, StepWanted{2, StepKind::training});
  ASSERT_TRUE(outcome && outcome->has_value());
  EXPECT_EQ((*outcome)->step, 1U);
}

TEST(StageActor, EndsTheRunWhenToldToBeginOrToUpdateOutOfTurn) {
  constexpr StepWanted first{1, StepKind::training};
  const auto refusal_of = [&](auto mislead) {
    Rehearsal rehearsal{config_of("1f1b", 1, 2, 2, 1, false, false), 1};
    mislead(rehearsal);
    rehearsal.settle();
    const auto outcome = rehearsal.run({2, StepKind::training});
    return !outcome ? "stuck" : *outcome ? "none" : outcome->error().context;
  };
  const std::string failed = "pipeline rank 0 of replica 0 failed at ";
  const std::string reason = ": a message was not the one that was due, which is a bug";
  EXPECT_EQ(refusal_of([](Rehearsal& rehearsal) {
              caf::anon_send(rehearsal.first_stage(), UpdateStarted{});
            }),
            failed + "updating the weights" + reason);
  EXPECT_EQ(refusal_of([&](Rehearsal& rehearsal) {
              EXPECT_TRUE(rehearsal.run(first)->has_value());
              caf::anon_send(rehearsal.first_stage(), UpdateStarted{});
            }),
            failed + "updating the weights" + reason);
  EXPECT_EQ(refusal_of([](Rehearsal& rehearsal) {
              caf::anon_send(rehearsal.first_stage(), UpdateSkipped{});
            }),
            failed + "updating the weights" + reason);
  EXPECT_EQ(
      refusal_of([&](Rehearsal& rehearsal) { caf::anon_send(rehearsal.first_loader(), first); }),
      "step 2: " + failed + "the beginning of step 2" + reason);
}

TEST(Director, EndsTheRunWhenARankReportsWhatItCannotHaveDone) {
  const TraceEntry good{TraceEntry::Kind::pass, {StageIndex{0}, Pass::forward, {}}, 10, 20};
  const auto with = [&](auto change) {
    auto entry = good;
    change(entry);
    return RankFinished{0, {}, {good, entry}};
  };
  const StepReported report{0, {}, {{1.0}}};
  expect_refused("rank 2 of 2", StepReported{2, {}, {{1.0}}});
  expect_refused("rank 2 of 2", RankFinished{2, {}, {}});
  expect_refused("rank 9 of 2", RankFailed{9, Errc::device_failure, "the pass 0F0"});
  expect_refused("gradients of 0 stages from a rank that holds 1", StepReported{0, {}, {}});
  expect_refused("its gradients twice", report, report);
  expect_refused("its end before its turn", RankFinished{0, {}, {good}});
  expect_refused("error code 0", RankFailed{0, Errc::none, "the pass 0F0"});
  expect_refused("error code 77", RankFailed{0, Errc{77}, "the pass 0F0"});
  const std::string pass = "a pass that is not of the schedule";
  expect_refused(pass, with([](auto& entry) { entry.action.stage = StageIndex{2}; }));
  expect_refused(pass, with([](auto& entry) { entry.action.stage = StageIndex{1}; }));
  expect_refused(pass, with([](auto& entry) { entry.action.pass = Pass{4}; }));
  expect_refused(pass, with([](auto& entry) { entry.action.microbatch = MicrobatchIndex{2}; }));
  expect_refused(pass, with([](auto& entry) { entry.kind = TraceEntry::Kind{3}; }));
  const std::string time = "a time that no clock shows";
  expect_refused(time, with([](auto& entry) { entry.end_ns = 9; }));
  expect_refused(time, with([](auto& entry) { entry.begin_ns = -1; }));
  expect_refused(time, with([](auto& entry) { entry.end_ns = INT64_MAX; }));
  expect_refused(time, with([](auto& entry) { entry.end_ns = 100'000'000'000'000; }));
  expect_refused(time, RankFinished{0, {.ns = {}, .begin_ns = INT64_MIN, .end_ns = 0}, {good}});
  expect_refused(time, RankFinished{0, {.ns = {INT64_MAX}, .begin_ns = 0, .end_ns = 0}, {good}});
}

}  // namespace
}  // namespace troupe::actors
