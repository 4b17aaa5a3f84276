// tests/actors/stage_in_disguise.hpp -- a stage in which a test replaces what it likes.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "troupe/stages/stage.hpp"

namespace troupe::actors {

/// A stage like the one that it holds, but for what a test replaces.
class StageInDisguise : public stages::Stage {
public:
  explicit StageInDisguise(std::unique_ptr<stages::Stage> stage) : stage_{std::move(stage)} {}
  stages::StageBuffers& buffers() override { return stage_->buffers(); }
  void begin_step(const stages::StepInfo& info) override { stage_->begin_step(info); }
  void enqueue(const Action& action, stages::DeviceDone done) override {
    stage_->enqueue(action, std::move(done));
  }
  void fetch(MicrobatchIndex microbatch) override { stage_->fetch(microbatch); }
  void finish(const Action& action) override { stage_->finish(action); }
  std::uint32_t bucket_count() const override { return stage_->bucket_count(); }
  void reduce_bucket(std::uint32_t index, transport::CollectiveDone done) override {
    stage_->reduce_bucket(index, std::move(done));
  }
  void on_bucket_ready(stages::BucketReady ready) override {
    stage_->on_bucket_ready(std::move(ready));
  }
  std::span<const double> losses() const override { return stage_->losses(); }
  std::span<const std::int32_t> predictions() const override { return stage_->predictions(); }
  void add_tied(stages::DeviceDone done) override { stage_->add_tied(std::move(done)); }
  void measure_gradients(stages::DeviceDone done) override {
    stage_->measure_gradients(std::move(done));
  }
  std::span<const double> gradient_squares() const override { return stage_->gradient_squares(); }
  void optimize(const stages::OptimizerStep& step, stages::DeviceDone done) override {
    stage_->optimize(step, std::move(done));
  }
  void exchange_weights(stages::DeviceDone done) override {
    stage_->exchange_weights(std::move(done));
  }
  std::span<const stages::ParameterView> parameters() override { return stage_->parameters(); }
  void read_parameter(std::size_t index, std::span<float> values) override {
    stage_->read_parameter(index, values);
  }
  void write_parameter(std::size_t index, std::span<const float> values) override {
    stage_->write_parameter(index, values);
  }

private:
  std::unique_ptr<stages::Stage> stage_;
};

}  // namespace troupe::actors
