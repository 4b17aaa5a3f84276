#include "onednn_product.hpp"

#include <unordered_map>

#include <oneapi/dnnl/dnnl.hpp>

namespace troupe::stages {

struct OnednnProduct::Prepared {
  dnnl::stream stream;
  dnnl::matmul product;
  std::unordered_map<int, dnnl::memory> arguments;
};

OnednnProduct::OnednnProduct(std::uint32_t m, std::uint32_t n, std::uint32_t k, float* a, float* b,
                             float* c) {
  const auto rows = [](std::uint32_t row_count, std::uint32_t column_count) {
    return dnnl::memory::desc{
        {row_count, column_count}, dnnl::memory::data_type::f32, dnnl::memory::format_tag::ab};
  };
  const dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  const dnnl::matmul::desc description{rows(m, k), rows(k, n), rows(m, n)};
  prepared_ = std::make_unique<Prepared>(
      Prepared{dnnl::stream{engine},
               dnnl::matmul{dnnl::matmul::primitive_desc{description, engine}},
               {{DNNL_ARG_SRC, {rows(m, k), engine, a}},
                {DNNL_ARG_WEIGHTS, {rows(k, n), engine, b}},
                {DNNL_ARG_DST, {rows(m, n), engine, c}}}});
}

OnednnProduct::~OnednnProduct() = default;

void OnednnProduct::run() {
  prepared_->product.execute(prepared_->stream, prepared_->arguments);
  prepared_->stream.wait();
}

}  // namespace troupe::stages
