// Each element of each parameter is updated by one holder, and what lies where agrees with that.

#include "troupe/engine/optimizer_sharding.hpp"

#include <numeric>

#include <gtest/gtest.h>

#include "troupe/engine/model_layout.hpp"

namespace troupe {
namespace {

StageShape shape_of(Family family, bool tied, bool has_embedding, bool has_head) {
  return {.model = {.family = family,
                    .layers = 4,
                    .heads = 2,
                    .hidden = 12,
                    .sequence = 3,
                    .vocabulary = 5,
                    .tie_embeddings = tied},
          .spec = {.layer_begin = 1,
                   .layer_end = 3,
                   .has_embedding = has_embedding,
                   .has_head = has_head},
          .bounds = {}};
}

template <class Body>
void for_each_shape(Body body) {
  for (const auto family : {Family::gpt2, Family::llama, Family::bert}) {
    for (const bool tied : {false, true}) {
      for (const bool has_embedding : {false, true}) {
        for (const bool has_head : {false, true}) {
          SCOPED_TRACE(testing::Message()
                       << family_names[static_cast<std::size_t>(family)] << " tied=" << tied
                       << " embedding=" << has_embedding << " head=" << has_head);
          body(shape_of(family, tied, has_embedding, has_head));
        }
      }
    }
  }
}

TEST(OptimizerSharding, EveryElementHasOneHolderThatUpdatesIt) {
  for_each_shape([](const StageShape& shape) {
    const auto graph = graph_of(shape);
    for (std::uint32_t count = 1; count <= 4; ++count) {
      std::vector<std::uint64_t> next(graph.parameters.size());
      for (std::uint32_t index = 0; index < count; ++index) {
        const auto ranges = updated_by(graph, {index, count}, OptimizerSharding::zero1);
        for (std::size_t i = 0; i < ranges.size(); ++i) {
          if (ranges[i].size() == 0) continue;
          EXPECT_EQ(ranges[i].begin, next[i]) << graph.parameters[i].name;
          next[i] = ranges[i].end;
        }
      }
      for (std::size_t i = 0; i < next.size(); ++i) {
        EXPECT_EQ(next[i], graph.parameters[i].element_count()) << graph.parameters[i].name;
      }
    }
  });
}

TEST(OptimizerSharding, WithoutItEverybodyUpdatesEverything) {
  const auto graph = graph_of(shape_of(Family::gpt2, true, true, true));
  const auto ranges = updated_by(graph, {1, 2}, OptimizerSharding::none);
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    EXPECT_EQ(ranges[i], (ElementRange{0, graph.parameters[i].element_count()}));
  }
}

TEST(OptimizerSharding, AServerUpdatesEverythingAndItsClientsNothing) {
  const auto graph = graph_of(shape_of(Family::gpt2, true, true, true));
  for (std::uint32_t index = 0; index < 3; ++index) {
    const auto ranges = updated_by(graph, {index, 3, true}, OptimizerSharding::none);
    for (std::size_t i = 0; i < ranges.size(); ++i) {
      EXPECT_EQ(ranges[i], (ElementRange{0, index == 2 ? graph.parameters[i].element_count() : 0}));
    }
  }
}

TEST(OptimizerSharding, ATiedParameterAndWhatIsComputedWithItKeepWholeGradients) {
  for_each_shape([](const StageShape& shape) {
    const auto graph = graph_of(shape);
    const auto in_parts = kept_in_parts(graph, {0, 2}, OptimizerSharding::zero2);
    for (std::size_t b = 0; b < in_parts.size(); ++b) {
      bool is_whole = false;
      for (auto i = graph.buckets[b].begin; i < graph.buckets[b].end; ++i) {
        const auto& name = graph.parameters[i].name;
        is_whole = is_whole
                   || (shape.model.tie_embeddings
                       && (name == "wte.weight" || name == "wpe.weight"
                           || name == "model.embed_tokens.weight"
                           || name == "bert.embeddings.word_embeddings.weight"
                           || name == "bert.embeddings.position_embeddings.weight"
                           || name == "cls.predictions.bias"));
      }
      EXPECT_EQ(in_parts[b], !is_whole) << graph.parameters[graph.buckets[b].begin].name;
    }
    for (const auto sharding : {OptimizerSharding::none, OptimizerSharding::zero1}) {
      for (const bool in_part : kept_in_parts(graph, {0, 2}, sharding)) EXPECT_FALSE(in_part);
    }
    for (const bool in_part : kept_in_parts(graph, {0, 1}, OptimizerSharding::zero2)) {
      EXPECT_FALSE(in_part);
    }
  });
}

TEST(OptimizerSharding, StateIsAsLargeAsTheShareAndGradientsToo) {
  auto shape = shape_of(Family::llama, false, true, true);
  shape.model.hidden = 256;
  const auto bytes = [&](OptimizerSharding sharding, const char* use) {
    shape.sharding = sharding;
    shape.holder = {.index = 0, .count = 4};
    for (const auto& item : memory_of(shape)) {
      if (item.name == use) return static_cast<double>(item.bytes);
    }
    return 0.0;
  };
  const auto whole = bytes(OptimizerSharding::none, "optimizer state");
  EXPECT_NEAR(bytes(OptimizerSharding::zero1, "optimizer state"), whole / 4, whole / 200);
  EXPECT_NEAR(bytes(OptimizerSharding::zero2, "optimizer state"), whole / 4, whole / 200);
  const auto gradients = bytes(OptimizerSharding::none, "gradients");
  EXPECT_EQ(bytes(OptimizerSharding::zero1, "gradients"), gradients);
  // A quarter of all, and two places for a bucket each: here, of the two layers.
  EXPECT_LT(bytes(OptimizerSharding::zero2, "gradients"), 1.25 * gradients);
}

}  // namespace
}  // namespace troupe
