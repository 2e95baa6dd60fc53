// What a test can set: the order in which threads run, and the device that is emulated. For the
// whole process; changed between launches only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "shared_memory.h"

namespace cuda_emulator {

struct Schedule {
  enum Order { kForward, kReverse, kRandom };
  Order order = kForward;
  uint64_t seed = 0;
};

struct DeviceSettings {
  int capability = 90;  // of an H100: 9.0
  int multiprocessors = 4;
  size_t shared_memory = kMostShared;  // bytes per block
};

struct Settings {
  Schedule schedule;
  DeviceSettings device;
};

Settings& settings();

}  // namespace cuda_emulator
