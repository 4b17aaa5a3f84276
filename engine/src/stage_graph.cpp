#include "troupe/engine/stage_graph.hpp"

#include <algorithm>
#include <optional>
#include <utility>

#include "troupe/engine/check.hpp"

#include "model_families.hpp"
#include "value_places.hpp"

namespace troupe {
namespace {

/// What the kernels of an operation's backward pass read besides dy.
struct Needs {
  bool x = false;
  bool y = false;
  bool saved = false;
};

Needs needs_of(OperationKind kind, Direction direction) {
  const bool is_input = direction == Direction::backward_input;
  switch (kind) {
    case OperationKind::layer_norm:
    case OperationKind::rms_norm:
      return {.x = true, .saved = true};
    case OperationKind::linear:
      return {.x = !is_input};
    case OperationKind::attention:
      return {.x = true, .y = true, .saved = true};
    case OperationKind::gelu:
    case OperationKind::exact_gelu:
    case OperationKind::swiglu:
    case OperationKind::custom:
      return {.x = true};
    case OperationKind::tanh:
      return {.y = true};
    default:
      return {};
  }
}

/// Whether a pass in that direction calls anything for the operation.
bool has_call(const Operation& of, Direction direction) {
  switch (direction) {
    case Direction::forward:
      return of.kind != OperationKind::share;
    case Direction::backward_weight:
      return of.weight != no_parameter;
    case Direction::backward_input:
    case Direction::sum:
      break;
  }
  switch (of.kind) {
    case OperationKind::embedding:
    case OperationKind::segments:
    case OperationKind::cross_entropy:  // Forward it has made the gradient already.
    case OperationKind::word_statistics:
    case OperationKind::gather_shards:
    case OperationKind::sum_shards:
    case OperationKind::add:  // The gradient of y is that of both.
      return false;
    default:
      return true;
  }
}

/// Whether the kernel of the backward pass adds a gradient that comes by another way.
bool adds_other_gradient(OperationKind kind) {
  switch (kind) {
    case OperationKind::layer_norm:
    case OperationKind::rms_norm:
    case OperationKind::linear:
    case OperationKind::dropout:
    case OperationKind::gather_rows:
      return true;
    default:
      return false;
  }
}

/// The gradient of x may be written over that of y, if nothing else reads that: both have one
/// shape.
bool differentiates_in_place(OperationKind kind) {
  switch (kind) {
    case OperationKind::gelu:
    case OperationKind::exact_gelu:
    case OperationKind::tanh:
    case OperationKind::rotate:
      return true;
    default:
      return false;
  }
}

/// Whether a layer that recomputes selectively makes the results of the operation anew: they cost
/// little beside those of products. What dropout leaves of a product is kept in place of it.
bool is_cheap(OperationKind kind) {
  return kind != OperationKind::linear && kind != OperationKind::sum_to_rows
         && kind != OperationKind::dropout;
}

/// Derives the calls of every pass from the operations of the forward pass.
class Lowering {
public:
  Lowering(ForwardPass pass, const ModelSpec& model, const StageSpec& stage,
           const GraphOptions& options)
      : pass_{std::move(pass)},
        model_{model},
        stage_{stage},
        options_{options},
        buckets_{buckets_of_blocks()} {
    graph_.values = pass_.values;
    put_on_edge(pass_.input, ValuePlace::activation_in);
    put_on_edge(pass_.output, ValuePlace::activation_out);
    find_recomputed();
  }

  StageGraph take() && {
    for (std::uint32_t i = 0; i < pass_.operations.size(); ++i) append_forward(i);
    if (options_.trains) {
      append_backward();
      append_buckets();
    }
    place_values(graph_);
    graph_.parameters = std::move(pass_.parameters);
    graph_.operations = std::move(pass_.operations);
    graph_.custom_operations = std::move(pass_.custom_operations);
    return std::move(graph_);
  }

private:
  void put_on_edge(ValueIndex value, ValuePlace place) {
    if (value == no_value) return;
    TROUPE_ASSERT(graph_.values[value].place == ValuePlace::workspace);
    graph_.values[value].place = place;
  }

  void append_forward(std::uint32_t operation) {
    const auto& of = pass_.operations[operation];
    if (!has_call(of, Direction::forward)) return;
    if (of.kind == OperationKind::segments && !adds_all(of)) return;
    graph_.forward.push_back({.direction = Direction::forward,
                              .operation = operation,
                              .x = of.x,
                              .residual = adds_all(of) ? of.residual : no_value,
                              .y = of.y,
                              .saved = {of.saved[0], of.saved[1]},
                              .adds_bias = adds_all(of)});
  }

  /// Whether bias and residual are the shard's to add.
  [[nodiscard]] bool adds_all(const Operation& of) const {
    return !of.is_term || options_.shard.index == 0;
  }

