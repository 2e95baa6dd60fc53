// The threads of a block that can run, and which of them is next.
#pragma once

#include <bit>
#include <cstdint>

#include "settings.h"

namespace cuda_emulator {

inline constexpr int kMostThreads = 1024;  // per block

// The orders are as unfair as they can be: the first (or last) thread that can run does, so that
// one warp gets as far ahead of the others as the barriers let it. At random, a warp runs for
// 64 turns on average, its threads in any order.
class ReadySet {
 public:
  ReadySet(Schedule schedule, uint64_t block)
      : order_(schedule.order), random_(schedule.seed * 0x9e3779b97f4a7c15 + block + 1) {}

  bool empty() const { return warps_ == 0; }

  void insert(int thread) {
    lanes_[thread / 32] |= uint32_t{1} << thread % 32;
    warps_ |= uint32_t{1} << thread / 32;
  }

  // Removes the next one. The set must not be empty.
  int take() {
    const int warp = choose_warp(), lane = choose(lanes_[warp]);
    lanes_[warp] &= ~(uint32_t{1} << lane);
    if (lanes_[warp] == 0) warps_ &= ~(uint32_t{1} << warp);
    last_warp_ = warp;
    return 32 * warp + lane;
  }

 private:
  static_assert(kMostThreads <= 32 * 32);

  int choose_warp() {
    constexpr uint32_t kTurns = 64;
    const bool stays = order_ == Schedule::kRandom && (warps_ >> last_warp_ & 1) != 0;
    return stays && next_random() % kTurns != 0 ? last_warp_ : choose(warps_);
  }

  // One of the bits that are set.
  int choose(uint32_t bits) {
    switch (order_) {
      case Schedule::kForward: return std::countr_zero(bits);
      case Schedule::kReverse: return 31 - std::countl_zero(bits);
      case Schedule::kRandom: break;
    }
    for (uint32_t k = next_random() % std::popcount(bits); k > 0; --k) bits &= bits - 1;
    return std::countr_zero(bits);
  }

  uint32_t next_random() {  // splitmix64
    random_ += 0x9e3779b97f4a7c15;
    uint64_t z = (random_ ^ random_ >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return static_cast<uint32_t>(z >> 32);
  }

  Schedule::Order order_;
  uint64_t random_;
  uint32_t warps_ = 0, lanes_[32] = {};
  int last_warp_ = 0;
};

}  // namespace cuda_emulator
