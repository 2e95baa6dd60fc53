// Counts the threads of a cluster that have arrived at each phase of its barrier.
#pragma once

#include <cstdint>
#include <map>

namespace cuda_emulator {

// Phases are numbered. A thread can be ahead by more than one if a test skips its waits.
class ClusterBarrier {
 public:
  explicit ClusterBarrier(int threads) : missing_(threads), threads_(threads) {}

  bool complete(uint64_t phase) const { return phase < phase_; }

  // Whether that completes a phase.
  bool arrive(uint64_t phase) {
    if (phase > phase_) {
      ++early_[phase].arrived;
      return false;
    }
    --missing_;
    return advance();
  }

  // Exited threads count as arrived from `phase` on: the first that they did not arrive at.
  bool exit(uint64_t phase) {
    if (phase > phase_) {
      ++early_[phase].exited;
      return false;
    }
    --missing_;
    --threads_;
    return advance();
  }

 private:
  struct Early {
    int arrived = 0, exited = 0;
  };

  bool advance() {
    if (missing_ > 0 || threads_ == 0) return false;
    ++phase_;
    Early early;
    if (const auto found = early_.find(phase_); found != early_.end()) {
      early = found->second;
      early_.erase(found);
    }
    threads_ -= early.exited;
    missing_ = threads_ - early.arrived;
    advance();
    return true;
  }

  uint64_t phase_ = 0;  // the first that is not complete
  int missing_;         // threads that have not arrived at it
  int threads_;         // that have not exited
  std::map<uint64_t, Early> early_;
};

}  // namespace cuda_emulator
