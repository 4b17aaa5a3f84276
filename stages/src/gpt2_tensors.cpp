#include "gpt2_tensors.hpp"

#include <string>

#include "troupe/engine/check.hpp"

namespace troupe::stages {
namespace {

/// Cuts the kept tensors between the layers and deals them to their places in `chain`; the others
/// are edge buffers, known when a pass is enqueued.
void cut_chain(const StageProps& props, const std::string& prefix, std::vector<float*>& chain,
               ArenaCutter& cutter) {
  const bool trains = props.bounds.trains;
  std::vector<float*> kept;
  for (std::uint32_t i = 0; i < kept_hidden_count(props.spec, trains); ++i) {
    kept.push_back(cutter.floats(prefix + std::to_string(i)).data());
  }
  const std::size_t begin = props.spec.has_embedding ? 0 : 1;
  const std::size_t end = props.spec.layer_count() + (props.spec.has_head ? 1U : 0U);
  for (auto i = begin; i < end; ++i) chain[i] = kept[trains ? i - begin : 0];
}

LayerTensors cut_layer(const std::string& prefix, ArenaCutter& cutter) {
  const auto next = [&](const char* name) { return cutter.floats(prefix + name).data(); };
  LayerTensors layer;
  layer.norm_1 = next("norm_1");
  layer.mean_1 = next("mean_1");
  layer.rstd_1 = next("rstd_1");
  layer.qkv = next("qkv");
  layer.log_sum_exp = next("log_sum_exp");
  layer.attended = next("attended");
  layer.middle = next("middle");
  layer.norm_2 = next("norm_2");
  layer.mean_2 = next("mean_2");
  layer.rstd_2 = next("rstd_2");
  layer.expanded = next("expanded");
  layer.activated = next("activated");
  return layer;
}

HeadTensors cut_head(const std::string& prefix, ArenaCutter& cutter) {
  HeadTensors head;
  head.norm = cutter.floats(prefix + "norm").data();
  head.mean = cutter.floats(prefix + "mean").data();
  head.rstd = cutter.floats(prefix + "rstd").data();
  head.logits = cutter.floats(prefix + "logits").data();
  head.loss = cutter.doubles(prefix + "loss").data();
  return head;
}

void cut_edges(ArenaCutter& cutter, const StageBounds& bounds, StageBuffers& buffers) {
  const auto cut_pool = [&](Edge edge, const std::string& name, std::uint32_t count) {
    for (std::uint32_t i = 0; i < count; ++i) {
      buffers.add(edge, Buffer{cutter.buffer(name + ' ' + std::to_string(i))});
    }
  };
  cut_pool(Edge::activation_in, "activation in", bounds.activations_in);
  cut_pool(Edge::activation_out, "activation out", bounds.activations_out);
  cut_pool(Edge::gradient_in, "gradient in", bounds.gradients_in);
  cut_pool(Edge::gradient_out, "gradient out", bounds.gradients_out);
}

}  // namespace

BufferView ArenaCutter::buffer(std::string_view name) {
  TROUPE_ASSERT(next_ < list_.size() && list_[next_].name == name);
  const auto size_bytes = static_cast<std::size_t>(list_[next_++].size_bytes);
  const BufferView view{arena_.data + offset_bytes_, size_bytes, arena_.space};
  offset_bytes_ += padded(size_bytes);
  TROUPE_ASSERT(offset_bytes_ <= arena_.size_bytes);
  return view;
}

std::span<float> ArenaCutter::floats(std::string_view name) {
  const auto view = buffer(name);
  return {reinterpret_cast<float*>(view.data), view.size_bytes / sizeof(float)};
}

std::span<double> ArenaCutter::doubles(std::string_view name) {
  const auto view = buffer(name);
  return {reinterpret_cast<double*>(view.data), view.size_bytes / sizeof(double)};
}

std::span<std::int32_t> ArenaCutter::integers(std::string_view name) {
  const auto view = buffer(name);
  return {reinterpret_cast<std::int32_t*>(view.data), view.size_bytes / sizeof(std::int32_t)};
}

Gpt2Tensors::Gpt2Tensors(const StageProps& props, std::span<const ParameterSpec> specs,
                         ArenaCutter& cutter, ArenaCutter& host_cutter, StageBuffers& buffers) {
  cut_parameters(props, specs, cutter);
  if (cutter.at("tied gradients")) {
    if (props.spec.has_embedding && props.spec.has_head) {
      head_half = cutter.floats("head half");
    } else {
      buffers.add(Edge::tied_in, Buffer{cutter.buffer("in")});
      buffers.add(Edge::tied_out, Buffer{cutter.buffer("out")});
    }
  }
  for (std::uint32_t i = 0; i < props.bounds.slots; ++i) cut_slot(props, i, cutter);
  cut_edges(cutter, props.bounds, buffers);
  if (props.bounds.trains) cut_workspace(props, cutter);
  if (props.spec.has_embedding) tokens = cutter.integers("tokens");
  if (props.spec.has_head) targets = cutter.integers("targets");
  if (props.spec.has_head) host.losses = host_cutter.doubles("losses");
  if (props.bounds.trains) host.gradient_squares = host_cutter.doubles("gradient squares");
}

void Gpt2Tensors::cut_parameters(const StageProps& props, std::span<const ParameterSpec> specs,
                                 ArenaCutter& cutter) {
  for (const auto& spec : specs) {
    parameters.push_back({.spec = &spec, .values = cutter.floats(spec.name), .gradients = {}});
  }
  if (!props.bounds.trains) return;
  for (auto& parameter : parameters) parameter.gradients = cutter.floats(parameter.spec->name);
  while (cutter.at("optimizer state")) {
    const auto prefix = std::to_string(optimizer_state.size()) + ' ';
    auto& word = optimizer_state.emplace_back();
    for (const auto& spec : specs) word.push_back(cutter.floats(prefix + spec.name));
  }
}

void Gpt2Tensors::cut_slot(const StageProps& props, std::uint32_t index, ArenaCutter& cutter) {
  const auto prefix = std::to_string(index) + ' ';
  const auto layer_count = props.spec.layer_count();
  auto& slot = slots.emplace_back();
  slot.hidden.resize(layer_count + 1);
  slot.d_hidden.resize(layer_count + 1);
  cut_chain(props, prefix + "hidden ", slot.hidden, cutter);
  for (std::uint32_t i = 0; i < kept_layer_count(props.spec, props.bounds.trains); ++i) {
    slot.layers.push_back(cut_layer(prefix + "layer " + std::to_string(i) + ' ', cutter));
  }
  slot.layers.resize(layer_count, slot.layers.front());
  if (props.spec.has_head) slot.head = cut_head(prefix + "head ", cutter);
  if (props.bounds.trains && props.bounds.splits_backward) {
    cut_slot_gradients(props, prefix, slot, cutter);
  }
}

void Gpt2Tensors::cut_slot_gradients(const StageProps& props, const std::string& prefix, Slot& slot,
                                     ArenaCutter& cutter) {
  cut_chain(props, prefix + "d_hidden ", slot.d_hidden, cutter);
  for (std::size_t i = 0; i < slot.layers.size(); ++i) {
    const auto name = prefix + "layer " + std::to_string(i) + ' ';
    auto& layer = slot.layers[i];
    layer.d_norm_1 = cutter.floats(name + "d_norm_1").data();
    layer.d_middle = cutter.floats(name + "d_middle").data();
    layer.d_norm_2 = cutter.floats(name + "d_norm_2").data();
    if (i == 0) continue;
    slot.layers[i - 1].d_qkv = layer.qkv;
    slot.layers[i - 1].d_expanded = layer.expanded;
  }
  slot.layers.back().d_qkv = cutter.floats(prefix + "top d_qkv").data();
  slot.layers.back().d_expanded = cutter.floats(prefix + "top d_expanded").data();
  if (props.spec.has_head) slot.head.d_norm = cutter.floats(prefix + "head d_norm").data();
}

void Gpt2Tensors::cut_workspace(const StageProps& props, ArenaCutter& cutter) {
  if (props.bounds.splits_backward) {
    auto* const d_attended = cutter.floats("d_attended").data();
    for (auto& slot : slots) {
      for (auto& layer : slot.layers) layer.d_attended = d_attended;
    }
  } else {
    auto* const d_hidden = cutter.floats("d_hidden").data();
    auto* const d_middle = cutter.floats("d_middle").data();
    auto* const d_norm = cutter.floats("d_norm").data();
    auto* const d_wide = cutter.floats("d_wide").data();
    for (auto& slot : slots) {
      for (auto& gradient : slot.d_hidden) gradient = d_hidden;
      for (auto& layer : slot.layers) {
        // What shares memory is dead before the other is made: see the order of a whole backward
        // pass.
        layer.d_norm_1 = layer.d_norm_2 = d_norm;
        layer.d_expanded = layer.d_qkv = d_wide;
        layer.d_attended = d_hidden;
        layer.d_middle = d_middle;
      }
      slot.head.d_norm = d_norm;
    }
  }
  gradient_squares = cutter.doubles("gradient squares");
}

}  // namespace troupe::stages
