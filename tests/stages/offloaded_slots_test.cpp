// Stages that keep their slots in host memory: whatever they do with a few places on the device,
// and in whatever order copies and passes run, nothing but their memory differs from stages that
// do not.

#include <array>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "troupe/engine/random.hpp"
#include "troupe/stages/cpu_device.hpp"

#include "seeded_device.hpp"
#include "stage_chain.hpp"

namespace troupe::stages {
namespace {

constexpr std::uint32_t microbatch_count = 5;
constexpr std::uint32_t microbatch_size = 2;
constexpr std::uint64_t data_seed = 21;

ModelSpec model_of(Family family) {
  return {.family = family,
          .layers = 2,
          .heads = 2,
          .hidden = 8,
          .sequence = 5,
          .vocabulary = 11,
          .tie_embeddings = true,
          .kv_heads = family == Family::llama ? 1U : 0U,
          .feed_forward = family == Family::llama ? 12U : 0U,
          .dropout = 0.1};
}

/// A whole model as one stage, whose passes can come in any order.
StageProps props_of(Family family, bool splits, Recompute recompute, bool offloads) {
  return {.model = model_of(family),
          .spec = {.layer_begin = 0, .layer_end = 2, .has_embedding = true, .has_head = true},
          .bounds = {.slots = microbatch_count,
                     .splits_backward = splits,
                     .recompute = recompute,
                     .offloads = offloads},
          .microbatch_count = microbatch_count,
          .microbatch_size = microbatch_size,
          .train = {}};
}

struct Pending {
  Pass pass;
  std::uint32_t microbatch;
};

/// Any order that a schedule could have: F and W by microbatch, W after I after F.
std::vector<Pending> draw_program(Random& random, bool splits) {
  std::vector<Pending> program;
  std::uint32_t forward = 0;
  std::uint32_t weight = 0;
  std::array<bool, microbatch_count> has_input{};
  while (weight < microbatch_count) {
    std::vector<Pending> choices;
    if (forward < microbatch_count) choices.push_back({Pass::forward, forward});
    if (!splits && weight < forward) choices.push_back({Pass::backward, weight});
    for (auto m = weight; splits && m < forward; ++m) {
      if (!has_input[m]) choices.push_back({Pass::backward_input, m});
    }
    if (splits && has_input[weight]) choices.push_back({Pass::backward_weight, weight});
    const auto chosen = choices[random.below(choices.size())];
    if (chosen.pass == Pass::forward) ++forward;
    if (chosen.pass == Pass::backward_input) has_input[chosen.microbatch] = true;
    if (accumulates_weights(chosen.pass)) ++weight;
    program.push_back(chosen);
  }
  return program;
}

/// What two steps and an evaluation between them leave behind.
struct Result {
  std::vector<double> losses;
  std::vector<double> squares;
  std::vector<std::vector<float>> weights;

