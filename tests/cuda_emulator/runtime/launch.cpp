// Launches of kernels: what the CUDA runtime refuses, and the OS threads that run the rest.
#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <map>
#include <mutex>
#include <numeric>
#include <optional>
#include <random>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include "cluster.h"

namespace cuda_emulator {
namespace {

constexpr size_t kDefaultShared = 48 << 10;  // bytes that need no permission
constexpr unsigned kMostClusterBlocks = 8;   // on any device that has clusters

// ---- errors ----

thread_local cudaError_t last_error = cudaSuccess;
thread_local std::string last_message;

cudaError_t report(cudaError_t error, const std::string& message) {
  last_error = error;
  last_message = message;
  return error;
}

// ---- what kernels were allowed to use ----

std::mutex allowed_mutex;
std::map<const void*, size_t>& allowed_shared() {
  static std::map<const void*, size_t> allowed;
  return allowed;
}

size_t allowed_shared_of(const void* kernel) {
  const std::lock_guard lock(allowed_mutex);
  const auto found = allowed_shared().find(kernel);
  return found == allowed_shared().end() ? kDefaultShared : found->second;
}

// ---- the grid ----

// Several OS threads for the blocks of one cluster; they take one cluster after another.
class Team {
 public:
  Team(const Launch& launch, const std::vector<uint64_t>& order, std::atomic<uint64_t>& next)
      : launch_(launch),
        order_(order),
        next_(next),
        workers_(launch.cluster),
        together_(launch.cluster) {
    for (unsigned rank = 0; rank < launch.cluster; ++rank)
      threads_.emplace_back([this, rank] { work(rank); });
  }

  // The error of a block, empty if there was none.
  const std::string& finish() {
    for (auto& thread : threads_) thread.join();
    return error_;
  }

 private:
  void work(unsigned rank) {
    Worker worker;
    workers_[rank] = &worker;
    for (;;) {
      together_.arrive_and_wait();
      if (rank == 0) begin_next_cluster();
      together_.arrive_and_wait();
      if (!cluster_) break;
      cluster_->run(rank);
    }
  }

  void begin_next_cluster() {
    if (cluster_ && cluster_->failed()) {
      error_ = cluster_->error();
      next_ = order_.size();  // for the other teams too
    }
    cluster_.reset();
    if (const uint64_t k = next_++; k < order_.size())
      cluster_.emplace(launch_, workers_, order_[k]);
  }

