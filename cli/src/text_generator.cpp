#include "text_generator.hpp"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "troupe/engine/random.hpp"

#include "inference.hpp"

namespace troupe::cli {

namespace {

/// Draws from softmax(logits / temperature).
std::size_t choose(std::span<const float> logits, double temperature, Random& random) {
  const auto best = std::ranges::max_element(logits) - logits.begin();
  if (temperature <= 0.0) return static_cast<std::size_t>(best);
  std::vector<double> cumulative;
  double sum = 0.0;
  for (const auto logit : logits) {
    sum += std::exp((static_cast<double>(logit) - logits[static_cast<std::size_t>(best)])
                    / temperature);
    cumulative.push_back(sum);
  }
  const auto drawn = sum * static_cast<double>(random.next() >> 11U) * 0x1p-53;
  const auto found = std::ranges::upper_bound(cumulative, drawn) - cumulative.begin();
  return std::min(static_cast<std::size_t>(found), logits.size() - 1);
}

}  // namespace

Expected<TextGenerator> TextGenerator::make(stages::Device& device, const ModelSpec& model,
                                            std::uint32_t thread_count) {
  TextGenerator generator;
  generator.model_ = model;
  generator.batch_ = {.microbatch_count = 1,
                      .microbatch_size = 1,
                      .sequence = model.sequence,
                      .tokens = std::vector<std::int32_t>(model.sequence),
                      .targets = std::vector<std::int32_t>(model.sequence),
                      .target_count = model.sequence};
  generator.logits_.resize(model.vocabulary);
  generator.stream_ = device.make_stream("generate", thread_count);
  auto stage = make_inference_stage(device, *generator.stream_, model, 1);
  if (!stage) return stage.error();
  generator.stage_ = std::move(*stage);
  return generator;
}

std::string TextGenerator::continue_text(std::string_view prompt, std::uint32_t token_count,
                                         const Sampling& sampling) {
  TROUPE_ASSERT(!prompt.empty());
  std::string text{prompt};
  Random random{sampling.seed};
  for (std::uint32_t i = 0; i < token_count; ++i) {
    const auto logits = next_logits(text);
    text.push_back(
        static_cast<char>(choose(logits.first(byte_count), sampling.temperature, random)));
  }
  return text;
}

/// Attention is causal: what stands behind the context in the batch does not matter.
std::span<const float> TextGenerator::next_logits(std::string_view context) {
  const auto length = std::min<std::size_t>(context.size(), model_.sequence);
  const auto window = context.substr(context.size() - length);
  std::ranges::transform(window, batch_.tokens.begin(), [](char c) {
    return static_cast<std::int32_t>(static_cast<unsigned char>(c));
  });
  infer(*stage_, *stream_, batch_);
  stage_->read_logits(length - 1, logits_);
  return logits_;
}

std::string printable(std::string_view text) {
  std::string result;
  for (const char c : text) {
    if ((c >= ' ' && c <= '~') || c == '\n' || c == '\t') {
      result.push_back(c);
    } else {
      result += "·";
    }
  }
  return result;
}

}  // namespace troupe::cli
