// A block: its threads, what they wait for, and the order in which they run.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "async_copies.h"
#include "ready_set.h"
#include "warp.h"
#include "worker.h"

namespace cuda_emulator {

class Cluster;

// What all blocks of a launch share.
struct Launch {
  dim3 grid, block;
  unsigned cluster;  // blocks
  size_t shared_bytes;
  const std::function<void()>& body;
  Schedule schedule;

  int threads() const { return static_cast<int>(block.x * block.y * block.z); }
  uint64_t blocks() const { return uint64_t{grid.x} * grid.y * grid.z; }
  uint64_t clusters() const { return blocks() / cluster; }
};

class Block {
 public:
  // `number` counts through the grid, x first.
  Block(const Launch& launch, Cluster& cluster, Worker& worker, uint64_t number, unsigned rank);

  // ---- for the cluster ----

  bool can_run() const { return !ready_.empty(); }
  bool finished() const { return finished_ == static_cast<int>(threads_.size()); }
  // Runs until no thread can.
  void run();
  // Lets threads go on that wait for a phase of the cluster's barrier which is complete.
  void release_from_cluster_barrier();
  // What its threads wait for.
  std::string describe_waiting() const;

  SharedMemory& shared_memory() { return worker_.shared_memory; }

  // ---- for the worker ----

  // Runs the current thread, and then others as long as they are new, on the calling fiber.
  void run_threads(Fiber* fiber);

  // ---- for the running thread ----

  void block_barrier(Site& site);
  void warp_barrier(uint32_t mask, Site& site);
  uint64_t warp_exchange(uint32_t mask, uint64_t value, int source, Site& site);
  uint32_t warp_ballot(uint32_t mask, bool predicate, Site& site);
  void cluster_arrive(Site& site);
  void cluster_wait(Site& site);
  AsyncCopies& copies() { return current_->copies; }
  int lane() const { return number_of(*current_) % kWarp; }
  Cluster& cluster() { return cluster_; }
  unsigned rank() const { return rank_; }
  // Ends the launch: this thread never goes on.
  [[noreturn]] void fail(const std::string& message);

 private:
  enum class State : uint8_t { kNew, kReady, kBlockBarrier, kWarp, kClusterBarrier, kFinished };

  struct Thread {
    State state = State::kNew;
    Fiber* fiber = nullptr;
    const Site* site = nullptr;  // where it waits

    uint64_t phases = 0;     // of the cluster's barrier that it arrived at
    bool must_wait = false;  // it has arrived and not waited yet
    AsyncCopies copies;
  };

  int number_of(const Thread& thread) const { return static_cast<int>(&thread - threads_.data()); }
  uint3 index_of(int thread) const;
  void begin();
  void make_current(int thread, Fiber* fiber);
  void make_ready(Thread& thread);
  void suspend(State state, const Site& site);
  void finish_current();

  void release_from_block_barrier_if_complete();
  Warp& current_warp() { return warps_[number_of(*current_) / kWarp]; }
  void wait_for_warp(uint32_t mask, const Site& site);
  void release_from_current_warp();

  const Launch& launch_;
  Cluster& cluster_;
  Worker& worker_;
  uint64_t number_;
  unsigned rank_;
  bool begun_ = false;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  ReadySet ready_;
  Thread* current_ = nullptr;
  int finished_ = 0, at_block_barrier_ = 0;
  const Site* block_barrier_ = nullptr;  // where they wait
};

}  // namespace cuda_emulator
