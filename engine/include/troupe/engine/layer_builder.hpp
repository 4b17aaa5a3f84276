// troupe/engine/layer_builder.hpp -- a transformer layer as a function of what comes in: the same
// for the families that troupe brings and for a layer of one's own.
//
//   ValueIndex build(LayerBuilder& layer, ValueIndex x) {
//     const auto norm = layer.layer_norm("ln", x);
//     const auto wide = layer.column_product("up", norm, layer.model().feed_forward_width());
//     return layer.row_product("down", layer.gelu("act", wide), x);
//   }
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "troupe/engine/model_spec.hpp"
#include "troupe/engine/stage_graph.hpp"

namespace troupe {

class PassBuilder;

/// How a product with a weight is made.
struct Product {
  WeightLayout layout = WeightLayout::out_in;
  bool has_bias = false;
  float deviation = 0.02F;  ///< Of the initial weights; as in Radford et al. 2019.
};

/// One of several products that are computed as one.
struct JoinedOutput {
  std::string_view name;
  std::uint32_t width = 0;
};

/// Appends operations to a layer. Each member returns the value that its operation makes, one row
/// for each token; any number of operations may read it. The backward pass, the memory, what is
/// computed anew and what shards, of whatever number, exchange follow from the operations.
///
/// Values are whole, which every shard has (under `train.sequence_parallel`, the rows that are its
/// own), or divided: each shard has some of the columns. `x` and what the layer returns are whole
/// and `model().hidden` wide. `column_product` leads from whole to divided values, `row_product`
/// back; norms take whole values, attention divided ones.
///
/// Names are those of parameters, with `h.3.` before them in layer 3 and `.weight` or `.bias`
/// behind; of operations without parameters they serve for messages alone.
///
/// What is wrong is not told at once: after the first mistake members return `no_value`, and
/// `validate` of the configuration returns a sentence about it.
class LayerBuilder {
public:
  /// @param prefix of all names; empty, or with the point at its end.
  /// @param x what comes in.
  LayerBuilder(PassBuilder& pass, std::string prefix, ValueIndex x);

  [[nodiscard]] const ModelSpec& model() const;

  /// Ba et al. 2016, with gain and bias; `model().norm_epsilon`.
  ValueIndex layer_norm(std::string_view name, ValueIndex x);
  /// Zhang & Sennrich 2019, with gain.
  ValueIndex rms_norm(std::string_view name, ValueIndex x);

  /// From whole x: a product of `part_count` times `width` columns in all, of which the shards
  /// divide each part: 3 for queries, keys and values side by side in one matrix.
  ValueIndex column_product(std::string_view name, ValueIndex x, std::uint32_t width,
                            const Product& product = {}, std::uint32_t part_count = 1);
  /// The same with a parameter for each part, `<name>.<output>`. Weights lie [out, in].
  ValueIndex joined_column_products(std::string_view name, ValueIndex x,
                                    const std::vector<JoinedOutput>& outputs,
                                    const Product& product = {});
  /// From divided x: a product `model().hidden` wide, summed over the shards; training drops
  /// `model().dropout` of it, and `residual`, if there is one, is added.
  ValueIndex row_product(std::string_view name, ValueIndex x, ValueIndex residual = no_value,
                         const Product& product = {});
  /// From whole x to whole: every shard computes all of it, of its own rows if they divide them.
  ValueIndex whole_product(std::string_view name, ValueIndex x, std::uint32_t width,
                           const Product& product = {});

  /// Queries and keys turn with their position (Su et al. 2021), where they lie: qkv is read by
  /// attention alone. Heads are of an even size.
  ValueIndex rotate(ValueIndex qkv);
  /// Of divided queries, keys and values, side by side: three parts, the first
  /// `model().heads * head_size()` wide, the others `model().kv_head_count() * head_size()`.
  /// Training drops `model().attention_dropout` of its probabilities.
  ValueIndex attention(std::string_view name, ValueIndex qkv);

  // Of whole or divided values.
  ValueIndex gelu(std::string_view name, ValueIndex x);        ///< By tanh.
  ValueIndex exact_gelu(std::string_view name, ValueIndex x);  ///< By the error function.
  ValueIndex tanh(std::string_view name, ValueIndex x);
  ValueIndex swiglu(std::string_view name, ValueIndex x);  ///< Of two parts: gates and values.
  ValueIndex add(std::string_view name, ValueIndex a, ValueIndex b);
  /// An operation of one's own; its kernel is given by name to whoever performs the ranks.
  ValueIndex custom(std::string_view name, ValueIndex x, const CustomOperation& operation);

  /// For products whose results are added to the residual: scaled so that the sum of two of each
  /// layer keeps its variance (Radford et al. 2019).
  [[nodiscard]] float residual_deviation() const;

  /// Ends the layer. @returns what is wrong with it, if anything is; what the layer returned must
  /// be whole, as wide as x, and depend on every value.
  [[nodiscard]] std::optional<std::string> complaint(ValueIndex returned);

private:
  [[nodiscard]] std::string full(std::string_view name) const {
    return prefix_ + std::string{name};
  }
  ValueIndex complain(std::string sentence);
  [[nodiscard]] std::string quoted(ValueIndex value) const;
  /// Takes note of a value that the operation `name` makes.
  ValueIndex made(std::string_view name, ValueIndex value);
  /// Whether `name` may read x; takes note of it.
  bool reads(std::string_view name, ValueIndex x);
  bool reads_whole(std::string_view name, ValueIndex x);
  bool reads_divided(std::string_view name, ValueIndex x);
  bool reads_parts(std::string_view name, ValueIndex x, std::uint32_t part_count);
  bool is_qkv(std::string_view name, ValueIndex x);
  /// Whether no other parameter has the name; takes note of it.
  bool is_new_parameter(const std::string& name);
  /// The same of a weight and a bias.
  bool are_new_parameters(std::string_view name);
  bool can_divide(std::string_view name, std::uint64_t width);
  ValueIndex elementwise(OperationKind kind, std::string_view name, ValueIndex x);

  PassBuilder& pass_;
  const std::string prefix_;
  const ValueIndex input_;
  std::optional<std::string> complaint_;
  std::map<ValueIndex, std::string> names_;  ///< As the layer gave them.
  std::set<ValueIndex> unread_;
  std::set<ValueIndex> rotated_;
  std::set<std::string, std::less<>> parameters_;
};

/// A layer that a program defines, for `ModelSpec::custom_layer`: with it the model has token
/// embeddings (`wte.weight`), causal attention, a norm behind the last layer (`ln_f`) and a head
/// that tells the next token (`lm_head.weight`, unless tied).
struct CustomLayer {
  enum class Norm : std::uint8_t { layer_norm, rms_norm };

  std::string name;  ///< For messages; processes of one run compare it.
  /// Appends the operations of a layer, and returns its result. Called often, from any thread, for
  /// each layer of each stage: with the same model it does the same.
  std::function<ValueIndex(LayerBuilder& layer, ValueIndex x)> build{};
  bool has_positions = true;  ///< Learned ones, `wpe.weight`; without them the layer may rotate.
  Norm last_norm = Norm::layer_norm;
};

/// What a model's own layer consists of, in one line; equal for equal layers. Two processes that
/// compare it know whether they have the same. Empty for a model of another family.
[[nodiscard]] std::string fingerprint_of_layer(const ModelSpec& model);

}  // namespace troupe
