#include "troupe/stages/counting_stage.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <string>
#include <thread>
#include <utility>

namespace troupe::stages {

namespace {

constexpr std::size_t line_bytes = 64;
constexpr std::size_t parameter_length = 16;
constexpr MicrobatchIndex once{0};
constexpr double half_max = 65'504.0;  ///< Beyond it a gradient that is scaled overflows.

/// What travels in an edge buffer.
struct Message {
  std::uint64_t trace = 0;
  std::uint32_t receiver = 0;
  std::uint32_t microbatch = 0;
};

Message& message_in(BufferView view) {
  return *reinterpret_cast<Message*>(view.data);
}
float* floats_in(BufferView view) {
  return reinterpret_cast<float*>(view.data);
}

/// A small whole number, exact in a float whatever is added to it, that depends on all of `trace`.
float digest(std::uint64_t trace) {
  trace ^= trace >> 33U;
  trace *= 0xff51afd7ed558ccdULL;
  return static_cast<float>((trace >> 33U) % 1024U);
}

class CountingStage final : public Stage {
public:
  CountingStage(Stream& stream, const CountingProps& props, BufferView memory)
      : stream_{&stream},
        props_{props},
        is_first_{props.stage.value() % props.stage_count == 0},
        is_last_{(props.stage.value() + 1) % props.stage_count == 0},
        is_tied_{props.tie_ends && props.stage_count > 1 && (is_first_ || is_last_)},
        buffers_{props.microbatch_count},
        inputs_(props.microbatch_count),
        output_gradients_(props.microbatch_count),
        squares_(props.reported_count),
        spec_{.name = "stage." + std::to_string(props.stage.value()),
              .shape = {parameter_length},
              .initial = Initial::zeros} {
    if (props_.has_server) {
      const auto& group = *props_.holders.group;
      (group.rank() + 1 == group.size() ? is_server_ : is_client_) = true;
    }
    if (is_last_ && !is_server_) losses_.resize(props.microbatch_count);
    if (is_client_) squares_.clear();
    const auto cut = [&memory] {
      const BufferView piece{memory.data, line_bytes, memory.space};
      memory.data += line_bytes;
      return piece;
    };
    values_ = cut();
    for (std::uint32_t copy = 0; copy <= props.staleness; ++copy) {
      gradients_.push_back(cut());
      tied_.push_back(cut());
    }
    const std::array<std::pair<Edge, std::uint32_t>, edge_count> pools{
        {{Edge::activation_in, props.bounds.activations_in},
         {Edge::activation_out, props.bounds.activations_out},
         {Edge::gradient_in, props.bounds.gradients_in},
         {Edge::gradient_out, props.bounds.gradients_out},
         {Edge::tied_in, is_tied_ ? 1U : 0U},
         {Edge::tied_out, is_tied_ ? 1U : 0U}}};
    for (const auto& [edge, count] : pools) {
      for (std::uint32_t i = 0; i < count; ++i) buffers_.add(edge, Buffer{cut()});
    }
    view_ = {&spec_,
             {floats_in(values_), parameter_length},
             {floats_in(gradients_.front()), parameter_length}};
  }

  static std::size_t memory_bytes(const CountingProps& props) {
    const auto& b = props.bounds;
    // Values, gradients and tied gradients, two tied edges.
    const std::size_t own_lines = 3 + 2 * (std::size_t{props.staleness} + 1);
    return line_bytes
           * (own_lines + b.activations_in + b.activations_out + b.gradients_in + b.gradients_out);
  }

  [[nodiscard]] StageBuffers& buffers() override { return buffers_; }

  void begin_step(const StepInfo& info) override {
    info_ = info;
    trace_ = 0;
    weight_pass_count_ = 0;
    weight_passes_enqueued_ = 0;
    std::ranges::fill(losses_, 0.0);
  }

  void enqueue(const Action& action, DeviceDone done) override {
    if (props_.pass_time) stream_->enqueue([this, step = info_.step] { sleep(step); });
    const auto m = action.microbatch;
    if (action.pass == Pass::forward) {
      const auto in = is_first_ ? BufferView{} : buffers_.held(Edge::activation_in, m);
      const auto out = is_last_ ? BufferView{} : claim(Edge::activation_out, m);
      take_slot();
      if (info_.kind == StepKind::evaluation) free_slot();
      run(std::move(done), [this, m, in, out] { return forward(m, in, out); });
      return;
    }
    const auto in = is_last_ ? BufferView{} : buffers_.held(Edge::gradient_in, m);
    const auto out = is_first_ || !makes_input_gradient(action.pass) ? BufferView{}
                                                                     : claim(Edge::gradient_out, m);
    BufferView tied_copy;
    if (accumulates_weights(action.pass)) {
      free_slot();
      const bool is_last_pass = ++weight_passes_enqueued_ == microbatch_count();
      if (is_last_pass && is_tied_) tied_copy = claim(Edge::tied_out, once);
    }
    run(std::move(done), [this, pass = action.pass, m, in, out, tied_copy] {
      auto code = Errc::none;
      if (makes_input_gradient(pass)) code = backward_input(m, in, out);
      if (accumulates_weights(pass)) backward_weight(m, tied_copy);
      return code;
    });
  }

