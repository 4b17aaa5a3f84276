// The readers of the header in front of every message between fabrics, of offers behind it, and of
// the cards by which they introduce themselves: what they accept is written as the same bytes, and
// what they refuse is told in one line.

#include <algorithm>
#include <span>

#include "fuzz_target.hpp"
#include "ucx/ucx_card.hpp"
#include "ucx/ucx_header.hpp"

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size_bytes) {
  using namespace troupe;
  const auto bytes = std::as_bytes(std::span{data, size_bytes});
  const auto header = transport::read_header(bytes);
  TROUPE_ASSERT(!header || std::ranges::equal(transport::write_header(*header), bytes));
  if (!header) check_refusal(header.error(), Errc::invalid_file);
  if (const auto headers = transport::read_headers(bytes)) {
    transport::UcxEnvelope envelope{headers->message};
    if (headers->verdict) envelope.add(*headers->verdict);
    TROUPE_ASSERT(std::ranges::equal(envelope.bytes(), bytes));
  } else {
    check_refusal(headers.error(), Errc::invalid_file);
  }
  const auto offer = transport::read_offer(bytes);
  TROUPE_ASSERT(!offer || std::ranges::equal(transport::write_offer(*offer), bytes));
  if (!offer) check_refusal(offer.error(), Errc::invalid_file);
  if (size_bytes < transport::ucx_card_head_bytes) return 0;
  const auto head = bytes.first<transport::ucx_card_head_bytes>();
  const auto card = transport::read_card_head(head);
  if (!card) {
    check_refusal(card.error(), Errc::invalid_file);
    return 0;
  }
  const auto written = transport::write_card(*card);
  TROUPE_ASSERT(std::ranges::equal(head, std::span{written}.first(head.size())));
  return 0;
}
