#include "troupe/engine/model_layout.hpp"

#include <algorithm>
#include <set>
#include <utility>

#include <gtest/gtest.h>

namespace troupe {
namespace {

/// Small enough to count by hand: 2 layers, 2 heads, 4 wide, 3 tokens, 5 words.
ModelSpec tiny(bool tie) {
  return {
      .layers = 2, .heads = 2, .hidden = 4, .sequence = 3, .vocabulary = 5, .tie_embeddings = tie};
}

constexpr StageSpec whole{
    .layer_begin = 0, .layer_end = 2, .has_embedding = true, .has_head = true};
constexpr StageSpec first{.layer_begin = 0, .layer_end = 1, .has_embedding = true};
constexpr StageSpec last{.layer_begin = 1, .layer_end = 2, .has_head = true};

std::vector<std::string> names_of(const std::vector<ParameterSpec>& list) {
  std::vector<std::string> names;
  for (const auto& spec : list) names.push_back(spec.name);
  return names;
}

std::uint64_t elements_of(const std::vector<ParameterSpec>& list) {
  std::uint64_t sum = 0;
  for (const auto& spec : list) sum += spec.element_count();
  return sum;
}

TEST(Parameters, HaveTheNamesAndShapesOfHuggingFaceInModelOrder) {
  using Shape = std::vector<std::uint64_t>;
  const std::vector<std::pair<std::string, Shape>> expected{
      {"wte.weight", {5, 4}},
      {"wpe.weight", {3, 4}},
      {"h.0.ln_1.weight", {4}},
      {"h.0.ln_1.bias", {4}},
      {"h.0.attn.c_attn.weight", {4, 12}},
      {"h.0.attn.c_attn.bias", {12}},
      {"h.0.attn.c_proj.weight", {4, 4}},
      {"h.0.attn.c_proj.bias", {4}},
      {"h.0.ln_2.weight", {4}},
      {"h.0.ln_2.bias", {4}},
      {"h.0.mlp.c_fc.weight", {4, 16}},
      {"h.0.mlp.c_fc.bias", {16}},
      {"h.0.mlp.c_proj.weight", {16, 4}},
      {"h.0.mlp.c_proj.bias", {4}},
  };
  const auto list = parameters_of(tiny(true), first);
  ASSERT_EQ(list.size(), expected.size());
  for (std::size_t i = 0; i < list.size(); ++i) {
    EXPECT_EQ(std::pair(list[i].name, list[i].shape), expected[i]);
    EXPECT_TRUE(list[i].owned);
  }
}

TEST(Parameters, OfGpt2SmallCountAsPublished) {
  const ModelSpec gpt2{.layers = 12,
                       .heads = 12,
                       .hidden = 768,
                       .sequence = 1024,
                       .vocabulary = 50257,
                       .tie_embeddings = true};
  EXPECT_EQ(elements_of(parameters_of(gpt2)), 124'439'808U);
}

ModelSpec tiny_bert(bool classifies) {
  auto model = tiny(!classifies);
  model.family = Family::bert;
  if (classifies) model.task = Task::classification;
  if (classifies) model.classes = 3;
  return model;
}

/// Those of queries, keys and values lie in an order that makes one matrix and one vector of them.
TEST(Parameters, OfABertHaveTheNamesAndShapesOfHuggingFace) {
  using Shape = std::vector<std::uint64_t>;
  const std::vector<std::pair<std::string, Shape>> expected{
      {"bert.embeddings.word_embeddings.weight", {5, 4}},
      {"bert.embeddings.position_embeddings.weight", {3, 4}},
      {"bert.embeddings.token_type_embeddings.weight", {2, 4}},
      {"bert.embeddings.LayerNorm.weight", {4}},
      {"bert.embeddings.LayerNorm.bias", {4}},
      {"bert.encoder.layer.0.attention.self.query.weight", {4, 4}},
      {"bert.encoder.layer.0.attention.self.key.weight", {4, 4}},
      {"bert.encoder.layer.0.attention.self.value.weight", {4, 4}},
      {"bert.encoder.layer.0.attention.self.query.bias", {4}},
      {"bert.encoder.layer.0.attention.self.key.bias", {4}},
      {"bert.encoder.layer.0.attention.self.value.bias", {4}},
      {"bert.encoder.layer.0.attention.output.dense.weight", {4, 4}},
      {"bert.encoder.layer.0.attention.output.dense.bias", {4}},
      {"bert.encoder.layer.0.attention.output.LayerNorm.weight", {4}},
      {"bert.encoder.layer.0.attention.output.LayerNorm.bias", {4}},
      {"bert.encoder.layer.0.intermediate.dense.weight", {16, 4}},
      {"bert.encoder.layer.0.intermediate.dense.bias", {16}},
      {"bert.encoder.layer.0.output.dense.weight", {4, 16}},
      {"bert.encoder.layer.0.output.dense.bias", {4}},
      {"bert.encoder.layer.0.output.LayerNorm.weight", {4}},
      {"bert.encoder.layer.0.output.LayerNorm.bias", {4}},
  };
  const auto list = parameters_of(tiny_bert(false), first);
  ASSERT_EQ(list.size(), expected.size());
  for (std::size_t i = 0; i < list.size(); ++i) {
    EXPECT_EQ(std::pair(list[i].name, list[i].shape), expected[i]);
  }
  const auto tail_of = [](const ModelSpec& model, std::size_t count) {
    const auto names = names_of(parameters_of(model, last));
    return std::vector<std::string>(names.end() - static_cast<std::ptrdiff_t>(count), names.end());
  };
  EXPECT_EQ(
      tail_of(tiny_bert(false), 6),
      (std::vector<std::string>{
          "cls.predictions.transform.dense.weight", "cls.predictions.transform.dense.bias",
          "cls.predictions.transform.LayerNorm.weight", "cls.predictions.transform.LayerNorm.bias",
          "cls.predictions.bias", "bert.embeddings.word_embeddings.weight"}));
  EXPECT_EQ(tail_of(tiny_bert(true), 4),
            (std::vector<std::string>{"bert.pooler.dense.weight", "bert.pooler.dense.bias",
                                      "classifier.weight", "classifier.bias"}));
  auto untied = tiny_bert(false);
  untied.tie_embeddings = false;
  EXPECT_EQ(tail_of(untied, 1).front(), "cls.predictions.decoder.weight");
}

/// BertForMaskedLM and, with two classes, BertForSequenceClassification.
TEST(Parameters, OfBertBaseCountAsPublished) {
  ModelSpec bert{.family = Family::bert,
                 .layers = 12,
                 .heads = 12,
                 .hidden = 768,
                 .sequence = 512,
                 .vocabulary = 30522};
  EXPECT_EQ(elements_of(parameters_of(bert)), 109'514'298U);
  bert.tie_embeddings = false;
  bert.task = Task::classification;
  bert.classes = 2;
  EXPECT_EQ(elements_of(parameters_of(bert)), 109'483'778U);
}

/// Six sequences of three tokens.
TEST(Memory, OfABatchIsWhatEachStageOfABertNeeds) {
  const auto tokens_of = [](const ModelSpec& model, const StageSpec& stage) {
    for (const auto& item : memory_of({.model = model,
                            .spec = stage,
                            .bounds = {},
                            .microbatch_count = 3,
                            .microbatch_size = 2})) {
      if (item.name == "tokens") return item.bytes;
    }
    return std::uint64_t{0};
  };
  const StageSpec middle{.layer_begin = 0, .layer_end = 1};
  const auto by_token = padded(6 * 3 * sizeof(std::int32_t));
  const auto by_sequence = padded(6 * sizeof(std::int32_t));
  EXPECT_EQ(tokens_of(tiny(true), middle), 0U);
  for (const bool classifies : {false, true}) {
    const auto model = tiny_bert(classifies);
    EXPECT_EQ(tokens_of(model, first), 2 * by_token + by_sequence);
    EXPECT_EQ(tokens_of(model, middle), by_sequence);
    EXPECT_EQ(tokens_of(model, last), by_sequence + (classifies ? by_sequence : by_token));
  }
}

TEST(Parameters, OfAllStagesAreThoseOfTheModelEachOwnedOnce) {
  for (const bool tie : {true, false}) {
    std::vector<std::string> owned;
    for (const auto& stage : {first, last}) {
      for (const auto& spec : parameters_of(tiny(tie), stage)) {
        if (spec.owned) owned.push_back(spec.name);
      }
    }
    EXPECT_EQ(owned, names_of(parameters_of(tiny(tie))));
  }
}

TEST(Parameters, EndWithTheHead) {
  const auto tied = parameters_of(tiny(true), last);
  EXPECT_EQ(tied.back().name, "wte.weight");
  EXPECT_FALSE(tied.back().owned);
  const auto untied = parameters_of(tiny(false), last);
  EXPECT_EQ(untied.back().name, "lm_head.weight");
  EXPECT_EQ(untied.back().shape, (std::vector<std::uint64_t>{5, 4}));
  EXPECT_TRUE(untied.back().owned);
  EXPECT_EQ(parameters_of(tiny(true)).back().name, "ln_f.bias");
}

TEST(Parameters, StartAsGpt2Does) {
  for (const auto& spec : parameters_of(tiny(false))) {
    const bool is_matrix = spec.shape.size() == 2;
    const bool is_gain = !is_matrix && spec.name.ends_with(".weight");
    EXPECT_EQ(spec.decays, is_matrix) << spec.name;
    EXPECT_EQ(spec.initial, is_matrix ? Initial::normal
                            : is_gain ? Initial::ones
                                      : Initial::zeros)
        << spec.name;
    // 0.02 / sqrt(2 * 2 layers) where a layer adds to the residual.
    if (is_matrix) {
      EXPECT_EQ(spec.deviation, spec.name.ends_with("c_proj.weight") ? 0.01F : 0.02F) << spec.name;
    }
  }
}

TEST(Memory, OfATinyStageIsWhatCountingByHandGives) {
  // Two sequences of three tokens: 6 rows. One [rows, hidden] is 24 floats = 96 bytes, padded 128;
  // three are 288 -> 320, four 384, [rows] is 24 -> 64, [rows, heads] 48 -> 64.
  const StageBounds bounds{.slots = 2, .activations_in = 3, .gradients_out = 1};
  // A layer's parameters: 4 norms and 2 projection biases of 16 bytes -> 64 each, c_attn 192 + 64
  // (48), c_proj 64, c_fc 256 + 64, mlp c_proj 256. The head: 2 norms, wte 80 -> 128.
  constexpr std::uint64_t layer = 6 * 64 + 256 + 64 + 320 + 256;
  constexpr std::uint64_t parameters = layer + 2 * 64 + 128;
  // Saved: norm_1, attended, middle, norm_2 128 each, qkv 320, expanded and activated 384 each,
  // five small 64; head: input and norm 128, mean, rstd 64, logits 6 * 5 floats -> 128. The loss
  // leaves with its pass.
  constexpr std::uint64_t slot = 4 * 128 + 320 + 2 * 384 + 5 * 64 + 2 * 128 + 2 * 64 + 128;
  // The most that lives at once, while attention is differentiated: the gradients of its input and
  // of what it is added to, 128 each, and of qkv, 320; one of 128 stays free between them. 15
  // squares of 8 bytes -> 128.
  constexpr std::uint64_t workspace = 3 * 128 + 320 + 128;
  // Three microbatches of 6 targets of 4 bytes: 72 -> 128. 3 losses and 15 squares, of 8 bytes.
  EXPECT_EQ(memory_of({.model = tiny(true),
                       .spec = last,
                       .bounds = bounds,
                       .microbatch_count = 3,
                       .microbatch_size = 2}),
            (std::vector<MemoryItem>{{"parameters", parameters},
                                     {"gradients", parameters},
                                     {"optimizer state", 2 * parameters},
                                     {"tied gradients", 2 * 128},
                                     {"slots", 2 * slot},
                                     {"edge buffers", 4 * 128},
                                     {"workspace", workspace},
                                     {"tokens", 128},
                                     {"results", 64 + 128, true}}));
}

TEST(Memory, OfAStageThatOffloadsHasAllSlotsInHostMemoryAndTwoOnTheDevice) {
  StageShape shape{.model = tiny(true), .spec = last, .bounds = {.slots = 5}, .microbatch_size = 2};
  const auto plain = memory_of(shape);
  shape.bounds.offloads = true;
  const auto offloading = memory_of(shape);
  const auto slot_bytes = graph_of(shape).slot_bytes;
  auto expected = plain;
  const auto slots = std::ranges::find(expected, "slots", &MemoryItem::name);
  EXPECT_EQ(slots->bytes, 5 * slot_bytes);
  slots->bytes = 2 * slot_bytes;
  const MemoryItem offloaded{"offloaded slots", 5 * slot_bytes, true};
  expected.insert(std::ranges::find(expected, "results", &MemoryItem::name), offloaded);
  EXPECT_EQ(offloading, expected);
}

TEST(Memory, OfAnEvaluatingStageHasOneSetOfActivationsForAllLayers) {
  auto deep = tiny(false);
  deep.layers = 20;
  const StageBounds bounds{.trains = false};
  StageShape shape{.model = deep, .spec = whole, .bounds = bounds, .microbatch_size = 2};
  const auto of_two = memory_of(shape);
  shape.spec.layer_end = 20;
  const auto of_twenty = memory_of(shape);
  ASSERT_EQ(of_two.size(), 4U);
  EXPECT_EQ(of_two[1].name, "workspace");
  EXPECT_EQ(of_two[1], of_twenty[1]);
  EXPECT_LT(of_two[0].bytes, of_twenty[0].bytes);
}

TEST(Memory, NamesEachTensorOnce) {
  const StageBounds bounds{.slots = 2,
                           .activations_in = 2,
                           .activations_out = 1,
                           .gradients_in = 2,
                           .gradients_out = 1,
                           .splits_backward = true};
  for (const auto& stage : {whole, first, last}) {
    std::set<std::pair<std::string, std::string>> names;
    const StageShape shape{
        .model = tiny(true), .spec = stage, .bounds = bounds, .microbatch_size = 2};
    for (const auto& tensor : tensors_of(graph_of(shape), shape)) {
      EXPECT_TRUE(names.emplace(tensor.use, tensor.name).second)
          << tensor.use << ": " << tensor.name;
      EXPECT_GT(tensor.size_bytes, 0U);
    }
  }
}

}  // namespace
}  // namespace troupe
