#include "ucx/ucx_reader.hpp"

#include <algorithm>
#include <utility>

namespace troupe::transport {

void UcxReader::open(const MemoryKey& key) {
  if (read_memory(key, 0, {})) key_ = key;
}

void UcxReader::fetch(std::uint64_t address, BufferView target, UcxCompletion& completion) {
  reads_.push_back({address, target, &completion});
}

bool UcxReader::progress() {
  if (reads_.empty()) return false;
  auto& [address, target, completion] = reads_.front();
  const auto size_bytes = std::min(target.size_bytes, piece_bytes);
  const bool is_read = read_memory(key_, address, {target.data, size_bytes, target.space});
  address += size_bytes;
  target.data += size_bytes;
  target.size_bytes -= size_bytes;
  if (is_read && target.size_bytes != 0) return true;
  auto& over = *completion;
  reads_.erase(reads_.begin());
  over.completed(is_read ? UCS_OK : UCS_ERR_UNREACHABLE);
  return true;
}

void UcxReader::cancel() {
  for (const auto& read : std::exchange(reads_, {})) read.completion->completed(UCS_ERR_CANCELED);
}

}  // namespace troupe::transport
