// stages/src/cpu/isa_table.hpp -- the functions of one instruction set, as a table.
#pragma once

#include "attention.hpp"
#include "elements.hpp"
#include "rows.hpp"

namespace troupe::stages::TROUPE_ISA {

constexpr Isa make_isa(const char* name) {
  return {.name = name,
          .multiplies_bf16 = TROUPE_VECTOR_BYTES == 64,
          .attention_scratch_floats = &attention_scratch_floats,
          .attention_forward = &attention_forward,
          .attention_backward = &attention_backward,
          .layer_norm_forward = &layer_norm_forward,
          .layer_norm_backward_input = &layer_norm_backward_input,
          .layer_norm_backward_weight = &layer_norm_backward_weight,
          .column_sums = &column_sums,
          .rms_norm_forward = &rms_norm_forward,
          .rms_norm_backward_input = &rms_norm_backward_input,
          .rms_norm_backward_weight = &rms_norm_backward_weight,
          .rotate = &rotate,
          .swiglu_forward = &swiglu_forward,
          .swiglu_backward = &swiglu_backward,
          .gelu_forward = &gelu_forward,
          .gelu_backward = &gelu_backward,
          .exact_gelu_forward = &exact_gelu_forward,
          .exact_gelu_backward = &exact_gelu_backward,
          .cross_entropy = &cross_entropy,
          .word_statistics = &word_statistics,
          .scaled_exponentials = &scaled_exponentials,
          .to_bf16 = &to_bf16,
          .round_to_bf16 = &round_to_bf16,
          .round_to_fp16 = &round_to_fp16,
          .dropout = &dropout,
          .add = &add,
          .sum_of_squares = &sum_of_squares,
          .adam = &adam,
          .adafactor_row_sum = &adafactor_row_sum,
          .adafactor_add_row = &adafactor_add_row,
          .adafactor_row_norms = &adafactor_row_norms,
          .adafactor_update_row = &adafactor_update_row,
          .blend = &blend,
          .sgd = &sgd};
}

}  // namespace troupe::stages::TROUPE_ISA
