#include "troupe/engine/stage_graph.hpp"

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "custom_layers.hpp"

namespace troupe {
namespace {

constexpr std::array recomputes{Recompute::none, Recompute::selective, Recompute::full};

/// Wide enough for padding and statistics to vanish: one [rows, hidden] is 1 MiB.
const ModelSpec wide{.layers = 8, .heads = 4, .hidden = 1024, .sequence = 256, .vocabulary = 16};
constexpr std::uint64_t unit = 256 * 1024 * sizeof(float);

StageSpec stage_of(std::uint32_t layers, bool has_embedding = false, bool has_head = false) {
  return {.layer_begin = 1,
          .layer_end = 1 + layers,
          .has_embedding = has_embedding,
          .has_head = has_head};
}

/// Small enough to count by hand: 2 layers, 2 heads, 4 wide, 3 tokens, 5 words.
const ModelSpec tiny{.layers = 2, .heads = 2, .hidden = 4, .sequence = 3, .vocabulary = 5};

std::uint64_t slot_units(std::uint32_t layers, const GraphOptions& options) {
  return graph_of(wide, stage_of(layers), options).slot_bytes / unit;
}

std::vector<std::pair<const char*, const std::vector<KernelCall>*>> passes_of(
    const StageGraph& graph) {
  return {{"F", &graph.forward},
          {"B", &graph.backward},
          {"I", &graph.backward_input},
          {"W", &graph.backward_weight}};
}

std::vector<ValueIndex> read_by(const KernelCall& call) {
  std::vector<ValueIndex> values{call.residual, call.dy, call.d_residual, call.x};
  if (call.direction != Direction::forward) {
    values.insert(values.end(), {call.y, call.saved[0], call.saved[1]});
  }
  std::erase(values, no_value);
  return values;
}

std::vector<ValueIndex> written_by(const KernelCall& call) {
  std::vector<ValueIndex> values{call.dx};
  if (call.direction == Direction::forward) {
    values.insert(values.end(), {call.y, call.saved[0], call.saved[1]});
  }
  std::erase(values, no_value);
  return values;
}

/// What is in memory, byte by byte as far as values begin: the value that was written last.
class Contents {
public:
  void write(const StageGraph& graph, ValueIndex value) {
    const auto& of = graph.values[value];
    const auto begin = of.offset_bytes;
    const auto end = begin + padded(of.size_bytes);
    std::erase_if(written_, [&](ValueIndex other) {
      const auto& there = graph.values[other];
      return there.place == of.place && there.offset_bytes < end
             && begin < there.offset_bytes + padded(there.size_bytes);
    });
    written_.insert(value);
  }
  [[nodiscard]] bool holds(ValueIndex value) const { return written_.contains(value); }
  void forget_workspace(const StageGraph& graph) {
    std::erase_if(written_, [&](ValueIndex value) {
      return graph.values[value].place == ValuePlace::workspace;
    });
  }

private:
  std::set<ValueIndex> written_;
};

/// Goes through all passes of a microbatch, and finds in memory whatever a call reads.
void expect_every_value_is_there(const StageGraph& graph) {
  Contents contents;
  for (const auto& [letter, calls] : passes_of(graph)) {
    contents.forget_workspace(graph);
    for (std::size_t i = 0; i < calls->size(); ++i) {
      const auto& call = (*calls)[i];
      for (const auto value : read_by(call)) {
        const auto& of = graph.values[value];
        const bool comes_from_outside =
            of.place == ValuePlace::activation_in || of.place == ValuePlace::gradient_in;
        ASSERT_TRUE(comes_from_outside || contents.holds(value))
            << letter << " call " << i << " reads " << of.name << ", which is not there";
        ASSERT_TRUE(call.direction == Direction::forward || of.place != ValuePlace::activation_out)
            << "may have left";
      }
      for (const auto value : written_by(call)) {
        const auto& of = graph.values[value];
        ASSERT_LE(of.offset_bytes + of.size_bytes, of.place == ValuePlace::slot ? graph.slot_bytes
                                                   : of.place == ValuePlace::workspace
                                                       ? graph.workspace_bytes
                                                       : of.size_bytes);
        ASSERT_EQ(of.offset_bytes % tensor_alignment_bytes, 0U);
        contents.write(graph, value);
      }
    }
  }
}

TEST(StageGraph, FindsInMemoryWhateverItReads) {
  const std::vector<ModelSpec> kinds{
      {.family = Family::gpt2},
      {.family = Family::llama},
      {.family = Family::bert},
      {.family = Family::custom, .custom_layer = parallel_block()},
      {.family = Family::custom, .custom_layer = tangle()},
  };
  ModelSpec model{.layers = 9, .heads = 2, .hidden = 24, .sequence = 8, .vocabulary = 50};
  for (std::uint32_t layers = 1; layers <= 4; ++layers) {
    for (const auto recompute : recomputes) {
      for (const bool splits : {false, true}) {
        for (const auto& spec : {stage_of(layers), stage_of(layers, true),
                                 stage_of(layers, false, true), stage_of(layers, true, true)}) {
          SCOPED_TRACE(std::to_string(layers) + " layers, recompute "
                       + std::to_string(static_cast<int>(recompute))
                       + (splits ? ", split" : ", whole"));
          for (const auto& kind : kinds) {
            model.family = kind.family;
            model.custom_layer = kind.custom_layer;
            for (const auto& shard :
                 {Shard{}, Shard{0, 2}, Shard{1, 2}, Shard{0, 2, true}, Shard{1, 2, true}}) {
              for (const double dropout : {0.0, 0.1}) {
                model.dropout = dropout;
                expect_every_value_is_there(graph_of(model, spec,
                                                     {.microbatch_size = 2,
                                                      .splits_backward = splits,
                                                      .recompute = recompute,
                                                      .shard = shard}));
              }
            }
          }
        }
      }
    }
  }
}

void expect_no_overlap(const StageGraph& graph) {
  for (const auto& [letter, calls] : passes_of(graph)) {
    for (const auto& call : *calls) {
      auto values = read_by(call);
      const auto written = written_by(call);
      values.insert(values.end(), written.begin(), written.end());
      const std::set<ValueIndex> once(values.begin(), values.end());
      for (const auto a : once) {
        for (const auto b : once) {
          const auto& first = graph.values[a];
          const auto& second = graph.values[b];
          if (a == b || first.place != second.place) continue;
          EXPECT_TRUE(first.offset_bytes + first.size_bytes <= second.offset_bytes
                      || second.offset_bytes + second.size_bytes <= first.offset_bytes)
              << letter << ": " << first.name << " and " << second.name;
        }
      }
    }
  }
}

TEST(StageGraph, OverlapsNoTwoValuesOfOneCall) {
  auto model = wide;
  expect_no_overlap(graph_of(model, stage_of(3, true, true), {.recompute = Recompute::full}));
  model.family = Family::custom;
  model.custom_layer = tangle();
  for (const auto recompute : recomputes) {
    expect_no_overlap(graph_of(model, stage_of(3), {.recompute = recompute}));
  }
}

TEST(StageGraph, KeepsSixteenHiddenPerLayerAndTokenAndTwentyIfItSplits) {
  EXPECT_EQ(slot_units(5, {}) - slot_units(4, {}), 16U);
  const GraphOptions splits{.splits_backward = true};
  EXPECT_EQ(slot_units(5, splits) - slot_units(4, splits), 20U);
  EXPECT_EQ(slot_units(1, splits) - slot_units(1, {}), 3U + 4U);
}

TEST(StageGraph, KeepsNineHiddenPerLayerIfItRecomputesSelectivelyAndOneIfFully) {
  const GraphOptions selective{.recompute = Recompute::selective};
  EXPECT_EQ(slot_units(5, selective) - slot_units(4, selective), 9U);
  const GraphOptions full{.recompute = Recompute::full};
  EXPECT_EQ(slot_units(5, full) - slot_units(4, full), 1U);
  EXPECT_EQ(graph_of(wide, stage_of(1), full).slot_bytes, 0U) << "its input is an edge buffer";
}

TEST(StageGraph, KeepsAFourthOfEverythingIfFourShardsDivideRows) {
  const GraphOptions divided{.shard = {1, 4, true}};
  EXPECT_EQ(slot_units(5, divided) - slot_units(4, divided), 16U / 4);
}

std::size_t dropouts_of(const StageGraph& graph) {
  return static_cast<std::size_t>(std::ranges::count_if(graph.operations, [](const auto& of) {
    return of.kind == OperationKind::dropout || of.dropout > 0.0;
  }));
}

TEST(StageGraph, DropsWhereTheFamilyIsPublishedToAndOnlyIfItTrains) {
  ModelSpec model = wide;
  model.classes = 2;
  for (const auto family : {Family::gpt2, Family::llama, Family::bert}) {
    model.family = family;
    for (const auto task : {Task::masked, Task::classification}) {
      if (task == Task::classification && family != Family::bert) continue;
      model.task = task;
      model.tie_embeddings = task == Task::masked;
      const auto whole = stage_of(2, true, true);
      EXPECT_EQ(dropouts_of(graph_of(model, whole, {})), 0U);
      auto dropping = model;
      dropping.dropout = 0.1;
      // What is embedded, two of each layer, and what classes are told from.
      EXPECT_EQ(dropouts_of(graph_of(dropping, whole, {})),
                1U + 2 * 2 + (model.classifies() ? 1 : 0));
      EXPECT_EQ(dropouts_of(graph_of(dropping, whole, {.trains = false})), 0U);
      dropping = model;
      dropping.attention_dropout = 0.1;
      EXPECT_EQ(dropouts_of(graph_of(dropping, whole, {})), 2U);
      EXPECT_EQ(dropouts_of(graph_of(dropping, whole, {.trains = false})), 0U);
    }
  }
}

TEST(StageGraph, NumbersItsDropoutsHoweverTheModelIsCut) {
  ModelSpec model = wide;
  model.dropout = 0.1;
  model.attention_dropout = 0.1;
  const auto sites_of = [&](const StageSpec& stage) {
    std::vector<std::uint32_t> sites;
    for (const auto& of : graph_of(model, stage, GraphOptions{}).operations) {
      if (of.dropout > 0.0) sites.push_back(of.site);
    }
    return sites;
  };
  const auto whole =
      sites_of({.layer_begin = 0, .layer_end = 8, .has_embedding = true, .has_head = true});
  EXPECT_EQ(std::set(whole.begin(), whole.end()).size(), 1U + 8 * 3);
  auto joined = sites_of({.layer_begin = 0, .layer_end = 3, .has_embedding = true});
  for (const auto site : sites_of({.layer_begin = 3, .layer_end = 8, .has_head = true})) {
    joined.push_back(site);
  }
  EXPECT_EQ(joined, whole);
  model.attention_dropout = 0.0;
  const auto fewer = sites_of({.layer_begin = 3, .layer_end = 4});
  EXPECT_EQ(fewer, (std::vector<std::uint32_t>{whole[11], whole[12]})) << "the others keep theirs";
}

/// Masks are computed anew, and what was kept of a product is kept of what is left of it.
TEST(StageGraph, KeepsNoMoreOfALayerIfItDrops) {
  auto dropping = wide;
  dropping.dropout = 0.1;
  dropping.attention_dropout = 0.1;
  for (const auto family : {Family::gpt2, Family::llama, Family::bert}) {
    auto plain = wide;
    plain.family = dropping.family = family;
    for (const auto recompute : recomputes) {
      const GraphOptions options{.recompute = recompute};
      EXPECT_EQ(graph_of(dropping, stage_of(3), options).slot_bytes,
                graph_of(plain, stage_of(3), options).slot_bytes);
    }
    // Of the last product of a stage it keeps the gradient, which else is the one in the edge
    // buffer.
    const GraphOptions splits{.splits_backward = true};
    EXPECT_LE(graph_of(dropping, stage_of(3), splits).slot_bytes,
              graph_of(plain, stage_of(3), splits).slot_bytes + unit);
  }
}

TEST(StageGraph, RepeatsWhatItDoesNotKeepOnce) {
  const auto repeated = [](const StageGraph& graph) {
    std::map<OperationKind, std::uint32_t> counts;
    for (const auto& call : graph.backward) {
      if (call.direction == Direction::forward) ++counts[graph.operations[call.operation].kind];
    }
    return counts;
  };
  using Counts = std::map<OperationKind, std::uint32_t>;
  const auto graph_with = [](Recompute recompute) {
    return graph_of(wide, stage_of(3, true, true), {.recompute = recompute});
  };
  EXPECT_EQ(repeated(graph_with(Recompute::none)), Counts{});
  EXPECT_EQ(repeated(graph_with(Recompute::selective)), (Counts{{OperationKind::layer_norm, 6},
                                                                {OperationKind::attention, 3},
                                                                {OperationKind::gelu, 3}}));
  // All but the last product of each layer, whose result nobody needs again.
  EXPECT_EQ(repeated(graph_with(Recompute::full)), (Counts{{OperationKind::layer_norm, 6},
                                                           {OperationKind::attention, 3},
                                                           {OperationKind::gelu, 3},
                                                           {OperationKind::linear, 9}}));
}

/// Collectives of one shard must be those of all, in the same order.
TEST(StageGraph, CallsTheOtherShardsAsOftenOnEach) {
  const auto collectives_of = [](const StageGraph& graph) {
    std::vector<std::tuple<std::string, OperationKind, std::uint64_t>> list;
    for (const auto& [letter, calls] : passes_of(graph)) {
      for (const auto& call : *calls) {
        const auto kind = graph.operations[call.operation].kind;
        if (kind != OperationKind::sum_shards && kind != OperationKind::gather_shards
            && kind != OperationKind::share) {
          continue;
        }
        const auto value = call.direction == Direction::forward ? call.y : call.dx;
        list.emplace_back(letter, kind, graph.values[value].size_bytes);
      }
    }
    return list;
  };
  for (const auto family : {Family::gpt2, Family::llama, Family::bert}) {
    auto model = wide;
    model.family = family;
    model.vocabulary = 17;
    for (const auto recompute : recomputes) {
      for (const bool splits : {false, true}) {
        const auto of_shard = [&](std::uint32_t index) {
          return collectives_of(
              graph_of(model, stage_of(2, true, true),
                       {.splits_backward = splits, .recompute = recompute, .shard = {index, 4}}));
        };
        // Two sums a layer each way, one more for the embedding, for the head's input and for what
        // is recomputed in full: the sum after attention, and what the last norm of a BERT's layer
        // reads.
        const std::size_t sums = family == Family::bert ? 4 : 2;
        const std::size_t recomputed = recompute == Recompute::full ? sums : 0;
        EXPECT_EQ(of_shard(0).size(), 4 + 4 + 1 + 1 + 1 + recomputed);
        for (const auto index : {1U, 2U, 3U}) EXPECT_EQ(of_shard(index), of_shard(0));
      }
    }
  }
}

TEST(StageGraph, SharesParametersOutSoThatEveryElementIsHeldOnceOrByAll) {
  for (const auto family : {Family::gpt2, Family::llama, Family::bert}) {
    ModelSpec model{.family = family,
                    .layers = 2,
                    .heads = 6,
                    .hidden = 12,
                    .sequence = 3,
                    .vocabulary = 7,
                    .tie_embeddings = false,
                    .kv_heads = family == Family::llama ? 3U : 0U,
                    .feed_forward = 9};
    const StageSpec spec{.layer_begin = 0, .layer_end = 2, .has_embedding = true, .has_head = true};
    const auto whole = graph_of(model, spec, GraphOptions{}).parameters;
    std::vector<std::vector<std::uint32_t>> holders(whole.size());
    for (std::size_t i = 0; i < whole.size(); ++i) holders[i].resize(whole[i].element_count());
    for (std::uint32_t index = 0; index < 3; ++index) {
      const auto parts = graph_of(model, spec, {.shard = {index, 3}}).parameters;
      ASSERT_EQ(parts.size(), whole.size());
      for (std::size_t i = 0; i < whole.size(); ++i) {
        EXPECT_EQ(parts[i].name, whole[i].name);
        EXPECT_EQ(parts[i].whole_shape(), whole[i].shape);
        std::uint64_t next = 0;
        for (const auto& run : runs_of(parts[i])) {
          EXPECT_EQ(run.in_part, next);
          next += run.count;
          for (std::uint64_t k = 0; k < run.count; ++k) ++holders[i].at(run.in_whole + k);
        }
        EXPECT_EQ(next, parts[i].element_count());
      }
    }
    for (std::size_t i = 0; i < whole.size(); ++i) {
      const bool is_by_all = !graph_of(model, spec, {.shard = {0, 3}}).parameters[i].slice;
      for (const auto count : holders[i]) EXPECT_EQ(count, is_by_all ? 3U : 1U) << whole[i].name;
    }
  }
}

/// Between layers the gradient of a BERT's x comes through the product and past it. Where shards
/// share the product's, one of them adds the other.
TEST(StageGraph, AddsTheGradientThatBypassesAProductOnce) {
  auto model = wide;
  model.family = Family::bert;
  for (const std::uint32_t index : {0U, 1U}) {
    for (const std::uint32_t count : {1U, 2U}) {
      if (index >= count) continue;
      const auto graph = graph_of(model, stage_of(2), {.shard = {index, count}});
      std::size_t added = 0;
      for (const auto& call : graph.backward) added += call.d_residual != no_value ? 1 : 0;
      EXPECT_EQ(added, index == 0 ? 4U : 0U);
    }
  }
}

TEST(StageGraph, ClassifiesTheFirstTokenOfEachSequence) {
  auto model = wide;
  model.family = Family::bert;
  model.task = Task::classification;
  model.classes = 3;
  model.tie_embeddings = false;
  const auto graph = graph_of(model, stage_of(1, false, true), {.microbatch_size = 2});
  const auto& loss = graph.operations.back();
  EXPECT_EQ(loss.kind, OperationKind::cross_entropy);
  EXPECT_EQ(loss.in, 3U);
  EXPECT_EQ(loss.rows, 2U);
  EXPECT_EQ(graph.values[loss.x].size_bytes, 2 * 3 * sizeof(float));
  expect_every_value_is_there(graph);
  // Pooler and classifier are what it has besides the layer: next to nothing.
  const StageSpec middle = stage_of(1);
  const auto flops = flops_of(model, stage_of(1, false, true), 2);
  const auto of_layer = flops_of(model, middle, 2);
  EXPECT_EQ(flops.forward - of_layer.forward, 2.0 * 2 * (1024 * 1024 + 1024 * 3));
}

TEST(StageGraph, KeepsNothingIfItDoesNotTrain) {
  const auto graph = graph_of(wide, stage_of(5, true, true), {.trains = false});
  EXPECT_EQ(graph.slot_bytes, 0U);
  EXPECT_TRUE(graph.backward.empty() && graph.buckets.empty());
  const auto shorter = graph_of(wide, stage_of(2, true, true), {.trains = false});
  EXPECT_EQ(graph.workspace_bytes, shorter.workspace_bytes);
}

TEST(StageGraph, FillsBucketsWithTheGradientsOfWholeLayers) {
  auto model = wide;
  for (const bool tie : {true, false}) {
    model.tie_embeddings = tie;
    for (const bool splits : {false, true}) {
      const auto graph = graph_of(
          model, {.layer_begin = 0, .layer_end = 2, .has_embedding = true, .has_head = true},
          {.splits_backward = splits});
      // Two of the embedding, twelve of each layer, the final norm's two and, untied, the head.
      using Buckets = std::vector<Bucket>;
      EXPECT_EQ(graph.buckets, tie ? (Buckets{{14, 28}, {2, 14}, {1, 2}, {0, 1}})
                                   : (Buckets{{26, 29}, {14, 26}, {2, 14}, {0, 2}}));
      const auto& calls = splits ? graph.backward_weight : graph.backward;
      const auto completed = std::ranges::count_if(calls, &KernelCall::completes_bucket);
      // The tied one is complete when both halves are.
      EXPECT_EQ(static_cast<std::size_t>(completed), graph.buckets.size() - (tie ? 1U : 0U));
    }
  }
}

/// What it multiplies by besides the tied weight is not small.
TEST(StageGraph, GivesTheHeadOfABertABucketOfItsOwn) {
  auto model = wide;
  model.family = Family::bert;
  const StageSpec spec{.layer_begin = 0, .layer_end = 2, .has_embedding = true, .has_head = true};
  for (const bool splits : {false, true}) {
    const auto graph = graph_of(model, spec, {.splits_backward = splits});
    EXPECT_EQ(graph.buckets, (std::vector<Bucket>{{37, 42}, {21, 37}, {5, 21}, {1, 5}, {0, 1}}));
    const auto& calls = splits ? graph.backward_weight : graph.backward;
    EXPECT_EQ(std::ranges::count_if(calls, &KernelCall::completes_bucket), 4);
  }
}

/// A tied Llama's embedding has no parameter besides the tied one.
TEST(StageGraph, HasNoEmptyBucket) {
  auto model = wide;
  model.family = Family::llama;
  const StageSpec spec{.layer_begin = 0, .layer_end = 2, .has_embedding = true, .has_head = true};
  for (const bool splits : {false, true}) {
    const auto graph = graph_of(model, spec, {.splits_backward = splits});
    EXPECT_EQ(graph.buckets, (std::vector<Bucket>{{10, 20}, {1, 10}, {0, 1}}));
    const auto& calls = splits ? graph.backward_weight : graph.backward;
    EXPECT_EQ(std::ranges::count_if(calls, &KernelCall::completes_bucket), 2);
  }
}

TEST(Flops, OfTheMeasuredModelAreWhatThePublishedFormulaGives) {
  // 6 layers, 384 wide, 256 tokens, 256 words: 6 N + 12 L T C = 71.4 MFLOP per token.
  const ModelSpec model;
  const StageSpec stage{.layer_begin = 0, .layer_end = 6, .has_embedding = true, .has_head = true};
  const auto flops = flops_of(model, stage, 8);
  const double matrices = 6 * 12.0 * 384 * 384 + 256.0 * 384;
  const double per_token = 6.0 * matrices + 12.0 * 6 * 256 * 384;
  EXPECT_DOUBLE_EQ(flops.forward + flops.backward_input + flops.backward_weight,
                   per_token * 8 * 256);
  EXPECT_NEAR(per_token, 71.4e6, 0.05e6);
}

TEST(Flops, OfAnAttentionAreInTheForwardAndTheInputPass) {
  // One token of context 3, 4 wide: matrices 2 * 12 * 16 = 384, attention 4 * 3 * 4 = 48 per token.
  const auto flops = flops_of(tiny, {.layer_begin = 0, .layer_end = 1}, 2);
  EXPECT_EQ(flops.forward, 6.0 * (384 + 48));
  EXPECT_EQ(flops.backward_input, 6.0 * (384 + 96));
  EXPECT_EQ(flops.backward_weight, 6.0 * 384);
}

}  // namespace
}  // namespace troupe
