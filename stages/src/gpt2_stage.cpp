#include "troupe/stages/gpt2_stage.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <utility>

#include "troupe/engine/check.hpp"
#include "troupe/stages/kernels.hpp"

#include "gpt2_tensors.hpp"
#include "initial_normal.hpp"

namespace troupe::stages {
namespace {

/// The parameters of a layer, in model order.
enum LayerParameter : std::size_t {
  norm_1_gain,
  norm_1_bias,
  qkv_weight,
  qkv_bias,
  projection_weight,
  projection_bias,
  norm_2_gain,
  norm_2_bias,
  expand_weight,
  expand_bias,
  contract_weight,
  contract_bias,
  layer_parameter_count,
};

std::uint32_t optimizer_words(OptimizerKind kind) {
  return kind == OptimizerKind::adamw ? 2 : 1;
}

float* floats(BufferView view) {
  return reinterpret_cast<float*>(view.data);
}

/// The parameters `[begin, end)`, whose gradients lie side by side.
struct Bucket {
  std::size_t begin = 0;
  std::size_t end = 0;
};

class ArenaGpt2Stage final : public Gpt2Stage {
public:
  ArenaGpt2Stage(Device& device, Stream& stream, const StageProps& props,
                 std::vector<ParameterSpec> specs, ArenaCutter& cutter);

  [[nodiscard]] StageBuffers& buffers() override { return buffers_; }
  void begin_step(const StepInfo& info) override;
  void enqueue(const Action& action, DeviceDone done) override;
  void finish(const Action& action) override;

  [[nodiscard]] std::uint32_t bucket_count() const override {
    return static_cast<std::uint32_t>(buckets_.size());
  }
  [[nodiscard]] BufferView bucket(std::uint32_t index) override;
  void on_bucket_ready(BucketReady ready) override { bucket_ready_ = std::move(ready); }

  [[nodiscard]] std::span<const double> losses() const override;
  void add_tied(DeviceDone done) override;
  void measure_gradients(DeviceDone done) override;
  [[nodiscard]] std::span<const double> gradient_squares() const override {
    return tensors_.gradient_squares.first(owned_count_);
  }
  void optimize(const OptimizerStep& step, DeviceDone done) override;

  [[nodiscard]] std::span<const ParameterView> parameters() override { return tensors_.parameters; }
  [[nodiscard]] std::span<const float> logits() override;

private:
  [[nodiscard]] bool is_tied_alone() const { return !tensors_.head_half.empty(); }
  [[nodiscard]] bool is_tied_apart() const {
    return props_.model.tie_embeddings && props_.spec.has_embedding != props_.spec.has_head;
  }
  [[nodiscard]] bool has_tied_bucket() const {
    return props_.bounds.trains && (is_tied_alone() || is_tied_apart());
  }
  [[nodiscard]] std::size_t layer_parameter(std::size_t layer, LayerParameter which) const {
    return first_layer_parameter_ + layer * layer_parameter_count + which;
  }
  [[nodiscard]] float* value(std::size_t parameter) const {
    return tensors_.parameters[parameter].values.data();
  }
  [[nodiscard]] float* gradient(std::size_t parameter) const {
    return tensors_.parameters[parameter].gradients.data();
  }
  [[nodiscard]] float* head_gradient() const {
    return is_tied_alone() ? tensors_.head_half.data() : gradient(head_weight_);
  }
  [[nodiscard]] LinearShape linear(std::uint32_t in, std::uint32_t out) const {
    return {.rows = rows_, .in = in, .out = out, .layout = WeightLayout::in_out};
  }
  [[nodiscard]] LinearShape head_shape() const {
    return {.rows = rows_,
            .in = hidden_,
            .out = props_.model.vocabulary,
            .layout = WeightLayout::out_in};
  }
  [[nodiscard]] const std::int32_t* rows_of(const std::vector<std::int32_t>& tokens,
                                            MicrobatchIndex microbatch) const {
    return tokens.data() + std::size_t{microbatch.value()} * rows_;
  }
  [[nodiscard]] std::size_t hidden_count() const { return std::size_t{rows_} * hidden_; }

  void make_buckets();
  void initialise();

