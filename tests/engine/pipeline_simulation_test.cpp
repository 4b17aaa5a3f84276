// Drives a whole pipeline of stage machines in one thread, under every interleaving a seed can
// draw. Goal: no order of completions and arrivals makes a rank deviate from its program, exceed
// its buffers, read what has not arrived, overwrite what has not left, or get stuck. A failure
// prints the seed that reproduces it.

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>

#include "troupe/engine/plan.hpp"
#include "troupe/engine/random.hpp"
#include "troupe/engine/schedule_generators.hpp"
#include "troupe/engine/schedule_text.hpp"
#include "troupe/engine/schedule_validation.hpp"
#include "troupe/engine/stage_machine.hpp"

#include "random_schedule.hpp"
#include "schedule_scope.hpp"
#include "v_schedule.hpp"

namespace troupe {
namespace {

struct World {
  Schedule training;
  StepKind kind = StepKind::training;  ///< Which step to run.
  bool is_tied = false;
  SumRole role = SumRole::alone;
  std::uint32_t enqueued_max = 2;
  Policy policy = Policy::in_order;
  bool offloads = false;
  /// By rank: what the leader of the shards has chosen, for a pipeline of those who follow.
  std::vector<std::vector<Action>> choices{};
};

class SimulatedPipeline {
public:
  static constexpr std::uint32_t plain_bucket_count = 2;

  SimulatedPipeline(const World& world, std::uint64_t seed)
      : random_{seed}, policy_{world.policy}, role_{world.role}, choices_{world.choices} {
    const auto& training = world.training;
    const auto evaluation = make_forward_only(training);
    schedule_ = world.kind == StepKind::training ? training : evaluation;
    done_.resize(schedule_.rank_count());
    fetches_.resize(schedule_.rank_count());
    for (std::uint32_t r = 0; r < schedule_.rank_count(); ++r) {
      std::vector<MachineStage> stages;
      for (const auto stage : schedule_.stages_of(RankIndex{r})) {
        const bool is_end = is_first(stage) || is_last(stage);
        const bool is_tied = world.is_tied && is_end && schedule_.stages_per_copy() > 1;
        const bool is_server = role_ == SumRole::server;
        bounds_[stage] =
            is_server ? StageBounds{.slots = 0} : bounds_of(training, evaluation, stage);
        bounds_[stage].offloads = world.offloads;
        bucket_counts_[stage] = plain_bucket_count + (is_tied ? 1 : 0);
        stages.push_back({bounds_[stage], bucket_counts_[stage], is_tied && !is_server});
      }
      machines_.emplace_back(schedule_, RankIndex{r}, stages, world.role, world.enqueued_max,
                             world.policy, choices_.empty() ? Chooser::self : Chooser::leader);
      enqueued_.emplace_back();
    }
  }

  void run_step() {
    for (std::uint32_t r = 0; r < schedule_.rank_count(); ++r) {
      done_[r].clear();
      fetches_[r].clear();
      in_transit_.push_back({r, Started{}});
    }
    reported_count_ = finished_count_ = updated_count_ = exchanged_count_ = 0;
    is_refused_ = false;
    while (!in_transit_.empty() && !testing::Test::HasFailure()) {
      const auto chosen = random_.below(in_transit_.size());
      std::swap(in_transit_[chosen], in_transit_.back());
      const auto delivery = in_transit_.back();
      in_transit_.pop_back();
      deliver(delivery.rank, delivery.event);
    }
  }

  void expect_complete() const {
    EXPECT_TRUE(sent_.empty());
    EXPECT_TRUE(expected_.empty());
    EXPECT_EQ(reported_count_, schedule_.rank_count());
    EXPECT_EQ(finished_count_, schedule_.rank_count());
    const bool is_client = role_ == SumRole::client;
    const bool is_updated = trains() && !is_client && !is_refused_;
    EXPECT_EQ(updated_count_, is_updated ? schedule_.stage_count() : 0);
    const bool is_exchanged = trains() && (is_client || (role_ == SumRole::server && is_refused_));
    EXPECT_EQ(exchanged_count_, is_exchanged ? schedule_.stage_count() : 0);
    for (std::uint32_t r = 0; r < schedule_.rank_count(); ++r) {
      EXPECT_TRUE(machines_[r].step_finished()) << "rank " << r;
      EXPECT_EQ(machines_[r].waits_for(), WaitCause::next_step);
      if (role_ == SumRole::server) {
        EXPECT_TRUE(done_[r].empty());
      } else if (policy_ == Policy::in_order) {
        EXPECT_EQ(done_[r], schedule_.ranks[r]);
      } else {
        expect_same_passes(done_[r], schedule_.ranks[r]);
      }
    }
    for (const auto& [stage, counts] : in_use_) {
      for (const auto count : counts) EXPECT_EQ(count, 0) << "stage " << stage.value();
    }
  }

