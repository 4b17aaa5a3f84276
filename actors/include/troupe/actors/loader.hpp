// troupe/actors/loader.hpp -- the actor that prepares batches and opens each step.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "troupe/actors/batch_source.hpp"
#include "troupe/actors/local_ranks.hpp"
#include "troupe/actors/messages.hpp"
#include "troupe/engine/plan.hpp"
#include "troupe/stages/stage.hpp"

namespace troupe::actors {

/// Opens each step for the ranks of its process, with the batches of `LocalRanks`: those that the
/// current step reads, the next training step's, filled while the current step runs, and those of
/// steps before that are not over everywhere.
class LoaderState {
public:
  static inline const char* name = "troupe.loader";  // Read by CAF's logger.

  void start(std::shared_ptr<const Plan> plan, BatchSource source, std::vector<PlacedStage> stages,
             std::vector<StepBatches>& batches, DirectorHandle director);
  void on(const StepWanted& message);

private:
  struct Prepared {
    StepWanted what{0, StepKind::training};  ///< Step 0 does not exist: nothing is prepared.
    StepBatches* batches = nullptr;
    std::string failure;  ///< Why there are none; empty if all is well.
  };

  void prepare(Prepared& target, const StepWanted& what);
  void fill(stages::Batch& batch, const StepWanted& what, std::uint32_t replica);

  std::shared_ptr<const Plan> plan_;
  BatchSource source_;
  std::vector<PlacedStage> stages_;
  DirectorHandle director_;
  std::vector<Prepared> prepared_;  ///< Around; the next step's follow the current one's.
  std::size_t current_ = 0;
};

LoaderHandle::behavior_type loader(LoaderHandle::stateful_pointer<LoaderState> self,
                                   const std::shared_ptr<const Plan>& plan,
                                   const BatchSource& source,
                                   const std::vector<PlacedStage>& stages,
                                   std::vector<StepBatches>* batches,
                                   const DirectorHandle& director);

}  // namespace troupe::actors
