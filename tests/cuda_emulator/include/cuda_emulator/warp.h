// Votes and shuffles of a warp.
#pragma once

#include <cstring>
#include <type_traits>

#include "cuda_emulator/machine.h"

inline void __syncwarp(
    unsigned mask = 0xffffffff,
    cuda_emulator::Location here = cuda_emulator::Location::current()) {
  cuda_emulator::warp_barrier(mask, here);
}

inline unsigned __ballot_sync(
    unsigned mask,
    int predicate,
    cuda_emulator::Location here = cuda_emulator::Location::current()) {
  return cuda_emulator::warp_ballot(mask, predicate != 0, "__ballot_sync", here);
}

inline int __any_sync(
    unsigned mask,
    int predicate,
    cuda_emulator::Location here = cuda_emulator::Location::current()) {
  return cuda_emulator::warp_ballot(mask, predicate != 0, "__any_sync", here) != 0;
}

inline int __all_sync(
    unsigned mask,
    int predicate,
    cuda_emulator::Location here = cuda_emulator::Location::current()) {
  return cuda_emulator::warp_ballot(mask, predicate == 0, "__all_sync", here) == 0;
}

namespace cuda_emulator {

template <typename T>
T shuffle(
    unsigned mask,
    T value,
    unsigned source,
    int width,
    const char* primitive,
    Location where) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(uint64_t));
  if (width < 1 || width > kWarp || (width & (width - 1)) != 0)
    fail(std::string(primitive) + " of width " + std::to_string(width), where);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_exchange(mask, bits, source, primitive, where);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace cuda_emulator

// A lane of the segment of `width` lanes; shuffles that would leave it give the lane's own value.
template <typename T>
T __shfl_sync(
    unsigned mask,
    T value,
    int source,
    int width = cuda_emulator::kWarp,
    cuda_emulator::Location here = cuda_emulator::Location::current()) {
  const int first = cuda_emulator::lane() & -width;
  return cuda_emulator::shuffle(
      mask, value, first + (source & (width - 1)), width, "__shfl_sync", here);
}

template <typename T>
T __shfl_up_sync(
    unsigned mask,
    T value,
    unsigned delta,
    int width = cuda_emulator::kWarp,
    cuda_emulator::Location here = cuda_emulator::Location::current()) {
  const unsigned lane = cuda_emulator::lane(), in_segment = lane & (width - 1);
  const unsigned source = delta <= in_segment ? lane - delta : lane;
  return cuda_emulator::shuffle(mask, value, source, width, "__shfl_up_sync", here);
}

template <typename T>
T __shfl_down_sync(
    unsigned mask,
    T value,
    unsigned delta,
    int width = cuda_emulator::kWarp,
    cuda_emulator::Location here = cuda_emulator::Location::current()) {
  const unsigned lane = cuda_emulator::lane(), left = width - 1 - (lane & (width - 1));
  const unsigned source = delta <= left ? lane + delta : lane;
  return cuda_emulator::shuffle(mask, value, source, width, "__shfl_down_sync", here);
}

// Unlike the others, reads from an earlier segment too; from a later one it gives the own value.
template <typename T>
T __shfl_xor_sync(
    unsigned mask,
    T value,
    int lane_mask,
    int width = cuda_emulator::kWarp,
    cuda_emulator::Location here = cuda_emulator::Location::current()) {
  const int lane = cuda_emulator::lane(), last = lane | (width - 1);
  const int other = lane ^ (lane_mask & (cuda_emulator::kWarp - 1));
  const int source = other <= last ? other : lane;
  return cuda_emulator::shuffle(mask, value, source, width, "__shfl_xor_sync", here);
}
