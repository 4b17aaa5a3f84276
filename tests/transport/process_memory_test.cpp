#include "process_memory.hpp"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <vector>

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

namespace troupe::transport {

std::vector<std::byte> numbered(std::size_t count) {
  std::vector<std::byte> bytes(count);
  for (std::size_t i = 0; i < count; ++i) bytes[i] = static_cast<std::byte>(i * 7U);
  return bytes;
}

std::uint64_t address_of(const std::vector<std::byte>& bytes) {
  return reinterpret_cast<std::uintptr_t>(bytes.data());
}

BufferView view(std::vector<std::byte>& bytes) {
  return {bytes.data(), bytes.size()};
}

TEST(ProcessMemory, IsReadUntilConsentIsWithdrawn) {
  const auto source = numbered(100'000);
  std::vector<std::byte> target(source.size());
  MemoryConsent consent;
  const auto key = consent.key();
  ASSERT_TRUE(read_memory(key, address_of(source), view(target)));
  EXPECT_EQ(target, source);
  EXPECT_TRUE(read_memory(key, 0, {})) << "nothing is read, from wherever";
  consent.withdraw();
  EXPECT_FALSE(read_memory(key, address_of(source), view(target)));
  EXPECT_FALSE(read_memory(key, 0, {}));
}

TEST(ProcessMemory, IsNotReadByAWrongKey) {
  const auto source = numbered(10);
  std::vector<std::byte> target(source.size());
  const MemoryConsent consent;
  for (auto change :
       {+[](MemoryKey& key) { key.process = 0; }, +[](MemoryKey& key) { key.address = 4096; },
        +[](MemoryKey& key) { ++key.number[0]; }, +[](MemoryKey& key) { ++key.number[1]; }}) {
    auto key = consent.key();
    change(key);
    EXPECT_FALSE(read_memory(key, address_of(source), view(target)));
  }
}

TEST(ProcessMemory, ThatIsNotThereIsNotRead) {
  std::vector<std::byte> target(10);
  const MemoryConsent consent;
  EXPECT_FALSE(read_memory(consent.key(), 4096, view(target)));
}

TEST(ProcessMemory, OfAChildIsReadUntilItDies) {
  auto source = numbered(100'000);
  const MemoryConsent consent;
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const auto child = fork();
  if (child == 0) {
    std::ranges::reverse(source);
    static_cast<void>(write(ends[1], "r", 1));
    for (;;) pause();
  }
  char byte = 0;
  ASSERT_EQ(read(ends[0], &byte, 1), 1);
  auto key = consent.key();  // As in this process, of which the child is a copy.
  key.process = static_cast<std::uint32_t>(child);
  std::vector<std::byte> target(source.size());
  const bool is_read = read_memory(key, address_of(source), view(target));
  const bool is_forbidden = !is_read && errno == EPERM;
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  EXPECT_FALSE(read_memory(key, address_of(source), view(target)));
  if (is_forbidden) GTEST_SKIP() << "this system does not let a process read its child's memory";
  ASSERT_TRUE(is_read);
  std::ranges::reverse(source);
  EXPECT_EQ(target, source) << "the memory of another process than the child";
}

}  // namespace troupe::transport
