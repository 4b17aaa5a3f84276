// stages/src/cpu/onednn_product.hpp -- oneDNN's matrix product: the yardstick of ours.
#pragma once

#include <cstdint>
#include <memory>

namespace troupe::stages {

/// c [m, n] = a [m, k] b [k, n], dense rows, prepared once and run any number of times on the
/// calling thread and its OpenMP helpers. The matrices outlive it.
class OnednnProduct {
public:
  OnednnProduct(std::uint32_t m, std::uint32_t n, std::uint32_t k, float* a, float* b, float* c);
  ~OnednnProduct();
  OnednnProduct(const OnednnProduct&) = delete;
  OnednnProduct& operator=(const OnednnProduct&) = delete;

  void run();

private:
  struct Prepared;
  std::unique_ptr<Prepared> prepared_;
};

}  // namespace troupe::stages
