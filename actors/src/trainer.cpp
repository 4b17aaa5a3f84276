#include "troupe/actors/trainer.hpp"

#include <algorithm>
#include <thread>
#include <vector>

#include "troupe/actors/loader.hpp"
#include "troupe/actors/stage_actor.hpp"

#include "actor_settings.hpp"
#include "trainer_impl.hpp"

namespace troupe::actors {

namespace {

/// All ranks are performed in this process.
class LocalTrainer final : public Trainer::Impl {
public:
  LocalTrainer(std::shared_ptr<const Plan> plan, std::unique_ptr<LocalRanks> ranks,
               const BatchSource& source)
      : Impl{std::move(plan)}, ranks_{std::move(ranks)} {
    spawn_director(system_);
    std::vector<PlacedStage> stages;
    for (auto& rank : ranks_->ranks()) {
      stages.push_back({rank.rank, system_.spawn(stage_actor, plan_, &rank, director_)});
      stages_.push_back(stages.back().actor);
    }
    loader_ =
        system_.spawn<caf::detached>(loader, plan_, source, stages, &ranks_->batches(), director_);
    caf::anon_send(director_, GroupChosen{{loader_}, stages_});
  }

  ~LocalTrainer() override {
    ranks_->close_lanes();
    for (const auto& actor : stages_) caf::anon_send_exit(actor, caf::exit_reason::user_shutdown);
    caf::anon_send_exit(director_, caf::exit_reason::user_shutdown);
    caf::anon_send_exit(loader_, caf::exit_reason::user_shutdown);
    stages_.clear();
    director_ = nullptr;
    loader_ = nullptr;
    system_.await_all_actors_done();
    ranks_->empty_streams();  // Nobody is left who would enqueue more.
  }

  Expected<Done> read_parameter(std::size_t index, std::span<float> values) override {
    return read_whole(*plan_, index, values,
                      [this](const ParameterPlace& place, std::uint32_t shard,
                             std::span<float> part) -> Expected<Done> {
                        auto* held = ranks_->find({plan_->weights_replica(), shard, place.stage});
                        held->stage->read_parameter(place.index, part);
                        return Done{};
                      });
  }

  Expected<double> measure_peak_flops() override {
    const auto rank_count = plan_->config.parallel.rank_count();
    return ranks_->device().measure_peak_flops(
        concurrent_streams(*plan_, rank_count, std::thread::hardware_concurrency()),
        plan_->config.run.threads_per_stage, plan_->config.train.precision);
  }

private:
  std::unique_ptr<LocalRanks> ranks_;
  ActorSettings settings_;
  caf::actor_system system_{settings_};
  std::vector<StageHandle> stages_;  ///< By rank of the grid, and servers.
  LoaderHandle loader_;
};

}  // namespace

namespace {

/// The place of the `index`-th of `parameters_of(plan.config.model)`.
ParameterPlace place_of_parameter(const Plan& plan, std::size_t index) {
  for (const auto& stage : plan.stages) {
    const auto parameters = parameters_of(plan.config.model, stage.spec);
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      if (parameters[i].owned && index-- == 0) return {stage.stage, i};
    }
  }
  TROUPE_ASSERT(!"there is such a parameter");
  return {};
}

}  // namespace

Expected<Done> read_whole(const Plan& plan, std::size_t index, std::span<float> values,
                          const PartReader& read_part) {
  const auto place = place_of_parameter(plan, index);
  const auto& stage = plan.stages[place.stage.value()].spec;
  std::vector<float> part;
  for (std::uint32_t shard = 0; shard < plan.shard_count(place.stage); ++shard) {
    const auto spec =
        parameters_of(plan.config.model, stage, plan.shard(place.stage, shard))[place.index];
    if (!spec.slice) return read_part(place, 0, values);
    part.resize(spec.element_count());
    if (auto read = read_part(place, shard, part); !read) return read;
    for (const auto& run : runs_of(spec)) {
      const auto from = part.begin() + static_cast<std::ptrdiff_t>(run.in_part);
      std::copy_n(from, run.count, values.begin() + static_cast<std::ptrdiff_t>(run.in_whole));
    }
  }
  return Done{};
}

Trainer::Trainer(std::unique_ptr<Impl> impl) : impl_{std::move(impl)} {}
Trainer::~Trainer() = default;

Expected<std::unique_ptr<Trainer>> Trainer::make(const Plan& plan, const BatchSource& source,
                                                 RankParts parts) {
  const auto shared = std::make_shared<const Plan>(plan);
  auto ranks = LocalRanks::make(shared, LocalRanks::all_of(plan), std::move(parts));
  if (!ranks) return ranks.error();
  return std::unique_ptr<Trainer>{
      new Trainer{std::make_unique<LocalTrainer>(shared, std::move(*ranks), source)}};
}

Expected<StepReport> Trainer::train_step() {
  return impl_->run({impl_->next_step(), StepKind::training});
}

Expected<StepReport> Trainer::evaluate_step(std::uint32_t index) {
  return impl_->run({index, StepKind::evaluation});
}

Expected<Done> Trainer::read_parameter(std::size_t index, std::span<float> values) {
  impl_->await_steps();
  return impl_->read_parameter(index, values);
}
Expected<double> Trainer::measure_peak_flops() {
  return impl_->measure_peak_flops();
}
const Plan& Trainer::plan() const noexcept {
  return impl_->plan();
}

}  // namespace troupe::actors
