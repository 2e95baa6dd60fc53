#include "block.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "cluster.h"

namespace cuda_emulator {
namespace {

uint3 position(uint64_t number, dim3 size) {
  return {
      static_cast<unsigned>(number % size.x), static_cast<unsigned>(number / size.x % size.y),
      static_cast<unsigned>(number / size.x / size.y)};
}

std::string to_string(uint3 index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " +
         std::to_string(index.z) + ")";
}

}  // namespace

Block::Block(const Launch& launch, Cluster& cluster, Worker& worker, uint64_t number, unsigned rank)
    : launch_(launch),
      cluster_(cluster),
      worker_(worker),
      number_(number),
      rank_(rank),
      threads_(static_cast<size_t>(launch.threads())),
      ready_(launch.schedule, number) {
  for (int k = 0; k < launch.threads(); ++k) ready_.insert(k);
  for (int k = 0; k < launch.threads(); k += kWarp)
    warps_.emplace_back(std::min(kWarp, launch.threads() - k));
}

// ---- running threads ----

void Block::begin() {
  begun_ = true;
  worker_.block = this;
  worker_.shared_memory.begin_block(launch_.shared_bytes);
  blockIdx = position(number_, launch_.grid);
  blockDim = launch_.block;
  gridDim = launch_.grid;
}

void Block::run() {
  if (!begun_) begin();
  while (!ready_.empty() && !cluster_.failed()) {
    const int next = ready_.take();
    Thread& thread = threads_[next];
    make_current(next, thread.fiber != nullptr ? thread.fiber : worker_.take_fiber());
    thread.fiber->resume();
  }
  if (finished()) worker_.shared_memory.end_block();
}

void Block::run_threads(Fiber* fiber) {
  for (;;) {
    launch_.body();
    finish_current();
    if (ready_.empty() || cluster_.failed()) return;
    const int next = ready_.take();
    if (threads_[next].state != State::kNew) {
      ready_.insert(next);
      return;
    }
    make_current(next, fiber);
  }
}

void Block::make_current(int thread, Fiber* fiber) {
  current_ = &threads_[thread];
  current_->fiber = fiber;
  current_->state = State::kReady;
  threadIdx = position(static_cast<uint64_t>(thread), launch_.block);
}

void Block::make_ready(Thread& thread) {
  thread.state = State::kReady;
  ready_.insert(number_of(thread));
}

void Block::suspend(State state, const Site& site) {
  current_->state = state;
  current_->site = &site;
  current_->fiber->suspend();
}

void Block::finish_current() {
  current_->state = State::kFinished;
  current_->copies.clear();
  ++finished_;
  // Who waits for this thread waits no longer.
  release_from_block_barrier_if_complete();
  current_warp().exit(lane());
  release_from_current_warp();
  cluster_.exit(current_->phases);
}

void Block::fail(const std::string& message) {
  cluster_.fail(
      message + " (thread " +
      to_string(position(static_cast<uint64_t>(number_of(*current_)), launch_.block)) +
      " of block " + to_string(position(number_, launch_.grid)) + ")");
  current_->fiber->suspend();
  std::abort();  // nobody resumes a thread after a failure
}

// ---- the block's barrier ----

void Block::block_barrier(Site& site) {
  if (site.enter()) return;
  if (at_block_barrier_ > 0 && block_barrier_ != &site)
    fail(
        "threads of a block wait at different barriers: " + block_barrier_->name + " and " +
        site.name);
  block_barrier_ = &site;
  ++at_block_barrier_;
  current_->state = State::kBlockBarrier;
  release_from_block_barrier_if_complete();
  suspend(current_->state, site);
}

void Block::release_from_block_barrier_if_complete() {
  if (at_block_barrier_ == 0) return;
  if (at_block_barrier_ + finished_ < static_cast<int>(threads_.size())) return;
  at_block_barrier_ = 0;
  for (Thread& thread : threads_)
    if (thread.state == State::kBlockBarrier) make_ready(thread);
}

// ---- warps ----

void Block::wait_for_warp(uint32_t mask, const Site& site) {
  if ((mask >> lane() & 1) == 0) fail(site.name + " by a lane that its mask leaves out");
  const std::string conflict = current_warp().arrive(lane(), mask, site);
  if (!conflict.empty()) fail(conflict);
  current_->state = State::kWarp;
  release_from_current_warp();
  suspend(current_->state, site);
}

void Block::release_from_current_warp() {
  Thread* first = &threads_[number_of(*current_) / kWarp * kWarp];
  while (uint32_t lanes = current_warp().release())
    for (; lanes != 0; lanes &= lanes - 1) make_ready(first[std::countr_zero(lanes)]);
}

void Block::warp_barrier(uint32_t mask, Site& site) {
  if (!site.enter()) wait_for_warp(mask, site);
}

uint64_t Block::warp_exchange(uint32_t mask, uint64_t value, int source, Site& site) {
  current_warp().offer(lane(), value, source);
  wait_for_warp(mask, site);
  return current_warp().received(lane());
}

uint32_t Block::warp_ballot(uint32_t mask, bool predicate, Site& site) {
  current_warp().offer(lane(), predicate, lane());
  wait_for_warp(mask, site);
  return current_warp().ballot(lane());
}

// ---- the cluster's barrier ----

void Block::cluster_arrive(Site& site) {
  if (current_->must_wait) fail(site.name + " by a thread that has not waited since it arrived");
  current_->must_wait = true;
  cluster_.arrive(current_->phases++);
}

void Block::cluster_wait(Site& site) {
  if (!current_->must_wait) fail(site.name + " by a thread that has not arrived");
  current_->must_wait = false;
  if (site.enter()) return;
  if (cluster_.barrier().complete(current_->phases - 1))
    make_ready(*current_);
  else
    current_->state = State::kClusterBarrier;
  suspend(current_->state, site);
}

void Block::release_from_cluster_barrier() {
  for (Thread& thread : threads_)
    if (thread.state == State::kClusterBarrier && cluster_.barrier().complete(thread.phases - 1))
      make_ready(thread);
}

// ---- messages ----

std::string Block::describe_waiting() const {
  if (finished()) return {};
  std::string text;
  const auto place = [](const Thread& thread) {
    switch (thread.state) {
      case State::kNew:
      case State::kReady: return std::string("can run");
      case State::kFinished: return std::string("have exited");
      default: return "wait at " + thread.site->name;
    }
  };
  const int n = static_cast<int>(threads_.size());
  for (int first = 0, end; first < n; first = end) {
    const std::string where = place(threads_[first]);
    for (end = first + 1; end < n && place(threads_[end]) == where;) ++end;
    text += (text.empty() ? "" : ", ") + std::to_string(first) + " to " + std::to_string(end - 1) +
            " " + where;
  }
  return "of block " + to_string(position(number_, launch_.grid)) + " threads " + text;
}

}  // namespace cuda_emulator
