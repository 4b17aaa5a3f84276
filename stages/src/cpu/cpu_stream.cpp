#include "cpu_stream.hpp"

#include <algorithm>
#include <utility>

#include <omp.h>
#include <pthread.h>

#include "troupe/engine/check.hpp"

namespace troupe::stages {

void CpuStream::Ring::push(Work work) {
  if (count_ == items_.size()) {
    std::vector<Work> larger(2 * items_.size());
    for (std::size_t i = 0; i < count_; ++i) {
      larger[i] = std::move(items_[(first_ + i) % items_.size()]);
    }
    items_ = std::move(larger);
    first_ = 0;
  }
  items_[(first_ + count_++) % items_.size()] = std::move(work);
}

CpuStream::Work CpuStream::Ring::pop() {
  auto work = std::move(items_[first_]);
  first_ = (first_ + 1) % items_.size();
  --count_;
  return work;
}

CpuStream::CpuStream(std::string_view name, std::uint32_t thread_count,
                     std::shared_ptr<EventBoard> board)
    : thread_count_{thread_count}, board_{std::move(board)}, scratch_(thread_count) {
  TROUPE_ASSERT(thread_count >= 1);
  TROUPE_ASSERT(name.size() <= 15);
  worker_ = std::thread{[this, thread_name = std::string{name}] {
    pthread_setname_np(pthread_self(), thread_name.c_str());
    omp_set_num_threads(static_cast<int>(thread_count_));
    run();
  }};
}

CpuStream::~CpuStream() {
  {
    const std::scoped_lock lock{mutex_, board_->mutex};
    is_stopping_ = true;
  }
  work_arrived_.notify_one();
  board_->changed.notify_all();
  worker_.join();
}

void CpuStream::enqueue(Work work) {
  bool wake = false;
  {
    const std::lock_guard lock{mutex_};
    ring_.push(std::move(work));
    wake = std::exchange(is_asleep_, false);
  }
  if (wake) work_arrived_.notify_one();
}

void CpuStream::record(Event& event) {
  auto& target = static_cast<CpuEvent&>(event);
  const std::lock_guard lock{board_->mutex};
  enqueue([this, &target, number = ++target.recorded_] {
    {
      const std::lock_guard reached{board_->mutex};
      target.reached_ = std::max(target.reached_, number);
    }
    board_->changed.notify_all();
  });
}

void CpuStream::wait(Event& event) {
  auto& target = static_cast<CpuEvent&>(event);
  const std::lock_guard lock{board_->mutex};
  enqueue([this, &target, number = target.recorded_] {
    std::unique_lock reached{board_->mutex};
    board_->changed.wait(reached, [&] { return target.reached_ >= number || is_stopping_; });
  });
}

void CpuStream::synchronize() {
  std::unique_lock lock{mutex_};
  became_idle_.wait(lock, [this] { return ring_.empty() && !is_busy_; });
}

float* CpuStream::scratch(std::uint32_t index, std::size_t count) {
  auto& memory = scratch_.at(index);
  const std::size_t size_bytes = count * sizeof(float);
  if (memory.size_bytes() < size_bytes) {
    memory = CpuMemory{size_bytes};
    TROUPE_ASSERT(memory.data() != nullptr);
  }
  return reinterpret_cast<float*>(memory.data());
}

void CpuStream::run() {
  while (auto work = next()) work();
}

CpuStream::Work CpuStream::next() {
  std::unique_lock lock{mutex_};
  is_busy_ = false;
  if (ring_.empty()) became_idle_.notify_all();
  // Looking for work a few microseconds before sleeping was measured: it gained no wall time and
  // cost processor time that other actors can use.
  while (ring_.empty() && !is_stopping_) {
    is_asleep_ = true;
    work_arrived_.wait(lock);
  }
  is_asleep_ = false;
  if (is_stopping_) return {};
  is_busy_ = true;
  return ring_.pop();
}

}  // namespace troupe::stages