  /// By rank: the passes of the last step, in the order in which they ran.
  const std::vector<std::vector<Action>>& done() const { return done_; }

  /// By rank: the passes of the program, by their places, whose slots were asked for.
  const std::vector<std::vector<std::size_t>>& fetches() const { return fetches_; }

  /// By stage: its buckets, in the order in which they were to be summed up.
  const std::map<StageIndex, std::vector<std::uint32_t>>& reductions() const { return reductions_; }

private:
  enum Kind { activation_in, activation_out, gradient_in, gradient_out, slot };
  enum class Port { activation, gradient, tied };
  struct Delivery {
    std::uint32_t rank;
    StageEvent event;
  };
  /// Port, receiving stage, microbatch: what a tag encodes on a real link.
  using Parcel = std::tuple<Port, StageIndex, MicrobatchIndex>;

  std::uint32_t rank_of(StageIndex stage) const {
    return schedule_.rank_of_stage[stage.value()].value();
  }
  bool is_first(StageIndex stage) const { return schedule_.is_first(stage); }
  bool is_last(StageIndex stage) const { return schedule_.is_last(stage); }
  std::uint32_t microbatches_of_copy() const {
    return schedule_.microbatch_count / schedule_.copy_count;
  }
  bool trains() const { return schedule_.kind == StepKind::training; }

  void use(StageIndex stage, Kind kind, int change, std::uint32_t limit) {
    auto& count = in_use_[stage][kind];
    count += change;
    ASSERT_GE(count, 0) << "stage " << stage.value() << " frees buffer kind " << kind << " twice";
    ASSERT_LE(count, static_cast<int>(limit)) << "stage " << stage.value() << " kind " << kind;
  }

  void deliver(std::uint32_t r, const StageEvent& event) {
    if (const auto* e = std::get_if<PassFinished>(&event)) finish(r, e->action);
    if (const auto* e = std::get_if<ActivationSent>(&event)) {
      use(e->stage, activation_out, -1, bounds_.at(e->stage).activations_out);
    }
    if (const auto* e = std::get_if<GradientSent>(&event)) {
      use(e->stage, gradient_out, -1, bounds_.at(e->stage).gradients_out);
    }
    StageMachine::Commands commands;
    machines_[r].on(event, commands);
    for (const auto& command : commands) {
      std::visit([this, r](const auto& c) { carry_out(r, c); }, command);
    }
  }

  /// The device finishes passes in the order they were enqueued; a last weight pass fills buckets
  /// before it is over.
  void finish(std::uint32_t r, const Action& action) {
    done_[r].push_back(action);
    const auto& bounds = bounds_.at(action.stage);
    const bool is_last_use = trains() ? accumulates_weights(action.pass) : true;
    if (is_last_use) {
      if (!is_first(action.stage)) use(action.stage, activation_in, -1, bounds.activations_in);
      if (trains() && !is_last(action.stage))
        use(action.stage, gradient_in, -1, bounds.gradients_in);
    }
    enqueued_[r].erase(enqueued_[r].begin());
    if (!enqueued_[r].empty()) in_transit_.push_back({r, PassFinished{enqueued_[r].front()}});
  }

