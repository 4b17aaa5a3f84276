// stages/src/cpu/onednn_products.hpp -- matrix products by oneDNN, prepared once per shape.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>

#include "troupe/engine/precision.hpp"

namespace troupe::stages {

/// c [m, n] = a [m, k] b [k, n] (+ bias [n]) (+ addend [m, n]), dense and row-major.
struct Product {
  /// What oneDNN prepares for.
  struct Shape {
    std::uint32_t m = 0;
    std::uint32_t n = 0;
    std::uint32_t k = 0;
    bool transposed_a = false;  ///< Memory holds a as [k, m].
    bool transposed_b = false;  ///< Memory holds b as [n, k].
    bool has_bias = false;
    Precision precision = Precision::fp32;  ///< Of a and b in memory.
    enum class Addend : std::uint8_t { none, in_c, elsewhere } addend = Addend::none;

    friend auto operator<=>(const Shape&, const Shape&) = default;
  };

  Shape shape;
  const void* a = nullptr;
  const void* b = nullptr;
  const float* bias = nullptr;    ///< If `has_bias`.
  const float* addend = nullptr;  ///< If `elsewhere`.
  float* c = nullptr;
};

/// The products of one thread, which alone calls `run`; its OpenMP helpers, as many as it had at
/// the first call, share the work.
///
/// A shape is prepared (its code made) when it is first met. From then on a product takes no memory
/// but the scratch it is given and a few small blocks that oneDNN returns before it is done.
/// Equal inputs of equal shape give equal bits on one processor with one number of threads.
class OnednnProducts {
public:
  OnednnProducts();
  ~OnednnProducts();
  OnednnProducts(const OnednnProducts&) = delete;
  OnednnProducts& operator=(const OnednnProducts&) = delete;

  /// Whether it multiplies bf16 on this processor.
  [[nodiscard]] static bool has_bf16();

  /// Floats of scratch that `run` needs, 64-byte aligned.
  [[nodiscard]] std::size_t scratch_floats(const Product::Shape& shape);
  void run(const Product& product, float* scratch);

private:
  struct Engine;
  struct Prepared;

  [[nodiscard]] Prepared& prepare(const Product::Shape& shape);

  std::unique_ptr<Engine> engine_;
  std::map<Product::Shape, std::unique_ptr<Prepared>> prepared_;
};

}  // namespace troupe::stages
