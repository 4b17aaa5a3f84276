#include "model_weights.hpp"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace troupe::cli {

namespace {

constexpr const char* family_key = "troupe.family";
constexpr const char* heads_key = "troupe.heads";
constexpr const char* tokenizer_key = "troupe.tokenizer";

Error invalid(const std::string& path, const std::string& what) {
  return {Errc::invalid_file, path + ": " + what};
}

}  // namespace

Expected<Done> write_weights(const std::string& path, actors::Trainer& trainer) {
  std::vector<storage::TensorView> tensors;
  const auto parameters = parameters_of(trainer.plan().config.model);
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
  return storage::write_safetensors(path, tensors,
                                    {{family_key, "gpt2"},
                                     {heads_key, std::to_string(trainer.plan().config.model.heads)},
                                     {tokenizer_key, "bytes"},
                                     {"format", "pt"}},
                                    read);
}

Expected<ModelSpec> model_of(const storage::SafetensorsFile& file, const std::string& path,
                             std::uint32_t heads) {
  const auto* tokens = file.find("wte.weight");
  const auto* positions = file.find("wpe.weight");
  if (tokens == nullptr || positions == nullptr || tokens->shape.size() != 2
      || positions->shape.size() != 2 || tokens->shape[1] != positions->shape[1]) {
    return invalid(path,
                   "holds no GPT-2: it needs wte.weight [vocabulary, hidden] and wpe.weight "
                   "[sequence, hidden]");
  }
  constexpr std::uint64_t size_max = 1U << 24U;
  if (tokens->shape[0] > size_max || tokens->shape[1] > size_max
      || positions->shape[0] > size_max) {
    return invalid(path, "its embeddings are larger than any GPT-2");
  }
  if (const auto found = file.metadata().find(heads_key);
      heads == 0 && found != file.metadata().end()) {
    const auto& text = found->second;
    std::from_chars(text.data(), text.data() + text.size(), heads);
  }
  const auto hidden = static_cast<std::uint32_t>(tokens->shape[1]);
  if (heads == 0 || hidden % heads != 0) {
    return invalid(path,
                   fmt::format("does not say how many attention heads its {} wide layers have; "
                               "give --heads, a divisor of {}",
                               hidden, hidden));
  }
  std::uint32_t layers = 0;
  while (file.find(fmt::format("h.{}.ln_1.weight", layers)) != nullptr) ++layers;
  if (layers == 0) return invalid(path, "holds no layer: h.0.ln_1.weight is missing");
  return ModelSpec{.family = Family::gpt2,
                   .layers = layers,
                   .heads = heads,
                   .hidden = hidden,
                   .sequence = static_cast<std::uint32_t>(positions->shape[0]),
                   .vocabulary = static_cast<std::uint32_t>(tokens->shape[0]),
                   .tie_embeddings = file.find("lm_head.weight") == nullptr};
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
