// Uses the installed engine alone: decides a run, and asks what it would need.
#include <cstdio>

#include <troupe/engine/plan.hpp>

int main() {
  troupe::Config config;
  config.parallel.pipeline = 3;
  const auto plan = troupe::make_plan(config);
  if (!plan) {
    std::fprintf(stderr, "%s\n", plan.error().context.c_str());
    return 1;
  }
  for (const auto& stage : plan->stages) {
    std::printf("stage %u: layers %u to %u, %llu bytes\n", stage.stage.value(),
                stage.spec.layer_begin, stage.spec.layer_end,
                static_cast<unsigned long long>(plan->bytes_of(stage.rank)));
  }
  return plan->stages.size() == 3 ? 0 : 1;
}