  Slot& take_slot(MicrobatchIndex microbatch);
  Slot& slot_of(MicrobatchIndex microbatch);
  void free_slot(MicrobatchIndex microbatch);
  float* take_buffer(Edge edge, MicrobatchIndex microbatch);
  void give_buffer(Edge edge, MicrobatchIndex microbatch);

  void begin_work();
  void end_work(DeviceDone done);

  void forward(MicrobatchIndex microbatch);
  void forward_attention(const Slot& slot, std::size_t layer);
  void forward_feed_forward(const Slot& slot, std::size_t layer);
  void forward_head(const Slot& slot, const std::int32_t* targets);

  void backward(MicrobatchIndex microbatch, bool for_input, bool for_weight);
  void backward_input_head(const Slot& slot);
  void backward_weight_head(const Slot& slot);
  void backward_input_feed_forward(const Slot& slot, std::size_t layer);
  void backward_weight_feed_forward(const Slot& slot, std::size_t layer);
  void backward_input_attention(const Slot& slot, std::size_t layer);
  void backward_weight_attention(const Slot& slot, std::size_t layer);
  void backward_weight_embedding(const Slot& slot, MicrobatchIndex microbatch);

  void begin_weights(MicrobatchIndex microbatch);
  void weights_done();
  void tied_weights_done();

  const StageProps props_;
  const std::vector<ParameterSpec> specs_;
  Stream& stream_;
  Kernels& kernels_;
  const MemorySpace space_;
  const std::uint32_t rows_;
  const std::uint32_t hidden_;
  const AttentionShape attention_;

  StageBuffers buffers_;
  Gpt2Tensors tensors_;
  std::size_t first_layer_parameter_ = 0;
  std::size_t norm_parameter_ = 0;  ///< The final norm's; what follows is the head's.
  std::size_t head_weight_ = 0;
  std::size_t tied_weight_ = 0;
  std::size_t owned_count_ = 0;
  std::vector<Bucket> buckets_;
  BucketReady bucket_ready_;

