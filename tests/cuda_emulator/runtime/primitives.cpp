// What kernels call, for the block that runs on this OS thread.
#include <cuda_runtime.h>

#include "cluster.h"

namespace cuda_emulator {
namespace {

Block& block() { return *current_worker->block; }

Site& site(const char* primitive, Location where) {
  return current_worker->sites.find(primitive, where);
}

}  // namespace

void fail(const std::string& message, Location where) {
  block().fail(describe(where) + " " + message);
}

void block_barrier(const char* primitive, Location where) {
  block().block_barrier(site(primitive, where));
}

void warp_barrier(uint32_t mask, Location where) {
  block().warp_barrier(mask, site("__syncwarp", where));
}

void cluster_arrive(const char* primitive, Location where) {
  block().cluster_arrive(site(primitive, where));
}

void cluster_wait(const char* primitive, Location where) {
  block().cluster_wait(site(primitive, where));
}

int lane() { return block().lane(); }

uint64_t
warp_exchange(uint32_t mask, uint64_t value, int source, const char* primitive, Location where) {
  return block().warp_exchange(mask, value, source, site(primitive, where));
}

uint32_t warp_ballot(uint32_t mask, bool predicate, const char* primitive, Location where) {
  return block().warp_ballot(mask, predicate, site(primitive, where));
}

unsigned cluster_rank() { return block().rank(); }

unsigned cluster_size() { return block().cluster().size(); }

void* map_shared(void* address, unsigned rank, Location where) {
  const SharedMemory& own = block().shared_memory();
  if (rank >= cluster_size())
    fail(
        "map_shared_rank of block " + std::to_string(rank) + " in a cluster of " +
            std::to_string(cluster_size()),
        where);
  if (!own.contains(address)) fail("map_shared_rank of an address that is not shared", where);
  return own.translate(address, block().cluster().block(rank).shared_memory());
}

unsigned rank_of_shared(const void* address, Location where) {
  for (unsigned rank = 0; rank < cluster_size(); ++rank)
    if (block().cluster().block(rank).shared_memory().contains(address)) return rank;
  fail("query_shared_rank of an address that is not shared", where);
}

void copy_async(void* to, const void* from, size_t size, size_t zero_fill, Location where) {
  const std::string primitive = "__pipeline_memcpy_async ";
  const SharedMemory& shared = block().shared_memory();
  if (size != 4 && size != 8 && size != 16)
    fail(primitive + "of " + std::to_string(size) + " bytes, not 4, 8 or 16", where);
  if (zero_fill > size)
    fail(primitive + "with a zero_fill of " + std::to_string(zero_fill) + " bytes", where);
  if (!shared.contains(to, size)) fail(primitive + "to an address that is not shared", where);
  if (shared.contains(from)) fail(primitive + "from shared memory", where);
  if (reinterpret_cast<uintptr_t>(to) % size != 0 || reinterpret_cast<uintptr_t>(from) % size != 0)
    fail(primitive + "of addresses not aligned to " + std::to_string(size) + " bytes", where);
  if (block().copies().in_flight(to, size))
    fail(primitive + "to where another copy is in flight", where);
  block().copies().issue(to, from, size, zero_fill);
}

void commit_copies() { block().copies().commit(); }

void wait_for_copies(size_t prior, Location where) {
  if (site("__pipeline_wait_prior", where).enter()) return;
  block().copies().wait(prior);
}

}  // namespace cuda_emulator
