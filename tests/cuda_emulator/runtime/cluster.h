// A cluster of blocks, each on an OS thread of its own. Only one of them runs at a time, until all
// its threads wait: that makes the result depend on nothing but the schedule, finds deadlocks, and
// lets one block get as far ahead of the others as the barriers let it.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "block.h"
#include "cluster_barrier.h"

namespace cuda_emulator {

class Cluster {
 public:
  // One worker for each block.
  Cluster(const Launch& launch, const std::vector<Worker*>& workers, uint64_t number);

  // Runs the block of this rank, on the worker's OS thread, until all blocks are finished or one
  // fails.
  void run(unsigned rank);

  bool failed() const { return !error_.empty(); }
  const std::string& error() const { return error_; }

  // ---- for the block whose turn it is ----

  const ClusterBarrier& barrier() const { return barrier_; }
  void arrive(uint64_t phase);
  void exit(uint64_t phase);
  void fail(const std::string& message);
  unsigned size() const { return static_cast<unsigned>(blocks_.size()); }
  Block& block(unsigned rank) { return *blocks_[rank]; }

 private:
  void release();
  void pass_turn();

  std::vector<std::unique_ptr<Block>> blocks_;
  ClusterBarrier barrier_;
  ReadySet order_;
  std::mutex mutex_;  // held by the block that runs
  std::deque<std::condition_variable> turn_changed_;
  unsigned turn_;
  bool over_ = false;
  std::string error_;
};

}  // namespace cuda_emulator
