#include "shared_memory.h"

#include <cuda_runtime.h>
#include <link.h>

#include <cstring>
#include <stdexcept>
#include <tuple>

#include "sanitizer.h"
#include "worker.h"

namespace {

constexpr size_t kRedZone = 4 << 10;  // so that a report is certain even with all of it in use

}  // namespace

// What the kernels declare.
alignas(128) thread_local unsigned char fused_lif_shared[cuda_emulator::kMostShared + kRedZone];

namespace cuda_emulator {
namespace {

struct Range {
  std::byte *begin, *end;
};

// The calling thread's copy of the thread-local variables of this library.
Range thread_local_variables() {
  Range found{};
  dl_iterate_phdr(
      [](dl_phdr_info* library, size_t, void* result) {
        if (library->dlpi_tls_data == nullptr) return 0;
        for (int k = 0; k < library->dlpi_phnum; ++k) {
          const auto& segment = library->dlpi_phdr[k];
          if (segment.p_type != PT_TLS) continue;
          std::byte* begin = static_cast<std::byte*>(library->dlpi_tls_data);
          std::byte* end = begin + segment.p_memsz;
          std::byte* own = reinterpret_cast<std::byte*>(fused_lif_shared);
          if (begin <= own && own < end) *static_cast<Range*>(result) = {begin, end};
        }
        return 0;
      },
      &found);
  if (found.begin == nullptr) throw std::logic_error("CUDA emulator: no thread-local variables");
  return found;
}

}  // namespace

SharedMemory::SharedMemory() {
  dynamic_ = reinterpret_cast<std::byte*>(fused_lif_shared);
  const Range range = thread_local_variables();
  begin_ = range.begin;
  end_ = range.end;
}

SharedMemory::~SharedMemory() { unpoison(dynamic_, sizeof fused_lif_shared); }

void SharedMemory::fill_with_nan() {
  constexpr int kNan = 0xff;
  // The emulator's own thread-local variables lie among the static shared ones.
  const auto own = std::make_tuple(threadIdx, blockIdx, blockDim, gridDim, current_worker);
  std::memset(begin_, kNan, static_cast<size_t>(dynamic_ - begin_));
  std::memset(dynamic_, kNan, dynamic_bytes_);
  std::byte* after = dynamic_ + sizeof fused_lif_shared;
  std::memset(after, kNan, static_cast<size_t>(end_ - after));
  std::tie(threadIdx, blockIdx, blockDim, gridDim, current_worker) = own;
}

void SharedMemory::begin_block(size_t dynamic_bytes) {
  dynamic_bytes_ = dynamic_bytes;
  unpoison(dynamic_, sizeof fused_lif_shared);
  fill_with_nan();
  poison(dynamic_ + dynamic_bytes, sizeof fused_lif_shared - dynamic_bytes);
}

void SharedMemory::end_block() {
  fill_with_nan();
  poison(dynamic_, sizeof fused_lif_shared);
}

bool SharedMemory::contains(const void* address, size_t bytes) const {
  const std::byte* begin = static_cast<const std::byte*>(address);
  if (dynamic_ <= begin && begin < dynamic_ + sizeof fused_lif_shared)
    return begin + bytes <= dynamic_ + dynamic_bytes_;
  return begin_ <= begin && begin + bytes <= end_;
}

void* SharedMemory::translate(void* address, const SharedMemory& other) const {
  return other.dynamic_ + (static_cast<std::byte*>(address) - dynamic_);
}

}  // namespace cuda_emulator
