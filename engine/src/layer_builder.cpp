#include "troupe/engine/layer_builder.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

#include "troupe/engine/check.hpp"

#include "pass_builder.hpp"

namespace troupe {
namespace {

constexpr std::uint32_t width_max = 1U << 20U;
constexpr double flops_max = 1e6;  ///< Of a custom operation, for each element.

std::string number(std::uint64_t value) {
  return std::to_string(value);
}

bool are_equal(const std::vector<std::uint32_t>& parts) {
  return std::ranges::all_of(parts, [&](auto part) { return part == parts.front(); });
}

}  // namespace

LayerBuilder::LayerBuilder(PassBuilder& pass, std::string prefix, ValueIndex x)
    : pass_{pass}, prefix_{std::move(prefix)}, input_{x} {}

const ModelSpec& LayerBuilder::model() const {
  return pass_.model();
}

float LayerBuilder::residual_deviation() const {
  return static_cast<float>(double{Product{}.deviation} / std::sqrt(2.0 * model().layers));
}

// -- norms ----------------------------------------------------------------------------------------

ValueIndex LayerBuilder::layer_norm(std::string_view name, ValueIndex x) {
  if (!reads_whole(name, x) || !are_new_parameters(name)) return no_value;
  return made(name, pass_.layer_norm(full(name), x));
}

ValueIndex LayerBuilder::rms_norm(std::string_view name, ValueIndex x) {
  if (!reads_whole(name, x) || !are_new_parameters(name)) return no_value;
  return made(name, pass_.rms_norm(full(name), x));
}

// -- products -------------------------------------------------------------------------------------

ValueIndex LayerBuilder::column_product(std::string_view name, ValueIndex x, std::uint32_t width,
                                        const Product& product, std::uint32_t part_count) {
  if (!reads_whole(name, x) || !are_new_parameters(name)) return no_value;
  if (!can_divide(name, width)) return no_value;
  if (part_count == 0 || part_count > width_max / width) {
    return complain('"' + std::string{name} + "\" makes " + number(part_count)
                    + " parts, expected 1 to " + number(width_max / width));
  }
  return made(name, pass_.column_product(full(name), x, width, part_count, product));
}

ValueIndex LayerBuilder::joined_column_products(std::string_view name, ValueIndex x,
                                                const std::vector<JoinedOutput>& outputs,
                                                const Product& product) {
  if (!reads_whole(name, x)) return no_value;
  if (outputs.empty()) return complain('"' + std::string{name} + "\" joins no products");
  if (product.layout != WeightLayout::out_in) {
    return complain('"' + std::string{name}
                    + "\" joins products, whose weights lie [out, in]; leave Product::layout");
  }
  const auto begin = std::string{name} + '.';
  for (const auto& [output, width] : outputs) {
    const auto whole = begin + std::string{output};
    if (!are_new_parameters(whole) || !can_divide(whole, width)) return no_value;
  }
  return made(name, pass_.joined_column_products(full(begin), x, outputs, product));
}

ValueIndex LayerBuilder::row_product(std::string_view name, ValueIndex x, ValueIndex residual,
                                     const Product& product) {
  if (!reads_divided(name, x) || !are_new_parameters(name)) return no_value;
  if (!reads_parts(name, x, 1)) return no_value;
  if (residual != no_value) {
    if (!reads_whole(name, residual)) return no_value;
    if (pass_.width_of(residual) != model().hidden) {
      return complain('"' + std::string{name} + "\" adds " + quoted(residual) + ", which is "
                      + number(pass_.width_of(residual))
                      + " wide, to model.hidden = " + number(model().hidden) + " columns");
    }
  }
  return made(name, pass_.row_product(full(name), x, residual, product));
}

ValueIndex LayerBuilder::whole_product(std::string_view name, ValueIndex x, std::uint32_t width,
                                       const Product& product) {
  if (!reads_whole(name, x) || !are_new_parameters(name)) return no_value;
  if (width == 0 || width > width_max) {
    return complain('"' + std::string{name} + "\" is " + number(width) + " wide, expected 1 to "
                    + number(width_max));
  }
  return made(name, pass_.whole_product(full(name), x, width, product));
}

// -- attention ------------------------------------------------------------------------------------

ValueIndex LayerBuilder::rotate(ValueIndex qkv) {
  if (complaint_) return no_value;
  if (names_.contains(qkv) && !unread_.contains(qkv)) {
    return complain(quoted(qkv) + " has been read before it is rotated; rotate it first");
  }
  if (!reads("rotate", qkv) || !is_qkv("rotate", qkv)) return no_value;
  if (model().head_size() % 2 != 0) {
    return complain("rotary positions turn pairs of elements, but heads are of size "
                    + number(model().head_size()) + ", model.hidden over model.heads");
  }
  pass_.rotate(qkv);
  unread_.insert(qkv);
  rotated_.insert(qkv);
  return qkv;
}

ValueIndex LayerBuilder::attention(std::string_view name, ValueIndex qkv) {
  const bool is_rotated = rotated_.erase(qkv) > 0;
  if (!reads_divided(name, qkv) || !is_qkv(name, qkv)) return no_value;
  if (is_rotated) rotated_.insert(qkv);
  return made(name, pass_.attention(full(name), qkv));
}

bool LayerBuilder::is_qkv(std::string_view name, ValueIndex x) {
  const auto& model = pass_.model();
  const auto kv_width = model.kv_head_count() * model.head_size();
  const auto& of = pass_.columns_of(x);
  if (of.is_divided && of.parts == std::vector{model.hidden, kv_width, kv_width}) return true;
  complain('"' + std::string{name} + "\" takes queries, keys and values side by side, three parts "
           + number(model.hidden) + ", " + number(kv_width) + " and " + number(kv_width)
           + " wide, which " + quoted(x) + " does not have");
  return false;
}

// -- elementwise ----------------------------------------------------------------------------------

ValueIndex LayerBuilder::gelu(std::string_view name, ValueIndex x) {
  return elementwise(OperationKind::gelu, name, x);
}
ValueIndex LayerBuilder::exact_gelu(std::string_view name, ValueIndex x) {
  return elementwise(OperationKind::exact_gelu, name, x);
}
ValueIndex LayerBuilder::tanh(std::string_view name, ValueIndex x) {
  return elementwise(OperationKind::tanh, name, x);
}

ValueIndex LayerBuilder::elementwise(OperationKind kind, std::string_view name, ValueIndex x) {
  if (!reads(name, x)) return no_value;
  return made(name, pass_.elementwise(kind, full(name), x));
}

ValueIndex LayerBuilder::swiglu(std::string_view name, ValueIndex x) {
  if (!reads(name, x) || !reads_parts(name, x, 2)) return no_value;
  return made(name, pass_.swiglu(full(name), x));
}

ValueIndex LayerBuilder::add(std::string_view name, ValueIndex a, ValueIndex b) {
  if (!reads(name, a) || !reads(name, b)) return no_value;
  const auto& of_a = pass_.columns_of(a);
  const auto& of_b = pass_.columns_of(b);
  if (of_a.is_divided != of_b.is_divided || of_a.parts != of_b.parts) {
    return complain('"' + std::string{name} + "\" adds " + quoted(a) + " and " + quoted(b)
                    + ", which have not the same columns");
  }
  return made(name, pass_.add(full(name), a, b));
}

ValueIndex LayerBuilder::custom(std::string_view name, ValueIndex x,
                                const CustomOperation& operation) {
  if (!reads(name, x)) return no_value;
  const auto quoted_name = '"' + std::string{name} + "\", the operation \"" + operation.name + '"';
  if (operation.part_count == 0)
    return complain(quoted_name + " takes no parts; expected 1 or more");
  if (operation.part_count > 1 && !reads_parts(name, x, operation.part_count)) return no_value;
  if (pass_.columns_of(x).is_divided && !operation.is_by_column) {
    return complain(quoted_name + " needs whole rows, but shards divide the columns of " + quoted(x)
                    + "; apply it to a whole value, or set is_by_column if it treats each alone");
  }
  if (operation.parameters.size() > custom_parameters_max) {
    return complain(quoted_name + " has " + number(operation.parameters.size())
                    + " parameters, expected at most " + number(custom_parameters_max));
  }
  for (const auto flops : {operation.forward_flops, operation.backward_flops}) {
    if (flops >= 0.0 && flops <= flops_max) continue;
    return complain(quoted_name + " takes " + std::to_string(flops)
                    + " floating-point operations for each element, expected 0 to "
                    + std::to_string(flops_max));
  }
  for (const auto& [parameter, initial] : operation.parameters) {
    if (initial == Initial::normal) {
      return complain(quoted_name + " has the parameter \"" + parameter
                      + "\", whose initial values must be ones or zeros");
    }
    if (!is_new_parameter(std::string{name} + '.' + parameter)) return no_value;
  }
  const auto& known = pass_.pass().custom_operations;
  const auto other = std::ranges::find(known, operation.name, &CustomOperation::name);
  if (other != known.end() && !(*other == operation)) {
    return complain(quoted_name + " is not what has this name elsewhere in the layer");
  }
  return made(name, pass_.custom(full(name), x, operation));
}

// -- checks ---------------------------------------------------------------------------------------

std::optional<std::string> LayerBuilder::complaint(ValueIndex returned) {
  if (complaint_) return complaint_;
  if (!names_.contains(returned)) {
    complain(returned == input_ ? "it returns what comes in; a layer does something"
                                : "it returns no value of its own");
    return complaint_;
  }
  const auto& of = pass_.columns_of(returned);
  if (of.is_divided || of.width != model().hidden) {
    complain(
        "it returns " + quoted(returned) + ", which is "
        + (of.is_divided ? std::string{"divided between the shards"} : number(of.width) + " wide")
        + "; the next layer takes whole rows, model.hidden = " + number(model().hidden) + " wide");
    return complaint_;
  }
  if (parameters_.empty()) complain("it has no parameters to train");
  unread_.erase(returned);
  if (!unread_.empty()) {
    complain(quoted(*unread_.begin()) + " is made, but nothing reads it; leave it out");
  }
  return complaint_;
}

ValueIndex LayerBuilder::complain(std::string sentence) {
  if (!complaint_) complaint_ = std::move(sentence);
  return no_value;
}

std::string LayerBuilder::quoted(ValueIndex value) const {
  const auto found = names_.find(value);
  return found == names_.end() ? "what comes in" : '"' + found->second + '"';
}

ValueIndex LayerBuilder::made(std::string_view name, ValueIndex value) {
  names_.emplace(value, name);
  unread_.insert(value);
  return value;
}

bool LayerBuilder::reads(std::string_view name, ValueIndex x) {
  if (complaint_) return false;
  if (x != input_ && !names_.contains(x)) {
    complain('"' + std::string{name} + "\" reads a value that this layer has not made");
    return false;
  }
  if (rotated_.contains(x)) {
    complain('"' + std::string{name} + "\" reads " + quoted(x)
             + ", which is rotated; attention alone reads that");
    return false;
  }
  unread_.erase(x);
  return true;
}

bool LayerBuilder::reads_whole(std::string_view name, ValueIndex x) {
  if (!reads(name, x)) return false;
  if (!pass_.columns_of(x).is_divided) return true;
  complain('"' + std::string{name} + "\" needs whole rows, but shards divide the columns of "
           + quoted(x) + "; a row_product leads back to whole ones");
  return false;
}

bool LayerBuilder::reads_divided(std::string_view name, ValueIndex x) {
  if (!reads(name, x)) return false;
  if (pass_.columns_of(x).is_divided) return true;
  complain('"' + std::string{name} + "\" takes what shards divide by columns, but all have "
           + quoted(x) + "; a column_product leads there");
  return false;
}

/// A whole value may be cut anywhere, a divided one consists of parts.
bool LayerBuilder::reads_parts(std::string_view name, ValueIndex x, std::uint32_t part_count) {
  const auto& of = pass_.columns_of(x);
  const bool fits = of.is_divided ? of.parts.size() == part_count && are_equal(of.parts)
                                  : of.width % part_count == 0;
  if (fits) return true;
  complain('"' + std::string{name} + "\" takes " + number(part_count)
           + (part_count == 1 ? " part" : " parts of one width, side by side") + ", but "
           + quoted(x) + " consists of " + number(of.parts.size()) + ", " + number(of.whole_width())
           + " wide");
  return false;
}

bool LayerBuilder::is_new_parameter(const std::string& name) {
  if (parameters_.insert(name).second) return true;
  complain("two parameters have the name \"" + name + '"');
  return false;
}

bool LayerBuilder::are_new_parameters(std::string_view name) {
  return is_new_parameter(std::string{name} + ".weight")
         && is_new_parameter(std::string{name} + ".bias");
}

bool LayerBuilder::can_divide(std::string_view name, std::uint64_t width) {
  const auto count = pass_.shard().count;
  if (width > 0 && width <= width_max && width % count == 0) return true;
  if (width == 0 || width > width_max) {
    complain('"' + std::string{name} + "\" is " + number(width) + " wide, expected 1 to "
             + number(width_max));
  } else {
    complain(number(count) + " shards cannot share out the " + number(width) + " columns of \""
             + std::string{name} + '"');
  }
  return false;
}

// -- identity -------------------------------------------------------------------------------------

std::string fingerprint_of_layer(const ModelSpec& model) {
  if (model.family != Family::custom) return {};
  const auto pass = forward_pass_of(model, {.layer_begin = 0, .layer_end = 1}, 1, {});
  std::string text = model.custom_layer->name;
  // FNV-1a: it tells versions of a program from each other, not enemies.
  std::uint64_t hash = 14695981039346656037U;
  const auto take = [&](std::string_view what) {
    for (const auto letter : what) {
      hash ^= static_cast<unsigned char>(letter);
      hash *= 1099511628211U;
    }
  };
  const auto take_number = [&](std::uint64_t value) { take(number(value) + ' '); };
  for (const auto& parameter : pass.parameters) {
    take(parameter.name);
    for (const auto extent : parameter.shape) take_number(extent);
    take_number(static_cast<std::uint64_t>(parameter.initial));
    take(std::to_string(parameter.deviation));
  }
  for (const auto& of : pass.operations) {
    for (const auto value :
         {static_cast<std::uint32_t>(of.kind), static_cast<std::uint32_t>(of.layout), of.weight,
          of.bias, of.in, of.out, of.custom, of.x, of.residual, of.y}) {
      take_number(value);
    }
  }
  for (const auto& of : pass.custom_operations) take(of.name + ' ');
  take_number(model.custom_layer->has_positions ? 1 : 0);
  take_number(static_cast<std::uint64_t>(model.custom_layer->last_norm));
  std::array<char, 17> digits{};
  std::snprintf(digits.data(), digits.size(), "%016llx", static_cast<unsigned long long>(hash));
  return text + ' ' + digits.data();
}

}  // namespace troupe
