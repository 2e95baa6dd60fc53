// The C interface through which control.py sets what a test needs.
#include "settings.h"

#include <string>

#include "site.h"

namespace cuda_emulator {

Settings& settings() {
  static Settings settings;
  return settings;
}

}  // namespace cuda_emulator

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void cuda_emulator_set_schedule(int order, uint64_t seed) {
  using cuda_emulator::Schedule;
  cuda_emulator::settings().schedule = {static_cast<Schedule::Order>(order), seed};
}

EXPORT void cuda_emulator_set_device(int capability, int multiprocessors, size_t shared_memory) {
  cuda_emulator::settings().device = {capability, multiprocessors, shared_memory};
}

// Names of barriers, one per line; good until the next call.
EXPORT const char* cuda_emulator_executed_barriers() {
  static std::string names;
  names = cuda_emulator::executed_barriers("\n");
  return names.c_str();
}

EXPORT void cuda_emulator_forget_executed_barriers() { cuda_emulator::forget_executed_barriers(); }

EXPORT void cuda_emulator_skip_barrier(const char* name) { cuda_emulator::skip_barrier(name); }
