#include "pass_builder.hpp"

#include <algorithm>
#include <array>
#include <utility>

#include "troupe/engine/check.hpp"

namespace troupe {

ParameterSpec matrix(std::string name, std::uint64_t rows, std::uint64_t columns, float deviation) {
  return {.name = std::move(name),
          .shape = {rows, columns},
          .initial = Initial::normal,
          .deviation = deviation,
          .decays = true};
}

ParameterSpec vector(std::string name, std::uint64_t size, Initial initial) {
  return {.name = std::move(name), .shape = {size}, .initial = initial};
}

ParameterSpec slice(ParameterSpec whole, std::uint32_t axis, const Shard& shard,
                    std::uint32_t part_count) {
  if (shard.count == 1) return whole;
  const Share share{whole.shape.at(axis) / part_count, shard};
  whole.slice = ParameterSlice{.whole_shape = whole.shape,
                               .axis = axis,
                               .part_count = part_count,
                               .begin = share.begin,
                               .end = share.end};
  whole.shape[axis] = std::uint64_t{part_count} * share.size();
  return whole;
}

PassBuilder::PassBuilder(const ModelSpec& model, std::uint32_t microbatch_size, const Shard& shard)
    : model_{model},
      shard_{shard},
      rows_{std::uint64_t{microbatch_size} * model.sequence},
      divides_rows_{shard.count > 1 && shard.divides_rows} {}

// -- blocks ---------------------------------------------------------------------------------------

void PassBuilder::begin_block(ForwardPass::Block::Kind kind) {
  next_site_ = 0;
  pass_.blocks.push_back({.kind = kind,
                          .operations_begin = static_cast<std::uint32_t>(pass_.operations.size()),
                          .parameters_begin = static_cast<std::uint32_t>(pass_.parameters.size())});
}

/// Every dropout of the model has a number, whether it drops anything or not: that of the
/// embedding, that of the head, then those of the layers.
void PassBuilder::end_layer(std::uint32_t number) {
  constexpr std::uint32_t first_layer_site = 2;
  for (auto i = pass_.blocks.back().operations_begin; i < pass_.operations.size(); ++i) {
    auto& of = pass_.operations[i];
    if (of.kind != OperationKind::attention && of.kind != OperationKind::dropout) continue;
    of.site += first_layer_site + next_site_ * number;
  }
}

ValueIndex PassBuilder::first_tokens(ValueIndex x) {
  const auto width = width_of(x);
  if (divides_rows_) x = gather_rows(x, false);
  rows_ /= model_.sequence;
  divides_rows_ = false;
  const auto y = value("first tokens", columns_of(x));
  append({.kind = OperationKind::first_tokens, .in = width, .out = width, .x = x, .y = y});
  return y;
}

// -- operations -----------------------------------------------------------------------------------

ValueIndex PassBuilder::layer_norm(const std::string& name, ValueIndex x) {
  const auto width = width_of(x);
  const auto gain = parameter(vector(name + ".weight", width, Initial::ones));
  const auto bias = parameter(vector(name + ".bias", width, Initial::zeros));
  const auto y = value(name, columns_of(x));
  append({.kind = OperationKind::layer_norm,
          .weight = gain,
          .bias = bias,
          .in = width,
          .out = width,
          .on_own_rows = divides_rows_,
          .x = x,
          .y = y,
          .saved = {value(name + " rstd", {1, {1}}), value(name + " mean", {1, {1}})}});
  return y;
}

ValueIndex PassBuilder::rms_norm(const std::string& name, ValueIndex x) {
  const auto width = width_of(x);
  const auto gain = parameter(vector(name + ".weight", width, Initial::ones));
  const auto y = value(name, columns_of(x));
  append({.kind = OperationKind::rms_norm,
          .weight = gain,
          .in = width,
          .out = width,
          .on_own_rows = divides_rows_,
          .x = x,
          .y = y,
          .saved = {value(name + " rstd", {1, {1}}), no_value}});
  return y;
}

ValueIndex PassBuilder::column_product(const std::string& name, ValueIndex x, std::uint32_t width,
                                       std::uint32_t part_count, const Product& product) {
  const auto in = width_of(x);
  const auto out = std::uint64_t{part_count} * width;
  const bool is_in_out = product.layout == WeightLayout::in_out;
  Weights weights{.layout = product.layout};
  weights.weight = parameter(
      slice(matrix(name + ".weight", is_in_out ? in : out, is_in_out ? out : in, product.deviation),
            is_in_out ? 1 : 0, shard_, part_count));
  if (product.has_bias) {
    weights.bias =
        parameter(slice(vector(name + ".bias", out, Initial::zeros), 0, shard_, part_count));
  }
  return columns_from(name, x, std::vector<std::uint32_t>(part_count, width), weights);
}

/// The matrices lie below each other; the shards divide each. Biases, if there are any, lie behind
/// the matrices, one behind the other.
ValueIndex PassBuilder::joined_column_products(const std::string& name, ValueIndex x,
                                               const std::vector<JoinedOutput>& outputs,
                                               const Product& product) {
  Weights weights{.layout = WeightLayout::out_in};
  weights.weight = joined(name, ".weight", outputs, [&](std::string whole, auto width) {
    return matrix(std::move(whole), width, width_of(x), product.deviation);
  });
  if (product.has_bias) {
    weights.bias = joined(name, ".bias", outputs, [](std::string whole, auto width) {
      return vector(std::move(whole), width, Initial::zeros);
    });
  }
  std::vector<std::uint32_t> parts;
  for (const auto& output : outputs) parts.push_back(output.width);
  return columns_from(name + std::string{outputs.front().name}, x, std::move(parts), weights);
}

template <class Make>
std::uint32_t PassBuilder::joined(const std::string& name, const char* suffix,
                                  const std::vector<JoinedOutput>& outputs, Make make) {
  const auto first = static_cast<std::uint32_t>(pass_.parameters.size());
  for (const auto& output : outputs) {
    const auto index =
        parameter(slice(make(name + std::string{output.name} + suffix, output.width), 0, shard_));
    pass_.parameters.back().joined = index > first;
  }
  return first;
}

ValueIndex PassBuilder::columns_from(std::string name, ValueIndex x,
                                     std::vector<std::uint32_t> parts, const Weights& weights) {
  const auto shared = share(x);
  const auto y = value(std::move(name), divided(std::move(parts)));
  append({.kind = OperationKind::linear,
          .layout = weights.layout,
          .weight = weights.weight,
          .bias = weights.bias,
          .in = width_of(x),
          .out = width_of(y),
          .is_term_backward = shard_.count > 1 && !divides_rows_,
          .x = shared,
          .y = y});
  return y;
}

/// Its rows, the shards divide.
ValueIndex PassBuilder::row_product(const std::string& name, ValueIndex x, ValueIndex residual,
                                    const Product& product) {
  const auto in = columns_of(x).whole_width();
  const auto out = model_.hidden;
  const bool is_in_out = product.layout == WeightLayout::in_out;
  const auto weight = parameter(
      slice(matrix(name + ".weight", is_in_out ? in : out, is_in_out ? out : in, product.deviation),
            is_in_out ? 0 : 1, shard_));
  const auto bias =
      product.has_bias ? parameter(vector(name + ".bias", out, Initial::zeros)) : no_parameter;
  const bool drops = model_.dropout > 0.0;
  const auto y = value_of_all_rows(name, {out, {out}});
  append({.kind = OperationKind::linear,
          .layout = product.layout,
          .weight = weight,
          .bias = bias,
          .in = width_of(x),
          .out = out,
          .is_term = true,
          .x = x,
          .residual = divides_rows_ || drops ? no_value : residual,
          .y = y});
  const auto site = next_site_++;
  return drops ? dropped(sum_shards(y, no_value), site, residual) : sum_shards(y, residual);
}

ValueIndex PassBuilder::whole_product(const std::string& name, ValueIndex x, std::uint32_t width,
                                      const Product& product) {
  const auto in = width_of(x);
  const bool is_in_out = product.layout == WeightLayout::in_out;
  const auto weight = parameter(
      matrix(name + ".weight", is_in_out ? in : width, is_in_out ? width : in, product.deviation));
  const auto bias =
      product.has_bias ? parameter(vector(name + ".bias", width, Initial::zeros)) : no_parameter;
  const auto y = value(name, {width, {width}});
  append({.kind = OperationKind::linear,
          .layout = product.layout,
          .weight = weight,
          .bias = bias,
          .in = in,
          .out = width,
          .on_own_rows = divides_rows_,
          .x = x,
          .y = y});
  return y;
}

void PassBuilder::rotate(ValueIndex qkv) {
  append({.kind = OperationKind::rotate,
          .in = width_of(qkv),
          .out = width_of(qkv),
          .x = qkv,
          .y = qkv});
}

ValueIndex PassBuilder::attention(const std::string& name, ValueIndex qkv) {
  const auto heads = Share{model_.heads, shard_}.size();
  const auto y = value(name, divided({model_.hidden}));
  append({.kind = OperationKind::attention,
          .in = width_of(qkv),
          .out = width_of(y),
          .dropout = model_.attention_dropout,
          .site = next_site_++,
          .x = qkv,
          .y = y,
          .saved = {value(name + " log_sum_exp", {heads, {model_.heads}, true}), no_value}});
  return y;
}

ValueIndex PassBuilder::elementwise(OperationKind kind, const std::string& name, ValueIndex x) {
  const auto width = width_of(x);
  const auto y = value(name, columns_of(x));
  append(
      {.kind = kind, .in = width, .out = width, .on_own_rows = is_on_own_rows(x), .x = x, .y = y});
  return y;
}

ValueIndex PassBuilder::swiglu(const std::string& name, ValueIndex x) {
  const auto width = width_of(x) / 2;
  const auto& of = columns_of(x);
  const auto y =
      value(name, {width, {static_cast<std::uint32_t>(of.whole_width() / 2)}, of.is_divided});
  append({.kind = OperationKind::swiglu,
          .in = 2 * width,
          .out = width,
          .on_own_rows = is_on_own_rows(x),
          .x = x,
          .y = y});
  return y;
}

ValueIndex PassBuilder::add(const std::string& name, ValueIndex a, ValueIndex b) {
  const auto width = width_of(a);
  const auto y = value(name, columns_of(a));
  append({.kind = OperationKind::add,
          .in = width,
          .out = width,
          .on_own_rows = is_on_own_rows(a),
          .x = a,
          .residual = b,
          .y = y});
  return y;
}

ValueIndex PassBuilder::custom(const std::string& name, ValueIndex x,
                               const CustomOperation& operation) {
  const auto of = columns_of(x);
  const auto part_count = operation.part_count;
  auto parts = of.parts;
  if (part_count > 1) parts = {static_cast<std::uint32_t>(of.whole_width() / part_count)};
  std::uint64_t whole_width = 0;
  for (const auto part : parts) whole_width += part;
  std::array<std::uint32_t, custom_parameters_max> parameters{no_parameter, no_parameter};
  for (std::size_t i = 0; i < operation.parameters.size(); ++i) {
    const auto& [suffix, initial] = operation.parameters[i];
    auto spec = vector(name + '.' + suffix, whole_width, initial);
    if (of.is_divided) {
      spec = slice(std::move(spec), 0, shard_, static_cast<std::uint32_t>(parts.size()));
    }
    parameters[i] = parameter(std::move(spec));
  }
  auto& known = pass_.custom_operations;
  const auto found = std::ranges::find(known, operation);
  const auto index = static_cast<std::uint32_t>(found - known.begin());
  if (found == known.end()) known.push_back(operation);
  const auto width = of.width / part_count;
  const auto y = value(name, {width, std::move(parts), of.is_divided});
  append({.kind = OperationKind::custom,
          .weight = parameters[0],
          .bias = parameters[1],
          .in = of.width,
          .out = width,
          .on_own_rows = is_on_own_rows(x),
          .custom = index,
          .x = x,
          .y = y});
  return y;
}

ValueIndex PassBuilder::dropped(ValueIndex x, std::uint32_t site, ValueIndex residual) {
  if (model_.dropout <= 0.0) {
    TROUPE_ASSERT(residual == no_value);
    return x;
  }
  const auto width = width_of(x);
  const auto y = value("what is left of " + pass_.values[x].name, columns_of(x));
  append({.kind = OperationKind::dropout,
          .in = width,
          .out = width,
          .on_own_rows = divides_rows_,
          .dropout = model_.dropout,
          .site = site,
          .x = x,
          .residual = residual,
          .y = y});
  return y;
}

// -- between shards -------------------------------------------------------------------------------

/// Once for all that read it, whose gradients are summed together.
ValueIndex PassBuilder::share(ValueIndex x) {
  const auto [found, is_new] = shared_.try_emplace(x, x);
  if (is_new) {
    found->second = divides_rows_ ? gather_rows(x, true) : in_place(OperationKind::share, x);
  }
  return found->second;
}

ValueIndex PassBuilder::gather_rows(ValueIndex x, bool sums_backward) {
  const auto width = width_of(x);
  const auto y = value_of_all_rows("all rows of " + pass_.values[x].name, columns_of(x));
  append({.kind = OperationKind::gather_rows,
          .in = width,
          .out = width,
          .is_term = sums_backward,
          .x = x,
          .y = y});
  return y;
}

ValueIndex PassBuilder::sum_shards(ValueIndex x, ValueIndex residual) {
  if (!divides_rows_) return in_place(OperationKind::sum_shards, x);
  const auto width = width_of(x);
  const auto y = value("own rows of " + pass_.values[x].name, columns_of(x));
  append({.kind = OperationKind::sum_to_rows,
          .in = width,
          .out = width,
          .x = x,
          .residual = residual,
          .y = y});
  return y;
}

ValueIndex PassBuilder::in_place(OperationKind kind, ValueIndex x) {
  if (shard_.count > 1) append({.kind = kind, .x = x, .y = x});
  return x;
}

// -- pieces ---------------------------------------------------------------------------------------

void PassBuilder::append(Operation operation) {
  operation.rows = static_cast<std::uint32_t>(operation.on_own_rows ? rows_ / shard_.count : rows_);
  pass_.operations.push_back(operation);
}

std::uint32_t PassBuilder::parameter(ParameterSpec spec) {
  pass_.parameters.push_back(std::move(spec));
  return static_cast<std::uint32_t>(pass_.parameters.size() - 1);
}

ValueColumns PassBuilder::divided(std::vector<std::uint32_t> parts) const {
  ValueColumns columns{.parts = std::move(parts), .is_divided = true};
  for (const auto part : columns.parts) columns.width += Share{part, shard_}.size();
  return columns;
}

ValueIndex PassBuilder::value(std::string name, ValueColumns columns) {
  const auto size_bytes = rows_of(columns) * columns.width * sizeof(float);
  return bytes(std::move(name), size_bytes, std::move(columns));
}

ValueIndex PassBuilder::value_of_all_rows(std::string name, ValueColumns columns) {
  const auto size_bytes = rows_ * columns.width * sizeof(float);
  return bytes(std::move(name), size_bytes, std::move(columns));
}

ValueIndex PassBuilder::bytes(std::string name, std::uint64_t size_bytes, ValueColumns columns) {
  pass_.values.push_back({.name = std::move(name), .size_bytes = size_bytes});
  columns_.push_back(std::move(columns));
  return static_cast<ValueIndex>(pass_.values.size() - 1);
}

}  // namespace troupe