  void carry_out(std::uint32_t r, const RunPass& c) {
    const auto& action = c.action;
    const auto& bounds = bounds_.at(action.stage);
    if (action.pass == Pass::forward) {
      if (!is_first(action.stage)) {
        EXPECT_TRUE(arrived_.erase({Port::activation, action.stage, action.microbatch}))
            << to_string(action) << " runs before its activation is here";
      }
      if (!is_last(action.stage)) use(action.stage, activation_out, +1, bounds.activations_out);
      use(action.stage, slot, +1, bounds.slots);
    } else if (makes_input_gradient(action.pass)) {
      if (!is_last(action.stage)) {
        EXPECT_TRUE(arrived_.erase({Port::gradient, action.stage, action.microbatch}))
            << to_string(action) << " runs before its gradient is here";
      }
      if (!is_first(action.stage)) use(action.stage, gradient_out, +1, bounds.gradients_out);
    }
    const bool is_last_use = trains() ? accumulates_weights(action.pass) : true;
    if (is_last_use) use(action.stage, slot, -1, bounds.slots);  // Free in stream order.
    enqueued_[r].push_back(action);
    if (enqueued_[r].size() == 1) in_transit_.push_back({r, PassFinished{action}});
    if (trains() && accumulates_weights(action.pass)
        && ++weight_passes_[action.stage] == microbatches_of_copy()) {
      weight_passes_[action.stage] = 0;
      fill_buckets(r, action.stage);
    }
  }

  /// Buckets fill in order; the next is reported once the one before was.
  void fill_buckets(std::uint32_t r, StageIndex stage) {
    for (std::uint32_t b = 0; b < bucket_counts_.at(stage); ++b) {
      deliver(r, BucketFilled{stage, b});
    }
  }

  /// A parcel moves once both ends have posted it, as with a rendezvous protocol.
  void post(std::set<Parcel>& mine, std::set<Parcel>& theirs, const Parcel& parcel) {
    if (theirs.erase(parcel) == 0) {
      ASSERT_TRUE(mine.insert(parcel).second) << "posted twice";
      return;
    }
    const auto [port, receiver, m] = parcel;
    const auto to = rank_of(receiver);
    const StageIndex above{receiver.value() + 1};
    switch (port) {
      case Port::activation: {
        const StageIndex below{receiver.value() - 1};
        arrived_.insert(parcel);
        in_transit_.push_back({to, ActivationArrived{receiver, m}});
        in_transit_.push_back({rank_of(below), ActivationSent{below, m}});
        break;
      }
      case Port::gradient:
        arrived_.insert(parcel);
        in_transit_.push_back({to, GradientArrived{receiver, m}});
        in_transit_.push_back({rank_of(above), GradientSent{above, m}});
        break;
      case Port::tied: {
        const auto sender = other_end(receiver);
        in_transit_.push_back({to, TiedArrived{receiver}});
        in_transit_.push_back({rank_of(sender), TiedSent{sender}});
        break;
      }
    }
  }

  StageIndex other_end(StageIndex stage) const {
    const auto distance = schedule_.stages_per_copy() - 1;
    return StageIndex{is_first(stage) ? stage.value() + distance : stage.value() - distance};
  }

