// tests/engine/custom_layers.hpp -- layers that no family has, of what families use and of
// operations of their own; tests/stages/custom_kernels.hpp has their kernels.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "troupe/engine/layer_builder.hpp"
#include "troupe/engine/random.hpp"

namespace troupe {

/// y = gain x^2 + bias.
inline const CustomOperation square_operation{
    .name = "square",
    .parameters = {{"gain", Initial::ones}, {"bias", Initial::zeros}},
    .forward_flops = 3.0,
    .backward_flops = 5.0};

/// y = a tanh b, of two parts.
inline const CustomOperation gate_operation{.name = "gate", .part_count = 2};

/// y = gain (x - mean of the row).
inline const CustomOperation centre_operation{
    .name = "centre", .is_by_column = false, .parameters = {{"gain", Initial::ones}}};

/// Attention and feed-forward side by side, from one norm (Wang & Komatsuzaki 2021).
inline ValueIndex append_parallel_block(LayerBuilder& layer, ValueIndex x) {
  const auto& model = layer.model();
  const Product to_residual{.deviation = layer.residual_deviation()};
  const auto norm = layer.layer_norm("ln", x);
  const auto qkv = layer.column_product("attn.qkv", norm, model.hidden, {}, 3);
  const auto wide = layer.column_product("mlp.up", norm, model.feed_forward_width());
  const auto attended = layer.attention("attn", layer.rotate(qkv));
  const auto squared = layer.custom("mlp.act", wide, square_operation);
  const auto middle = layer.row_product("attn.out", attended, x, to_residual);
  return layer.row_product("mlp.down", squared, middle, to_residual);
}

inline std::shared_ptr<const CustomLayer> parallel_block() {
  return std::make_shared<CustomLayer>(CustomLayer{.name = "parallel-block",
                                                   .build = append_parallel_block,
                                                   .has_positions = false,
                                                   .last_norm = CustomLayer::Norm::rms_norm});
}

/// Values that are read in every way at once: by products that shards divide, by others and as
/// residuals, before and after each other.
inline ValueIndex append_tangle(LayerBuilder& layer, ValueIndex x) {
  const auto& model = layer.model();
  const auto wide = model.feed_forward_width();
  const auto kv_width = model.kv_head_count() * model.head_size();
  const auto bent = layer.tanh("bent", x);
  const auto norm = layer.rms_norm("norm", x);
  const auto qkv = layer.joined_column_products(
      "attn", norm, {{"q", model.hidden}, {"k", kv_width}, {"v", kv_width}});
  const auto attended = layer.attention("attn", qkv);
  const auto gates = layer.column_product("gates", norm, wide,
                                          {.layout = WeightLayout::in_out, .has_bias = true}, 2);
  const auto gated = layer.custom("gated", gates, gate_operation);
  const auto joint = layer.add("joint", gated, layer.column_product("again", bent, wide));
  const auto both = layer.add("both", layer.gelu("soft", joint), layer.tanh("softer", joint));
  const auto centred = layer.custom("centred", norm, centre_operation);
  const auto middle = layer.row_product("attn.out", attended, x, {.has_bias = true});
  const auto deep = layer.row_product("down", both, middle);
  const auto small = layer.whole_product("small", norm, model.hidden, {.has_bias = true});
  const auto mixed = layer.add("mixed", deep, layer.exact_gelu("small.act", small));
  const auto more =
      layer.custom("more.act", layer.column_product("more", norm, wide), square_operation);
  const auto most = layer.row_product("more.down", more, mixed);
  const auto direct = layer.row_product("direct.down", layer.column_product("direct", x, wide));
  const auto bends = layer.add("bends", layer.add("twice", bent, bent), centred);
  return layer.add("sum", layer.add("most of it", most, direct), bends);
}

inline std::shared_ptr<const CustomLayer> tangle() {
  return std::make_shared<CustomLayer>(CustomLayer{.name = "tangle", .build = append_tangle});
}

/// Appends operations drawn by the seed to values drawn by it, and adds up what nothing reads.
class RandomLayer {
public:
  RandomLayer(LayerBuilder& layer, std::uint64_t seed) : layer_{layer}, random_{seed} {}

  ValueIndex append(ValueIndex x) {
    whole_.push_back(x);
    divided_.push_back(layer_.column_product(name(), x, wide()));
    for (int i = 0; i < 12; ++i) append_one();
    while (!unread(divided_).empty()) {
      whole_.push_back(layer_.row_product(name(), read(unread(divided_).front())));
    }
    auto sum = layer_.layer_norm(name(), x);
    for (const auto value : unread(whole_)) {
      if (value != x) sum = layer_.add(name(), sum, value);
    }
    return sum;
  }

private:
  void append_one() {
    const auto one = [this](const auto& from) { return read(from[random_.below(from.size())]); };
    const auto& model = layer_.model();
    switch (random_.below(11)) {
      case 0:
        return whole_.push_back(layer_.layer_norm(name(), one(whole_)));
      case 1:
        return whole_.push_back(layer_.whole_product(name(), one(whole_), model.hidden));
      case 2:
        return divided_.push_back(layer_.column_product(name(), one(whole_), wide()));
      case 3: {
        const auto gates = layer_.column_product(name(), one(whole_), wide(), {}, 2);
        return divided_.push_back(random_.below(2) == 0
                                      ? layer_.swiglu(name(), gates)
                                      : layer_.custom(name(), gates, gate_operation));
      }
      case 4: {
        auto qkv = layer_.column_product(name(), one(whole_), model.hidden, {}, 3);
        if (random_.below(2) == 0) qkv = layer_.rotate(qkv);
        return whole_.push_back(
            layer_.row_product(name(), layer_.attention(name(), qkv), one(whole_)));
      }
      case 5:
        return whole_.push_back(layer_.row_product(name(), one(divided_), one(whole_)));
      case 6:
        return whole_.push_back(layer_.gelu(name(), one(whole_)));
      case 7:
        return divided_.push_back(layer_.tanh(name(), one(divided_)));
      case 8:
        return whole_.push_back(layer_.add(name(), one(whole_), one(whole_)));
      case 9:
        return divided_.push_back(layer_.add(name(), one(divided_), one(divided_)));
      default:
        return whole_.push_back(layer_.custom(name(), one(whole_), centre_operation));
    }
  }

  std::string name() { return "n" + std::to_string(next_++); }
  [[nodiscard]] std::uint32_t wide() const { return layer_.model().feed_forward_width(); }

  ValueIndex read(ValueIndex value) {
    read_.insert(value);
    return value;
  }
  [[nodiscard]] std::vector<ValueIndex> unread(const std::vector<ValueIndex>& of) const {
    std::vector<ValueIndex> values;
    for (const auto value : of) {
      if (!read_.contains(value)) values.push_back(value);
    }
    return values;
  }

  LayerBuilder& layer_;
  Random random_;
  int next_ = 0;
  std::vector<ValueIndex> whole_;  ///< All as wide as the layer.
  std::vector<ValueIndex> divided_;
  std::set<ValueIndex> read_;
};

inline std::shared_ptr<const CustomLayer> random_layer(std::uint64_t seed) {
  return std::make_shared<CustomLayer>(CustomLayer{
      .name = "random " + std::to_string(seed), .build = [seed](LayerBuilder& layer, ValueIndex x) {
        return RandomLayer{layer, seed}.append(x);
      }});
}

}  // namespace troupe
