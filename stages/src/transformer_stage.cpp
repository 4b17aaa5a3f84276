#include "troupe/stages/transformer_stage.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <optional>
#include <utility>

#include "troupe/engine/check.hpp"
#include "troupe/engine/layer_builder.hpp"
#include "troupe/stages/kernels.hpp"

#include "initial_normal.hpp"
#include "kernel_calls.hpp"
#include "offloaded_slots.hpp"
#include "stage_memory.hpp"
#include "stream_group.hpp"

namespace troupe::stages {
namespace {

float* floats(BufferView view) {
  return reinterpret_cast<float*>(view.data);
}

class ArenaStage final : public TransformerStage {
public:
  ArenaStage(Device& device, Stream& stream, const StageProps& props, StageGraph graph,
             ArenaCutter& cutter, ArenaCutter& host_cutter);

  [[nodiscard]] StageBuffers& buffers() override { return buffers_; }
  void begin_step(const StepInfo& info) override;
  void enqueue(const Action& action, DeviceDone done) override;
  void fetch(MicrobatchIndex microbatch) override;
  void finish(const Action& action) override;

  [[nodiscard]] std::uint32_t bucket_count() const override {
    return static_cast<std::uint32_t>(graph_.buckets.size());
  }
  [[nodiscard]] BufferView bucket(std::uint32_t index) override;
  void reduce_bucket(std::uint32_t index, transport::CollectiveDone done) override;
  void on_bucket_ready(BucketReady ready) override { bucket_ready_ = std::move(ready); }

  [[nodiscard]] std::span<const double> losses() const override;
  [[nodiscard]] std::span<const std::int32_t> predictions() const override;
  void add_tied(DeviceDone done) override;
  void measure_gradients(DeviceDone done) override;
  [[nodiscard]] std::span<const double> gradient_squares() const override {
    return memory_.host.gradient_squares.first(updates_ ? owned_count_ : 0);
  }
  void optimize(const OptimizerStep& step, DeviceDone done) override;
  void exchange_weights(DeviceDone done) override;

  [[nodiscard]] std::span<const ParameterView> parameters() override { return memory_.parameters; }
  void read_parameter(std::size_t index, std::span<float> values) override;
  void write_parameter(std::size_t index, std::span<const float> values) override;
  void read_logits(std::size_t row, std::span<float> logits) override;

private:
  [[nodiscard]] bool is_tied_alone() const { return !memory_.head_half.empty(); }
  [[nodiscard]] bool is_tied_apart() const {
    return props_.model.tie_embeddings && props_.spec.has_embedding != props_.spec.has_head;
  }
  [[nodiscard]] bool has_tied_bucket() const {
    return props_.bounds.trains && (is_tied_alone() || is_tied_apart());
  }
  [[nodiscard]] float* gradient(std::size_t parameter) const {
    return memory_.parameters[parameter].gradients.data();
  }
  /// What `integers`, of all microbatches, has of one.
  [[nodiscard]] std::span<const std::int32_t> of_microbatch(std::span<const std::int32_t> integers,
                                                            MicrobatchIndex microbatch) const {
    const auto count = integers.size() / props_.microbatch_count;
    return integers.subspan(microbatch.value() * count, count);
  }

  /// The gradients of the bucket are; this holder's part may be empty.
  [[nodiscard]] bool is_kept_in_parts(std::uint32_t bucket) const {
    return memory_.is_kept_in_parts[graph_.buckets[bucket].begin];
  }

  void initialise();
  void initialise(const ParameterSpec& spec, std::uint64_t first, std::span<float> values) const;
  void upload(std::span<const float> values, float* to);
  void download(const float* from, std::span<float> values);
  void upload(const std::vector<std::int32_t>& integers, std::span<std::int32_t> to);

  Slot& take_slot(MicrobatchIndex microbatch);
  [[nodiscard]] std::uint32_t slot_of(MicrobatchIndex microbatch) const;
  Slot& resume_slot(MicrobatchIndex microbatch);
  void leave_slot(MicrobatchIndex microbatch);
  void free_slot(MicrobatchIndex microbatch);
  float* take_buffer(Edge edge, MicrobatchIndex microbatch);
  void give_buffer(Edge edge, MicrobatchIndex microbatch);

  void begin_work();
  void end_work(DeviceDone done);

  [[nodiscard]] PassFrame frame_of(const Slot& slot, MicrobatchIndex microbatch) const;
  void enqueue_calls(std::span<const KernelCall> calls, const PassFrame& frame);