  /// Asked for when all passes before it are enqueued.
  void carry_out(std::uint32_t r, const FetchSlot& c) {
    const auto next = done_[r].size() + enqueued_[r].size();
    ASSERT_LT(next, schedule_.ranks[r].size());
    EXPECT_EQ(schedule_.ranks[r][next].stage, c.stage);
    EXPECT_EQ(schedule_.ranks[r][next].microbatch, c.microbatch);
    fetches_[r].push_back(next);
  }
  void carry_out(std::uint32_t r, const ExpectChoice& c) {
    in_transit_.push_back({r, PassChosen{c.index, choices_[r][c.index]}});
  }
  void carry_out(std::uint32_t, const ExpectActivation& c) {
    use(c.stage, activation_in, +1, bounds_.at(c.stage).activations_in);
    post(expected_, sent_, {Port::activation, c.stage, c.microbatch});
  }
  void carry_out(std::uint32_t, const ExpectGradient& c) {
    use(c.stage, gradient_in, +1, bounds_.at(c.stage).gradients_in);
    post(expected_, sent_, {Port::gradient, c.stage, c.microbatch});
  }
  void carry_out(std::uint32_t, const SendActivation& c) {
    post(sent_, expected_, {Port::activation, StageIndex{c.stage.value() + 1}, c.microbatch});
  }
  void carry_out(std::uint32_t, const SendGradient& c) {
    post(sent_, expected_, {Port::gradient, StageIndex{c.stage.value() - 1}, c.microbatch});
  }
  /// The n-th bucket of a stage is summed up with the n-th of the same stage in every copy of the
  /// model, once all have come to it.
  void carry_out(std::uint32_t, const ReduceBucket& c) {
    auto& issued = reductions_[c.stage];
    issued.push_back(c.bucket);
    std::vector<StageIndex> holders;
    const auto position = c.stage.value() % schedule_.stages_per_copy();
    for (std::uint32_t copy = 0; copy < schedule_.copy_count; ++copy) {
      holders.emplace_back(copy * schedule_.stages_per_copy() + position);
      const auto& others = reductions_[holders.back()];
      if (others.size() < issued.size()) return;
      ASSERT_EQ(others[issued.size() - 1], c.bucket) << "stage " << c.stage.value();
    }
    for (const auto stage : holders) {
      in_transit_.push_back({rank_of(stage), BucketReduced{stage, c.bucket}});
    }
  }
  void carry_out(std::uint32_t, const ExpectTied& c) {
    post(expected_, sent_, {Port::tied, c.stage, MicrobatchIndex{0}});
  }
  void carry_out(std::uint32_t, const SendTied& c) {
    post(sent_, expected_, {Port::tied, other_end(c.stage), MicrobatchIndex{0}});
  }
  void carry_out(std::uint32_t r, const AddTied& c) {
    in_transit_.push_back({r, TiedAdded{c.stage}});
  }
  void carry_out(std::uint32_t r, const MeasureGradients& c) {
    in_transit_.push_back({r, GradientsMeasured{c.stage}});
  }
  void carry_out(std::uint32_t, const ReportStep&) {
    if (++reported_count_ < schedule_.rank_count() || !trains()) return;
    if (role_ == SumRole::client) return;
    is_refused_ = random_.below(4) == 0;
    for (std::uint32_t r = 0; r < schedule_.rank_count(); ++r) {
      if (is_refused_) {
        in_transit_.push_back({r, UpdateRefused{}});
      } else {
        in_transit_.push_back({r, ClippingDecided{}});
      }
    }
  }
  void carry_out(std::uint32_t r, const RunOptimizer& c) {
    EXPECT_FALSE(is_refused_) << "stage " << c.stage.value();
    ++updated_count_;
    in_transit_.push_back({r, OptimizerFinished{c.stage}});
  }
  void carry_out(std::uint32_t r, const ExchangeWeights& c) {
    ++exchanged_count_;
    in_transit_.push_back({r, WeightsExchanged{c.stage}});
  }
  void carry_out(std::uint32_t, const FinishStep&) { ++finished_count_; }

  /// In any order that keeps forward and weight passes of every stage in microbatch order.
  void expect_same_passes(std::vector<Action> done, std::vector<Action> program) const {
    const auto by_stage = [](const Action& a, const Action& b) {
      return std::pair{a.stage, a.pass} < std::pair{b.stage, b.pass};
    };
    std::ranges::stable_sort(done, by_stage);
    const auto moves_freely = [](const Action& a) { return a.pass == Pass::backward_input; };
    for (std::size_t i = 1; i < done.size(); ++i) {
      const bool is_same_kind = !by_stage(done[i - 1], done[i]);
      EXPECT_TRUE(!is_same_kind || moves_freely(done[i]) || done[i - 1] < done[i])
          << to_string(done[i - 1]) << " before " << to_string(done[i]);
    }
    const auto count = program.size();
    for (std::size_t i = 0; i < count; ++i) {
      auto& action = program[i];
      if (action.pass != Pass::backward || !bounds_.at(action.stage).splits_backward) continue;
      action.pass = Pass::backward_input;  // Where some are split, all are.
      const Action weight{action.stage, Pass::backward_weight, action.microbatch};
      program.push_back(weight);
    }
    std::ranges::sort(done);
    std::ranges::sort(program);
    EXPECT_EQ(done, program);
  }

