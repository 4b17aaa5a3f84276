#include "text_classifier.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "corpus_batches.hpp"
#include "inference.hpp"

namespace troupe::cli {

namespace {

/// softmax(logits).
void append_probabilities(std::span<const float> logits, std::vector<double>& probabilities) {
  const double most = *std::ranges::max_element(logits);
  double sum = 0.0;
  for (const double logit : logits) sum += std::exp(logit - most);
  for (const double logit : logits) probabilities.push_back(std::exp(logit - most) / sum);
}

}  // namespace

Expected<TextClassifier> TextClassifier::make(stages::Device& device, const ModelSpec& model,
                                              std::uint32_t batch_size,
                                              std::uint32_t thread_count) {
  TROUPE_ASSERT(model.classifies() && batch_size >= 1);
  TextClassifier classifier;
  classifier.class_count_ = model.classes;
  classifier.shape_ = {.microbatch_size = batch_size, .sequence = model.sequence};
  const auto token_count = std::size_t{batch_size} * model.sequence;
  classifier.batch_ = {.microbatch_count = 1,
                       .microbatch_size = batch_size,
                       .sequence = model.sequence,
                       .tokens = std::vector<std::int32_t>(token_count),
                       .targets = std::vector<std::int32_t>(batch_size),
                       .segments = std::vector<std::int32_t>(token_count),
                       .lengths = std::vector<std::int32_t>(batch_size),
                       .target_count = batch_size};
  classifier.stream_ = device.make_stream("classify", thread_count);
  auto stage = make_inference_stage(device, *classifier.stream_, model, batch_size);
  if (!stage) return stage.error();
  classifier.stage_ = std::move(*stage);
  return classifier;
}

std::vector<double> TextClassifier::probabilities(std::span<const std::string_view> texts) {
  TROUPE_ASSERT(!texts.empty() && texts.size() <= shape_.microbatch_size);
  std::vector<storage::LabelledText> unlabelled;
  for (const auto text : texts) {
    unlabelled.push_back({.text = storage::TokenView{std::as_bytes(std::span{text})}});
  }
  storage::LabelledValidationSampler{unlabelled, shape_, added_word}.fill(
      1, 0, {batch_.tokens, batch_.lengths, batch_.targets});
  infer(*stage_, *stream_, batch_);
  std::vector<double> probabilities;
  std::vector<float> logits(class_count_);
  for (std::size_t row = 0; row < texts.size(); ++row) {
    stage_->read_logits(row, logits);
    append_probabilities(logits, probabilities);
  }
  return probabilities;
}

}  // namespace troupe::cli
