// engine/src/instruction_words.hpp -- the words of PyTorch's instructions, for who reads and who
// writes them.
#pragma once

#include <array>

#include "troupe/engine/communication.hpp"

namespace troupe {

inline constexpr auto overlap_word = "OVERLAP_F_B";

struct TransferWord {
  const char* text;
  TransferStep step;
  Cargo cargo;
};

inline constexpr std::array transfer_words{
    TransferWord{"SEND_F", TransferStep::send, Cargo::activations},
    TransferWord{"RECV_F", TransferStep::receive, Cargo::activations},
    TransferWord{"WAIT_SEND_F", TransferStep::wait, Cargo::activations},
    TransferWord{"SEND_B", TransferStep::send, Cargo::gradient},
    TransferWord{"RECV_B", TransferStep::receive, Cargo::gradient},
    TransferWord{"WAIT_SEND_B", TransferStep::wait, Cargo::gradient},
};

struct WeightWord {
  const char* text;
  WeightStep step;
};

inline constexpr std::array weight_words{
    WeightWord{"UNSHARD", WeightStep::unshard},
    WeightWord{"RESHARD", WeightStep::reshard},
    WeightWord{"REDUCE_GRAD", WeightStep::reduce},
    WeightWord{"WAIT_REDUCE_GRAD", WeightStep::wait_reduced},
};

[[nodiscard]] inline const char* word_of(const Transfer& transfer) noexcept {
  const auto cargo = static_cast<std::size_t>(transfer.cargo);
  return transfer_words[cargo * 3 + static_cast<std::size_t>(transfer.step)].text;
}

[[nodiscard]] inline const char* word_of(const WeightExchange& exchange) noexcept {
  return weight_words[static_cast<std::size_t>(exchange.step)].text;
}

}  // namespace troupe