  void append_backward() {
    gradients_.resize(pass_.values.size(), no_value);
    terms_.resize(pass_.values.size(), no_value);
    if (pass_.output != no_value) {
      gradients_[pass_.output] = like(pass_.output);
      put_on_edge(gradients_[pass_.output], ValuePlace::gradient_in);
    }
    // Each half of a split pass is complete in itself: what the first recomputes, the second finds.
    if (options_.splits_backward) {
      for_each_backward([this](std::uint32_t i) { differentiate_for_input(i); });
      for_each_backward([this](std::uint32_t i) { differentiate_for_weight(i); });
    } else {
      for_each_backward([this](std::uint32_t i) {
        differentiate_for_input(i);
        differentiate_for_weight(i);
      });
    }
    // What has parameters makes a value of its own for the gradient of what comes in.
    if (pass_.input != no_value) put_on_edge(gradients_[pass_.input], ValuePlace::gradient_out);
  }

  template <class Visit>
  void for_each_backward(Visit visit) const {
    for (auto i = static_cast<std::uint32_t>(pass_.operations.size()); i-- > 0;) visit(i);
  }

  void differentiate_for_input(std::uint32_t operation) {
    const auto& of = pass_.operations[operation];
    if (of.kind == OperationKind::cross_entropy) gradients_[of.x] = of.x;
    if (of.kind == OperationKind::share) return sum_terms(operation);
    const auto dy = of.y == no_value ? no_value : gradients_[of.y];
    // What is added to y has the gradient of y.
    if (of.residual != no_value) add_gradient(operation, of.residual, dy);
    if (of.kind == OperationKind::add) add_gradient(operation, of.x, dy);
    if (!has_call(of, Direction::backward_input)) return;
    TROUPE_ASSERT(dy != no_value);
    auto call = backward_call(Direction::backward_input, operation, dy);
    const auto other = of.x == of.y ? no_value : take_other_gradient(of);
    if (adds_other_gradient(of.kind)) call.d_residual = other;
    call.dx = gradient_of_input(of, dy);
    calls_of(Direction::backward_input).push_back(call);
    auto& dx = of.is_term_backward ? terms_[of.x] : gradients_[of.x];
    dx = call.dx;
    if (other != no_value && call.d_residual == no_value) dx = sum_of(operation, dx, other);
  }

  /// What is known of the gradient of x by other ways, for the call that adds it to its own. The
  /// gradient of x is whole, or a sum over shards of terms: then one of them adds to its term what
  /// is whole.
  ValueIndex take_other_gradient(const Operation& of) {
    if (of.is_term_backward && terms_[of.x] != no_value) return terms_[of.x];
    const auto whole = std::exchange(gradients_[of.x], no_value);
    return of.is_term_backward && options_.shard.index > 0 ? no_value : whole;
  }

  /// What `share` does backward.
  void sum_terms(std::uint32_t operation) {
    const auto x = pass_.operations[operation].x;
    const auto sum = terms_[x];
    TROUPE_ASSERT(sum != no_value);
    calls_of(Direction::backward_input)
        .push_back(
            {.direction = Direction::backward_input, .operation = operation, .dy = sum, .dx = sum});
    add_gradient(operation, x, sum);
  }

  void add_gradient(std::uint32_t operation, ValueIndex value, ValueIndex gradient) {
    TROUPE_ASSERT(gradient != no_value);
    auto& known = gradients_[value];
    known = known == no_value ? gradient : sum_of(operation, known, gradient);
  }

  ValueIndex sum_of(std::uint32_t operation, ValueIndex a, ValueIndex b) {
    const auto sum = like(a, "");
    calls_of(Direction::backward_input)
        .push_back({.direction = Direction::sum,
                    .operation = operation,
                    .dy = a,
                    .dx = sum,
                    .d_residual = b});
    return sum;
  }

  void differentiate_for_weight(std::uint32_t operation) {
    const auto& of = pass_.operations[operation];
    if (has_call(of, Direction::backward_weight)) {
      const auto call = backward_call(Direction::backward_weight, operation, gradients_[of.y]);
      calls_of(Direction::backward_weight).push_back(call);
    }
    complete_bucket(operation);
  }

  ValueIndex gradient_of_input(const Operation& of, ValueIndex dy) {
    const bool may_replace_dy =
        differentiates_in_place(of.kind) && std::ranges::count(gradients_, dy) == 1;
    return may_replace_dy ? dy : like(of.x);
  }

