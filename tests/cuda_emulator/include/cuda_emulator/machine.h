// The emulated machine, as a running CUDA thread sees it. Everything here may only be called by
// kernels; tests/cuda_emulator/runtime implements it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <string>

namespace cuda_emulator {

// Where a kernel called a primitive: default argument of everything that can block or fail.
using Location = std::source_location;

inline constexpr int kWarp = 32;  // threads

// Ends the launch with this message.
[[noreturn]] void fail(const std::string& message, Location where);

// ---- barriers ----

void block_barrier(const char* primitive, Location where);
void warp_barrier(uint32_t mask, Location where);

void cluster_arrive(const char* primitive, Location where);
// Waits for the phase that the thread arrived at last.
void cluster_wait(const char* primitive, Location where);

// ---- exchange within a warp ----

// Lane of the calling thread in its warp.
int lane();
// Gives `value` and returns that of the lane `source`: all ones if it takes no part.
uint64_t
warp_exchange(uint32_t mask, uint64_t value, int source, const char* primitive, Location where);
// One bit per lane of `mask`: whether it gave true.
uint32_t warp_ballot(uint32_t mask, bool predicate, const char* primitive, Location where);

// ---- clusters ----

unsigned cluster_rank();
unsigned cluster_size();
// The same shared variable in another block of the cluster.
void* map_shared(void* address, unsigned rank, Location where);
// The block that an address of shared memory belongs to.
unsigned rank_of_shared(const void* address, Location where);

// ---- asynchronous copies into shared memory ----

void copy_async(void* to, const void* from, size_t size, size_t zero_fill, Location where);
void commit_copies();
// Performs all committed groups but the last `prior`.
void wait_for_copies(size_t prior, Location where);

}  // namespace cuda_emulator