  void forward(MicrobatchIndex microbatch);
  void predict(MicrobatchIndex microbatch);
  void backward(MicrobatchIndex microbatch, bool for_input, bool for_weight);
  void hold_gradients(Slot& slot, MicrobatchIndex microbatch);
  void begin_weights(MicrobatchIndex microbatch);
  void end_weights(MicrobatchIndex microbatch);
  void bucket_done();
  void sum_rows(std::uint32_t bucket);
  void scatter(std::uint32_t bucket);
  void settle(std::uint32_t place);
  [[nodiscard]] std::uint32_t place_of_first_part() const;
  void hand_out(std::uint32_t bucket);
  void await_values(std::uint32_t parameter);
  [[nodiscard]] std::uint32_t place_of(std::uint32_t copy, std::uint32_t bucket) const;
  [[nodiscard]] std::uint32_t copy_of(std::uint32_t step) const;
  void optimize(std::size_t index, const OptimizerStep& step);
  void step_adafactor(std::size_t index, const AdafactorStep& step);
  void settle_tied();

  const StageProps props_;
  const StageGraph graph_;
  Stream& stream_;
  Kernels& kernels_;
  const MemorySpace space_;

  StageBuffers buffers_;
  StageMemory memory_;
  StreamGroup shards_;
  /// At its places: `scattering_`, then by copy the values of each bucket.
  StreamGroup holders_;
  KernelCalls calls_;
  std::optional<OffloadedSlots> offloaded_;
  std::size_t tied_weight_ = 0;
  std::size_t owned_count_ = 0;
  BucketReady bucket_ready_;

  StepInfo step_;
  std::vector<std::uint32_t> free_slots_;
  std::vector<std::optional<std::uint32_t>> slot_of_microbatch_;
  const float* last_logits_ = nullptr;
  std::uint32_t weights_next_ = 0;  ///< The microbatch whose weight pass comes next.
  Accumulate accumulate_{};         ///< Of the weight pass being enqueued.
  bool is_last_weights_ = false;    ///< The weight pass being enqueued ends the gradients.
  std::uint32_t bucket_next_ = 0;   ///< The bucket that is completed next.