  KernelCall backward_call(Direction direction, std::uint32_t operation, ValueIndex dy) {
    const auto& of = pass_.operations[operation];
    const auto needs = needs_of(of.kind, direction);
    auto& calls = calls_of(direction);
    KernelCall call{.direction = direction, .operation = operation, .dy = dy};
    if (needs.x) call.x = at_hand(of.x, calls);
    if (needs.y) call.y = at_hand(of.y, calls);
    if (needs.saved) {
      call.saved[0] = at_hand(of.saved[0], calls);
      call.saved[1] = at_hand(of.saved[1], calls);
    }
    return call;
  }

  std::vector<KernelCall>& calls_of(Direction direction) {
    if (!options_.splits_backward) return graph_.backward;
    return direction == Direction::backward_input ? graph_.backward_input : graph_.backward_weight;
  }

  /// A new value of the size of another.
  ValueIndex like(ValueIndex value, const char* prefix = "d ") {
    const auto& of = graph_.values[value];
    graph_.values.push_back({.name = prefix + of.name, .size_bytes = of.size_bytes});
    return static_cast<ValueIndex>(graph_.values.size() - 1);
  }

  // -- recomputation ------------------------------------------------------------------------------

  /// Notes which operations make the values that the backward pass makes anew: those of layers,
  /// save what makes the result of each, which is the input of what follows.
  void find_recomputed() {
    maker_.resize(pass_.values.size());
    for (std::uint32_t i = 0; i < pass_.operations.size(); ++i) {
      // Kept are the own rows alone.
      if (pass_.operations[i].kind == OperationKind::gather_rows) maker_[pass_.operations[i].y] = i;
    }
    if (options_.recompute == Recompute::none) return;
    for (std::size_t b = 0; b < pass_.blocks.size(); ++b) {
      if (pass_.blocks[b].kind != ForwardPass::Block::Kind::layer) continue;
      const auto end = b + 1 < pass_.blocks.size() ? pass_.blocks[b + 1].operations_begin
                                                   : pass_.operations.size();
      const auto output = pass_.operations[end - 1].y;
      for (auto i = pass_.blocks[b].operations_begin; i < end; ++i) {
        const auto& of = pass_.operations[i];
        if (of.x == of.y || of.y == output) continue;
        if (options_.recompute == Recompute::selective && !is_cheap(of.kind)) continue;
        maker_[of.y] = i;
        for (const auto saved : of.saved) {
          if (saved != no_value) maker_[saved] = i;
        }
      }
    }
  }

  /// The value that a backward pass reads for `value` of the forward pass: the same, or that of a
  /// second forward call, which is appended to `calls` where it is first needed.
  ValueIndex at_hand(ValueIndex value, std::vector<KernelCall>& calls) {
    if (value == no_value || !maker_[value]) return value;
    again_.resize(pass_.values.size(), no_value);
    if (again_[value] == no_value) recompute(*maker_[value], calls);
    return again_[value];
  }

  void recompute(std::uint32_t operation, std::vector<KernelCall>& calls) {
    const auto& of = pass_.operations[operation];
    KernelCall call{.direction = Direction::forward, .operation = operation};
    call.adds_bias = adds_all(of);
    call.x = at_hand(of.x, calls);
    if (adds_all(of)) call.residual = at_hand(of.residual, calls);
    const auto make_again = [this](ValueIndex value) {
      return value == no_value ? no_value : again_[value] = like(value, "again ");
    };
    call.y = make_again(of.y);
    call.saved[0] = make_again(of.saved[0]);
    call.saved[1] = make_again(of.saved[1]);
    calls.push_back(call);
    // What is done to the result where it lies is done again.
    for (auto i = operation + 1; i < pass_.operations.size(); ++i) {
      const auto& next = pass_.operations[i];
      if (next.x != of.y && next.residual != of.y) continue;
      if (next.y != of.y) break;
      if (!has_call(next, Direction::forward)) continue;
      calls.push_back({.direction = Direction::forward, .operation = i, .x = call.y, .y = call.y});
    }
  }

  // -- buckets ------------------------------------------------------------------------------------

  [[nodiscard]] bool is_tied_here() const {
    return model_.tie_embeddings && (stage_.has_embedding || stage_.has_head);
  }

  [[nodiscard]] bool has_matrix(const Bucket& bucket) const {
    for (auto i = bucket.begin; i < bucket.end; ++i) {
      if (pass_.parameters[i].shape.size() > 1) return true;
    }
    return false;
  }

