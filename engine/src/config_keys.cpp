#include "config_keys.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <limits>

#include "troupe/engine/loss_scaler.hpp"
#include "troupe/engine/nearest.hpp"

namespace troupe::config {

namespace {

using Whole32 = Whole<std::uint32_t>;
using Whole64 = Whole<std::uint64_t>;

constexpr std::array<std::string_view, 4> optimizer_names{"adamw", "sgd", "adam", "adafactor"};
constexpr std::array<std::string_view, 4> learning_rate_schedule_names{"cosine", "linear",
                                                                       "constant", "inverse_sqrt"};

constexpr std::array<std::string_view, 2> offload_names{"none", "activations"};

// TOML has no integer above this one.
constexpr std::uint64_t toml_integer_max = std::numeric_limits<std::int64_t>::max();

bool is_control(char letter) {
  return static_cast<unsigned char>(letter) < 0x20 || letter == 0x7f;
}

void append_escaped(std::string& text, char letter) {
  constexpr std::string_view hex = "0123456789abcdef";
  if (!is_control(letter)) {
    text += letter;
    return;
  }
  text += "\\u00";
  text += hex[static_cast<unsigned char>(letter) >> 4U];
  text += hex[static_cast<unsigned char>(letter) & 0xfU];
}

std::string out_of(std::string_view kind, const std::string& least, const std::string& most,
                   std::string_view found) {
  return "expected " + std::string{kind} + " from " + least + " to " + most + ", found "
         + std::string{found};
}

using Complaint = std::optional<std::string>;

template <class Number>
Complaint complaint(const Number& field) {
  if (*field.place >= field.least && *field.place <= field.most) return {};
  return range_complaint(field, to_toml(Value{field}));
}

template <class Enum>
Complaint complaint(const Choice<Enum>&) {
  return {};
}

Complaint complaint(const Switch&) {
  return {};
}

Complaint complaint(const Text& field) {
  if (std::none_of(field.place->begin(), field.place->end(), is_control)) return {};
  return "expected text without control characters, found " + excerpt(*field.place);
}

Complaint complaint(const Counts& field) {
  if (field.may_be_one && field.place->empty()) return "expected at least one integer, found none";
  if (field.place->size() > field.size_max) {
    return "expected at most " + std::to_string(field.size_max) + " integers, found "
           + std::to_string(field.place->size());
  }
  for (auto& count : *field.place) {
    if (auto found = complaint(Whole32{&count, field.least, field.most})) return found;
  }
  return {};
}

std::string text(const Switch& field) {
  return *field.place ? "true" : "false";
}
std::string text(const Real& field) {
  return to_text(*field.place);
}
std::string text(const Text& field) {
  return toml_string(*field.place);
}

template <class Integer>
std::string text(const Whole<Integer>& field) {
  return std::to_string(*field.place);
}

template <class Enum>
std::string text(const Choice<Enum>& field) {
  return toml_string(field.names[static_cast<std::size_t>(*field.place)]);
}

std::string text(const Counts& field) {
  if (field.may_be_one && field.place->size() == 1) return std::to_string(field.place->front());
  std::string list = "[";
  for (const auto count : *field.place) {
    if (list.size() > 1) list += ", ";
    list += std::to_string(count);
  }
  return list += ']';
}

}  // namespace

std::string Key::path() const {
  return std::string{table} + "." + std::string{name};
}

std::vector<Key> keys_of(Config& config) {
  auto& [model, parallel, schedule, train, data, run] = config;
  return {
      {"model", "family", Choice<Family>{&model.family, family_names}},
      {"model", "layers", Whole32{&model.layers, 1, 1024}},
      {"model", "heads", Whole32{&model.heads, 1, 1024}},
      {"model", "hidden", Whole32{&model.hidden, 1, 32'768}},
      {"model", "sequence", Whole32{&model.sequence, 1, 131'072}},
      {"model", "vocabulary", Whole32{&model.vocabulary, 1, 1U << 20U}},
      {"model", "tie_embeddings", Switch{&model.tie_embeddings}},
      {"model", "kv_heads", Whole32{&model.kv_heads, 0, 1024}},
      {"model", "feed_forward", Whole32{&model.feed_forward, 0, 131'072}},
      {"model", "rotary_base", Real{&model.rotary_base, 1.0, 1e9}},
      {"model", "norm_epsilon", Real{&model.norm_epsilon, 1e-12, 1.0}},
      {"model", "task", Choice<Task>{&model.task, task_names}},
      {"model", "classes", Whole32{&model.classes, 0, 65'536}},
      {"model", "dropout", Real{&model.dropout, 0.0, 0.99}},
      {"model", "attention_dropout", Real{&model.attention_dropout, 0.0, 0.99}},
      {"parallel", "data", Whole32{&parallel.data, 1, 1024}},
      {"parallel", "tensor", Counts{&parallel.tensor.by_rank, 1, 1024, 1024, true}},
      {"parallel", "pipeline", Whole32{&parallel.pipeline, 1, 1024}},
      {"schedule", "name", Text{&schedule.name}},
      {"schedule", "microbatches", Whole32{&schedule.microbatches, 1, 4096}},
      {"schedule", "microbatch_size", Whole32{&schedule.microbatch_size, 1, 65'536}},
      {"schedule", "chunks", Whole32{&schedule.chunks, 1, 1024}},
      {"schedule", "split_backward", Switch{&schedule.split_backward}},
      {"schedule", "policy", Choice<Policy>{&schedule.policy, policy_names}},
      {"schedule", "memory_limit", Whole32{&schedule.memory_limit, 0, 4096}},
      {"schedule", "profile", Text{&schedule.profile}},
      {"schedule", "layers_per_stage", Counts{&schedule.layers_per_stage, 1, 1024, 1024}},
      {"train", "steps", Whole32{&train.steps, 1, 1'000'000'000}},
      {"train", "seed", Whole64{&train.seed, 0, toml_integer_max}},
      {"train", "optimizer", Choice<OptimizerKind>{&train.optimizer, optimizer_names}},
      {"train", "learning_rate", Real{&train.learning_rate, 0.0, 1000.0}},
      {"train", "learning_rate_schedule",
       Choice<LearningRateSchedule>{&train.learning_rate_schedule, learning_rate_schedule_names}},
      {"train", "min_learning_rate", Real{&train.min_learning_rate, 0.0, 1000.0}},
      {"train", "warmup_steps", Whole32{&train.warmup_steps, 0, 1'000'000'000}},
      {"train", "clip_norm", Real{&train.clip_norm, 0.0, 1e9}},
      {"train", "weight_decay", Real{&train.weight_decay, 0.0, 1000.0}},
      {"train", "beta1", Real{&train.beta1, 0.0, 0.999999}},
      {"train", "beta2", Real{&train.beta2, 0.0, 0.999999}},
      {"train", "epsilon", Real{&train.epsilon, 1e-30, 1.0}},
      {"train", "momentum", Real{&train.momentum, 0.0, 0.999999}},
      {"train", "precision", Choice<Precision>{&train.precision, precision_names}},
      {"train", "loss_scale", Real{&train.loss_scale, 1.0, loss_scale_max}},
      {"train", "loss_scale_interval", Whole32{&train.loss_scale_interval, 0, 1'000'000'000}},
      {"train", "synchronization",
       Choice<Synchronization>{&train.synchronization, synchronization_names}},
      {"train", "staleness", Whole32{&train.staleness, 0, staleness_max}},
      {"train", "gradient_wire", Choice<WireFormat>{&train.gradient_wire, wire_format_names}},
      {"train", "recompute", Choice<Recompute>{&train.recompute, recompute_names}},
      {"train", "recompute_stages", Counts{&train.recompute_stages, 0, 1'048'575, 1024}},
      {"train", "offload", Choice<Offload>{&train.offload, offload_names}},
      {"train", "sequence_parallel", Switch{&train.sequence_parallel}},
      {"train", "optimizer_sharding",
       Choice<OptimizerSharding>{&train.optimizer_sharding, optimizer_sharding_names}},
      {"train", "validation_interval", Whole32{&train.validation_interval, 0, 1'000'000'000}},
      {"train", "validation_batches", Whole32{&train.validation_batches, 1, 65'536}},
      {"data", "text", Text{&data.text}},
      {"data", "tokenizer", Text{&data.tokenizer}},
      {"data", "validation_fraction", Real{&data.validation_fraction, 0.0, 0.5}},
      {"data", "fingerprint", Text{&data.fingerprint}},
      {"run", "device", Text{&run.device}},
      {"run", "threads_per_stage", Whole32{&run.threads_per_stage, 1, 1024}},
      {"run", "output", Text{&run.output}},
      {"run", "link_delay_us", Whole32{&run.link_delay_us, 0, 60'000'000}},
  };
}

std::optional<std::string> complaint_about(const Value& value) {
  return std::visit([](const auto& field) { return complaint(field); }, value);
}

std::string range_complaint(const Whole32& field, std::string_view found) {
  return out_of("an integer", std::to_string(field.least), std::to_string(field.most), found);
}

std::string range_complaint(const Whole64& field, std::string_view found) {
  return out_of("an integer", std::to_string(field.least), std::to_string(field.most), found);
}

std::string range_complaint(const Real& field, std::string_view found) {
  return out_of("a number", to_text(field.least), to_text(field.most), found);
}

std::string unknown_complaint(std::string_view found, std::span<const std::string_view> known) {
  return "unknown name " + excerpt(found) + "; the nearest known one is "
         + toml_string(nearest(found, known));
}

std::string to_toml(const Value& value) {
  return std::visit([](const auto& field) { return text(field); }, value);
}

std::string to_text(double number) {
  if (std::isnan(number)) return "nan";
  if (std::isinf(number)) return number < 0 ? "-inf" : "inf";
  std::array<char, 32> digits{};
  const auto [end, status] = std::to_chars(digits.begin(), digits.end(), number);
  std::string text{digits.begin(), end};
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

std::string toml_string(std::string_view text) {
  std::string result = "\"";
  for (const char letter : text) {
    if (letter == '"' || letter == '\\') result += '\\';
    append_escaped(result, letter);
  }
  return result += '"';
}

std::string one_line(std::string_view text) {
  std::string result;
  for (const char letter : text) append_escaped(result, letter);
  return result;
}

std::string excerpt(std::string_view text) {
  constexpr std::size_t bytes_max = 60;
  if (text.size() <= bytes_max) return toml_string(text);
  auto size = bytes_max;
  const auto continues = [&] { return (static_cast<unsigned char>(text[size]) & 0xc0U) == 0x80U; };
  while (size > 0 && continues()) --size;
  return toml_string(text.substr(0, size)) + "...";
}

}  // namespace troupe::config