  void fetch(MicrobatchIndex /*microbatch*/) override {}

  void finish(const Action& action) override {
    const bool is_last_use = info_.kind == StepKind::evaluation || accumulates_weights(action.pass);
    for (const auto edge : {Edge::activation_in, Edge::gradient_in}) {
      if (is_last_use && buffers_.holds(edge, action.microbatch)) {
        buffers_.give_free(edge, buffers_.release(edge, action.microbatch));
      }
    }
  }

  [[nodiscard]] std::uint32_t bucket_count() const override { return is_tied_ ? 2 : 1; }
  void reduce_bucket(std::uint32_t index, transport::CollectiveDone done) override {
    const auto& [group, additions] = props_.holders;
    const auto bucket = index == 0 ? gradients() : tied();
    if (!props_.has_server) return group->all_reduce(*additions, bucket, std::move(done));
    group->reduce(*additions, bucket, group->size() - 1, std::move(done));
  }
  void on_bucket_ready(BucketReady ready) override { ready_ = std::move(ready); }
  [[nodiscard]] std::span<const double> losses() const override { return losses_; }
  [[nodiscard]] std::span<const std::int32_t> predictions() const override { return {}; }

  void add_tied(DeviceDone done) override {
    const auto other = buffers_.held(Edge::tied_in, once);
    run(std::move(done), [this, other] {
      for (std::size_t i = 0; i < parameter_length; ++i) {
        floats_in(tied())[i] += floats_in(other)[i];
      }
      return Errc::none;
    });
  }

  void measure_gradients(DeviceDone done) override {
    run(std::move(done), [this] {
      const auto gradient = double{floats_in(gradients())[0]} * info_.loss_scale;
      const auto overflows = info_.loss_scale != 1.0F && gradient > half_max;
      std::ranges::fill(squares_,
                        overflows ? std::numeric_limits<double>::infinity() : gradient * gradient);
      return Errc::none;
    });
  }
  [[nodiscard]] std::span<const double> gradient_squares() const override { return squares_; }