  /// The bucket of each block, if it has one of its own. A head's norm is too small to travel alone
  /// and goes with the layer below; the tied weight waits for its other half.
  [[nodiscard]] std::vector<std::optional<Bucket>> buckets_of_blocks() const {
    using Kind = ForwardPass::Block::Kind;
    std::vector<std::optional<Bucket>> buckets(pass_.blocks.size());
    const bool ends_with_tied = is_tied_here() && !stage_.has_embedding;
    auto end = static_cast<std::uint32_t>(pass_.parameters.size()) - (ends_with_tied ? 1U : 0U);
    for (auto b = pass_.blocks.size(); b-- > 0;) {
      const auto& block = pass_.blocks[b];
      if (block.kind == Kind::head && model_.tie_embeddings
          && !has_matrix({block.parameters_begin, end})) {
        continue;
      }
      const bool begins_with_tied = is_tied_here() && block.kind == Kind::embedding;
      const auto begin = block.parameters_begin + (begins_with_tied ? 1U : 0U);
      if (begin < end) buckets[b] = Bucket{.begin = begin, .end = end};
      end = block.parameters_begin;
    }
    return buckets;
  }

  /// If a block begins with `operation`, it is differentiated: marks the call that ends its bucket.
  void complete_bucket(std::uint32_t operation) {
    for (std::size_t b = 0; b < pass_.blocks.size(); ++b) {
      if (pass_.blocks[b].operations_begin != operation || !buckets_[b]) continue;
      calls_of(Direction::backward_weight).back().completes_bucket = true;
    }
  }

  void append_buckets() {
    for (auto b = buckets_.size(); b-- > 0;) {
      if (buckets_[b]) graph_.buckets.push_back(*buckets_[b]);
    }
    if (!is_tied_here()) return;
    const auto tied =
        stage_.has_embedding ? 0U : static_cast<std::uint32_t>(pass_.parameters.size() - 1);
    graph_.buckets.push_back({.begin = tied, .end = tied + 1});
    graph_.has_tied_bucket = true;
  }

  ForwardPass pass_;
  std::vector<std::optional<std::uint32_t>> maker_;  ///< By value: the operation to be repeated.
  std::vector<ValueIndex> again_;                    ///< By value: what that has made.
  const ModelSpec& model_;
  const StageSpec& stage_;
  const GraphOptions& options_;
  const std::vector<std::optional<Bucket>> buckets_;  ///< By block.
  StageGraph graph_;
  // By value of the forward pass, what is known of its gradient so far: of what shards have whole,
  // and of terms that `share` is to sum.
  std::vector<ValueIndex> gradients_;
  std::vector<ValueIndex> terms_;
};

}  // namespace

std::uint64_t ParameterSpec::element_count() const noexcept {
  std::uint64_t count = 1;
  for (const auto extent : shape) count *= extent;
  return count;
}

std::vector<ParameterRun> runs_of(const ParameterSpec& spec) {
  if (!spec.slice) return {{.in_part = 0, .in_whole = 0, .count = spec.element_count()}};
  const auto& [whole, axis, part_count, begin, end] = *spec.slice;
  std::uint64_t outer = 1;
  std::uint64_t inner = 1;
  for (std::size_t i = 0; i < whole.size(); ++i) {
    if (i < axis) outer *= whole[i];
    if (i > axis) inner *= whole[i];
  }
  std::vector<ParameterRun> runs;
  const auto count = (end - begin) * inner;
  const auto part_extent = whole[axis] / part_count;
  for (std::uint64_t part = 0; part < outer * part_count; ++part) {
    runs.push_back({.in_part = part * count,
                    .in_whole = (part * part_extent + begin) * inner,
                    .count = count});
  }
  return runs;
}

StageGraph graph_of(const ModelSpec& model, const StageSpec& stage, const GraphOptions& options) {
  auto pass = forward_pass_of(options.trains ? model : model.without_dropout(), stage,
                              options.microbatch_size, options.shard);
  return Lowering{std::move(pass), model, stage, options}.take();
}

PassFlops flops_of(const ModelSpec& model, const StageSpec& stage, std::uint32_t microbatch_size,
                   const Shard& shard) {
  PassFlops flops;
  const auto pass = forward_pass_of(model, stage, microbatch_size, shard);
  for (const auto& operation : pass.operations) {
    const double rows = operation.rows;
    if (operation.kind == OperationKind::linear) {
      const double product = 2.0 * rows * operation.in * operation.out;
      flops.forward += product;
      flops.backward_input += product;
      flops.backward_weight += product;
    }
    if (operation.kind == OperationKind::custom) {
      const auto& custom = pass.custom_operations[operation.custom];
      flops.forward += rows * operation.out * custom.forward_flops;
      flops.backward_input += rows * operation.out * custom.backward_flops;
    }
    if (operation.kind == OperationKind::attention) {
      // Queries times keys, weights times values: two products of [T, C] with [C, T] forward, four
      // back.
      const double products = 4.0 * rows * model.sequence * operation.out;
      flops.forward += products;
      flops.backward_input += 2.0 * products;
    }
  }
  return flops;
}

}  // namespace troupe
