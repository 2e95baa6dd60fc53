#include "cluster.h"

namespace cuda_emulator {

Cluster::Cluster(const Launch& launch, const std::vector<Worker*>& workers, uint64_t number)
    : barrier_(static_cast<int>(workers.size()) * launch.threads()),
      order_(launch.schedule, ~number),
      turn_changed_(workers.size()) {
  for (unsigned rank = 0; rank < workers.size(); ++rank) {
    const uint64_t block = number * workers.size() + rank;
    blocks_.push_back(std::make_unique<Block>(launch, *this, *workers[rank], block, rank));
  }
  pass_turn();
}

void Cluster::run(unsigned rank) {
  std::unique_lock lock(mutex_);
  for (;;) {
    turn_changed_[rank].wait(lock, [&] { return over_ || turn_ == rank; });
    if (over_) return;
    blocks_[rank]->run();
    pass_turn();
  }
}

void Cluster::pass_turn() {
  bool finished = true;
  for (unsigned rank = 0; rank < size(); ++rank) {
    if (blocks_[rank]->can_run()) order_.insert(static_cast<int>(rank));
    finished &= blocks_[rank]->finished();
  }
  if (!finished && !failed() && order_.empty()) {
    std::string waiting;
    for (const auto& block : blocks_)
      if (!block->finished()) waiting += (waiting.empty() ? "" : "; ") + block->describe_waiting();
    fail("deadlock: " + waiting);
  }
  over_ = finished || failed();
  if (over_) {
    for (auto& changed : turn_changed_) changed.notify_one();
    return;
  }
  turn_ = static_cast<unsigned>(order_.take());
  while (!order_.empty()) order_.take();
  turn_changed_[turn_].notify_one();
}

void Cluster::arrive(uint64_t phase) {
  if (barrier_.arrive(phase)) release();
}

void Cluster::exit(uint64_t phase) {
  if (barrier_.exit(phase)) release();
}

void Cluster::release() {
  for (auto& block : blocks_) block->release_from_cluster_barrier();
}

void Cluster::fail(const std::string& message) { error_ = message; }

}  // namespace cuda_emulator
