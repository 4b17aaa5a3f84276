#include "troupe/actors/loader.hpp"

#include <algorithm>
#include <exception>
#include <stdexcept>
#include <utility>

namespace troupe::actors {

void LoaderState::start(std::shared_ptr<const Plan> plan, BatchSource source,
                        std::vector<PlacedStage> stages, std::array<StepBatches, 2>& batches,
                        DirectorHandle director) {
  plan_ = std::move(plan);
  source_ = std::move(source);
  stages_ = std::move(stages);
  director_ = std::move(director);
  current_.batches = &batches[0];
  next_.batches = &batches[1];
}

void LoaderState::on(const StepWanted& message) {
  if (next_.what.step == message.step && next_.what.kind == message.kind) {
    std::swap(current_, next_);
  } else {
    prepare(current_, message);
  }
  if (!current_.failure.empty()) {
    caf::anon_send(director_, LoadFailed{current_.failure});
    return;
  }
  for (const auto& stage : stages_) {
    const auto replica = coordinate_of(plan_->config.parallel, stage.rank).replica;
    caf::anon_send(stage.actor,
                   StepStarted{message.step, message.kind, &(*current_.batches)[replica]});
  }
  if (message.kind == StepKind::training) {
    prepare(next_, {message.step + 1, StepKind::training});
  }
}

void LoaderState::prepare(Prepared& target, const StepWanted& what) {
  target.what = what;
  target.failure.clear();
  try {
    auto& batches = *target.batches;
    for (std::uint32_t r = 0; r < batches.size(); ++r) {
      if (!batches[r].tokens.empty()) fill(batches[r], what, r);
    }
  } catch (const std::exception& error) {
    target.failure = error.what();
  }
}

/// Fills one replica's batch and checks it: a kernel would follow any number out of its tables.
void LoaderState::fill(stages::Batch& batch, const StepWanted& what, std::uint32_t replica) {
  source_(what.kind, what.step, replica, batch);
  const auto vocabulary = static_cast<std::int32_t>(plan_->config.model.vocabulary);
  for (const auto* tokens : {&batch.tokens, &batch.targets}) {
    const auto is_outside = [=](std::int32_t token) { return token < 0 || token >= vocabulary; };
    const auto found = std::ranges::find_if(*tokens, is_outside);
    if (found == tokens->end()) continue;
    throw std::out_of_range{"the " + std::string{tokens == &batch.tokens ? "token " : "target "}
                            + std::to_string(*found) + " at position "
                            + std::to_string(found - tokens->begin()) + " of replica "
                            + std::to_string(replica) + "'s batch is outside the vocabulary of "
                            + std::to_string(vocabulary)};
  }
}

LoaderHandle::behavior_type loader(LoaderHandle::stateful_pointer<LoaderState> self,
                                   const std::shared_ptr<const Plan>& plan,
                                   const BatchSource& source,
                                   const std::vector<PlacedStage>& stages,
                                   std::array<StepBatches, 2>* batches,
                                   const DirectorHandle& director) {
  self->state.start(plan, source, stages, *batches, director);
  return {[self](const StepWanted& message) { self->state.on(message); }};
}

}  // namespace troupe::actors
