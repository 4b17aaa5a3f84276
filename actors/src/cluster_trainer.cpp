#include <algorithm>
#include <limits>
#include <map>
#include <utility>
#include <vector>

#include "troupe/actors/memory_need.hpp"
#include "troupe/engine/lanes.hpp"
#include "troupe/engine/layer_builder.hpp"
#include "troupe/engine/schedule_text.hpp"

#include "cluster_impl.hpp"
#include "message_checks.hpp"
#include "trainer_impl.hpp"

namespace troupe::actors {

namespace {

/// For a person: the ranks that each node performs.
std::vector<std::string> describe_ranks(const GridExtent& extent,
                                        std::span<const std::uint32_t> node_of_rank,
                                        std::size_t node_count) {
  std::vector<std::string> result(node_count);
  for (std::uint32_t rank = 0; rank < node_of_rank.size(); ++rank) {
    const auto at = coordinate_of(extent, rank);
    auto& text = result[node_of_rank[rank]];
    text += (text.empty() ? "" : ", ") + describe(extent, at);
  }
  return result;
}

std::vector<NodeMemory> memory_of(const std::vector<NodeFacts>& facts) {
  std::vector<NodeMemory> result;
  for (const auto& node : facts) result.push_back({node.host, node.available_memory_bytes});
  return result;
}

/// The ranks are performed by the nodes of a cluster.
class ClusterTrainer final : public Trainer::Impl {
public:
  ClusterTrainer(std::shared_ptr<const Plan> plan, Cluster::Impl& cluster)
      : Impl{std::move(plan)}, cluster_{cluster} {
    spawn_director(cluster_.system());
  }

  ~ClusterTrainer() override {
    cluster_.end(Errc::none, {});
    for (auto& link : weights_) link->close();
    caf::anon_send_exit(director_, caf::exit_reason::user_shutdown);
  }

  Expected<Done> start() {
    auto here = cluster_.gather();
    if (!here) return here.error();
    nodes_ = std::move(*here);
    const auto& extent = plan_->config.parallel;
    node_of_rank_ = place_ranks(*plan_, static_cast<std::uint32_t>(nodes_.nodes.size()));
    if (auto fits = check_memory(*plan_, node_of_rank_, memory_of(nodes_.facts)); !fits)
      return fits;
    caf::anon_send(cluster_.door(),
                   RunBegun{director_, describe_ranks(extent, node_of_rank_, nodes_.nodes.size())});
    for (std::uint32_t node = 0; node < nodes_.nodes.size(); ++node) {
      auto link =
          cluster_.fabric().make_link(nodes_.facts[node].fabric_address, weight_lane(*plan_, node));
      if (!link) return link.error();
      weights_.push_back(std::move(*link));
    }
    return give_ranks();
  }

  Expected<StepReport> run(const StepWanted& what) override {
    auto report = Impl::run(what);
    // After a divergence the weights are still wanted.
    if (!report && report.error().code != Errc::diverged) {
      cluster_.end(report.error().code, report.error().context);
    }
    return report;
  }

  Expected<Done> read_parameter(std::size_t index, std::span<float> values) override {
    return read_whole(*plan_, index, values,
                      [this](const ParameterPlace& place, std::uint32_t shard,
                             std::span<float> part) { return read_part(place, shard, part); });
  }

  Expected<Done> read_part(const ParameterPlace& place, std::uint32_t shard,
                           std::span<float> values) {
    const auto node =
        node_of_rank_[rank_holding(*plan_, {plan_->weights_replica(), shard, place.stage})];
    std::promise<Errc> promise;
    auto arrived = promise.get_future();
    const BufferView bytes{reinterpret_cast<std::byte*>(values.data()), values.size_bytes(),
                           MemorySpace::host};
    const auto number = ++transfer_count_;
    weights_[node]->post_receive(
        transport::Tag{number}, Buffer{bytes},
        [&promise](transport::Delivery delivery) { promise.set_value(delivery.code); });
    caf::anon_send(nodes_.nodes[node],
                   ParameterAsked{place.stage.value(), shard, place.index, number});
    if (const auto code = arrived.get(); code != Errc::none) {
      return end_with({code, "the weights of node " + std::to_string(node)
                                 + " did not arrive: " + std::string{to_string(code)}});
    }
    return Done{};
  }

  /// The first node of each machine measures for all that share it. Servers multiply nothing.
  Expected<double> measure_peak_flops() override {
    std::map<std::string, std::uint32_t> ranks_on_host;
    const auto grid = std::span{node_of_rank_}.first(plan_->config.parallel.rank_count());
    for (const auto node : grid) ++ranks_on_host[nodes_.facts[node].host];
    std::vector<PeakAsked> questions;
    for (const auto& facts : nodes_.facts) {
      const auto rank_count = std::exchange(ranks_on_host[facts.host], 0U);
      const auto streams =
          rank_count > 0 ? concurrent_streams(*plan_, rank_count, facts.core_count) : 0;
      questions.push_back({streams});
    }
    const auto answers = ask_nodes<PeakTold>(questions);
    if (!answers) return answers.error();
    double sum = 0.0;
    for (const auto& answer : *answers) sum += answer.flops;
    return sum;
  }

private:
  /// Ends the run with what the door knows of the cause, or else with `error`. The nodes are told.
  Error end_with(Error error) {
    auto cause = cluster_.explain(std::move(error));
    cluster_.end(cause.code, cause.context);
    return cause;
  }

