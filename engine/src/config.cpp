#include "troupe/engine/config.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "troupe/engine/layer_builder.hpp"
#include "troupe/engine/loss_scaler.hpp"
#include "troupe/engine/schedule_generators.hpp"

#include "config_keys.hpp"
#include "model_families.hpp"

namespace troupe {

namespace {

constexpr std::uint64_t tokens_per_step_max = 1ULL << 28U;
constexpr std::uint64_t tokens_per_validation_max = 1ULL << 32U;
constexpr std::uint32_t byte_count = 256;

constexpr std::array<std::string_view, 1> tokenizer_names{"bytes"};
constexpr std::array<std::string_view, 1> device_names{"cpu"};

Error invalid(std::string sentence) {
  return {Errc::invalid_config, std::move(sentence)};
}

std::string text_of(std::uint64_t number) {
  return std::to_string(number);
}

Expected<Done> check_name(std::string_view key, std::string_view found,
                          std::span<const std::string_view> known) {
  for (const auto name : known) {
    if (name == found) return Done{};
  }
  return invalid(std::string{key} + ": " + config::unknown_complaint(found, known));
}

Expected<Done> check_ranges(const Config& config) {
  Config copy = config;
  for (const auto& key : config::keys_of(copy)) {
    if (auto complaint = config::complaint_about(key.value)) {
      return invalid(key.path() + ": " + *complaint);
    }
  }
  return Done{};
}

/// @returns "8 and 12": the multiples of `step` around `number`, which is none.
std::string multiples_around(std::uint32_t number, std::uint32_t step) {
  const auto below = number - number % step;
  return (below == 0 ? "" : text_of(below) + " and ") + text_of(below + step);
}

Expected<Done> check_llama(const ModelSpec& model) {
  if (model.head_size() % 2 == 0) return Done{};
  return invalid(
      "model.hidden: " + text_of(model.hidden) + " over model.heads = " + text_of(model.heads)
      + " gives heads of size " + text_of(model.head_size())
      + ", but rotary positions turn pairs of elements; the nearest values that work are "
      + multiples_around(model.hidden, 2 * model.heads));
}

std::string quoted_family(const ModelSpec& model) {
  return "model.family = \"" + std::string{family_names[static_cast<std::size_t>(model.family)]}
         + '"';
}

Expected<Done> check_task(const ModelSpec& model) {
  if (model.task == Task::classification && model.family != Family::bert) {
    return invalid("model.task: \"classification\", but a model of " + quoted_family(model)
                   + " tells the next token; leave it \"masked\", or take model.family = \"bert\"");
  }
  if (!model.classifies()) {
    if (model.classes == 0) return Done{};
    return invalid("model.classes: " + text_of(model.classes)
                   + ", but there is nothing to classify; leave it 0, or take model.family = "
                     "\"bert\" and model.task = \"classification\"");
  }
  if (model.classes < 2) {
    return invalid("model.classes: " + text_of(model.classes)
                   + ", but model.task = \"classification\" needs at least 2");
  }
  if (model.tie_embeddings) {
    return invalid(
        "model.tie_embeddings: true, but with model.task = \"classification\" no head multiplies "
        "by the embedding; set it to false");
  }
  return Done{};
}

Expected<Done> check_custom_layer(const ModelSpec& model) {
  const bool is_custom = model.family == Family::custom;
  if (is_custom && model.custom_layer == nullptr) {
    return invalid(
        "model.family: \"custom\" has a layer that a program defines, as examples/custom_layer "
        "does; a file cannot hold one, take \"gpt2\", \"llama\" or \"bert\"");
  }
  if (!is_custom && model.custom_layer != nullptr) {
    return invalid("ModelSpec::custom_layer: set, but a model of " + quoted_family(model)
                   + " has layers of its own; leave it null, or take Family::custom");
  }
  if (!is_custom) return Done{};
  const auto& name = model.custom_layer->name;
  const auto excerpt = config::excerpt(name);
  if (name.empty() || excerpt.size() != name.size() + 2) {
    return invalid("CustomLayer::name: " + excerpt
                   + ", expected 1 to 60 characters, none of them a quote or a control character");
  }
  const auto complaint = complaint_about_layer(model, 1);
  return complaint ? invalid(*complaint) : Expected<Done>{Done{}};
}

Expected<Done> check_model(const ModelSpec& model) {
  if (model.hidden % model.heads != 0) {
    return invalid("model.hidden: " + text_of(model.hidden)
                   + " is not a multiple of model.heads = " + text_of(model.heads)
                   + "; the nearest multiples are " + multiples_around(model.hidden, model.heads));
  }
  if (model.family == Family::llama) {
    if (auto checked = check_llama(model); !checked) return checked;
  } else if (model.family != Family::custom && model.kv_head_count() != model.heads) {
    return invalid("model.kv_heads: " + text_of(model.kv_heads)
                   + ", but in " + quoted_family(model)
                   + " every head has its own keys and values; leave it 0, or take model.family = "
                     "\"llama\"");
  }
  if (auto checked = check_task(model); !checked) return checked;
  if (model.heads % model.kv_head_count() == 0) return check_custom_layer(model);
  auto nearest = model.kv_heads;
  while (model.heads % nearest != 0) --nearest;
  return invalid("model.kv_heads: " + text_of(model.kv_heads)
                 + " does not divide model.heads = " + text_of(model.heads)
                 + "; the next smaller number that does is " + text_of(nearest));
}

/// Why `count` shards cannot share out the model, each a whole part of it; empty if they can.
std::string why_not_shared_out(const ModelSpec& model, std::uint32_t count) {
  const bool divides = model.heads % count == 0 && model.kv_head_count() % count == 0
                       && model.feed_forward_width() % count == 0 && model.vocabulary >= count;
  if (!divides) {
    return "cannot share out model.heads = " + text_of(model.heads)
           + ", kv_heads = " + text_of(model.kv_head_count())
           + ", feed_forward = " + text_of(model.feed_forward_width()) + " and a vocabulary of "
           + text_of(model.vocabulary);
  }
  if (model.family != Family::custom) return {};
  const auto complaint = complaint_about_layer(model, count);
  return complaint ? "are too many: " + *complaint : "";
}

Expected<Done> check_shards(const Config& config) {
  const auto& [data, tensor, pipeline] = config.parallel;
  const auto& model = config.model;
  const bool is_list = tensor.by_rank.size() > 1;
  if (is_list && tensor.by_rank.size() != pipeline) {
    return invalid("parallel.tensor: " + text_of(tensor.by_rank.size())
                   + " numbers of shards are listed, expected one for all, or one for each of the "
                     "ranks of parallel.pipeline = "
                   + text_of(pipeline));
  }
  for (std::size_t rank = 0; rank < tensor.by_rank.size(); ++rank) {
    const auto count = tensor.by_rank[rank];
    const auto why = why_not_shared_out(model, count);
    if (why.empty()) continue;
    auto nearest = count;
    while (!why_not_shared_out(model, nearest).empty()) --nearest;
    const bool keeps_ranks = count % nearest == 0;
    return invalid(
        "parallel.tensor: " + text_of(count) + " shards"
        + (is_list ? " of pipeline rank " + text_of(rank) : "") + ' ' + why
        + (is_list ? "; the nearest number that works is " + text_of(nearest)
                   : "; the nearest grid that works is data = "
                         + text_of(keeps_ranks ? std::uint64_t{data} * (count / nearest) : data)
                         + ", tensor = " + text_of(nearest) + ", pipeline = " + text_of(pipeline)));
  }
  return Done{};
}

/// Each shard has whole rows, of whole cache lines.
Expected<Done> check_rows(const Config& config, std::uint32_t shards) {
  if (!config.train.sequence_parallel || shards == 1) return Done{};
  const auto rows = std::uint64_t{config.schedule.microbatch_size} * config.model.sequence;
  constexpr auto floats_per_line = tensor_alignment_bytes / sizeof(float);
  if (rows % shards != 0) {
    return invalid("train.sequence_parallel: parallel.tensor = " + text_of(shards)
                   + " shards cannot share out the " + text_of(rows)
                   + " tokens of a microbatch, schedule.microbatch_size times model.sequence; make "
                     "it a multiple");
  }
  if (rows / shards * config.model.hidden % floats_per_line != 0) {
    return invalid("train.sequence_parallel: the " + text_of(rows / shards)
                   + " tokens of a shard, model.hidden = " + text_of(config.model.hidden)
                   + " wide, do not fill whole cache lines of " + text_of(floats_per_line)
                   + " numbers; make model.hidden a multiple of it");
  }
  return Done{};
}

Expected<Done> check_optimizer(const TrainConfig& train) {
  if (train.optimizer == OptimizerKind::adafactor
      && train.optimizer_sharding != OptimizerSharding::none) {
    return invalid(
        "train.optimizer_sharding: the state of train.optimizer = \"adafactor\" consists of sums "
        "over whole rows and columns, which are small and are not divided; set \"none\"");
  }
  return Done{};
}

Expected<Done> check_synchronization(const Config& config) {
  const auto& train = config.train;
  if (train.staleness > 0 && train.synchronization == Synchronization::all_reduce) {
    return invalid("train.staleness: " + text_of(train.staleness)
                   + ", but under train.synchronization = \"all_reduce\" no replica begins a step "
                     "before all have ended the last; set 0, or \"parameter_server\"");
  }
  if (train.staleness > 0 && train.precision == Precision::fp16) {
    return invalid("train.staleness: " + text_of(train.staleness)
                   + ", but in train.precision = \"fp16\" the loss scale of a step follows from "
                     "the step before it; set 0, or \"bf16\" or \"fp32\"");
  }
  if (train.synchronization == Synchronization::all_reduce) return Done{};
  if (config.parallel.data == 1) {
    return invalid(
        "train.synchronization: \"parameter_server\", but parallel.data = 1 replica has nobody to "
        "be synchronized with; set \"all_reduce\", or parallel.data to at least 2");
  }
  if (train.optimizer_sharding != OptimizerSharding::none) {
    const auto sharding = static_cast<std::size_t>(train.optimizer_sharding);
    return invalid("train.optimizer_sharding: \"" + std::string{optimizer_sharding_names[sharding]}
                   + "\", but under train.synchronization = \"parameter_server\" the replicas keep "
                     "no optimizer state to be divided; set \"none\"");
  }
  return Done{};
}

/// To divide by a power of two is exact: gradients bear no trace of the scale.
Expected<Done> check_loss_scale(const TrainConfig& train) {
  if (is_loss_scale(train.loss_scale)) return Done{};
  const auto below = std::exp2(std::floor(std::log2(train.loss_scale)));
  return invalid("train.loss_scale: " + config::to_text(train.loss_scale)
                 + " is not a power of two; the nearest are " + config::to_text(below) + " and "
                 + config::to_text(2.0 * below));
}

Expected<Done> check_grid(const Config& config) {
  const auto pipeline = config.parallel.pipeline;
  if (auto checked = check_shards(config); !checked) return checked;
  for (const auto shards : config.parallel.tensor.by_rank) {
    if (auto checked = check_rows(config, shards); !checked) return checked;
  }
  // A file brings its own stages: the plan checks the rest against them.
  if (is_schedule_file(config.schedule.name)) return Done{};
  const auto stages = pipeline * config.schedule.chunks;
  if (stages > config.model.layers) {
    return invalid("model.layers: " + text_of(config.model.layers)
                   + " layers cannot fill parallel.pipeline = " + text_of(pipeline)
                   + " times schedule.chunks = " + text_of(config.schedule.chunks) + ", that is "
                   + text_of(stages)
                   + " virtual stages of at least one layer each; use fewer stages or at least "
                   + text_of(stages) + " layers");
  }
  const auto& counts = config.schedule.layers_per_stage;
  std::uint64_t sum = 0;
  for (const auto count : counts) sum += count;
  if (!counts.empty() && (counts.size() != stages || sum != config.model.layers)) {
    return invalid("schedule.layers_per_stage: " + text_of(counts.size())
                   + " stages with a total of " + text_of(sum) + " layers are listed, expected "
                   + text_of(stages)
                   + " with a total of model.layers = " + text_of(config.model.layers));
  }
  return Done{};
}

Expected<Done> check_sizes(const Config& config) {
  const auto tokens_per_step = std::uint64_t{config.parallel.data} * config.schedule.microbatches
                               * config.schedule.microbatch_size * config.model.sequence;
  if (tokens_per_step > tokens_per_step_max) {
    return invalid("schedule.microbatches: " + text_of(config.schedule.microbatches)
                   + " microbatches of " + text_of(config.schedule.microbatch_size)
                   + " sequences of " + text_of(config.model.sequence) + " tokens on "
                   + text_of(config.parallel.data) + " replicas are " + text_of(tokens_per_step)
                   + " tokens per step, expected at most " + text_of(tokens_per_step_max));
  }
  const auto tokens = tokens_per_step * config.train.validation_batches;
  if (tokens > tokens_per_validation_max) {
    return invalid("train.validation_batches: " + text_of(config.train.validation_batches)
                   + " batches of " + text_of(tokens_per_step) + " tokens are " + text_of(tokens)
                   + " per validation, expected at most " + text_of(tokens_per_validation_max));
  }
  return Done{};
}

Expected<Done> check_data(const Config& config) {
  if (auto known = check_name("data.tokenizer", config.data.tokenizer, tokenizer_names); !known) {
    return known;
  }
  if (config.model.vocabulary < byte_count) {
    return invalid("model.vocabulary: " + text_of(config.model.vocabulary)
                   + " is too small for data.tokenizer = \"bytes\", which has "
                   + text_of(byte_count) + " tokens");
  }
  return Done{};
}

Expected<Done> check_run(const Config& config) {
  const auto& train = config.train;
  if (train.min_learning_rate > train.learning_rate) {
    return invalid("train.min_learning_rate: " + config::to_text(train.min_learning_rate)
                   + " is above train.learning_rate = " + config::to_text(train.learning_rate)
                   + ", from which the rate falls");
  }
  if (!is_schedule_file(config.schedule.name)) {
    auto known = check_name("schedule.name", config.schedule.name, schedule_names());
    if (!known) return invalid(known.error().context + ", or give the path of a .csv file");
  }
  if (config.run.output.empty()) {
    return invalid("run.output: not set; give the path of the folder for the results");
  }
  return check_name("run.device", config.run.device, device_names);
}

}  // namespace

std::string to_toml(const Config& config) {
  Config copy = config;
  std::string text;
  std::string_view table;
  for (const auto& key : config::keys_of(copy)) {
    if (key.table != table) {
      table = key.table;
      text += text.empty() ? "[" : "\n[";
      text += table;
      text += "]\n";
    }
    text += key.name;
    text += " = " + config::to_toml(key.value) + "\n";
  }
  return text;
}

Expected<Done> validate(const Config& config) {
  if (auto checked = check_ranges(config); !checked) return checked;
  if (auto checked = check_model(config.model); !checked) return checked;
  if (auto checked = check_grid(config); !checked) return checked;
  if (auto checked = check_optimizer(config.train); !checked) return checked;
  if (auto checked = check_synchronization(config); !checked) return checked;
  if (auto checked = check_loss_scale(config.train); !checked) return checked;
  if (auto checked = check_sizes(config); !checked) return checked;
  if (auto checked = check_data(config); !checked) return checked;
  return check_run(config);
}

double learning_rate_at(const TrainConfig& train, std::uint32_t step) {
  const double peak = train.learning_rate;
  const double least = train.min_learning_rate;
  if (step < train.warmup_steps) return peak * step / train.warmup_steps;
  if (step == train.warmup_steps) return peak;
  switch (train.learning_rate_schedule) {
    case LearningRateSchedule::constant:
      return peak;
    case LearningRateSchedule::inverse_sqrt:
      return std::max(
          std::min(peak, least),
          peak * std::sqrt(static_cast<double>(std::max(1U, train.warmup_steps)) / step));
    case LearningRateSchedule::cosine:
    case LearningRateSchedule::linear:
      break;
  }
  if (step >= train.steps) return least;
  const double progress = static_cast<double>(step - train.warmup_steps)
                          / static_cast<double>(train.steps - train.warmup_steps);
  const double left = train.learning_rate_schedule == LearningRateSchedule::linear
                          ? 1.0 - progress
                          : 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
  return least + left * (peak - least);
}

}  // namespace troupe