  friend bool operator==(const Result&, const Result&) = default;
};

/// Enqueues whole steps at once; of some passes the slot is fetched beforehand, as a driver does
/// that knows what comes.
Result train(Device& device, const StageProps& props, std::uint64_t seed) {
  Random random{seed};
  const auto stream = device.make_stream("passes", 1);
  const auto stage = make_transformer_stage(device, *stream, props).value();
  Result result;
  int done_count = 0;
  const auto done = [&done_count](Errc code, DeviceSpan) { done_count += code == Errc::none; };
  const auto end_step = [&] {
    stream->synchronize();
    const auto losses = stage->losses();
    result.losses.insert(result.losses.end(), losses.begin(), losses.end());
  };
  for (std::uint32_t step = 1; step <= 2; ++step) {
    const auto batch = make_batch(props.model, microbatch_count, microbatch_size, data_seed, step);
    stage->begin_step({.step = step, .kind = StepKind::training, .batch = &batch});
    const auto program = draw_program(random, props.bounds.splits_backward);
    for (const auto& [pass, m] : program) {
      if (pass != Pass::forward && random.below(2) == 0) stage->fetch(MicrobatchIndex{m});
      stage->enqueue({.stage = {}, .pass = pass, .microbatch = MicrobatchIndex{m}}, done);
      if (random.below(4) == 0) stream->synchronize();
    }
    stage->measure_gradients(done);
    stage->optimize({.update = step, .learning_rate = 0.01F}, done);
    end_step();
    const auto squares = stage->gradient_squares();
    result.squares.insert(result.squares.end(), squares.begin(), squares.end());
    EXPECT_EQ(std::exchange(done_count, 0), static_cast<int>(program.size()) + 2);
    stage->begin_step({.step = step, .kind = StepKind::evaluation, .batch = &batch});
    for (std::uint32_t m = 0; m < microbatch_count; ++m) {
      stage->enqueue({.stage = {}, .pass = Pass::forward, .microbatch = MicrobatchIndex{m}}, done);
    }
    end_step();
    EXPECT_EQ(std::exchange(done_count, 0), static_cast<int>(microbatch_count));
  }
  for (std::size_t i = 0; i < stage->parameters().size(); ++i) {
    auto& values = result.weights.emplace_back(stage->parameters()[i].values.size());
    stage->read_parameter(i, values);
  }
  return result;
}

struct Mode {
  Family family;
  bool splits;
  Recompute recompute;
};

std::vector<Mode> modes() {
  std::vector<Mode> list;
  for (const auto family : {Family::gpt2, Family::llama, Family::bert}) {
    for (const bool splits : {false, true}) {
      for (const auto recompute : {Recompute::none, Recompute::selective, Recompute::full}) {
        list.push_back({family, splits, recompute});
      }
    }
  }
  return list;
}

TEST(OffloadedSlots, LeaveNoTraceInWhateverOrderCopiesAndPassesRun) {
  for (const auto& [family, splits, recompute] : modes()) {
    InlineDevice plain;
    const auto expected = train(plain, props_of(family, splits, recompute, false), 0);
    for (std::uint64_t seed = 1; seed <= 12; ++seed) {
      SCOPED_TRACE(testing::Message()
                   << "family " << static_cast<int>(family) << (splits ? ", split" : ", whole")
                   << ", recompute " << static_cast<int>(recompute) << ", seed " << seed);
      SeededDevice device{seed};
      EXPECT_TRUE(train(device, props_of(family, splits, recompute, true), seed) == expected);
    }
  }
}

TEST(OffloadedSlots, LeaveNoTraceOnStreamsThatAreThreads) {
  for (const auto& [family, splits, recompute] : modes()) {
    const auto device = make_cpu_device();
    const auto expected = train(*device, props_of(family, splits, recompute, false), 0);
    for (std::uint64_t seed = 1; seed <= 2; ++seed) {
      SCOPED_TRACE(testing::Message()
                   << "family " << static_cast<int>(family) << (splits ? ", split" : ", whole")
                   << ", recompute " << static_cast<int>(recompute) << ", seed " << seed);
      EXPECT_TRUE(train(*device, props_of(family, splits, recompute, true), seed) == expected);
    }
  }
}

/// Counts what is taken of each space.
class CountingDevice final : public InlineDevice {
public:
  CountingDevice() : InlineDevice{std::numeric_limits<std::size_t>::max(), MemorySpace::device} {}
  [[nodiscard]] Expected<BufferView> allocate(std::size_t size_bytes, MemorySpace space) override {
    taken_bytes[space] += size_bytes;
    return InlineDevice::allocate(size_bytes, space);
  }
  std::map<MemorySpace, std::uint64_t> taken_bytes;
};

TEST(OffloadedSlots, TakeWhatTheBudgetAnnouncesOfEachMemoryAndLessOfTheDevices) {
  for (const auto& [family, splits, recompute] : modes()) {
    std::array<std::map<MemorySpace, std::uint64_t>, 2> taken;
    std::uint64_t slot_bytes = 0;
    for (const bool offloads : {false, true}) {
      const auto props = props_of(family, splits, recompute, offloads);
      CountingDevice device;
      InlineStream stream;
      ASSERT_TRUE(make_transformer_stage(device, stream, props));
      std::map<MemorySpace, std::uint64_t> announced;
      for (const auto& item : memory_of(props.shape())) {
        announced[item.for_host ? MemorySpace::host_pinned : MemorySpace::device] += item.bytes;
      }
      EXPECT_EQ(device.taken_bytes, announced);
      taken[offloads ? 1 : 0] = device.taken_bytes;
      slot_bytes = graph_of(props.shape()).slot_bytes;
    }
    EXPECT_EQ(taken[0][MemorySpace::device] - taken[1][MemorySpace::device],
              (microbatch_count - resident_slots) * slot_bytes);
    EXPECT_EQ(taken[1][MemorySpace::host_pinned] - taken[0][MemorySpace::host_pinned],
              microbatch_count * slot_bytes);
  }
}

}  // namespace
}  // namespace troupe::stages
