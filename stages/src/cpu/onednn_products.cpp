#include "onednn_products.hpp"

#include <vector>

#include <oneapi/dnnl/dnnl.hpp>

#include "troupe/engine/check.hpp"
#include "troupe/stages/cpu_device.hpp"

namespace troupe::stages {

namespace {

using dnnl::memory;

constexpr int addend_argument = DNNL_ARG_ATTR_MULTIPLE_POST_OP(0) | DNNL_ARG_SRC_1;

memory::desc matrix(std::uint32_t rows, std::uint32_t columns, bool transposed = false,
                    Precision precision = Precision::fp32) {
  return {{rows, columns},
          precision == Precision::bf16 ? memory::data_type::bf16 : memory::data_type::f32,
          transposed ? memory::format_tag::ba : memory::format_tag::ab};
}

dnnl::primitive_attr attributes_of(const Product::Shape& shape) {
  dnnl::post_ops after;
  using Addend = Product::Shape::Addend;
  if (shape.addend == Addend::in_c) after.append_sum();
  if (shape.addend == Addend::elsewhere) {
    after.append_binary(dnnl::algorithm::binary_add, matrix(shape.m, shape.n));
  }
  dnnl::primitive_attr attributes;
  attributes.set_post_ops(after);
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  return attributes;
}

}  // namespace

struct OnednnProducts::Engine {
  dnnl::engine processor{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{processor};
};

/// A primitive and the memory objects it is called with; only their addresses change.
struct OnednnProducts::Prepared {
  struct Argument {
    int what;
    memory object;
  };

  Prepared(const Product::Shape& shape, const dnnl::engine& engine)
      : description{describe(shape), attributes_of(shape), engine},
        product{description},
        scratch_floats{(description.scratchpad_desc().get_size() + sizeof(float) - 1)
                       / sizeof(float)} {
    add(DNNL_ARG_SRC, description.src_desc(), engine);
    add(DNNL_ARG_WEIGHTS, description.weights_desc(), engine);
    add(DNNL_ARG_DST, description.dst_desc(), engine);
    add(DNNL_ARG_SCRATCHPAD, description.scratchpad_desc(), engine);
    if (shape.has_bias) add(DNNL_ARG_BIAS, matrix(1, shape.n), engine);
    if (shape.addend == Product::Shape::Addend::elsewhere) {
      add(addend_argument, matrix(shape.m, shape.n), engine);
    }
    for (const auto& argument : arguments) {
      handles.push_back({argument.what, argument.object.get()});
    }
  }

  static dnnl::matmul::desc describe(const Product::Shape& shape) {
    const auto a = matrix(shape.m, shape.k, shape.transposed_a, shape.precision);
    const auto b = matrix(shape.k, shape.n, shape.transposed_b, shape.precision);
    const auto c = matrix(shape.m, shape.n);
    if (shape.has_bias) return {a, b, matrix(1, shape.n), c};
    return {a, b, c};
  }

  void add(int what, const memory::desc& desc, const dnnl::engine& engine) {
    arguments.push_back({what, memory{desc, engine, nullptr}});
  }

  void point(int what, const void* values) {
    for (const auto& argument : arguments) {
      // oneDNN takes no pointer to const; it writes to c and to the scratchpad alone.
      if (argument.what == what) argument.object.set_data_handle(const_cast<void*>(values));
    }
  }

  dnnl::matmul::primitive_desc description;
  dnnl::matmul product;
  std::size_t scratch_floats;
  std::vector<Argument> arguments;
  std::vector<dnnl_exec_arg_t> handles;
};

OnednnProducts::OnednnProducts() : engine_{std::make_unique<Engine>()} {}
OnednnProducts::~OnednnProducts() = default;

OnednnProducts::Prepared& OnednnProducts::prepare(const Product::Shape& shape) {
  auto& prepared = prepared_[shape];
  if (!prepared) prepared = std::make_unique<Prepared>(shape, engine_->processor);
  return *prepared;
}

bool OnednnProducts::has_bf16() {
  return dnnl::get_effective_cpu_isa() >= dnnl::cpu_isa::avx512_core;
}

std::size_t OnednnProducts::scratch_floats(const Product::Shape& shape) {
  return prepare(shape).scratch_floats;
}

void OnednnProducts::run(const Product& product, float* scratch) {
  auto& prepared = prepare(product.shape);
  prepared.point(DNNL_ARG_SRC, product.a);
  prepared.point(DNNL_ARG_WEIGHTS, product.b);
  prepared.point(DNNL_ARG_BIAS, product.bias);
  prepared.point(addend_argument, product.addend);
  prepared.point(DNNL_ARG_DST, product.c);
  prepared.point(DNNL_ARG_SCRATCHPAD, scratch);
  const auto status =
      dnnl_primitive_execute(prepared.product.get(), engine_->stream.get(),
                             static_cast<int>(prepared.handles.size()), prepared.handles.data());
  TROUPE_ASSERT(status == dnnl_success);
}

std::string onednn_version() {
  const auto& version = *dnnl::version();
  return std::to_string(version.major) + '.' + std::to_string(version.minor) + '.'
         + std::to_string(version.patch);
}

}  // namespace troupe::stages
