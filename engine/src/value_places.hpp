// engine/src/value_places.hpp -- which values share memory.
#pragma once

#include "troupe/engine/stage_graph.hpp"

namespace troupe {

/// Gives every value that is on no edge a place, so that values which live at the same time never
/// overlap, and sets `slot_bytes` and `workspace_bytes`. A value that only one pass uses lies in
/// the workspace, any other in the slot. Places are given out in the order of the calls, and free
/// again after the last call that uses them: the smallest that fits, or the end.
void place_values(StageGraph& graph);

}  // namespace troupe
