#include "troupe/actors/loader.hpp"

#include <utility>

namespace troupe::actors {

void LoaderState::start(std::shared_ptr<const Plan> plan, BatchSource source,
                        std::vector<StageHandle> cast) {
  plan_ = std::move(plan);
  source_ = std::move(source);
  cast_ = std::move(cast);
  const auto& config = plan_->config;
  stages::Batch batch{.microbatch_count = config.schedule.microbatches,
                      .microbatch_size = config.schedule.microbatch_size,
                      .sequence = config.model.sequence,
                      .tokens = {},
                      .targets = {}};
  batch.tokens.resize(std::size_t{batch.microbatch_count} * batch.microbatch_size * batch.sequence);
  batch.targets.resize(batch.tokens.size());
  current_.batches.assign(config.parallel.data, batch);
  next_.batches.assign(config.parallel.data, batch);
}

void LoaderState::on(const StepWanted& message) {
  if (next_.what.step == message.step && next_.what.kind == message.kind) {
    std::swap(current_, next_);
  } else {
    prepare(current_, message);
  }
  for (std::uint32_t rank = 0; rank < cast_.size(); ++rank) {
    const auto replica = coordinate_of(plan_->config.parallel, rank).replica;
    caf::anon_send(cast_[rank],
                   StepStarted{message.step, message.kind, &current_.batches[replica]});
  }
  if (message.kind == StepKind::training) {
    prepare(next_, {message.step + 1, StepKind::training});
  }
}

void LoaderState::prepare(Prepared& target, const StepWanted& what) {
  target.what = what;
  for (std::uint32_t r = 0; r < target.batches.size(); ++r) {
    source_(what.kind, what.step, r, target.batches[r]);
  }
}

LoaderHandle::behavior_type loader(LoaderHandle::stateful_pointer<LoaderState> self,
                                   const std::shared_ptr<const Plan>& plan,
                                   const BatchSource& source,
                                   const std::vector<StageHandle>& cast) {
  self->state.start(plan, source, cast);
  return {[self](const StepWanted& message) { self->state.on(message); }};
}

}  // namespace troupe::actors
