#include "model_weights.hpp"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <map>
#include <set>
#include <string_view>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "text_generator.hpp"

namespace troupe::cli {

namespace {

constexpr const char* family_key = "troupe.family";
constexpr const char* heads_key = "troupe.heads";
constexpr const char* sequence_key = "troupe.sequence";
constexpr const char* rotary_base_key = "troupe.rotary_base";
constexpr const char* norm_epsilon_key = "troupe.norm_epsilon";
constexpr const char* tokenizer_key = "troupe.tokenizer";
constexpr const char* classes_key = "troupe.classes";
constexpr std::uint64_t size_max = 1U << 24U;

Error invalid(const std::string& path, const std::string& what) {
  return {Errc::invalid_file, path + ": " + what};
}

/// A number that `write_weights` has left beside the tensors; leaves `value` as it is if it has
/// not.
template <class Number>
void read_metadata(const storage::SafetensorsFile& file, const char* key, Number& value) {
  const auto found = file.metadata().find(key);
  if (found == file.metadata().end()) return;
  const auto& text = found->second;
  std::from_chars(text.data(), text.data() + text.size(), value);
}

/// The matrix of that name, if it is one of a size that a model may have.
const storage::TensorView* find_matrix(const storage::SafetensorsFile& file,
                                       const std::string& name) {
  const auto* tensor = file.find(name);
  if (tensor == nullptr || tensor->shape.size() != 2) return nullptr;
  const bool is_sane = std::ranges::all_of(
      tensor->shape, [](std::uint64_t extent) { return extent > 0 && extent <= size_max; });
  return is_sane ? tensor : nullptr;
}

std::uint32_t extent_of(const storage::TensorView& tensor, std::size_t axis) {
  return static_cast<std::uint32_t>(tensor.shape[axis]);
}

/// How many layers there are, by what the name of each begins and ends with.
std::uint32_t count_layers(const storage::SafetensorsFile& file, const char* before,
                           const char* after) {
  std::uint32_t layers = 0;
  while (file.find(fmt::format("{}{}{}", before, layers, after)) != nullptr) ++layers;
  return layers;
}

Expected<std::uint32_t> heads_of(const storage::SafetensorsFile& file, const std::string& path,
                                 std::uint32_t hidden, std::uint32_t heads) {
  if (heads == 0) read_metadata(file, heads_key, heads);
  if (heads > 0 && hidden % heads == 0) return heads;
  return invalid(path, fmt::format("does not say how many attention heads its {} wide layers have; "
                                   "give --heads, a divisor of {}",
                                   hidden, hidden));
}

Expected<ModelSpec> llama_of(const storage::SafetensorsFile& file, const std::string& path,
                             std::uint32_t heads) {
  const auto* tokens = find_matrix(file, "model.embed_tokens.weight");
  const auto* keys = find_matrix(file, "model.layers.0.self_attn.k_proj.weight");
  const auto* gates = find_matrix(file, "model.layers.0.mlp.gate_proj.weight");
  if (tokens == nullptr || keys == nullptr || gates == nullptr) {
    return invalid(
        path,
        "holds no Llama: it needs matrices model.embed_tokens.weight, "
        "model.layers.0.self_attn.k_proj.weight and model.layers.0.mlp.gate_proj.weight");
  }
  ModelSpec model{.family = Family::llama,
                  .layers = count_layers(file, "model.layers.", ".input_layernorm.weight"),
                  .hidden = extent_of(*tokens, 1),
                  .sequence = 512,  // Rotary positions have no table that says it.
                  .vocabulary = extent_of(*tokens, 0),
                  .tie_embeddings = file.find("lm_head.weight") == nullptr,
                  .feed_forward = extent_of(*gates, 0)};
  const auto found = heads_of(file, path, model.hidden, heads);
  if (!found) return found.error();
  model.heads = *found;
  model.kv_heads = std::max(1U, extent_of(*keys, 0) / model.head_size());
  read_metadata(file, sequence_key, model.sequence);
  read_metadata(file, rotary_base_key, model.rotary_base);
  read_metadata(file, norm_epsilon_key, model.norm_epsilon);
  return model;
}

Expected<ModelSpec> bert_of(const storage::SafetensorsFile& file, const std::string& path,
                            std::uint32_t heads) {
  const auto* tokens = find_matrix(file, "bert.embeddings.word_embeddings.weight");
  const auto* positions = find_matrix(file, "bert.embeddings.position_embeddings.weight");
  const auto* wide = find_matrix(file, "bert.encoder.layer.0.intermediate.dense.weight");
  if (tokens == nullptr || positions == nullptr || wide == nullptr) {
    return invalid(path,
                   "holds no BERT: it needs matrices bert.embeddings.word_embeddings.weight, "
                   "bert.embeddings.position_embeddings.weight and "
                   "bert.encoder.layer.0.intermediate.dense.weight");
  }
  const auto found = heads_of(file, path, extent_of(*tokens, 1), heads);
  if (!found) return found.error();
  ModelSpec model{
      .family = Family::bert,
      .layers = count_layers(file, "bert.encoder.layer.", ".attention.self.query.weight"),
      .heads = *found,
      .hidden = extent_of(*tokens, 1),
      .sequence = extent_of(*positions, 0),
      .vocabulary = extent_of(*tokens, 0),
      .tie_embeddings = file.find("cls.predictions.decoder.weight") == nullptr,
      .feed_forward = extent_of(*wide, 0),
      .norm_epsilon = 1e-12};  // Of every BERT but one's own.
  if (const auto* classes = find_matrix(file, "classifier.weight"); classes != nullptr) {
    model.task = Task::classification;
    model.classes = extent_of(*classes, 0);
    model.tie_embeddings = false;
  }
  read_metadata(file, norm_epsilon_key, model.norm_epsilon);
  return model;
}

/// Whether a model of these numbers can be built.
Expected<ModelSpec> check(const ModelSpec& model, const std::string& path) {
  if (model.layers == 0) return invalid(path, "holds no layer: the norms of the first are missing");
  Config config;
  config.model = model;
  config.model.vocabulary = std::max(model.vocabulary, byte_count);
  if (const auto valid = validate(config); !valid) {
    return invalid(path, "holds no model that can run: " + valid.error().context);
  }
  return model;
}

/// What of a name is not UTF-8 is replaced.
std::string to_json(std::span<const std::string> names) {
  using Json = nlohmann::json;
  return Json(std::vector<std::string>(names.begin(), names.end()))
      .dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace

Expected<Done> write_weights(const std::string& path, actors::Trainer& trainer,
                             std::span<const std::string> class_names) {
  std::vector<storage::TensorView> tensors;
  const auto& model = trainer.plan().config.model;
  const auto parameters = parameters_of(model);
  for (const auto& parameter : parameters) {
    tensors.push_back({.name = parameter.name,
                       .dtype = storage::DType::f32,
                       .shape = parameter.shape,
                       .bytes = {}});
  }
  std::vector<float> values;
  const auto read = [&](std::size_t index) -> Expected<std::span<const std::byte>> {
    values.resize(parameters[index].element_count());
    if (auto done = trainer.read_parameter(index, values); !done) return done.error();
    return std::as_bytes(std::span{values});
  };
  std::map<std::string, std::string> metadata{
      {family_key, std::string{family_names[static_cast<std::size_t>(model.family)]}},
      {heads_key, std::to_string(model.heads)},
      {sequence_key, std::to_string(model.sequence)},
      {rotary_base_key, fmt::format("{}", model.rotary_base)},
      {norm_epsilon_key, fmt::format("{}", model.norm_epsilon)},
      {tokenizer_key, "bytes"},
      {"format", "pt"}};
  if (!class_names.empty()) metadata.emplace(classes_key, to_json(class_names));
  return storage::write_safetensors(path, tensors, metadata, read);
}

Expected<ModelSpec> model_of(const storage::SafetensorsFile& file, const std::string& path,
                             std::uint32_t heads) {
  if (file.find("model.embed_tokens.weight") != nullptr) {
    auto model = llama_of(file, path, heads);
    if (!model) return model;
    return check(*model, path);
  }
  if (file.find("bert.embeddings.word_embeddings.weight") != nullptr) {
    auto model = bert_of(file, path, heads);
    if (!model) return model;
    return check(*model, path);
  }
  const auto* tokens = find_matrix(file, "wte.weight");
  const auto* positions = find_matrix(file, "wpe.weight");
  if (tokens == nullptr || positions == nullptr || tokens->shape[1] != positions->shape[1]) {
    return invalid(path,
                   "holds no GPT-2: it needs wte.weight [vocabulary, hidden] and wpe.weight "
                   "[sequence, hidden]");
  }
  const auto found = heads_of(file, path, extent_of(*tokens, 1), heads);
  if (!found) return found.error();
  ModelSpec model{.family = Family::gpt2,
                  .layers = count_layers(file, "h.", ".ln_1.weight"),
                  .heads = *found,
                  .hidden = extent_of(*tokens, 1),
                  .sequence = extent_of(*positions, 0),
                  .vocabulary = extent_of(*tokens, 0),
                  .tie_embeddings = file.find("lm_head.weight") == nullptr};
  if (const auto* wide = find_matrix(file, "h.0.mlp.c_fc.weight"); wide != nullptr) {
    model.feed_forward = extent_of(*wide, 1);
  }
  read_metadata(file, norm_epsilon_key, model.norm_epsilon);
  return check(model, path);
}

Expected<std::vector<std::string>> class_names_of(const storage::SafetensorsFile& file,
                                                  const std::string& path,
                                                  std::uint32_t class_count) {
  std::vector<std::string> names;
  const auto found = file.metadata().find(classes_key);
  if (found == file.metadata().end()) {
    for (std::uint32_t c = 0; c < class_count; ++c) names.push_back(fmt::format("class {}", c));
    return names;
  }
  const auto json = nlohmann::json::parse(found->second, nullptr, false);
  const auto is_name = [](const nlohmann::json& name) { return name.is_string(); };
  if (!json.is_array() || !std::ranges::all_of(json, is_name)) {
    return invalid(path, fmt::format("its {} is no array of names", classes_key));
  }
  names = json.get<std::vector<std::string>>();
  const std::set<std::string_view> distinct(names.begin(), names.end());
  if (distinct.size() == class_count && names.size() == class_count) return names;
  return invalid(path, fmt::format("its {} has {} different names, but it tells {} classes apart",
                                   classes_key, distinct.size(), class_count));
}

Expected<Done> load_weights(const storage::SafetensorsFile& file, const std::string& path,
                            stages::Stage& stage) {
  std::vector<float> values;
  const auto parameters = stage.parameters();
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const auto& parameter = parameters[i];
    const auto& name = parameter.spec->name;
    const auto* tensor = file.find(name);
    if (tensor == nullptr) return invalid(path, "the tensor " + name + " is missing");
    auto expected = parameter.spec->shape;
    const bool may_be_longer = name == "wpe.weight" && tensor->shape.size() == expected.size();
    if (may_be_longer) expected[0] = std::max(expected[0], tensor->shape[0]);
    if (tensor->dtype != storage::DType::f32 || tensor->shape != expected) {
      return invalid(path, fmt::format("the tensor {} is {} [{}], expected F32 [{}]", name,
                                       to_string(tensor->dtype), fmt::join(tensor->shape, ", "),
                                       fmt::join(parameter.spec->shape, ", ")));
    }
    values.resize(parameter.values.size());
    std::memcpy(values.data(), tensor->bytes.data(), parameter.values.size_bytes());
    stage.write_parameter(i, values);
  }
  return Done{};
}

}  // namespace troupe::cli