  Random random_;
  Policy policy_;
  SumRole role_;
  std::vector<std::vector<Action>> choices_;
  Schedule schedule_;  ///< Of the kind of step that runs.
  std::vector<StageMachine> machines_;
  std::map<StageIndex, StageBounds> bounds_;
  std::map<StageIndex, std::uint32_t> bucket_counts_;
  std::vector<Delivery> in_transit_;
  std::vector<std::vector<Action>> enqueued_;  ///< By rank: on the device, in order.
  std::set<Parcel> sent_;
  std::set<Parcel> expected_;
  std::set<Parcel> arrived_;
  std::map<StageIndex, std::array<int, 5>> in_use_;
  std::map<StageIndex, std::uint32_t> weight_passes_;
  std::vector<std::vector<Action>> done_;
  std::vector<std::vector<std::size_t>> fetches_;
  std::map<StageIndex, std::vector<std::uint32_t>> reductions_;
  std::uint32_t reported_count_ = 0;
  std::uint32_t updated_count_ = 0;    ///< Stages.
  std::uint32_t exchanged_count_ = 0;  ///< Stages.
  bool is_refused_ = false;            ///< The update of the last step.
  std::uint32_t finished_count_ = 0;
};

/// The schedules of the smallest extents, until one fails.
template <class Body>
void for_every_small_schedule(Body body) {
  for (std::uint32_t p = 1; p <= scope(5U, 4U); ++p) {
    for (std::uint32_t m = 1; m <= scope(8U, 5U); ++m) {
      for_every_schedule_of(
          p, m,
          [&](const Schedule& schedule) {
            if (!testing::Test::HasFailure()) body(schedule);
          },
          p * m <= 6);
    }
  }
}

TEST(PipelineSimulation, EveryInterleavingCompletesTheProgram) {
  for_every_small_schedule([](const Schedule& schedule) {
    for (std::uint64_t seed = 0; seed < 6; ++seed) {
      SCOPED_TRACE(testing::Message() << schedule.name << " ranks=" << schedule.rank_count()
                                      << " stages=" << schedule.stage_count() << " microbatches="
                                      << schedule.microbatch_count << " seed=" << seed);
      SimulatedPipeline pipeline{{.training = schedule,
                                  .is_tied = seed % 2 == 1,
                                  .role = seed % 3 == 1 ? SumRole::peer : SumRole::alone,
                                  .enqueued_max = 1 + static_cast<std::uint32_t>(seed % 3)},
                                 seed};
      for (int step = 0; step < 2; ++step) {
        pipeline.run_step();
        pipeline.expect_complete();
        if (testing::Test::HasFailure()) return;
      }
    }
  });
}

TEST(PipelineSimulation, SlotsAreFetchedOnceBeforeEachPassOfTheProgramThatReadsThem) {
  for_every_small_schedule([](const Schedule& schedule) {
    for (const bool has_policy : {false, true}) {
      for (const bool offloads : {false, true}) {
        constexpr std::uint64_t seed = 1;
        SCOPED_TRACE(testing::Message()
                     << schedule.name << " ranks=" << schedule.rank_count() << " stages="
                     << schedule.stage_count() << " microbatches=" << schedule.microbatch_count
                     << " policy=" << has_policy << " offloads=" << offloads << " seed=" << seed);
        SimulatedPipeline pipeline{
            {.training = schedule,
             .policy = has_policy ? Policy::backward_first : Policy::in_order,
             .offloads = offloads},
            seed};
        for (int step = 0; step < 2; ++step) {
          pipeline.run_step();
          pipeline.expect_complete();
          for (std::uint32_t r = 0; r < schedule.rank_count(); ++r) {
            std::vector<std::size_t> expected;
            for (std::size_t i = 0; offloads && !has_policy && i < schedule.ranks[r].size(); ++i) {
              if (schedule.ranks[r][i].pass != Pass::forward) expected.push_back(i);
            }
            EXPECT_EQ(pipeline.fetches()[r], expected);
          }
          if (testing::Test::HasFailure()) return;
        }
      }
    }
  });
}

TEST(PipelineSimulation, ClientsAndServersCompleteTheirStepsUnderEveryInterleaving) {
  for_every_small_schedule([](const Schedule& schedule) {
    if (schedule.copy_count > 1) return;
    for (std::uint64_t seed = 0; seed < 6; ++seed) {
      for (const auto role : {SumRole::client, SumRole::server}) {
        SCOPED_TRACE(testing::Message()
                     << schedule.name << " ranks=" << schedule.rank_count() << " stages="
                     << schedule.stage_count() << " microbatches=" << schedule.microbatch_count
                     << " server=" << (role == SumRole::server) << " seed=" << seed);
        SimulatedPipeline pipeline{{.training = schedule, .is_tied = seed % 2 == 1, .role = role},
                                   seed};
        for (int step = 0; step < 2; ++step) {
          pipeline.run_step();
          pipeline.expect_complete();
          if (testing::Test::HasFailure()) return;
        }
        for (const auto& [stage, buckets] : pipeline.reductions()) {
          EXPECT_TRUE(std::ranges::is_sorted(std::span{buckets}.first(buckets.size() / 2)));
        }
      }
    }
  });
}

TEST(StageMachine, FetchesASlotWhileItsGradientIsOnItsWay) {
  const auto schedule = make_1f1b(2, 3);
  MachineStage stage{bounds_of(schedule, make_forward_only(schedule), StageIndex{0}), 1, false};
  stage.bounds.offloads = true;
  StageMachine machine{schedule, RankIndex{0}, std::vector{stage}, SumRole::alone, 2};
  StageMachine::Commands commands;
  const auto fetches = [&commands] {
    return std::ranges::count_if(
        commands, [](const auto& command) { return std::holds_alternative<FetchSlot>(command); });
  };
  machine.on(Started{}, commands);  // Enqueues 0F0 and 0F1; 0B0 is next.
  EXPECT_EQ(fetches(), 1);
  machine.on(PassFinished{parse_action("0F0").value()}, commands);
  machine.on(PassFinished{parse_action("0F1").value()}, commands);
  EXPECT_EQ(fetches(), 1);
  EXPECT_EQ(machine.waits_for(), WaitCause::gradient);
}

TEST(PipelineSimulation, EvaluationCompletesUnderEveryInterleaving) {
  for_every_small_schedule([](const Schedule& training) {
    for (std::uint64_t seed = 0; seed < 6; ++seed) {
      SCOPED_TRACE(testing::Message() << training.name << " ranks=" << training.rank_count()
                                      << " stages=" << training.stage_count() << " microbatches="
                                      << training.microbatch_count << " seed=" << seed);
      SimulatedPipeline pipeline{{.training = training, .kind = StepKind::evaluation}, seed};
      pipeline.run_step();
      pipeline.expect_complete();
      if (testing::Test::HasFailure()) return;
    }
  });
}

TEST(PipelineSimulation, PoliciesCompleteUnderEveryInterleaving) {
  for (const auto policy : {Policy::backward_first, Policy::forward_first}) {
    for_every_small_schedule([&](const Schedule& schedule) {
      for (std::uint64_t seed = 0; seed < 6; ++seed) {
        SCOPED_TRACE(testing::Message()
                     << policy_names[static_cast<std::size_t>(policy)] << " seed=" << seed);
        SimulatedPipeline pipeline{{.training = schedule,
                                    .is_tied = seed % 2 == 1,
                                    .role = seed % 3 == 1 ? SumRole::peer : SumRole::alone,
                                    .enqueued_max = 1 + static_cast<std::uint32_t>(seed % 3),
                                    .policy = policy},
                                   seed};
        pipeline.run_step();
        pipeline.expect_complete();
        pipeline.run_step();
        pipeline.expect_complete();
        if (testing::Test::HasFailure()) return;
      }
    });
  }
}

TEST(PipelineSimulation, ShardsFollowTheirLeaderUnderEveryInterleaving) {
  for_every_small_schedule([&](const Schedule& schedule) {
    for (std::uint64_t seed = 0; seed < 2; ++seed) {
      SCOPED_TRACE(testing::Message() << "seed=" << seed);
      World world{.training = schedule,
                  .enqueued_max = 1 + static_cast<std::uint32_t>(seed % 3),
                  .policy = seed % 2 == 0 ? Policy::backward_first : Policy::forward_first};
      SimulatedPipeline leaders{world, seed};
      leaders.run_step();
      world.choices = leaders.done();
      SimulatedPipeline followers{world, seed + 100};
      for (int step = 0; step < 2; ++step) {
        followers.run_step();
        followers.expect_complete();
        EXPECT_EQ(followers.done(), leaders.done());
      }
      if (testing::Test::HasFailure()) return;
    }
  });
}

TEST(StageMachine, APolicyRunsWhatIsReadyWithinTheSlots) {
  const auto schedule = make_1f1b(3, 4);
  const MachineStage stage{bounds_of(schedule, make_forward_only(schedule), StageIndex{1}), 1,
                           false};
  ASSERT_EQ(stage.bounds.slots, 2U);
  const auto order = [&](Policy policy) {
    StageMachine machine{schedule, RankIndex{1}, std::vector{stage}, SumRole::alone, 1, policy};
    StageMachine::Commands commands;
    std::string text;
    const auto tell = [&](const StageEvent& event) {
      commands.clear();
      machine.on(event, commands);
      for (const auto& command : commands) {
        if (const auto* run = std::get_if<RunPass>(&command)) text += to_string(run->action) + " ";
      }
    };
    const auto finish = [&](const char* action) {
      tell(PassFinished{parse_action(action).value()});
    };
    const StageIndex one{1};
    tell(Started{});
    tell(ActivationArrived{one, MicrobatchIndex{0}});
    finish("1F0");
    tell(GradientArrived{one, MicrobatchIndex{0}});  // Runs: nothing else can.
    tell(ActivationArrived{one, MicrobatchIndex{1}});
    tell(ActivationSent{one, MicrobatchIndex{0}});
    finish("1B0");
    tell(GradientSent{one, MicrobatchIndex{0}});
    tell(ActivationArrived{one, MicrobatchIndex{2}});
    tell(GradientArrived{one, MicrobatchIndex{1}});  // Now both kinds could run.
    finish("1F1");
    return text;
  };
  EXPECT_EQ(order(Policy::backward_first), "1F0 1B0 1F1 1B1 ");
  EXPECT_EQ(order(Policy::forward_first), "1F0 1B0 1F1 1F2 ");
}

TEST(PipelineSimulation, TwoDirectionsCompleteUnderEveryInterleaving) {
  const auto schedule = from_csv(
      "0F0,0F1,3F2,3B2,3F3,3B3,0B0,0B1\n"
      "2F2,2F3,1F0,1B0,1F1,1B1,2B2,2B3\n",
      "two directions");
  ASSERT_TRUE(validate(*schedule).has_value());
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed=" << seed);
    for (const auto& training : {*schedule, split_backward(*schedule)}) {
      for (const auto kind : {StepKind::training, StepKind::evaluation}) {
        SimulatedPipeline pipeline{
            {.training = training, .kind = kind, .is_tied = true, .role = SumRole::peer}, seed};
        pipeline.run_step();
        pipeline.expect_complete();
      }
    }
    ASSERT_FALSE(testing::Test::HasFailure());
  }
}

TEST(PipelineSimulation, ReplicasReduceInOneOrderWhateverTheInterleaving) {
  const auto schedule = make_interleaved_1f1b(2, 4, 2);
  ASSERT_TRUE(schedule.has_value());
  const World world{.training = *schedule, .is_tied = true, .role = SumRole::peer};
  SimulatedPipeline first{world, 0};
  first.run_step();
  for (std::uint64_t seed = 1; seed < 100; ++seed) {
    SimulatedPipeline other{world, seed};
    other.run_step();
    ASSERT_EQ(other.reductions(), first.reductions()) << "seed=" << seed;
  }
}

TEST(PipelineSimulation, VShapedPipelinesCompleteUnderEveryInterleaving) {
  for (const std::uint32_t p : {2U, 3U}) {
    for (std::uint32_t m = 1; m <= 4 * p; ++m) {
      const auto whole = make_v_schedule(p, m);
      for (const auto& schedule : {whole, split_backward(whole)}) {
        ASSERT_TRUE(validate(schedule).has_value()) << validate(schedule).error().context;
        for (std::uint64_t seed = 0; seed < 12; ++seed) {
          SCOPED_TRACE(testing::Message() << schedule.name << " ranks=" << p
                                          << " microbatches=" << m << " seed=" << seed);
          SimulatedPipeline pipeline{
              {.training = schedule,
               .kind = seed % 4 == 3 ? StepKind::evaluation : StepKind::training,
               .is_tied = seed % 2 == 1,
               .role = seed % 3 == 1 ? SumRole::peer : SumRole::alone,
               .enqueued_max = 1 + static_cast<std::uint32_t>(seed % 3)},
              seed};
          for (int step = 0; step < 2; ++step) {
            pipeline.run_step();
            pipeline.expect_complete();
            if (HasFailure()) return;
          }
        }
      }
    }
  }
}

TEST(PipelineSimulation, AnyValidScheduleCompletesUnderAnyInterleaving) {
  for (std::uint64_t seed = 0; seed < scope(600U, 100U); ++seed) {
    SCOPED_TRACE(testing::Message() << "seed=" << seed);
    const auto schedule = random_schedule(seed);
    ASSERT_TRUE(validate(schedule).has_value()) << validate(schedule).error().context;
    for (const auto kind : {StepKind::training, StepKind::evaluation}) {
      SimulatedPipeline pipeline{{.training = schedule,
                                  .kind = kind,
                                  .is_tied = seed % 2 == 1,
                                  .role = seed % 3 == 1 ? SumRole::peer : SumRole::alone,
                                  .enqueued_max = 1 + static_cast<std::uint32_t>(seed % 3)},
                                 seed};
      pipeline.run_step();
      pipeline.expect_complete();
      if (HasFailure()) return;
    }
  }
}

TEST(PipelineSimulation, AStageMayUseItsInputsInAnotherOrderThanTheyCome) {
  // Rank 0 sends 6 and 7 first, rank 1 uses them last: receives must be posted as inputs come.
  const auto schedule = from_csv(
      "0F6,0F7,0F0,0B0,0F1,0B1,0F2,0B2,0F3,0B3,0F4,0B4,0F5,0B5,0B6,0B7\n"
      "1F0,1B0,1F1,1B1,1F2,1B2,1F3,1B3,1F4,1B4,1F5,1B5,1F6,1B6,1F7,1B7\n",
      "crossed.csv");
  ASSERT_TRUE(schedule.has_value()) << schedule.error().context;
  ASSERT_TRUE(validate(*schedule).has_value());
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed=" << seed);
    SimulatedPipeline pipeline{{.training = *schedule}, seed};
    pipeline.run_step();
    pipeline.expect_complete();
    if (HasFailure()) return;
  }
}