  StepInfo step_;
  std::vector<std::uint32_t> free_slots_;
  std::vector<std::optional<std::uint32_t>> slot_of_microbatch_;
  const float* last_logits_ = nullptr;
  std::vector<double> losses_;
  std::uint32_t weights_next_ = 0;  ///< The microbatch whose weight pass comes next.
  Accumulate accumulate_{};         ///< Of the weight pass being enqueued.
  bool is_last_weights_ = false;    ///< The weight pass being enqueued ends the gradients.
  std::uint32_t bucket_next_ = 0;   ///< The bucket that is completed next.
  std::int64_t work_begin_ns_ = 0;  ///< Belongs to the stream.
};

// -- construction ---------------------------------------------------------------------------------

ArenaGpt2Stage::ArenaGpt2Stage(Device& device, Stream& stream, const StageProps& props,
                               std::vector<ParameterSpec> specs, ArenaCutter& cutter)
    : props_{props},
      specs_{std::move(specs)},
      stream_{stream},
      kernels_{device.kernels()},
      space_{device.memory_space()},
      rows_{props.microbatch_size * props.model.sequence},
      hidden_{props.model.hidden},
      attention_{.batch = props.microbatch_size,
                 .sequence = props.model.sequence,
                 .heads = props.model.heads,
                 .head_size = props.model.hidden / props.model.heads},
      buffers_{props.microbatch_count},
      tensors_{props_, specs_, cutter, buffers_},
      slot_of_microbatch_(props.microbatch_count),
      losses_(props.spec.has_head ? props.microbatch_count : 0) {
  TROUPE_ASSERT(cutter.done());
  first_layer_parameter_ = props_.spec.has_embedding ? 2 : 0;
  norm_parameter_ = layer_parameter(props_.spec.layer_count(), norm_1_gain);
  head_weight_ = props_.model.tie_embeddings && props_.spec.has_embedding ? 0 : norm_parameter_ + 2;
  tied_weight_ = props_.spec.has_embedding ? 0 : head_weight_;
  owned_count_ = static_cast<std::size_t>(
      std::ranges::count_if(specs_, [](const auto& spec) { return spec.owned; }));
  free_slots_.resize(props_.bounds.slots);
  std::iota(free_slots_.rbegin(), free_slots_.rend(), 0U);
  if (props_.bounds.trains) make_buckets();
  initialise();
}

void ArenaGpt2Stage::make_buckets() {
  const auto& spec = props_.spec;
  const auto has_lm_head = spec.has_head && !props_.model.tie_embeddings;
  if (has_lm_head) buckets_.push_back({norm_parameter_, norm_parameter_ + 3});
  for (std::size_t layer = spec.layer_count(); layer-- > 0;) {
    buckets_.push_back(
        {layer_parameter(layer, norm_1_gain), layer_parameter(layer + 1, norm_1_gain)});
  }
  // Too small to travel alone.
  if (spec.has_head && !has_lm_head) buckets_.front().end += 2;
  if (spec.has_embedding) buckets_.push_back({has_tied_bucket() ? 1U : 0U, 2});
  if (has_tied_bucket()) buckets_.push_back({tied_weight_, tied_weight_ + 1});
}

/// The arena comes zeroed.
void ArenaGpt2Stage::initialise() {
  for (const auto& parameter : tensors_.parameters) {
    const auto& spec = *parameter.spec;
    if (spec.initial == Initial::ones) std::ranges::fill(parameter.values, 1.0F);
    if (spec.initial == Initial::normal) {
      InitialNormal{props_.train.seed, spec.name}.fill(parameter.values, spec.deviation);
    }
  }
}

// -- slots and buffers ----------------------------------------------------------------------------

Slot& ArenaGpt2Stage::take_slot(MicrobatchIndex microbatch) {
  auto& index = slot_of_microbatch_.at(microbatch.value());
  TROUPE_ASSERT(!index && !free_slots_.empty());
  index = free_slots_.back();
  free_slots_.pop_back();
  return tensors_.slots[*index];
}

Slot& ArenaGpt2Stage::slot_of(MicrobatchIndex microbatch) {
  const auto& index = slot_of_microbatch_.at(microbatch.value());
  TROUPE_ASSERT(index.has_value());
  return tensors_.slots[*index];
}

/// Work that a later pass enqueues on the slot comes after: the stream keeps order.
void ArenaGpt2Stage::free_slot(MicrobatchIndex microbatch) {
  auto& index = slot_of_microbatch_.at(microbatch.value());
  TROUPE_ASSERT(index.has_value());
  free_slots_.push_back(*index);
  index.reset();
}

float* ArenaGpt2Stage::take_buffer(Edge edge, MicrobatchIndex microbatch) {
  buffers_.hold(edge, microbatch, buffers_.take_free(edge));
  return floats(buffers_.held(edge, microbatch));
}

void ArenaGpt2Stage::give_buffer(Edge edge, MicrobatchIndex microbatch) {
  buffers_.give_free(edge, buffers_.release(edge, microbatch));
}

// -- steps and passes -----------------------------------------------------------------------------

void ArenaGpt2Stage::begin_step(const StepInfo& info) {
  TROUPE_ASSERT(info.batch != nullptr && info.token_count > 0);
  TROUPE_ASSERT(info.batch->microbatch_count <= props_.microbatch_count);
  TROUPE_ASSERT(info.batch->microbatch_size == props_.microbatch_size);
  TROUPE_ASSERT(info.batch->sequence == props_.model.sequence);
  TROUPE_ASSERT(info.kind == StepKind::evaluation || props_.bounds.trains);
  TROUPE_ASSERT(free_slots_.size() == props_.bounds.slots);
  step_ = info;
  std::ranges::fill(losses_, 0.0);
  weights_next_ = 0;
}

void ArenaGpt2Stage::begin_work() {
  stream_.enqueue([this] { work_begin_ns_ = steady_now_ns(); });
}

void ArenaGpt2Stage::end_work(DeviceDone done) {
  stream_.enqueue([this, done = std::move(done)]() mutable {
    done(Errc::none, {.begin_ns = work_begin_ns_, .end_ns = steady_now_ns()});
  });
}

void ArenaGpt2Stage::enqueue(const Action& action, DeviceDone done) {
  begin_work();
  switch (action.pass) {
    case Pass::forward:
      forward(action.microbatch);
      break;
    case Pass::backward:
      backward(action.microbatch, true, true);
      break;
    case Pass::backward_input:
      TROUPE_ASSERT(props_.bounds.splits_backward);
      backward(action.microbatch, true, false);
      break;
    case Pass::backward_weight:
      TROUPE_ASSERT(props_.bounds.splits_backward);
      backward(action.microbatch, false, true);
      break;
  }
  end_work(std::move(done));
}

void ArenaGpt2Stage::finish(const Action& action) {
  const bool is_last_use =
      step_.kind == StepKind::evaluation
          ? action.pass == Pass::forward
          : action.pass == Pass::backward || action.pass == Pass::backward_weight;
  if (!is_last_use) return;
  if (!props_.spec.has_embedding) give_buffer(Edge::activation_in, action.microbatch);
  if (action.pass != Pass::forward && !props_.spec.has_head) {
    give_buffer(Edge::gradient_in, action.microbatch);
  }
}

std::span<const double> ArenaGpt2Stage::losses() const {
  if (losses_.empty() || step_.batch == nullptr) return {};
  return std::span{losses_}.first(step_.batch->microbatch_count);
}

std::span<const float> ArenaGpt2Stage::logits() {
  TROUPE_ASSERT(last_logits_ != nullptr);
  return {last_logits_, std::size_t{rows_} * props_.model.vocabulary};
}

// -- forward --------------------------------------------------------------------------------------

void ArenaGpt2Stage::forward(MicrobatchIndex microbatch) {
  auto& slot = take_slot(microbatch);
  if (props_.spec.has_embedding) {
    kernels_.embedding_forward(stream_, rows_of(step_.batch->tokens, microbatch), value(0),
                               value(1), slot.hidden.front(), rows_, props_.model.sequence,
                               hidden_);
  } else {
    slot.hidden.front() = floats(buffers_.held(Edge::activation_in, microbatch));
  }
  if (!props_.spec.has_head) slot.hidden.back() = take_buffer(Edge::activation_out, microbatch);
  for (std::size_t layer = 0; layer < slot.layers.size(); ++layer) {
    forward_attention(slot, layer);
    forward_feed_forward(slot, layer);
  }
  if (props_.spec.has_head) {
    forward_head(slot, rows_of(step_.batch->targets, microbatch));
    stream_.enqueue([from = slot.head.loss, to = &losses_[microbatch.value()]] { *to = *from; });
  }
  if (step_.kind == StepKind::evaluation) {
    last_logits_ = slot.head.logits;
    free_slot(microbatch);
  }
}

void ArenaGpt2Stage::forward_attention(const Slot& slot, std::size_t layer) {
  const auto& t = slot.layers[layer];
  const auto p = [&](LayerParameter which) { return value(layer_parameter(layer, which)); };
  kernels_.layer_norm_forward(stream_, slot.hidden[layer], p(norm_1_gain), p(norm_1_bias), t.norm_1,
                              t.mean_1, t.rstd_1, rows_, hidden_);
  kernels_.linear_forward(stream_, t.norm_1, p(qkv_weight), p(qkv_bias), nullptr, t.qkv,
                          linear(hidden_, 3 * hidden_));
  kernels_.attention_forward(stream_, t.qkv, t.attended, t.log_sum_exp, attention_);
  kernels_.linear_forward(stream_, t.attended, p(projection_weight), p(projection_bias),
                          slot.hidden[layer], t.middle, linear(hidden_, hidden_));
}

void ArenaGpt2Stage::forward_feed_forward(const Slot& slot, std::size_t layer) {
  const auto& t = slot.layers[layer];
  const auto p = [&](LayerParameter which) { return value(layer_parameter(layer, which)); };
  kernels_.layer_norm_forward(stream_, t.middle, p(norm_2_gain), p(norm_2_bias), t.norm_2, t.mean_2,
                              t.rstd_2, rows_, hidden_);
  kernels_.linear_forward(stream_, t.norm_2, p(expand_weight), p(expand_bias), nullptr, t.expanded,
                          linear(hidden_, 4 * hidden_));
  kernels_.gelu_forward(stream_, t.expanded, t.activated, 4 * hidden_count());
  kernels_.linear_forward(stream_, t.activated, p(contract_weight), p(contract_bias), t.middle,
                          slot.hidden[layer + 1], linear(4 * hidden_, hidden_));
}

/// A training pass leaves the gradient of the logits in their place.
void ArenaGpt2Stage::forward_head(const Slot& slot, const std::int32_t* targets) {
  const auto& t = slot.head;
  const bool trains = step_.kind == StepKind::training;
  kernels_.layer_norm_forward(stream_, slot.hidden.back(), value(norm_parameter_),
                              value(norm_parameter_ + 1), t.norm, t.mean, t.rstd, rows_, hidden_);
  kernels_.linear_forward(stream_, t.norm, value(head_weight_), nullptr, nullptr, t.logits,
                          head_shape());
  kernels_.cross_entropy(stream_, t.logits, targets, t.loss,
                         trains ? 1.0F / static_cast<float>(step_.token_count) : 0.0F, rows_,
                         props_.model.vocabulary);
}

// -- backward -------------------------------------------------------------------------------------

/// Part by part from the head down, the gradient for the input of a part before those for its
/// weights: in a whole backward pass the gradients of one part are dead when the next part begins.
void ArenaGpt2Stage::backward(MicrobatchIndex microbatch, bool for_input, bool for_weight) {
  TROUPE_ASSERT(step_.kind == StepKind::training);
  auto& slot = slot_of(microbatch);
  if (for_input && !props_.spec.has_head) {
    slot.d_hidden.back() = floats(buffers_.held(Edge::gradient_in, microbatch));
  }
  if (for_input && !props_.spec.has_embedding) {
    slot.d_hidden.front() = take_buffer(Edge::gradient_out, microbatch);
  }
  if (for_weight) begin_weights(microbatch);
  if (props_.spec.has_head) {
    if (for_input) backward_input_head(slot);
    if (for_weight) backward_weight_head(slot);
  }
  for (auto layer = slot.layers.size(); layer-- > 0;) {
    if (for_input) backward_input_feed_forward(slot, layer);
    if (for_weight) backward_weight_feed_forward(slot, layer);
    if (for_input) backward_input_attention(slot, layer);
    if (for_weight) backward_weight_attention(slot, layer);
  }
  if (!for_weight) return;
  if (props_.spec.has_embedding) backward_weight_embedding(slot, microbatch);
  tied_weights_done();
  free_slot(microbatch);
}

void ArenaGpt2Stage::backward_input_head(const Slot& slot) {
  const auto& t = slot.head;
  kernels_.linear_backward_input(stream_, t.logits, value(head_weight_), t.d_norm, head_shape());
  kernels_.layer_norm_backward_input(stream_, t.d_norm, slot.hidden.back(), value(norm_parameter_),
                                     t.mean, t.rstd, nullptr, slot.d_hidden.back(), rows_, hidden_);
}

void ArenaGpt2Stage::backward_weight_head(const Slot& slot) {
  const auto& t = slot.head;
  kernels_.linear_backward_weight(stream_, t.norm, t.logits, head_gradient(), nullptr, head_shape(),
                                  accumulate_);
  kernels_.layer_norm_backward_weight(stream_, t.d_norm, slot.hidden.back(), t.mean, t.rstd,
                                      gradient(norm_parameter_), gradient(norm_parameter_ + 1),
                                      rows_, hidden_, accumulate_);
  if (!props_.model.tie_embeddings) weights_done();
}

void ArenaGpt2Stage::backward_input_feed_forward(const Slot& slot, std::size_t layer) {
  const auto& t = slot.layers[layer];
  const auto p = [&](LayerParameter which) { return value(layer_parameter(layer, which)); };
  const auto* const dy = slot.d_hidden[layer + 1];
  kernels_.linear_backward_input(stream_, dy, p(contract_weight), t.d_expanded,
                                 linear(4 * hidden_, hidden_));
  kernels_.gelu_backward(stream_, t.expanded, t.d_expanded, t.d_expanded, 4 * hidden_count());
  kernels_.linear_backward_input(stream_, t.d_expanded, p(expand_weight), t.d_norm_2,
                                 linear(hidden_, 4 * hidden_));
  kernels_.layer_norm_backward_input(stream_, t.d_norm_2, t.middle, p(norm_2_gain), t.mean_2,
                                     t.rstd_2, dy, t.d_middle, rows_, hidden_);
}

void ArenaGpt2Stage::backward_weight_feed_forward(const Slot& slot, std::size_t layer) {
  const auto& t = slot.layers[layer];
  const auto g = [&](LayerParameter which) { return gradient(layer_parameter(layer, which)); };
  kernels_.linear_backward_weight(stream_, t.activated, slot.d_hidden[layer + 1],
                                  g(contract_weight), g(contract_bias),
                                  linear(4 * hidden_, hidden_), accumulate_);
  kernels_.linear_backward_weight(stream_, t.norm_2, t.d_expanded, g(expand_weight), g(expand_bias),
                                  linear(hidden_, 4 * hidden_), accumulate_);
  kernels_.layer_norm_backward_weight(stream_, t.d_norm_2, t.middle, t.mean_2, t.rstd_2,
                                      g(norm_2_gain), g(norm_2_bias), rows_, hidden_, accumulate_);
}

void ArenaGpt2Stage::backward_input_attention(const Slot& slot, std::size_t layer) {
  const auto& t = slot.layers[layer];
  const auto p = [&](LayerParameter which) { return value(layer_parameter(layer, which)); };
  kernels_.linear_backward_input(stream_, t.d_middle, p(projection_weight), t.d_attended,
                                 linear(hidden_, hidden_));
  kernels_.attention_backward(stream_, t.d_attended, t.qkv, t.attended, t.log_sum_exp, t.d_qkv,
                              attention_);
  kernels_.linear_backward_input(stream_, t.d_qkv, p(qkv_weight), t.d_norm_1,
                                 linear(hidden_, 3 * hidden_));
  kernels_.layer_norm_backward_input(stream_, t.d_norm_1, slot.hidden[layer], p(norm_1_gain),
                                     t.mean_1, t.rstd_1, t.d_middle, slot.d_hidden[layer], rows_,
                                     hidden_);
}

void ArenaGpt2Stage::backward_weight_attention(const Slot& slot, std::size_t layer) {
  const auto& t = slot.layers[layer];
  const auto g = [&](LayerParameter which) { return gradient(layer_parameter(layer, which)); };
  kernels_.linear_backward_weight(stream_, t.attended, t.d_middle, g(projection_weight),
                                  g(projection_bias), linear(hidden_, hidden_), accumulate_);
  kernels_.linear_backward_weight(stream_, t.norm_1, t.d_qkv, g(qkv_weight), g(qkv_bias),
                                  linear(hidden_, 3 * hidden_), accumulate_);
  kernels_.layer_norm_backward_weight(stream_, t.d_norm_1, slot.hidden[layer], t.mean_1, t.rstd_1,
                                      g(norm_1_gain), g(norm_1_bias), rows_, hidden_, accumulate_);
  weights_done();
}

void ArenaGpt2Stage::backward_weight_embedding(const Slot& slot, MicrobatchIndex microbatch) {
  kernels_.embedding_backward(stream_, rows_of(step_.batch->tokens, microbatch),
                              slot.d_hidden.front(), gradient(0), gradient(1), rows_,
                              props_.model.sequence, hidden_, props_.model.vocabulary, accumulate_);
  weights_done();
}

// -- gradients ------------------------------------------------------------------------------------

/// Gradients accumulate in microbatch order, so that the order of the passes leaves no trace.
void ArenaGpt2Stage::begin_weights(MicrobatchIndex microbatch) {
  TROUPE_ASSERT(microbatch.value() == weights_next_);
  ++weights_next_;
  accumulate_ = microbatch.value() == 0 ? Accumulate::overwrite : Accumulate::add;
  is_last_weights_ = weights_next_ == step_.batch->microbatch_count;
  bucket_next_ = 0;
}

/// A part has its weight gradients of this microbatch; of the step, if it was the last.
void ArenaGpt2Stage::weights_done() {
  if (!is_last_weights_) return;
  const auto index = bucket_next_++;
  TROUPE_ASSERT(index < bucket_count());
  stream_.enqueue([this, index] {
    if (bucket_ready_) bucket_ready_(index);
  });
}

/// The tied gradient: summed here when both halves are, otherwise held out for the other end.
void ArenaGpt2Stage::tied_weights_done() {
  if (!is_last_weights_ || !has_tied_bucket()) return;
  auto* const half = gradient(tied_weight_);
  const auto count = tensors_.parameters[tied_weight_].gradients.size();
  if (is_tied_alone()) {
    kernels_.add(stream_, half, tensors_.head_half.data(), half, count);
  } else {
    kernels_.copy(stream_, half, take_buffer(Edge::tied_out, MicrobatchIndex{0}), count);
  }
  weights_done();
}

BufferView ArenaGpt2Stage::bucket(std::uint32_t index) {
  const auto& bucket = buckets_.at(index);
  const auto first = tensors_.parameters[bucket.begin].gradients;
  const auto last = tensors_.parameters[bucket.end - 1].gradients;
  const auto count = static_cast<std::size_t>(last.data() + last.size() - first.data());
  return {reinterpret_cast<std::byte*>(first.data()), count * sizeof(float), space_};
}

void ArenaGpt2Stage::add_tied(DeviceDone done) {
  TROUPE_ASSERT(is_tied_apart());
  begin_work();
  auto* const own = gradient(tied_weight_);
  const auto* const peer = floats(buffers_.held(Edge::tied_in, MicrobatchIndex{0}));
  const bool is_first = props_.spec.has_embedding;
  kernels_.add(stream_, is_first ? own : peer, is_first ? peer : own, own,
               tensors_.parameters[tied_weight_].gradients.size());
  end_work(std::move(done));
}

void ArenaGpt2Stage::measure_gradients(DeviceDone done) {
  begin_work();
  for (std::size_t i = 0; i < owned_count_; ++i) {
    kernels_.sum_of_squares(stream_, gradient(i), &tensors_.gradient_squares[i],
                            tensors_.parameters[i].gradients.size());
  }
  end_work(std::move(done));
}

// -- optimizer ------------------------------------------------------------------------------------

void ArenaGpt2Stage::optimize(const OptimizerStep& step, DeviceDone done) {
  const auto& train = props_.train;
  const auto bias = [&](double beta) {
    return static_cast<float>(1.0 - std::pow(beta, step.step));
  };
  begin_work();
  for (std::size_t i = 0; i < tensors_.parameters.size(); ++i) {
    const auto& parameter = tensors_.parameters[i];
    const auto decay = static_cast<float>(parameter.spec->decays ? train.weight_decay : 0.0);
    if (train.optimizer == OptimizerKind::adamw) {
      kernels_.adamw(stream_, value(i), gradient(i), tensors_.optimizer_state[0][i].data(),
                     tensors_.optimizer_state[1][i].data(), parameter.values.size(),
                     {.learning_rate = step.learning_rate,
                      .beta1 = static_cast<float>(train.beta1),
                      .beta2 = static_cast<float>(train.beta2),
                      .epsilon = static_cast<float>(train.epsilon),
                      .weight_decay = decay,
                      .bias1 = bias(train.beta1),
                      .bias2 = bias(train.beta2),
                      .gradient_scale = step.gradient_scale});
    } else {
      kernels_.sgd(stream_, value(i), gradient(i), tensors_.optimizer_state[0][i].data(),
                   parameter.values.size(),
                   {.learning_rate = step.learning_rate,
                    .momentum = static_cast<float>(train.momentum),
                    .weight_decay = decay,
                    .gradient_scale = step.gradient_scale});
    }
  }
  end_work(std::move(done));
}

}  // namespace

Expected<std::unique_ptr<Gpt2Stage>> make_gpt2_stage(Device& device, Stream& stream,
                                                     const StageProps& props) {
  const auto words = optimizer_words(props.train.optimizer);
  std::size_t size_bytes = 0;
  for (const auto& item :
       memory_of(props.model, props.spec, props.bounds, props.microbatch_size, words)) {
    size_bytes += item.bytes;
  }
  auto arena = device.allocate(size_bytes, device.memory_space());
  if (!arena) return arena.error();
  const auto list = tensors_of(props.model, props.spec, props.bounds, props.microbatch_size, words);
  ArenaCutter cutter{*arena, list};
  return std::unique_ptr<Gpt2Stage>{std::make_unique<ArenaGpt2Stage>(
      device, stream, props, parameters_of(props.model, props.spec), cutter)};
}

}  // namespace troupe::stages