  const Launch& launch_;
  const std::vector<uint64_t>& order_;
  std::atomic<uint64_t>& next_;
  std::vector<Worker*> workers_;
  std::barrier<> together_;
  std::optional<Cluster> cluster_;
  std::string error_;
  std::vector<std::thread> threads_;
};

std::vector<uint64_t> order_of_clusters(const Launch& launch) {
  std::vector<uint64_t> order(launch.clusters());
  std::iota(order.begin(), order.end(), 0);
  if (launch.schedule.order == Schedule::kReverse) std::reverse(order.begin(), order.end());
  if (launch.schedule.order == Schedule::kRandom)
    std::shuffle(order.begin(), order.end(), std::mt19937_64(launch.schedule.seed));
  return order;
}

void run_grid(const Launch& launch) {
  const std::vector<uint64_t> order = order_of_clusters(launch);
  std::atomic<uint64_t> next = 0;
  const uint64_t processors = std::max(1u, std::thread::hardware_concurrency());
  std::vector<std::unique_ptr<Team>> teams(std::min<uint64_t>(order.size(), processors));
  for (auto& team : teams) team = std::make_unique<Team>(launch, order, next);
  std::string error;
  for (auto& team : teams)
    if (const std::string& found = team->finish(); error.empty()) error = found;
  if (!error.empty()) throw std::runtime_error("CUDA emulator: " + error);
}

// The blocks of a cluster, or none with what is wrong in `error`.
std::optional<unsigned> cluster_size(const cudaLaunchConfig_t& config, std::string& error) {
  unsigned size = 1;
  for (unsigned k = 0; k < config.numAttrs; ++k) {
    const cudaLaunchAttribute& attribute = config.attrs[k];
    if (attribute.id != cudaLaunchAttributeClusterDimension) {
      error = "launch attribute " + std::to_string(attribute.id) + " is not emulated";
      return {};
    }
    const auto& shape = attribute.val.clusterDim;
    if (shape.y != 1 || shape.z != 1) {
      error = "only clusters along x are emulated";
      return {};
    }
    size = shape.x;
  }
  const int capability = settings().device.capability;
  if (size < 1 || size > kMostClusterBlocks)
    error = "clusters of " + std::to_string(size) + " blocks";
  else if (config.gridDim.x % size != 0)
    error = "a grid of " + std::to_string(config.gridDim.x) + " blocks in clusters of " +
            std::to_string(size);
  else if (size > 1 && capability < 90)
    error = "clusters on a device of compute capability " + std::to_string(capability);
  return error.empty() ? std::optional(size) : std::nullopt;
}

bool is_valid(dim3 size, dim3 most) {
  return size.x >= 1 && size.y >= 1 && size.z >= 1 && size.x <= most.x && size.y <= most.y &&
         size.z <= most.z;
}

std::string to_string(dim3 size) {
  return std::to_string(size.x) + " x " + std::to_string(size.y) + " x " + std::to_string(size.z);
}

}  // namespace

cudaError_t
launch(const cudaLaunchConfig_t& config, const void* kernel, const std::function<void()>& body) {
  const dim3 grid = config.gridDim, block = config.blockDim;
  if (current_worker != nullptr) current_worker->block->fail("a kernel launches a kernel");
  if (!is_valid(grid, {0x7fffffff, 0xffff, 0xffff}))
    return report(cudaErrorInvalidConfiguration, "a grid of " + to_string(grid) + " blocks");
  if (!is_valid(block, {kMostThreads, kMostThreads, 64}) ||
      uint64_t{block.x} * block.y * block.z > kMostThreads)
    return report(cudaErrorInvalidConfiguration, "blocks of " + to_string(block) + " threads");
  const size_t allowed = allowed_shared_of(kernel);
  if (config.dynamicSmemBytes > allowed)
    return report(
        cudaErrorInvalidValue, std::to_string(config.dynamicSmemBytes) +
                                   " bytes of dynamic shared memory, but " +
                                   std::to_string(allowed) + " are allowed");
  std::string error;
  const auto cluster = cluster_size(config, error);
  if (!cluster) return report(cudaErrorInvalidClusterSize, error);

  run_grid({grid, block, *cluster, config.dynamicSmemBytes, body, settings().schedule});
  return cudaSuccess;
}

}  // namespace cuda_emulator

using cuda_emulator::report;

// ---- the part of the CUDA runtime that launches need ----

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize)
    return report(
        cudaErrorNotSupported,
        "function attribute " + std::to_string(attribute) + " is not emulated");
  const size_t most = cuda_emulator::settings().device.shared_memory;
  if (value < 0 || static_cast<size_t>(value) > most)
    return report(
        cudaErrorInvalidValue, std::to_string(value) +
                                   " bytes of dynamic shared memory, but the device has " +
                                   std::to_string(most));
  const std::lock_guard lock(cuda_emulator::allowed_mutex);
  cuda_emulator::allowed_shared()[kernel] = static_cast<size_t>(value);
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return std::exchange(cuda_emulator::last_error, cudaSuccess); }

cudaError_t cudaPeekAtLastError() { return cuda_emulator::last_error; }

// CUDA's words, and what the emulator knows about the last error.
const char* cudaGetErrorString(cudaError_t error) {
  thread_local std::string text;
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: text = "invalid argument"; break;
    case cudaErrorInvalidConfiguration: text = "invalid configuration argument"; break;
    case cudaErrorInvalidClusterSize: text = "cluster misconfiguration"; break;
    case cudaErrorNotSupported: text = "operation not supported"; break;
    default: text = "error " + std::to_string(error); break;
  }
  text += ": " + cuda_emulator::last_message;
  return text.c_str();
}