  void optimize(const OptimizerStep&, DeviceDone done) override {
    auto updated = is_server_ ? DeviceDone{[](Errc, DeviceSpan) {}} : std::move(done);
    run(std::move(updated), [this] {
      for (std::size_t i = 0; i < parameter_length; ++i) {
        auto& value = floats_in(values_)[i];
        value = static_cast<float>((static_cast<std::uint64_t>(value) * 3U
                                    + static_cast<std::uint64_t>(floats_in(gradients())[i])
                                    + static_cast<std::uint64_t>(floats_in(tied())[i]))
                                   % 65'536U);
      }
      return Errc::none;
    });
    if (is_server_) exchange_weights(std::move(done));
  }

  /// `done` on a server once all clients have them; on a client at once.
  void exchange_weights(DeviceDone done) override {
    if (is_server_) exchanged_ = std::move(done);
    stream_->enqueue([this] {
      const auto& [group, additions] = props_.holders;
      group->broadcast(*additions, values_, group->size() - 1,
                       [this, begin_ns = steady_now_ns()](Errc code) {
                         if (is_server_) exchanged_(code, {begin_ns, steady_now_ns()});
                       });
    });
    if (is_client_) run(std::move(done), [] { return Errc::none; });
  }

  [[nodiscard]] std::span<const ParameterView> parameters() override { return {&view_, 1}; }
  void read_parameter(std::size_t index, std::span<float> values) override {
    TROUPE_ASSERT(index == 0 && values.size() == parameter_length);
    stream_->synchronize();
    std::ranges::copy(view_.values, values.begin());
  }
  void write_parameter(std::size_t index, std::span<const float> values) override {
    TROUPE_ASSERT(index == 0 && values.size() == parameter_length);
    stream_->synchronize();
    std::ranges::copy(values, view_.values.begin());
  }

private:
  /// Enqueues `body`, which returns an `Errc`, between two looks at the clock.
  template <class Body>
  void run(DeviceDone done, Body body) {
    stream_->enqueue([done = std::move(done), body]() mutable {
      const auto begin_ns = steady_now_ns();
      const auto code = body();
      done(code, {begin_ns, steady_now_ns()});
    });
  }

  void sleep(std::uint32_t step) const { std::this_thread::sleep_for(props_.pass_time(step)); }

  Errc forward(MicrobatchIndex m, BufferView in, BufferView out) {
    auto trace = std::uint64_t{info_.step} * 1'000'003U;
    if (is_first_) {
      const auto rows = info_.batch->tokens.size() / info_.batch->microbatch_count;
      trace += static_cast<std::uint64_t>(info_.batch->tokens[m.value() * rows]) + m.value() + 1U;
    } else {
      if (!is_addressed(in, m)) return Errc::internal;
      trace = message_in(in).trace;
    }
    inputs_[m.value()] = trace;
    trace = trace * 3U + props_.stage.value() + 1U;
    if (is_last_) {
      losses_[m.value()] = digest(trace);
      output_gradients_[m.value()] = trace;
    } else {
      message_in(out) = {trace, props_.stage.value() + 1, m.value()};
    }
    return Errc::none;
  }

  Errc backward_input(MicrobatchIndex m, BufferView in, BufferView out) {
    if (!is_last_) {
      if (!is_addressed(in, m)) return Errc::internal;
      output_gradients_[m.value()] = message_in(in).trace;
    }
    if (!is_first_) {
      const auto trace = output_gradients_[m.value()] * 5U + props_.stage.value() + 1U;
      message_in(out) = {trace, props_.stage.value() - 1, m.value()};
    }
    return Errc::none;
  }

  void backward_weight(MicrobatchIndex m, BufferView tied_copy) {
    trace_ = trace_ * 7U + inputs_[m.value()] * 11U + output_gradients_[m.value()];
    if (++weight_pass_count_ < microbatch_count()) return;
    for (std::size_t i = 0; i < parameter_length; ++i) {
      floats_in(gradients())[i] = digest(trace_ + i);
      floats_in(tied())[i] = is_tied_ ? digest(trace_ ^ i) : 0.0F;
    }
    if (is_tied_) std::copy_n(floats_in(tied()), parameter_length, floats_in(tied_copy));
    for (std::uint32_t b = 0; ready_ && b < bucket_count(); ++b) ready_(b);
  }

  [[nodiscard]] BufferView gradients() const { return gradients_[info_.step % gradients_.size()]; }
  [[nodiscard]] BufferView tied() const { return tied_[info_.step % tied_.size()]; }

  [[nodiscard]] std::uint32_t microbatch_count() const {
    const auto [begin, end] = info_.own_microbatches();
    return end - begin;
  }

  [[nodiscard]] bool is_addressed(BufferView view, MicrobatchIndex m) const {
    const auto& message = message_in(view);
    return message.receiver == props_.stage.value() && message.microbatch == m.value();
  }

  [[nodiscard]] BufferView claim(Edge edge, MicrobatchIndex m) {
    auto buffer = buffers_.take_free(edge);
    const auto view = buffer.view();
    buffers_.hold(edge, m, std::move(buffer));
    return view;
  }

  void take_slot() {
    ++slots_in_use_;
    TROUPE_ASSERT(slots_in_use_ <= props_.bounds.slots);
  }
  void free_slot() {
    TROUPE_ASSERT(slots_in_use_ > 0);
    --slots_in_use_;
  }

  Stream* stream_;
  CountingProps props_;
  bool is_first_;
  bool is_last_;
  bool is_tied_;
  bool is_server_ = false;
  bool is_client_ = false;
  StageBuffers buffers_;
  StepInfo info_;
  std::uint32_t slots_in_use_ = 0;
  std::uint32_t weight_passes_enqueued_ = 0;
  BucketReady ready_;
  DeviceDone exchanged_;
  // What the stream's work reads and writes.
  std::vector<std::uint64_t> inputs_;            ///< By microbatch.
  std::vector<std::uint64_t> output_gradients_;  ///< By microbatch.
  std::vector<double> losses_;                   ///< By microbatch.
  std::uint64_t trace_ = 0;
  std::uint32_t weight_pass_count_ = 0;
  std::vector<double> squares_;
  BufferView values_;
  std::vector<BufferView> gradients_;  ///< By step, around.
  std::vector<BufferView> tied_;       ///< The same.
  ParameterSpec spec_;
  ParameterView view_;
};

}  // namespace

Expected<std::unique_ptr<Stage>> make_counting_stage(Device& device, Stream& stream,
                                                     const CountingProps& props) {
  auto memory = device.allocate(CountingStage::memory_bytes(props), MemorySpace::host);
  if (!memory) return memory.error();
  return std::unique_ptr<Stage>{std::make_unique<CountingStage>(stream, props, *memory)};
}

}  // namespace troupe::stages
