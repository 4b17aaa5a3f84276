// troupe/actors/loader.hpp -- the actor that prepares batches and opens each step.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "troupe/actors/messages.hpp"
#include "troupe/engine/plan.hpp"
#include "troupe/stages/stage.hpp"

namespace troupe::actors {

/// Fills the tokens and targets of `replica` for a step; the batch has its final size already. Must
/// depend on its arguments alone. Called on the loader's thread.
using BatchSource =
    std::function<void(StepKind kind, std::uint32_t step, std::uint32_t replica, stages::Batch&)>;

/// Keeps two batches per replica: the one that the current step reads, and the next training
/// step's, filled while the current step runs.
class LoaderState {
public:
  static inline const char* name = "troupe.loader";  // Read by CAF's logger.

  void start(std::shared_ptr<const Plan> plan, BatchSource source, std::vector<StageHandle> cast);
  void on(const StepWanted& message);

private:
  struct Prepared {
    StepWanted what{0, StepKind::training};  ///< Step 0 does not exist: nothing is prepared.
    std::vector<stages::Batch> batches;      ///< By replica.
  };

  void prepare(Prepared& target, const StepWanted& what);

  std::shared_ptr<const Plan> plan_;
  BatchSource source_;
  std::vector<StageHandle> cast_;  ///< By rank of the grid.
  Prepared current_;
  Prepared next_;
};

LoaderHandle::behavior_type loader(LoaderHandle::stateful_pointer<LoaderState> self,
                                   const std::shared_ptr<const Plan>& plan,
                                   const BatchSource& source, const std::vector<StageHandle>& cast);

}  // namespace troupe::actors
