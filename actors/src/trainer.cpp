#include "troupe/actors/trainer.hpp"

#include <algorithm>
#include <future>
#include <optional>
#include <string>
#include <utility>

#include "troupe/actors/director.hpp"
#include "troupe/actors/stage_actor.hpp"
#include "troupe/stages/cpu_device.hpp"
#include "troupe/stages/gpt2_stage.hpp"

namespace troupe::actors {

namespace {

Expected<std::unique_ptr<stages::Stage>> make_model_stage(const Plan& plan, const StagePlan& stage,
                                                          stages::Device& device,
                                                          stages::Stream& stream) {
  auto made = stages::make_gpt2_stage(device, stream,
                                      {.model = plan.config.model,
                                       .spec = stage.spec,
                                       .bounds = stage.bounds,
                                       .microbatch_count = plan.config.schedule.microbatches,
                                       .microbatch_size = plan.config.schedule.microbatch_size,
                                       .train = plan.config.train});
  if (!made) return made.error();
  return std::unique_ptr<stages::Stage>{std::move(*made)};
}

TrainerParts with_defaults(TrainerParts parts) {
  if (!parts.make_device) parts.make_device = stages::make_cpu_device;
  if (!parts.make_stage) parts.make_stage = make_model_stage;
  if (!parts.make_link) parts.make_link = transport::make_in_process_link;
  if (!parts.make_group) parts.make_group = transport::make_in_process_group;
  return parts;
}

/// An idle actor of the `sharing` scheduler wakes twenty times faster than one of CAF's default,
/// and stage actors do little: one worker carries a process.
class SystemConfig : public caf::actor_system_config {
public:
  SystemConfig() {
    set("scheduler.policy", caf::atom("sharing"));
    set("scheduler.max-threads", std::size_t{1});
  }
};

}  // namespace

class Trainer::Impl {
public:
  Impl(const Plan& plan, TrainerParts parts)
      : plan_{std::make_shared<const Plan>(plan)},
        parts_{with_defaults(std::move(parts))},
        device_{parts_.make_device()} {}

  ~Impl() {
    close_lanes();
    for (const auto& actor : cast_) caf::anon_send_exit(actor, caf::exit_reason::user_shutdown);
    if (director_) caf::anon_send_exit(director_, caf::exit_reason::user_shutdown);
    if (loader_) caf::anon_send_exit(loader_, caf::exit_reason::user_shutdown);
    cast_.clear();
    director_ = nullptr;
    loader_ = nullptr;
    system_.await_all_actors_done();
    empty_streams();  // Nobody is left who would enqueue more.
  }

  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  Expected<Done> build() {
    const auto& extent = plan_->config.parallel;
    ranks_.resize(extent.rank_count());
    for (std::uint32_t rank = 0; rank < ranks_.size(); ++rank) {
      if (auto built = build_rank(ranks_[rank], coordinate_of(extent, rank)); !built) return built;
    }
    for (std::uint32_t r = 0; r < extent.data; ++r) connect_stages(r);
    if (extent.data > 1) connect_replicas();
    return Done{};
  }

  void start(const BatchSource& source) {
    const auto done = std::make_shared<StepDone>([this](Expected<StepReport> outcome) {
      std::exchange(promise_, std::nullopt)->set_value(std::move(outcome));
    });
    director_ = system_.spawn(director, plan_, done);
    for (auto& rank : ranks_) {
      cast_.push_back(system_.spawn(stage_actor, plan_, &rank, director_));
    }
    loader_ = system_.spawn<caf::detached>(loader, plan_, source, cast_, director_);
    caf::anon_send(director_, GroupChosen{loader_, cast_});
  }

  Expected<StepReport> run(StepWanted what) {
    promise_.emplace();
    auto outcome = promise_->get_future();
    caf::anon_send(director_, what);
    return outcome.get();
  }

  std::vector<stages::ParameterView> parameters() {
    std::vector<stages::ParameterView> result;
    for (const auto& stage : plan_->stages) {
      for (const auto& parameter : held(0, stage.stage).stage->parameters()) {
        if (parameter.spec->owned) result.push_back(parameter);
      }
    }
    return result;
  }

  void read_parameter(std::size_t index, std::span<float> values) {
    for (const auto& planned : plan_->stages) {
      auto& stage = *held(0, planned.stage).stage;
      const auto parameters = stage.parameters();
      for (std::size_t i = 0; i < parameters.size(); ++i) {
        if (parameters[i].spec->owned && index-- == 0) return stage.read_parameter(i, values);
      }
    }
    TROUPE_ASSERT(!"there is such a parameter");
  }