  /// A bucket whose gradients of one microbatch are on their way around the holders.
  struct Scattering {
    std::uint32_t bucket = 0;
    Accumulate accumulate{};
  };
  std::array<std::optional<Scattering>, gradient_place_count> scattering_{};
  std::uint32_t copy_in_use_ = 0;  ///< Of the weights.
  const bool runs_passes_;
  const bool updates_;     ///< All parameters, or a part of each.
  const bool is_handing_;  ///< What holders update they hand out.
  std::vector<std::uint32_t> bucket_of_parameter_;
  /// By bucket: parameters whose gradients are sums over rows that the shards divide.
  std::vector<std::vector<std::uint32_t>> summed_over_rows_;
  std::int64_t work_begin_ns_ = 0;  ///< Belongs to the stream.
};

// -- construction ---------------------------------------------------------------------------------

ArenaStage::ArenaStage(Device& device, Stream& stream, const StageProps& props, StageGraph graph,
                       ArenaCutter& cutter, ArenaCutter& host_cutter)
    : props_{props},
      graph_{std::move(graph)},
      stream_{stream},
      kernels_{device.kernels()},
      space_{device.memory_space()},
      buffers_{props.microbatch_count},
      memory_{props_, graph_, cutter, host_cutter, buffers_},
      shards_{stream, props.peers.shards},
      holders_{stream, props.peers.holders,
               gradient_place_count + memory_.values.size() * graph_.buckets.size()},
      calls_{stream, kernels_, props_, graph_, memory_, shards_},
      tied_weight_{props.spec.has_embedding ? 0 : graph_.parameters.size() - 1},
      slot_of_microbatch_(props.microbatch_count),
      runs_passes_{props.shape().runs_passes()},
      updates_{props.shape().updates()},
      is_handing_{props.bounds.trains && props.peers.holders.group != nullptr
                  && (props.train.optimizer_sharding != OptimizerSharding::none
                      || props.holder().has_server)},
      bucket_of_parameter_(graph_.parameters.size()),
      summed_over_rows_(graph_.buckets.size()) {
  TROUPE_ASSERT(cutter.done() && host_cutter.done());
  for (std::uint32_t b = 0; b < bucket_count(); ++b) {
    for (auto i = graph_.buckets[b].begin; i < graph_.buckets[b].end; ++i) {
      bucket_of_parameter_[i] = b;
    }
  }
  for (const auto& operation : graph_.operations) {
    if (!operation.on_own_rows || graph_.buckets.empty()) continue;
    for (const auto parameter : {operation.weight, operation.bias}) {
      if (parameter == no_parameter) continue;
      summed_over_rows_[bucket_of_parameter_[parameter]].push_back(parameter);
    }
  }
  owned_count_ = static_cast<std::size_t>(
      std::ranges::count_if(graph_.parameters, [](const auto& spec) { return spec.owned; }));
  if (!memory_.places.empty()) {
    offloaded_.emplace(device, stream, memory_.places, memory_.host.slots);
  }
  free_slots_.resize(props_.bounds.slots);
  std::iota(free_slots_.rbegin(), free_slots_.rend(), 0U);
  initialise();
}

/// Piece by piece, so that the host needs little memory. The arena comes zeroed.
void ArenaStage::initialise() {
  if (!memory_.turns.empty()) {
    const auto& model = props_.model;
    upload(rotary_turns(model.sequence, model.head_size(), model.rotary_base),
           memory_.turns.data());
  }
  std::vector<float> piece(std::size_t{1} << 18U);
  for (const auto& [spec, values, gradients] : memory_.parameters) {
    if (spec->initial == Initial::zeros) continue;
    std::size_t filled = 0;
    std::size_t uploaded = 0;
    const auto flush = [&, values = values] {
      upload(std::span{piece}.first(filled), &values[uploaded]);
      uploaded += filled;
      filled = 0;
    };
    for (auto run : runs_of(*spec)) {
      while (run.count > 0) {
        const auto count = std::min<std::size_t>(run.count, piece.size() - filled);
        initialise(*spec, run.in_whole, std::span{piece}.subspan(filled, count));
        filled += count;
        run.in_whole += count;
        run.count -= count;
        if (filled == piece.size()) flush();
      }
    }
    if (filled > 0) flush();
  }
}

/// The elements from `first` on of the whole parameter.
void ArenaStage::initialise(const ParameterSpec& spec, std::uint64_t first,
                            std::span<float> values) const {
  if (spec.initial == Initial::ones) std::ranges::fill(values, 1.0F);
  if (spec.initial == Initial::normal) {
    InitialNormal{props_.train.seed, spec.name}.fill(values, spec.deviation, first);
  }
}

// -- between host and device ----------------------------------------------------------------------

void ArenaStage::upload(std::span<const float> values, float* to) {
  kernels_.upload(stream_, values.data(), to, values.size_bytes());
  stream_.synchronize();
}

void ArenaStage::download(const float* from, std::span<float> values) {
  kernels_.download(stream_, from, values.data(), values.size_bytes());
  stream_.synchronize();
}

void ArenaStage::read_parameter(std::size_t index, std::span<float> values) {
  const auto from = memory_.parameters.at(index).values;
  TROUPE_ASSERT(values.size() == from.size());
  await_values(static_cast<std::uint32_t>(index));
  download(from.data(), values);
}

void ArenaStage::write_parameter(std::size_t index, std::span<const float> values) {
  const auto to = memory_.parameters.at(index).values;
  TROUPE_ASSERT(values.size() == to.size());
  await_values(static_cast<std::uint32_t>(index));
  upload(values, to.data());
}

void ArenaStage::read_logits(std::size_t row, std::span<float> logits) {
  const auto& of = graph_.operations.back();
  TROUPE_ASSERT(last_logits_ != nullptr && row < of.rows && props_.shard().count == 1);
  TROUPE_ASSERT(logits.size() == of.in);
  download(last_logits_ + row * of.in, logits);
}

/// Of the microbatches of the batch, which outlives the step, and with it the copy.
void ArenaStage::upload(const std::vector<std::int32_t>& integers, std::span<std::int32_t> to) {
  if (to.empty()) return;
  const auto count = to.size() / props_.microbatch_count * step_.batch->microbatch_count;
  TROUPE_ASSERT(integers.size() == count);
  kernels_.upload(stream_, integers.data(), to.data(), count * sizeof(std::int32_t));
}

// -- slots and buffers ----------------------------------------------------------------------------

Slot& ArenaStage::take_slot(MicrobatchIndex microbatch) {
  auto& index = slot_of_microbatch_.at(microbatch.value());
  TROUPE_ASSERT(!index && !free_slots_.empty());
  index = free_slots_.back();
  free_slots_.pop_back();
  auto& slot = memory_.slots[*index];
  if (offloaded_) slot.memory = offloaded_->begin(*index);
  return slot;
}

std::uint32_t ArenaStage::slot_of(MicrobatchIndex microbatch) const {
  const auto& index = slot_of_microbatch_.at(microbatch.value());
  TROUPE_ASSERT(index.has_value());
  return *index;
}

void ArenaStage::fetch(MicrobatchIndex microbatch) {
  if (offloaded_) offloaded_->fetch(slot_of(microbatch));
}

Slot& ArenaStage::resume_slot(MicrobatchIndex microbatch) {
  const auto index = slot_of(microbatch);
  auto& slot = memory_.slots[index];
  if (offloaded_) slot.memory = offloaded_->resume(index);
  return slot;
}

/// A later pass of the microbatch comes back to the slot.
void ArenaStage::leave_slot(MicrobatchIndex microbatch) {
  if (offloaded_) offloaded_->store(slot_of(microbatch));
}

/// Work that a later pass enqueues on the slot comes after: the stream keeps order.
void ArenaStage::free_slot(MicrobatchIndex microbatch) {
  const auto index = slot_of(microbatch);
  if (offloaded_) offloaded_->drop(index);
  free_slots_.push_back(index);
  slot_of_microbatch_[microbatch.value()].reset();
}

float* ArenaStage::take_buffer(Edge edge, MicrobatchIndex microbatch) {
  buffers_.hold(edge, microbatch, buffers_.take_free(edge));
  return floats(buffers_.held(edge, microbatch));
}

void ArenaStage::give_buffer(Edge edge, MicrobatchIndex microbatch) {
  buffers_.give_free(edge, buffers_.release(edge, microbatch));
}

// -- steps and passes -----------------------------------------------------------------------------

void ArenaStage::begin_step(const StepInfo& info) {
  if (!runs_passes_) return;
  TROUPE_ASSERT(info.batch != nullptr && info.batch->target_count > 0);
  TROUPE_ASSERT(info.batch->microbatch_count <= props_.microbatch_count);
  TROUPE_ASSERT(info.batch->microbatch_size == props_.microbatch_size);
  TROUPE_ASSERT(info.batch->sequence == props_.model.sequence);
  TROUPE_ASSERT(info.kind == StepKind::evaluation || props_.bounds.trains);
  TROUPE_ASSERT(free_slots_.size() == props_.bounds.slots);
  step_ = info;
  copy_in_use_ = copy_of(info.weights_of);
  memory_.use_values(copy_in_use_);
  if (info.kind == StepKind::training) memory_.use_gradients(copy_of(info.step));
  std::ranges::fill(memory_.host.losses, 0.0);
  std::ranges::fill(memory_.host.predictions, 0);
  weights_next_ = info.own_microbatches().begin;
  upload(info.batch->tokens, memory_.tokens);
  upload(info.batch->segments, memory_.segments);
  upload(info.batch->lengths, memory_.lengths);
  upload(info.batch->targets, memory_.targets);
}

void ArenaStage::begin_work() {
  stream_.enqueue([this] {
    // Whoever read parameters may have waited for them, outside of any work.
    static_cast<void>(shards_.take_waiting_ns());
    static_cast<void>(holders_.take_waiting_ns());
    work_begin_ns_ = steady_now_ns();
  });
}

void ArenaStage::end_work(DeviceDone done) {
  stream_.enqueue([this, done = std::move(done)]() mutable {
    const auto code = shards_.failure() != Errc::none ? shards_.failure() : holders_.failure();
    done(code, {.begin_ns = work_begin_ns_,
                .end_ns = steady_now_ns(),
                .waiting_ns = shards_.take_waiting_ns(),
                .gathering_ns = holders_.take_waiting_ns()});
  });
}

void ArenaStage::enqueue(const Action& action, DeviceDone done) {
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

void ArenaStage::finish(const Action& action) {
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

std::span<const double> ArenaStage::losses() const {
  if (!props_.spec.has_head || step_.batch == nullptr) return {};
  return memory_.host.losses.first(step_.batch->microbatch_count);
}

std::span<const std::int32_t> ArenaStage::predictions() const {
  if (step_.batch == nullptr || step_.kind == StepKind::training) return {};
  const auto& all = memory_.host.predictions;
  return all.first(all.size() / props_.microbatch_count * step_.batch->microbatch_count);
}

// -- forward --------------------------------------------------------------------------------------

PassFrame ArenaStage::frame_of(const Slot& slot, MicrobatchIndex microbatch) const {
  const bool trains = step_.kind == StepKind::training;
  return {.slot = &slot,
          .tokens = of_microbatch(memory_.tokens, microbatch).data(),
          .segments = of_microbatch(memory_.segments, microbatch).data(),
          .lengths = of_microbatch(memory_.lengths, microbatch).data(),
          .targets = of_microbatch(memory_.targets, microbatch).data(),
          .gradient_scale =
              trains ? step_.loss_scale / static_cast<float>(step_.batch->target_count) : 0.0F,
          .accumulate = accumulate_,
          .drops = trains,
          .step = step_.step,
          .first_sample = step_.first_sample + microbatch.value() * props_.microbatch_size};
}

void ArenaStage::enqueue_calls(std::span<const KernelCall> calls, const PassFrame& frame) {
  for (const auto& call : calls) {
    calls_.enqueue(call, frame);
    if (call.completes_bucket) bucket_done();
  }
}

void ArenaStage::forward(MicrobatchIndex microbatch) {
  auto& slot = take_slot(microbatch);
  if (!props_.spec.has_embedding) {
    slot.activation_in = floats(buffers_.held(Edge::activation_in, microbatch));
  }
  if (!props_.spec.has_head) slot.activation_out = take_buffer(Edge::activation_out, microbatch);
  const auto frame = frame_of(slot, microbatch);
  for (const auto& call : graph_.forward) {
    await_values(graph_.operations[call.operation].weight);
    await_values(graph_.operations[call.operation].bias);
    calls_.enqueue(call, frame);
  }
  if (props_.spec.has_head) {
    const auto& last = graph_.forward.back();
    kernels_.download(stream_, calls_.at(last.saved[0], frame),
                      &memory_.host.losses[microbatch.value()], sizeof(double));
  }
  if (step_.kind == StepKind::evaluation) {
    last_logits_ = calls_.at(graph_.forward.back().x, frame);
    if (!memory_.predictions.empty()) predict(microbatch);
    free_slot(microbatch);
  } else {
    leave_slot(microbatch);
  }
}

/// Tells the classes of the sequences whose logits the stream has just computed.
void ArenaStage::predict(MicrobatchIndex microbatch) {
  const auto classes = memory_.predictions;
  kernels_.arg_max(stream_, last_logits_, classes.data(), props_.microbatch_size,
                   props_.model.classes);
  kernels_.download(stream_, classes.data(),
                    &memory_.host.predictions[microbatch.value() * classes.size()],
                    classes.size_bytes());
}

// -- backward -------------------------------------------------------------------------------------

/// On a stage that splits its backward passes a whole one is both halves.
void ArenaStage::backward(MicrobatchIndex microbatch, bool for_input, bool for_weight) {
  TROUPE_ASSERT(step_.kind == StepKind::training);
  auto& slot = resume_slot(microbatch);
  if (for_input) hold_gradients(slot, microbatch);
  if (for_weight) begin_weights(microbatch);
  const auto frame = frame_of(slot, microbatch);
  if (for_input && for_weight) enqueue_calls(graph_.backward, frame);
  if (for_input) enqueue_calls(graph_.backward_input, frame);
  if (for_weight) enqueue_calls(graph_.backward_weight, frame);
  if (for_weight) {
    end_weights(microbatch);
  } else {
    leave_slot(microbatch);
  }
}

void ArenaStage::hold_gradients(Slot& slot, MicrobatchIndex microbatch) {
  if (!props_.spec.has_head) {
    slot.gradient_in = floats(buffers_.held(Edge::gradient_in, microbatch));
  }
  if (!props_.spec.has_embedding) {
    slot.gradient_out = take_buffer(Edge::gradient_out, microbatch);
  }
}

// -- gradients ------------------------------------------------------------------------------------

/// Gradients accumulate in microbatch order, so that the order of the passes leaves no trace.
void ArenaStage::begin_weights(MicrobatchIndex microbatch) {
  TROUPE_ASSERT(microbatch.value() == weights_next_);
  ++weights_next_;
  const auto [first, end] = step_.own_microbatches();
  accumulate_ = microbatch.value() == first ? Accumulate::overwrite : Accumulate::add;
  is_last_weights_ = weights_next_ == end;
  bucket_next_ = 0;
  settle(place_of_first_part());
}

/// Where the gradients are computed that a pass is the first to keep in parts.
std::uint32_t ArenaStage::place_of_first_part() const {
  std::uint32_t first = 0;
  while (first < bucket_count() && !is_kept_in_parts(first)) ++first;
  return first % gradient_place_count;
}

void ArenaStage::end_weights(MicrobatchIndex microbatch) {
  for (std::uint32_t place = 0; is_last_weights_ && place < gradient_place_count; ++place) {
    settle(place);
  }
  if (is_last_weights_ && has_tied_bucket()) settle_tied();
  free_slot(microbatch);
}

/// A bucket has the gradients of this microbatch; of the step, if the microbatch is the last.
void ArenaStage::bucket_done() {
  const auto index = bucket_next_++;
  TROUPE_ASSERT(index < bucket_count());
  const bool in_parts = is_kept_in_parts(index);
  if (is_last_weights_ || in_parts) sum_rows(index);
  if (in_parts) scatter(index);
  if (!is_last_weights_) return;
  stream_.enqueue([this, index] {
    if (bucket_ready_) bucket_ready_(index);
  });
}

/// The tied gradient: summed here when both halves are, otherwise held out for the other end.
void ArenaStage::settle_tied() {
  auto* const half = gradient(tied_weight_);
  const auto count = memory_.parameters[tied_weight_].gradients.size();
  if (is_tied_alone()) {
    kernels_.add(stream_, half, memory_.head_half.data(), half, count);
  } else {
    kernels_.copy(stream_, half, take_buffer(Edge::tied_out, MicrobatchIndex{0}), count);
  }
  bucket_done();
}

/// Where shards divide rows, each has gradients of norms from its own rows alone.
void ArenaStage::sum_rows(std::uint32_t bucket) {
  for (const auto parameter : summed_over_rows_[bucket]) {
    const auto gradients = memory_.parameters[parameter].gradients;
    shards_.perform(
        StreamGroup::Operation::all_reduce,
        {reinterpret_cast<std::byte*>(gradients.data()), gradients.size_bytes(), space_});
  }
}

/// Sums the gradients of this microbatch over the holders while the next bucket is computed, in the
/// next place, which must be free for it.
void ArenaStage::scatter(std::uint32_t bucket_index) {
  const auto place = bucket_index % gradient_place_count;
  holders_.begin(StreamGroup::Operation::reduce_scatter, bucket(bucket_index), place);
  scattering_[place] = Scattering{.bucket = bucket_index, .accumulate = accumulate_};
  settle((place + 1) % gradient_place_count);
}

/// Adds what was summed up at the place to what this holder keeps.
void ArenaStage::settle(std::uint32_t place) {
  if (!scattering_[place]) return;
  const auto [index, accumulate] = *std::exchange(scattering_[place], std::nullopt);
  holders_.await(place);
  const auto kept = memory_.gradient_parts[index];
  const auto part = part_of_bucket(layout_of(graph_, graph_.buckets[index]), props_.holder());
  const auto* const sums = floats(bucket(index)) + part.begin;
  if (accumulate == Accumulate::add) {
    kernels_.add(stream_, kept.data(), sums, kept.data(), kept.size());
  } else {
    kernels_.copy(stream_, sums, kept.data(), kept.size());
  }
}

/// Where gradients are kept in parts, the holders sum up in the order of their streams: whatever
/// else is to be summed comes after the passes.
void ArenaStage::reduce_bucket(std::uint32_t index, transport::CollectiveDone done) {
  const auto& [group, additions] = props_.peers.holders;
  if (props_.holder().has_server) {
    return group->reduce(*additions, bucket(index), group->size() - 1, std::move(done));
  }
  switch (props_.train.optimizer_sharding) {
    case OptimizerSharding::none:
      return group->all_reduce(*additions, bucket(index), std::move(done));
    case OptimizerSharding::zero1:
      return group->reduce_scatter(*additions, bucket(index), std::move(done));
    case OptimizerSharding::zero2:
      if (is_kept_in_parts(index)) return done(Errc::none);
      return stream_.enqueue([this, sums = bucket(index), done = std::move(done)]() mutable {
        const auto& peers = props_.peers.holders;
        peers.group->reduce_scatter(*peers.stream, sums, std::move(done));
      });
  }
}

BufferView ArenaStage::bucket(std::uint32_t index) {
  const auto& bucket = graph_.buckets.at(index);
  const auto first = memory_.parameters[bucket.begin].gradients;
  const auto last = memory_.parameters[bucket.end - 1].gradients;
  const auto count = static_cast<std::size_t>(last.data() + last.size() - first.data());
  return {reinterpret_cast<std::byte*>(first.data()), count * sizeof(float), space_};
}

void ArenaStage::add_tied(DeviceDone done) {
  TROUPE_ASSERT(is_tied_apart());
  begin_work();
  auto* const own = gradient(tied_weight_);
  const auto* const peer = floats(buffers_.held(Edge::tied_in, MicrobatchIndex{0}));
  const bool is_first = props_.spec.has_embedding;
  kernels_.add(stream_, is_first ? own : peer, is_first ? peer : own, own,
               memory_.parameters[tied_weight_].gradients.size());
  end_work(std::move(done));
}

void ArenaStage::measure_gradients(DeviceDone done) {
  begin_work();
  for (std::size_t i = 0; i < owned_count_; ++i) {
    const auto gradients = memory_.updated[i].gradients;
    kernels_.sum_of_squares(stream_, gradients.data(), &memory_.gradient_squares[i],
                            gradients.size());
  }
  kernels_.download(stream_, memory_.gradient_squares.data(), memory_.host.gradient_squares.data(),
                    owned_count_ * sizeof(double));
  end_work(std::move(done));
}

// -- optimizer ------------------------------------------------------------------------------------

void ArenaStage::optimize(const OptimizerStep& step, DeviceDone done) {
  begin_work();
  // In the order in which the next forward pass uses them.
  for (auto b = bucket_count(); b-- > 0;) {
    await_values(graph_.buckets[b].begin);
    for (auto i = graph_.buckets[b].begin; i < graph_.buckets[b].end; ++i) optimize(i, step);
    if (is_handing_) hand_out(b);
  }
  end_work(std::move(done));
}

void ArenaStage::exchange_weights(DeviceDone done) {
  TROUPE_ASSERT(props_.holder().has_server);
  begin_work();
  for (auto b = bucket_count(); b-- > 0;) {
    holders_.await(place_of(copy_of(step_.step), b));
    hand_out(b);
  }
  end_work(std::move(done));
}

/// Where the weights are that a step makes, and its gradients. A server keeps one copy.
std::uint32_t ArenaStage::copy_of(std::uint32_t step) const {
  return step % static_cast<std::uint32_t>(memory_.values.size());
}

std::uint32_t ArenaStage::place_of(std::uint32_t copy, std::uint32_t bucket) const {
  return gradient_place_count + copy * bucket_count() + bucket;
}

/// Exchanges what each holder, or the server, has updated; whoever uses the values waits for it.
void ArenaStage::hand_out(std::uint32_t bucket) {
  const auto& [begin, end] = graph_.buckets[bucket];
  const auto copy = copy_of(step_.step);
  const auto first = memory_.values[copy][begin];
  const auto last = memory_.values[copy][end - 1];
  const auto count = static_cast<std::size_t>(last.data() + last.size() - first.data());
  holders_.begin(props_.holder().has_server ? StreamGroup::Operation::broadcast
                                            : StreamGroup::Operation::all_gather,
                 {reinterpret_cast<std::byte*>(first.data()), count * sizeof(float), space_},
                 place_of(copy, bucket));
}

void ArenaStage::await_values(std::uint32_t parameter) {
  if (is_handing_ && parameter != no_parameter) {
    holders_.await(place_of(copy_in_use_, bucket_of_parameter_[parameter]));
  }
}

void ArenaStage::optimize(std::size_t index, const OptimizerStep& step) {
  const auto& train = props_.train;
  const auto& [values, gradients, state] = memory_.updated[index];
  const bool decays = memory_.parameters[index].spec->decays;
  const auto decay = static_cast<float>(decays ? train.weight_decay : 0.0);
  const auto bias = [&](double beta) {
    return static_cast<float>(1.0 - std::pow(beta, step.update));
  };
  switch (train.optimizer) {
    case OptimizerKind::adamw:
    case OptimizerKind::adam:
      return kernels_.adam(stream_, values.data(), gradients.data(), state[0].data(),
                           state[1].data(), values.size(),
                           {.learning_rate = step.learning_rate,
                            .beta1 = static_cast<float>(train.beta1),
                            .beta2 = static_cast<float>(train.beta2),
                            .epsilon = static_cast<float>(train.epsilon),
                            .weight_decay = decay,
                            .bias1 = bias(train.beta1),
                            .bias2 = bias(train.beta2),
                            .gradient_scale = step.gradient_scale,
                            .is_decoupled = train.optimizer == OptimizerKind::adamw});
    case OptimizerKind::sgd:
      return kernels_.sgd(stream_, values.data(), gradients.data(), state[0].data(), values.size(),
                          {.learning_rate = step.learning_rate,
                           .momentum = static_cast<float>(train.momentum),
                           .weight_decay = decay,
                           .gradient_scale = step.gradient_scale});
    case OptimizerKind::adafactor:
      return step_adafactor(index, {.learning_rate = step.learning_rate,
                                    .keep = static_cast<float>(1.0 - std::pow(step.update, -0.8)),
                                    .weight_decay = decay,
                                    .gradient_scale = step.gradient_scale});
  }
}

/// What shards have of the sums along the axis that divides them, and of the norms, is added up.
void ArenaStage::step_adafactor(std::size_t index, const AdafactorStep& step) {
  const auto& parameter = memory_.parameters[index];
  const auto& spec = *parameter.spec;
  auto* const w = parameter.values.data();
  auto* const g = gradient(index);
  const auto rows = memory_.updated[index].state[0];
  const auto columns = memory_.updated[index].state[1];
  const MatrixShape shape{.rows = static_cast<std::uint32_t>(rows.size()),
                          .columns = static_cast<std::uint32_t>(columns.size())};
  const auto after = [](std::span<float> array) {
    return padded(array.size_bytes()) / sizeof(float);
  };
  auto* const row_sums = memory_.optimizer_sums.data();
  auto* const column_sums = row_sums + after(rows);
  auto* const norms = column_sums + after(columns);
  const bool divides_rows = spec.slice && spec.shape.size() == 2 && spec.slice->axis == 0;
  const auto sum_over_shards = [&](float* values, std::size_t count) {
    if (spec.slice) {
      shards_.perform(StreamGroup::Operation::all_reduce,
                      {reinterpret_cast<std::byte*>(values), count * sizeof(float), space_});
    }
  };

  kernels_.adafactor_sums(stream_, g, row_sums, column_sums, shape, step.gradient_scale);
  if (divides_rows) {
    sum_over_shards(column_sums, columns.size());
  } else {
    sum_over_shards(row_sums, rows.size());
  }
  kernels_.blend(stream_, rows.data(), row_sums, step.keep, rows.size());
  kernels_.blend(stream_, columns.data(), column_sums, step.keep, columns.size());
  const auto whole = divides_rows ? columns : rows;
  std::uint64_t element_count = 1;
  for (const auto extent : spec.whole_shape()) element_count *= extent;
  const AdafactorMoments moments{.rows = rows.data(),
                                 .columns = columns.data(),
                                 .whole = whole.data(),
                                 .whole_count = static_cast<std::uint32_t>(whole.size()),
                                 .element_count = element_count};
  kernels_.adafactor_norms(stream_, w, g, moments, norms, shape, step);
  sum_over_shards(norms, 2);
  kernels_.adafactor_update(stream_, w, g, moments, norms, shape, step);
}

/// The memory that `list` lies in.
Expected<BufferView> allocate(Device& device, std::span<const TensorSpec> list, MemorySpace space) {
  std::size_t size_bytes = 0;
  for (const auto& tensor : list) size_bytes += padded(tensor.size_bytes);
  return device.allocate(size_bytes, space);
}

Expected<Done> check_kernels(const StageGraph& graph, const StageProps& props) {
  for (const auto& operation : graph.custom_operations) {
    const auto found = props.custom_kernels.find(operation.name);
    const auto lacks = [&](const char* what) {
      return Error{Errc::invalid_config, "the operation \"" + operation.name + "\" of the layer \""
                                             + props.model.custom_layer->name + "\" has no " + what
                                             + "; give it under that name in custom_kernels of "
                                               "RankParts"};
    };
    if (found == props.custom_kernels.end()) return lacks("kernel");
    const auto& kernel = found->second;
    if (!kernel.forward) return lacks("kernel for the forward pass");
    if (!props.bounds.trains) continue;
    if (!kernel.backward_input) return lacks("kernel for the gradient of its input");
    if (!operation.parameters.empty() && !kernel.backward_weight) {
      return lacks("kernel for the gradients of its parameters");
    }
  }
  return Done{};
}

}  // namespace

Expected<std::unique_ptr<TransformerStage>> make_transformer_stage(Device& device, Stream& stream,
                                                                   const StageProps& props) {
  const auto shape = props.shape();
  auto graph = graph_of(shape);
  if (auto checked = check_kernels(graph, props); !checked) return checked.error();
  const auto list = tensors_of(graph, shape);
  const auto host_begin = std::ranges::find_if(list, &TensorSpec::for_host);
  const std::span for_device{list.begin(), host_begin};
  const std::span for_host{host_begin, list.end()};
  auto arena = allocate(device, for_device, device.memory_space());
  if (!arena) return arena.error();
  auto host_arena = allocate(device, for_host, MemorySpace::host_pinned);
  if (!host_arena) return host_arena.error();
  ArenaCutter cutter{*arena, for_device};
  ArenaCutter host_cutter{*host_arena, for_host};
  return std::unique_ptr<TransformerStage>{
      std::make_unique<ArenaStage>(device, stream, props, std::move(graph), cutter, host_cutter)};
}

}  // namespace troupe::stages
