#include "troupe/actors/loader.hpp"

#include <algorithm>
#include <exception>
#include <stdexcept>
#include <utility>

namespace troupe::actors {
namespace {

/// Where numbers of a batch must lie.
struct Range {
  const char* of;
  std::int64_t begin;
  std::int64_t end;
  std::string name;
};

void expect_within(const Range& range, const std::vector<std::int32_t>& numbers,
                   std::uint32_t replica) {
  const auto is_outside = [&](std::int32_t n) { return n < range.begin || n >= range.end; };
  const auto found = std::ranges::find_if(numbers, is_outside);
  if (found == numbers.end()) return;
  throw std::out_of_range{"the " + std::string{range.of} + ' ' + std::to_string(*found)
                          + " at position " + std::to_string(found - numbers.begin())
                          + " of replica " + std::to_string(replica) + "'s batch is outside "
                          + range.name};
}

}  // namespace

void LoaderState::start(std::shared_ptr<const Plan> plan, BatchSource source,
                        std::vector<PlacedStage> stages, std::vector<StepBatches>& batches,
                        DirectorHandle director) {
  plan_ = std::move(plan);
  source_ = std::move(source);
  stages_ = std::move(stages);
  director_ = std::move(director);
  prepared_.resize(batches.size());
  for (std::size_t i = 0; i < batches.size(); ++i) prepared_[i].batches = &batches[i];
}

void LoaderState::on(const StepWanted& message) {
  const auto after = (current_ + 1) % prepared_.size();
  const auto& next = prepared_[after].what;
  if (next.step == message.step && next.kind == message.kind) {
    current_ = after;
  } else {
    prepare(prepared_[current_], message);
  }
  const auto& current = prepared_[current_];
  if (!current.failure.empty()) {
    caf::anon_send(director_, LoadFailed{message.step, current.failure});
    return;
  }
  for (const auto& stage : stages_) {
    const auto replica = coordinate_of(plan_->config.parallel, stage.rank).replica;
    caf::anon_send(stage.actor,
                   StepStarted{message.step, message.kind, &(*current.batches)[replica],
                               message.loss_scale, message.weights_of});
  }
  if (message.kind == StepKind::training) {
    prepare(prepared_[(current_ + 1) % prepared_.size()], {message.step + 1, StepKind::training});
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
  const auto& model = plan_->config.model;
  const auto text = [](std::uint32_t number) { return std::to_string(number); };
  const auto words = "the vocabulary of " + text(model.vocabulary);
  expect_within({"token", 0, model.vocabulary, words}, batch.tokens, replica);
  expect_within({"segment", 0, segment_count, "the " + text(segment_count) + " segments"},
                batch.segments, replica);
  expect_within({"length", 1, model.sequence + 1, "1 to " + text(model.sequence)}, batch.lengths,
                replica);
  expect_within({"target", model.family == Family::bert ? -1 : 0, model.outcome_count(),
                 model.classifies() ? "the " + text(model.classes) + " classes" : words},
                batch.targets, replica);
  const auto target_count = std::ranges::count_if(batch.targets, [](auto t) { return t >= 0; });
  if (batch.target_count > 0 && batch.target_count >= target_count) return;
  throw std::out_of_range{"replica " + text(replica) + "'s batch has "
                          + std::to_string(target_count) + " targets, but says that the step has "
                          + text(batch.target_count)};
}

LoaderHandle::behavior_type loader(LoaderHandle::stateful_pointer<LoaderState> self,
                                   const std::shared_ptr<const Plan>& plan,
                                   const BatchSource& source,
                                   const std::vector<PlacedStage>& stages,
                                   std::vector<StepBatches>* batches,
                                   const DirectorHandle& director) {
  self->state.start(plan, source, stages, *batches, director);
  return {[self](const StepWanted& message) { self->state.on(message); }};
}

}  // namespace troupe::actors