  /// Lets every node build its ranks, then begins the run.
  Expected<Done> give_ranks() {
    std::vector<RanksGiven> gifts;
    for (std::uint32_t node = 0; node < nodes_.nodes.size(); ++node) {
      gifts.push_back({node, to_toml(plan_->config), fingerprint_of_layer(plan_->config.model),
                       to_csv(plan_->training), node_of_rank_, nodes_.facts,
                       cluster_.fabric().address(), director_});
    }
    const auto ready = ask_nodes<RanksReady>(gifts);
    if (!ready) return ready.error();
    if (auto answered = check_answers(*ready); !answered) return answered;
    GroupChosen group;
    std::vector<std::size_t> next(ready->size(), 0);
    for (const auto node : node_of_rank_) {
      group.stages.push_back((*ready)[node].stages[next[node]++]);
    }
    group.loaders.assign(nodes_.nodes.begin(), nodes_.nodes.end());
    std::vector<std::int64_t> lead_of_node;
    for (std::uint32_t node = 0; node < nodes_.nodes.size(); ++node) {
      const auto lead = clock_lead_ns(node);
      if (!lead) return lead.error();
      lead_of_node.push_back(*lead);
    }
    for (const auto node : node_of_rank_) group.clock_lead_ns.push_back(lead_of_node[node]);
    caf::anon_send(director_, std::move(group));
    return Done{};
  }

  /// Whether every node is ready, with as many stage actors as it has ranks.
  [[nodiscard]] Expected<Done> check_answers(const std::vector<RanksReady>& answers) const {
    for (std::uint32_t node = 0; node < answers.size(); ++node) {
      const auto& answer = answers[node];
      const auto rank_count = std::ranges::count(node_of_rank_, node);
      if (const auto misfit = misfit_of(answer, static_cast<std::size_t>(rank_count))) {
        return refuse(node, *misfit);
      }
      if (answer.code != Errc::none) {
        return Error{answer.code, describe(node) + ": " + answer.refusal};
      }
    }
    return Done{};
  }

  [[nodiscard]] std::string describe(std::uint32_t node) const {
    return "node " + std::to_string(node) + " on " + nodes_.facts[node].host;
  }

  [[nodiscard]] Error refuse(std::uint32_t node, const std::string& misfit) const {
    return {Errc::internal, describe(node) + " answers with " + misfit + ", which is a bug"};
  }

  /// What the node's clock shows less what ours shows, by the question that was answered fastest.
  Expected<std::int64_t> clock_lead_ns(std::uint32_t node) {
    constexpr std::uint32_t round_count = 8;
    auto fastest_ns = std::numeric_limits<std::int64_t>::max();
    std::int64_t lead_ns = 0;
    for (std::uint32_t round = 0; round < round_count; ++round) {
      const auto asked_ns = stages::steady_now_ns();
      const auto told = ask<ClockTold>(cluster_.system(), nodes_.nodes[node], ClockAsked{round},
                                       cluster_.options().patience);
      if (!told) return end_with(told.error());
      if (const auto misfit = misfit_of(*told)) return refuse(node, *misfit);
      const auto answered_ns = stages::steady_now_ns();
      if (answered_ns - asked_ns >= fastest_ns) continue;
      fastest_ns = answered_ns - asked_ns;
      lead_ns = told->now_ns - (asked_ns + fastest_ns / 2);
    }
    return lead_ns;
  }

  /// Asks every node at once and waits for all answers.
  template <class Answer, class Question>
  Expected<std::vector<Answer>> ask_nodes(const std::vector<Question>& questions) {
    std::vector<std::future<Expected<Answer>>> pending;
    for (std::size_t node = 0; node < nodes_.nodes.size(); ++node) {
      pending.push_back(begin_to_ask<Answer>(cluster_.system(), nodes_.nodes[node], questions[node],
                                             cluster_.options().patience));
    }
    std::vector<Answer> answers;
    for (std::uint32_t node = 0; node < pending.size(); ++node) {
      auto answer = pending[node].get();
      if (!answer) {
        return end_with({Errc::peer_unreachable,
                         describe(node) + " does not answer: " + answer.error().context});
      }
      answers.push_back(std::move(*answer));
    }
    return answers;
  }

  Cluster::Impl& cluster_;
  NodesHere nodes_;
  std::vector<std::uint32_t> node_of_rank_;                ///< By rank of the grid, and servers.
  std::vector<std::unique_ptr<transport::Link>> weights_;  ///< By node.
  std::uint64_t transfer_count_ = 0;
};

}  // namespace

Expected<std::unique_ptr<Trainer>> Trainer::make_on(Cluster& cluster, const Plan& plan) {
  auto trainer =
      std::make_unique<ClusterTrainer>(std::make_shared<const Plan>(plan), cluster.impl());
  if (auto started = trainer->start(); !started) {
    cluster.impl().end(started.error().code, started.error().context);
    return started.error();
  }
  return std::unique_ptr<Trainer>{new Trainer{std::move(trainer)}};
}

}  // namespace troupe::actors
