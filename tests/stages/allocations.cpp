#include "allocations.hpp"

#include <atomic>
#include <cstdlib>
#include <new>

#include <dlfcn.h>
#include <oneapi/dnnl/dnnl.h>

namespace troupe {

namespace {

std::atomic<bool> is_watching = false;
std::atomic<std::size_t> small_count = 0;
std::atomic<std::size_t> large_count = 0;
std::atomic<std::size_t> product_count = 0;
thread_local bool is_in_product = false;
thread_local bool is_unwatched = false;

void count(std::size_t size_bytes) {
  if (!is_watching.load(std::memory_order_relaxed) || is_unwatched) return;
  auto& counter = size_bytes >= Allocations::page_bytes ? large_count
                  : is_in_product                       ? product_count
                                                        : small_count;
  counter.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

void watch_allocations() {
  small_count = large_count = product_count = 0;
  is_watching = true;
}

Allocations watched_allocations() {
  is_watching = false;
  return {small_count, large_count, product_count};
}

Unwatched::Unwatched() {
  is_unwatched = true;
}
Unwatched::~Unwatched() {
  is_unwatched = false;
}

}  // namespace troupe

/// Stands before the library's function of this name.
dnnl_status_t dnnl_primitive_execute(const_dnnl_primitive_t primitive, dnnl_stream_t stream,
                                     int argument_count, const dnnl_exec_arg_t* arguments) {
  static const auto library_function = reinterpret_cast<decltype(&dnnl_primitive_execute)>(
      dlsym(RTLD_NEXT, "dnnl_primitive_execute"));
  troupe::is_in_product = true;
  const auto status = library_function(primitive, stream, argument_count, arguments);
  troupe::is_in_product = false;
  return status;
}

void* operator new(std::size_t size_bytes) {
  troupe::count(size_bytes);
  if (auto* memory = std::malloc(size_bytes)) return memory;
  throw std::bad_alloc{};
}
void* operator new(std::size_t size_bytes, std::align_val_t alignment) {
  troupe::count(size_bytes);
  const auto boundary = static_cast<std::size_t>(alignment);
  if (auto* memory =
          std::aligned_alloc(boundary, (size_bytes + boundary - 1) / boundary * boundary)) {
    return memory;
  }
  throw std::bad_alloc{};
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}