TEST(StageMachineDeathTest, AFactReportedTwiceAborts) {
  const auto schedule = make_1f1b(2, 2);
  const MachineStage stage{bounds_of(schedule, make_forward_only(schedule), StageIndex{1}), 1,
                           false};
  StageMachine machine{schedule, RankIndex{1}, std::vector{stage}, SumRole::alone, 1};
  StageMachine::Commands commands;
  machine.on(Started{}, commands);
  machine.on(ActivationArrived{StageIndex{1}, MicrobatchIndex{1}}, commands);
  EXPECT_DEATH(machine.on(ActivationArrived{StageIndex{1}, MicrobatchIndex{1}}, commands), "here");
}

TEST(StageMachine, WhoFollowsWaitsForTheLeader) {
  const auto schedule = make_1f1b(2, 2);
  const MachineStage stage{bounds_of(schedule, make_forward_only(schedule), StageIndex{0}), 1,
                           false};
  StageMachine machine{schedule, RankIndex{0},          std::vector{stage}, SumRole::alone,
                       1,        Policy::forward_first, Chooser::leader};
  StageMachine::Commands commands;
  machine.on(Started{}, commands);
  EXPECT_EQ(machine.waits_for(), WaitCause::leader);
  EXPECT_FALSE(machine.next_action());
  EXPECT_TRUE(machine.has({StageIndex{0}, Pass::forward, MicrobatchIndex{1}}));
  EXPECT_FALSE(machine.has({StageIndex{0}, Pass::forward, MicrobatchIndex{2}}));
  EXPECT_FALSE(machine.has({StageIndex{1}, Pass::forward, MicrobatchIndex{0}}));
  machine.on(PassChosen{0, {StageIndex{0}, Pass::forward, MicrobatchIndex{0}}}, commands);
  EXPECT_EQ(machine.waits_for(), WaitCause::none);
}

TEST(StageMachine, SaysWhatItWaitsFor) {
  const auto schedule = make_1f1b(2, 2);
  const auto evaluation = make_forward_only(schedule);
  const MachineStage stage{bounds_of(schedule, evaluation, StageIndex{0}), 1, false};
  StageMachine machine{schedule, RankIndex{0}, std::vector{stage}, SumRole::alone, 1};
  StageMachine::Commands commands;
  EXPECT_EQ(machine.waits_for(), WaitCause::next_step);
  machine.on(Started{}, commands);
  EXPECT_EQ(machine.waits_for(), WaitCause::none) << "0F0 runs";
  machine.on(PassFinished{{StageIndex{0}, Pass::forward, MicrobatchIndex{0}}}, commands);
  machine.on(PassFinished{{StageIndex{0}, Pass::forward, MicrobatchIndex{1}}}, commands);
  EXPECT_EQ(machine.waits_for(), WaitCause::gradient);
  EXPECT_EQ(to_string(*machine.next_action()), "0B0");
}

}  // namespace
}  // namespace troupe
