// engine/src/pass_builder.hpp -- appends operation after operation to a forward pass.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "troupe/engine/layer_builder.hpp"
#include "troupe/engine/stage_graph.hpp"

#include "model_families.hpp"

namespace troupe {

/// How the columns of a value lie: over all shards in parts, of each of which a shard has its share
/// if the value is divided.
struct ValueColumns {
  std::uint32_t width = 0;           ///< Of what the shard has; 0 for what is no matrix of rows.
  std::vector<std::uint32_t> parts;  ///< Widths over all shards.
  bool is_divided = false;

  [[nodiscard]] std::uint64_t whole_width() const {
    std::uint64_t sum = 0;
    for (const auto part : parts) sum += part;
    return sum;
  }
};

/// Each member returns the value that its operation makes. Checks nothing: `LayerBuilder` does.
class PassBuilder {
public:
  /// What it refers to outlives the object.
  PassBuilder(const ModelSpec& model, std::uint32_t microbatch_size, const Shard& shard);

  [[nodiscard]] const ModelSpec& model() const { return model_; }
  [[nodiscard]] const Shard& shard() const { return shard_; }
  [[nodiscard]] bool divides_rows() const { return divides_rows_; }
  [[nodiscard]] const ValueColumns& columns_of(ValueIndex value) const { return columns_[value]; }
  [[nodiscard]] std::uint32_t width_of(ValueIndex value) const { return columns_[value].width; }
  [[nodiscard]] ForwardPass& pass() { return pass_; }

  void begin_block(ForwardPass::Block::Kind kind);
  /// The dropouts of layer `number` get their numbers: as many for each layer.
  void end_layer(std::uint32_t number);
  /// What follows has one row for each sequence, and all shards compute it.
  ValueIndex first_tokens(ValueIndex x);

  // Operations.

  ValueIndex layer_norm(const std::string& name, ValueIndex x);
  ValueIndex rms_norm(const std::string& name, ValueIndex x);
  ValueIndex column_product(const std::string& name, ValueIndex x, std::uint32_t width,
                            std::uint32_t part_count, const Product& product);
  ValueIndex joined_column_products(const std::string& name, ValueIndex x,
                                    const std::vector<JoinedOutput>& outputs,
                                    const Product& product);
  ValueIndex row_product(const std::string& name, ValueIndex x, ValueIndex residual,
                         const Product& product);
  ValueIndex whole_product(const std::string& name, ValueIndex x, std::uint32_t width,
                           const Product& product);
  void rotate(ValueIndex qkv);
  ValueIndex attention(const std::string& name, ValueIndex qkv);
  /// Of one part.
  ValueIndex elementwise(OperationKind kind, const std::string& name, ValueIndex x);
  ValueIndex swiglu(const std::string& name, ValueIndex x);
  ValueIndex add(const std::string& name, ValueIndex a, ValueIndex b);
  ValueIndex custom(const std::string& name, ValueIndex x, const CustomOperation& operation);
  /// x, some of it dropped by training, and `residual`.
  ValueIndex dropped(ValueIndex x, std::uint32_t site, ValueIndex residual = no_value);

  // Between shards.

  /// What a product whose columns the shards divide reads.
  ValueIndex share(ValueIndex x);
  ValueIndex gather_rows(ValueIndex x, bool sums_backward);
  /// The sum of what every shard has in x, and `residual`, which without `divides_rows` is in the
  /// first term.
  ValueIndex sum_shards(ValueIndex x, ValueIndex residual);
  ValueIndex in_place(OperationKind kind, ValueIndex x);

  // Pieces.

  void append(Operation operation);
  std::uint32_t parameter(ParameterSpec spec);
  /// What the shard has of a value of these columns; with `divides_rows`, a whole one has the own
  /// rows alone.
  ValueIndex value(std::string name, ValueColumns columns);
  /// All of its columns and rows are the shard's.
  ValueIndex value_of_all_rows(std::string name, ValueColumns columns);
  ValueIndex bytes(std::string name, std::uint64_t size_bytes, ValueColumns columns = {});
  [[nodiscard]] std::uint64_t rows() const { return rows_; }

private:
  struct Weights {
    WeightLayout layout{};
    std::uint32_t weight = no_parameter;
    std::uint32_t bias = no_parameter;
  };
  ValueIndex columns_from(std::string name, ValueIndex x, std::vector<std::uint32_t> parts,
                          const Weights& weights);
  [[nodiscard]] ValueColumns divided(std::vector<std::uint32_t> parts) const;
  /// One parameter for each output, joined. @returns the first.
  template <class Make>
  std::uint32_t joined(const std::string& name, const char* suffix,
                       const std::vector<JoinedOutput>& outputs, Make make);
  [[nodiscard]] std::uint64_t rows_of(const ValueColumns& columns) const {
    return divides_rows_ && !columns.is_divided ? rows_ / shard_.count : rows_;
  }
  [[nodiscard]] bool is_on_own_rows(ValueIndex value) const {
    return divides_rows_ && !columns_[value].is_divided;
  }

  const ModelSpec& model_;
  const Shard shard_;
  // Of what is appended.
  std::uint64_t rows_;
  bool divides_rows_;
  std::uint32_t next_site_ = 0;  ///< Of the layer.
  ForwardPass pass_;
  std::vector<ValueColumns> columns_;        ///< By value.
  std::map<ValueIndex, ValueIndex> shared_;  ///< What `share` made of values.
};

/// [rows, columns], normal with mean 0.
[[nodiscard]] ParameterSpec matrix(std::string name, std::uint64_t rows, std::uint64_t columns,
                                   float deviation);
[[nodiscard]] ParameterSpec vector(std::string name, std::uint64_t size, Initial initial);
/// The part of `whole` that `shard` holds.
[[nodiscard]] ParameterSpec slice(ParameterSpec whole, std::uint32_t axis, const Shard& shard,
                                  std::uint32_t part_count = 1);

}  // namespace troupe