  const Plan& plan() const { return *plan_; }
  stages::Device& device() { return *device_; }
  std::uint32_t next_step() { return ++step_; }

private:
  Expected<Done> build_rank(RankProps& rank, const Coordinate& at) {
    rank.coordinate = at;
    const auto name = "p" + std::to_string(at.pipeline.value()) + "d" + std::to_string(at.replica);
    rank.stream = device_->make_stream(name, plan_->config.run.threads_per_stage);
    for (const auto stage : plan_->training.stages_of(at.pipeline)) {
      auto made = parts_.make_stage(*plan_, plan_->stages[stage.value()], *device_, *rank.stream);
      if (!made) return made.error();
      rank.stages.push_back({std::move(*made), nullptr, nullptr, nullptr});
    }
    return Done{};
  }

  /// Joins each stage to the next, and the ends of the model if they share the embedding.
  /// Neighbours on one rank get a lane like all others.
  void connect_stages(std::uint32_t replica) {
    const auto count = plan_->training.stage_count();
    for (std::uint32_t v = 0; v + 1 < count; ++v) {
      auto& from = held(replica, StageIndex{v});
      auto& to = held(replica, StageIndex{v + 1});
      std::tie(from.next, to.previous) = parts_.make_link();
    }
    if (plan_->config.model.tie_embeddings && count > 1) {
      auto& first = held(replica, StageIndex{0});
      auto& last = held(replica, StageIndex{count - 1});
      std::tie(first.tied, last.tied) = parts_.make_link();
    }
  }

  void connect_replicas() {
    const auto& extent = plan_->config.parallel;
    for (std::uint32_t p = 0; p < extent.pipeline; ++p) {
      auto members = parts_.make_group(extent.data);
      for (std::uint32_t r = 0; r < extent.data; ++r) {
        auto& rank = ranks_[rank_at(extent, {r, 0, RankIndex{p}})];
        rank.replicas = std::move(members[r]);
        rank.reduce_stream =
            device_->make_stream("p" + std::to_string(p) + "d" + std::to_string(r) + "r", 1);
      }
    }
  }

  HeldStage& held(std::uint32_t replica, StageIndex stage) {
    const auto at = plan_->training.rank_of_stage[stage.value()];
    auto& rank = ranks_[rank_at(plan_->config.parallel, {replica, 0, at})];
    const auto stages = plan_->training.stages_of(at);
    const auto local = std::ranges::find(stages, stage) - stages.begin();
    return rank.stages[static_cast<std::size_t>(local)];
  }

  /// Completes everything that waits for a neighbour or a replica as cancelled.
  void close_lanes() {
    for (auto& rank : ranks_) {
      if (rank.replicas) rank.replicas->close();
      for (auto& held : rank.stages) {
        for (auto* lane : {&held.previous, &held.next, &held.tied}) {
          if (*lane) (*lane)->close();
        }
      }
    }
  }

  /// Waits for device work that is still enqueued, and drops what would be posted to the actors.
  void empty_streams() {
    for (auto& rank : ranks_) {
      if (rank.stream) rank.stream->synchronize();
      if (rank.reduce_stream) rank.reduce_stream->synchronize();
      for (auto& held : rank.stages) held.stage->on_bucket_ready({});
    }
  }

  std::shared_ptr<const Plan> plan_;
  TrainerParts parts_;
  std::unique_ptr<stages::Device> device_;
  std::vector<RankProps> ranks_;  ///< By rank of the grid.
  std::optional<std::promise<Expected<StepReport>>> promise_;
  SystemConfig config_;
  caf::actor_system system_{config_};
  std::vector<StageHandle> cast_;
  LoaderHandle loader_;
  DirectorHandle director_;
  std::uint32_t step_ = 0;
};

Trainer::Trainer(std::unique_ptr<Impl> impl) : impl_{std::move(impl)} {}
Trainer::~Trainer() = default;

Expected<std::unique_ptr<Trainer>> Trainer::make(const Plan& plan, BatchSource source,
                                                 TrainerParts parts) {
  auto impl = std::make_unique<Impl>(plan, std::move(parts));
  if (auto built = impl->build(); !built) return built.error();
  impl->start(source);
  return std::unique_ptr<Trainer>{new Trainer{std::move(impl)}};
}

Expected<StepReport> Trainer::train_step() {
  return impl_->run({impl_->next_step(), StepKind::training});
}

Expected<StepReport> Trainer::evaluate_step(std::uint32_t index) {
  return impl_->run({index, StepKind::evaluation});
}

std::vector<stages::ParameterView> Trainer::parameters() {
  return impl_->parameters();
}
void Trainer::read_parameter(std::size_t index, std::span<float> values) {
  impl_->read_parameter(index, values);
}
const Plan& Trainer::plan() const noexcept {
  return impl_->plan();
}
stages::Device& Trainer::device() noexcept {
  return impl_->device();
}

}  // namespace troupe::actors
