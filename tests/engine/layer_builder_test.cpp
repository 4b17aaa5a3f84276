#include "troupe/engine/layer_builder.hpp"

#include <string>

#include <gtest/gtest.h>

#include "troupe/engine/config.hpp"
#include "troupe/engine/plan.hpp"
#include "troupe/engine/profile.hpp"

#include "custom_layers.hpp"

namespace troupe {
namespace {

Config config_with(std::shared_ptr<const CustomLayer> layer) {
  Config config;
  config.model = {.family = Family::custom,
                  .layers = 4,
                  .heads = 4,
                  .hidden = 16,
                  .sequence = 8,
                  .vocabulary = 256,
                  .feed_forward = 24,
                  .custom_layer = std::move(layer)};
  return config;
}

/// What `validate` says of a layer, without its name.
template <class Build>
std::string refusal_of(Build build, std::uint32_t shard_count = 1) {
  auto config = config_with(
      std::make_shared<CustomLayer>(CustomLayer{.name = "tried", .build = std::move(build)}));
  config.parallel.tensor = shard_count;
  const auto valid = validate(config);
  if (valid) return "accepted";
  const std::string begin = "the layer \"tried\": ";
  const auto& sentence = valid.error().context;
  EXPECT_EQ(valid.error().code, Errc::invalid_config);
  return sentence.starts_with(begin) ? sentence.substr(begin.size()) : sentence;
}

using Builder = LayerBuilder&;
using In = ValueIndex;

TEST(LayerBuilder, TakesEveryLayerThatCanBeTrained) {
  for (const auto& layer : {parallel_block(), tangle()}) {
    auto config = config_with(layer);
    for (const std::uint32_t shards : {1U, 2U, 4U}) {
      config.parallel.tensor = shards;
      const auto valid = validate(config);
      EXPECT_TRUE(valid) << valid.error().context;
    }
  }
  EXPECT_EQ(refusal_of([](Builder layer, In x) { return layer.layer_norm("ln", x); }), "accepted");
}

TEST(LayerBuilder, TellsWholeValuesFromDividedOnes) {
  EXPECT_EQ(refusal_of([](Builder layer, In x) {
              return layer.layer_norm("ln", layer.column_product("up", x, 8));
            }),
            "\"ln\" needs whole rows, but shards divide the columns of \"up\"; a row_product leads "
            "back to whole ones");
  EXPECT_EQ(refusal_of([](Builder layer, In x) { return layer.row_product("down", x); }),
            "\"down\" takes what shards divide by columns, but all have what comes in; a "
            "column_product leads there");
  EXPECT_EQ(refusal_of([](Builder layer, In x) {
              return layer.add("sum", x, layer.column_product("up", x, 16));
            }),
            "\"sum\" adds what comes in and \"up\", which have not the same columns");
  EXPECT_EQ(refusal_of([](Builder layer, In x) {
              return layer.custom("act", layer.column_product("up", x, 8), centre_operation);
            }),
            "\"act\", the operation \"centre\" needs whole rows, but shards divide the columns of "
            "\"up\"; apply it to a whole value, or set is_by_column if it treats each alone");
  EXPECT_EQ(refusal_of([](Builder layer, In x) { return layer.column_product("up", x, 16); }),
            "it returns \"up\", which is divided between the shards; the next layer takes whole "
            "rows, model.hidden = 16 wide");
}

TEST(LayerBuilder, CountsColumnsAndParts) {
  EXPECT_EQ(refusal_of([](Builder layer, In x) { return layer.whole_product("small", x, 8); }),
            "it returns \"small\", which is 8 wide; the next layer takes whole rows, model.hidden "
            "= 16 wide");
  EXPECT_EQ(refusal_of([](Builder layer, In x) {
              return layer.row_product("down", layer.column_product("up", x, 8),
                                       layer.whole_product("small", x, 8));
            }),
            "\"down\" adds \"small\", which is 8 wide, to model.hidden = 16 columns");
  EXPECT_EQ(refusal_of([](Builder layer, In x) {
              return layer.attention("attn", layer.column_product("qkv", x, 48));
            }),
            "\"attn\" takes queries, keys and values side by side, three parts 16, 16 and 16 wide, "
            "which \"qkv\" does not have");
  EXPECT_EQ(refusal_of([](Builder layer, In x) {
              return layer.swiglu("act", layer.column_product("up", x, 8, {}, 3));
            }),
            "\"act\" takes 2 parts of one width, side by side, but \"up\" consists of 3, 24 wide");
  EXPECT_EQ(refusal_of([](Builder layer, In x) {
              return layer.row_product("down", layer.column_product("up", x, 8, {}, 2));
            }),
            "\"down\" takes 1 part, but \"up\" consists of 2, 16 wide");
  EXPECT_EQ(refusal_of([](Builder layer, In x) { return layer.whole_product("none", x, 0); }),
            "\"none\" is 0 wide, expected 1 to 1048576");
  EXPECT_EQ(refusal_of([](Builder layer, In x) { return layer.column_product("up", x, 8, {}, 0); }),
            "\"up\" makes 0 parts, expected 1 to 131072");
  EXPECT_EQ(
      refusal_of([](Builder layer, In x) { return layer.joined_column_products("qkv", x, {}); }),
      "\"qkv\" joins no products");
  EXPECT_EQ(
      refusal_of([](Builder layer,
                    In x) { return layer.row_product("down", layer.column_product("up", x, 6)); },
                 4),
      "parallel.tensor: 4 shards are too many: the layer \"tried\": 4 shards cannot share "
      "out the 6 columns of \"up\"; the nearest grid that works is data = 2, tensor = 2, "
      "pipeline = 1");
}

TEST(LayerBuilder, FollowsEveryValue) {
  EXPECT_EQ(refusal_of([](Builder, In x) { return x; }),
            "it returns what comes in; a layer does something");
  EXPECT_EQ(refusal_of([](Builder, In) { return no_value; }), "it returns no value of its own");
  EXPECT_EQ(refusal_of([](Builder layer, In x) {
              layer.gelu("lost", x);
              return layer.layer_norm("ln", x);
            }),
            "\"lost\" is made, but nothing reads it; leave it out");
  EXPECT_EQ(refusal_of([](Builder layer, In x) { return layer.gelu("act", x); }),
            "it has no parameters to train");
  EXPECT_EQ(refusal_of([](Builder layer, In) { return layer.gelu("act", 17); }),
            "\"act\" reads a value that this layer has not made");
  EXPECT_EQ(refusal_of([](Builder layer, In x) {
              return layer.layer_norm("ln", layer.layer_norm("ln", x));
            }),
            "two parameters have the name \"ln.weight\"");
  EXPECT_EQ(refusal_of([](Builder layer, In x) {
              const auto qkv = layer.column_product("qkv", x, 16, {}, 3);
              layer.attention("attn", qkv);
              return layer.attention("turned", layer.rotate(qkv));
            }),
            "\"qkv\" has been read before it is rotated; rotate it first");
  EXPECT_EQ(refusal_of([](Builder layer, In x) {
              return layer.gelu("act", layer.rotate(layer.column_product("qkv", x, 16, {}, 3)));
            }),
            "\"act\" reads \"qkv\", which is rotated; attention alone reads that");
  EXPECT_EQ(
      refusal_of([](Builder layer, In x) {
        const auto first = layer.custom("first", x, square_operation);
        auto other = square_operation;
        other.forward_flops = 1.0;
        return layer.custom("second", first, other);
      }),
      "\"second\", the operation \"square\" is not what has this name elsewhere in the layer");
  EXPECT_EQ(refusal_of([](Builder layer, In x) {
              auto operation = square_operation;
              operation.parameters.push_back({"third"});
              return layer.custom("act", x, operation);
            }),
            "\"act\", the operation \"square\" has 3 parameters, expected at most 2");
  EXPECT_EQ(refusal_of([](Builder layer, In x) {
              auto operation = square_operation;
              operation.parameters[0].initial = Initial::normal;
              return layer.custom("act", x, operation);
            }),
            "\"act\", the operation \"square\" has the parameter \"gain\", whose initial values "
            "must be ones or zeros");
  EXPECT_EQ(refusal_of([](Builder layer, In x) {
              auto operation = square_operation;
              operation.parameters[1].name = "weight";
              return layer.custom("ln", layer.layer_norm("ln", x), operation);
            }),
            "two parameters have the name \"ln.weight\"");
  EXPECT_EQ(refusal_of([](Builder layer, In x) {
              auto operation = square_operation;
              operation.backward_flops = -1.0;
              return layer.custom("act", x, operation);
            }),
            "\"act\", the operation \"square\" takes -1.000000 floating-point operations for each "
            "element, expected 0 to 1000000.000000");
  EXPECT_EQ(refusal_of([](Builder layer, In x) {
              auto operation = gate_operation;
              operation.part_count = 0;
              return layer.custom("act", x, operation);
            }),
            "\"act\", the operation \"gate\" takes no parts; expected 1 or more");
}

TEST(LayerBuilder, RotatesPairs) {
  auto config = config_with(parallel_block());
  config.model.heads = 2;
  config.model.hidden = 18;
  EXPECT_EQ(validate(config).error().context,
            "the layer \"parallel-block\": rotary positions turn pairs of elements, but heads are "
            "of size 9, model.hidden over model.heads");
}

TEST(CustomLayer, IsWhatNoFileHolds) {
  EXPECT_EQ(validate(config_with(nullptr)).error().context,
            "model.family: \"custom\" has a layer that a program defines, as examples/custom_layer "
            "does; a file cannot hold one, take \"gpt2\", \"llama\" or \"bert\"");
  auto config = config_with(parallel_block());
  config.model.family = Family::gpt2;
  EXPECT_EQ(
      validate(config).error().context,
      "ModelSpec::custom_layer: set, but a model of model.family = \"gpt2\" has layers of its "
      "own; leave it null, or take Family::custom");
  EXPECT_EQ(validate(config_with(std::make_shared<CustomLayer>(CustomLayer{.name = "empty"})))
                .error()
                .context,
            "the layer \"empty\" has no function that builds it; set CustomLayer::build");
  EXPECT_EQ(
      validate(config_with(std::make_shared<CustomLayer>(CustomLayer{.name = "a\nb"})))
          .error()
          .context,
      "CustomLayer::name: \"a\\u000ab\", expected 1 to 60 characters, none of them a quote or "
      "a control character");
  const auto read = parse_config(to_toml(config_with(tangle())), "run.toml", {});
  ASSERT_TRUE(read) << read.error().context;
  EXPECT_EQ(read->model.family, Family::custom);
  EXPECT_EQ(read->model.custom_layer, nullptr);
}

TEST(CustomLayer, HasAFingerprintThatEveryChangeOfItChanges) {
  const auto of = [](auto build) {
    return fingerprint_of_layer(
        config_with(std::make_shared<CustomLayer>(CustomLayer{.name = "one", .build = build}))
            .model);
  };
  const auto narrow = [](Builder layer, In x) {
    return layer.row_product("down", layer.gelu("act", layer.column_product("up", x, 8)), x);
  };
  EXPECT_EQ(of(narrow), of(narrow));
  EXPECT_TRUE(of(narrow).starts_with("one "));
  EXPECT_NE(of(narrow), of([](Builder layer, In x) {
              return layer.row_product("down", layer.gelu("act", layer.column_product("up", x, 16)),
                                       x);
            }));
  EXPECT_NE(of(narrow), of([](Builder layer, In x) {
              return layer.row_product("down", layer.tanh("act", layer.column_product("up", x, 8)),
                                       x);
            }));
  EXPECT_NE(of(narrow), of([](Builder layer, In x) {
              return layer.row_product("down", layer.gelu("act", layer.column_product("up", x, 8)));
            }));
  EXPECT_NE(of(narrow), of([](Builder layer, In x) {
              return layer.row_product("down", layer.gelu("act", layer.column_product("up", x, 8)),
                                       x, {.deviation = 0.5F});
            }));
  EXPECT_EQ(fingerprint_of_layer(ModelSpec{}), "");
}

/// The 16 wide layer: norm 2 * 16, qkv 16 * 48, out 16 * 16, up 16 * 24, gain and bias 2 * 24, down
/// 24 * 16. Products of 8 tokens, attention's of 8 by 8, and 3 for each of 24 squares.
TEST(CustomLayer, IsPlannedAsOthersAre) {
  auto config = config_with(parallel_block());
  config.parallel.pipeline = 2;
  config.schedule.microbatch_size = 1;
  config.schedule.microbatches = 4;
  const auto plan = make_plan(config);
  ASSERT_TRUE(plan) << plan.error().context;
  const auto flops = flops_of(config.model, {.layer_begin = 1, .layer_end = 2}, 1);
  const double products = 2.0 * 8 * (16 * 48 + 16 * 16 + 2 * 16 * 24);
  EXPECT_EQ(flops.forward, products + 4.0 * 8 * 8 * 16 + 3.0 * 8 * 24);
  EXPECT_EQ(flops.backward_input, products + 8.0 * 8 * 8 * 16 + 5.0 * 8 * 24);
  EXPECT_EQ(flops.backward_weight, products);
  std::uint64_t elements = 0;
  for (const auto& spec : parameters_of(config.model, {.layer_begin = 1, .layer_end = 2})) {
    EXPECT_TRUE(spec.name.starts_with("h.1.")) << spec.name;
    EXPECT_EQ(spec.decays, spec.shape.size() == 2) << spec.name;
    elements += spec.element_count();
  }
  EXPECT_EQ(elements, 2U * 16 + 16 * 48 + 16 * 16 + 16 * 24 + 2 * 24 + 24 * 16);
  EXPECT_EQ(plan->stages.size(), 2U);
  EXPECT_GT(plan->bytes_of(RankIndex{0}), 0U);
}

TEST(CustomLayer, IsNotMeasuredByTheProfileOfAnother) {
  const auto plan = make_plan(config_with(parallel_block())).value();
  Profile profile;
  profile.model = config_with(tangle()).model.resolved();
  EXPECT_EQ(check_fits(profile, plan).error().context,
            "the profile was measured with ModelSpec::custom_layer = tangle, the configuration has "
            "parallel-block; measure one for it with `troupe profile`");
}

/// A layer of the same operations and names has the same graph as the family's.
TEST(CustomLayer, IsMadeAsFamiliesAre) {
  const auto gpt2 = [](Builder layer, In x) {
    const Product columns{.layout = WeightLayout::in_out, .has_bias = true};
    const Product rows{
        .layout = WeightLayout::in_out, .has_bias = true, .deviation = layer.residual_deviation()};
    const auto qkv = layer.column_product("attn.c_attn", layer.layer_norm("ln_1", x),
                                          layer.model().hidden, columns, 3);
    const auto middle = layer.row_product("attn.c_proj", layer.attention("attn", qkv), x, rows);
    const auto wide = layer.column_product("mlp.c_fc", layer.layer_norm("ln_2", middle),
                                           layer.model().feed_forward_width(), columns);
    return layer.row_product("mlp.c_proj", layer.gelu("mlp.act", wide), middle, rows);
  };
  auto own =
      config_with(std::make_shared<CustomLayer>(CustomLayer{.name = "gpt2 again", .build = gpt2}))
          .model;
  own.dropout = 0.1;
  auto family = own;
  family.family = Family::gpt2;
  family.custom_layer = nullptr;
  const StageSpec all{.layer_begin = 0, .layer_end = 4, .has_embedding = true, .has_head = true};
  for (const auto& shard : {Shard{}, Shard{1, 2}, Shard{1, 2, true}}) {
    const GraphOptions options{.recompute = Recompute::selective, .shard = shard};
    const auto graph = graph_of(own, all, options);
    const auto expected = graph_of(family, all, options);
    EXPECT_EQ(graph.slot_bytes, expected.slot_bytes);
    EXPECT_EQ(graph.workspace_bytes, expected.workspace_bytes);
    ASSERT_EQ(graph.parameters.size(), expected.parameters.size());
    for (std::size_t i = 0; i < graph.parameters.size(); ++i) {
      EXPECT_EQ(graph.parameters[i].name, expected.parameters[i].name);
    }
    ASSERT_EQ(graph.operations.size(), expected.operations.size());
    for (std::size_t i = 0; i < graph.operations.size(); ++i) {
      EXPECT_EQ(graph.operations[i].kind, expected.operations[i].kind);
      EXPECT_EQ(graph.operations[i].site, expected.operations[i].site);
    }
    EXPECT_EQ(graph.backward.size(), expected.backward.size());
  }
}

}  // namespace
}  // namespace troupe
