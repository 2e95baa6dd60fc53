// A warp: which of its lanes wait for which others, and what they tell each other.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <string>
#include <vector>

#include "site.h"

namespace cuda_emulator {

class Warp {
 public:
  // The last warp of a block can have fewer lanes. Those that it lacks count as exited.
  explicit Warp(int lanes) : running_(lanes == kWarp ? ~uint32_t{0} : (uint32_t{1} << lanes) - 1) {}

  // What a lane gives to the lanes that it is about to wait for, and whose value it wants.
  void offer(int lane, uint64_t value, int source) {
    value_[lane] = value;
    source_[lane] = source;
  }
  // What it got from them; all ones if the source took no part.
  uint64_t received(int lane) const { return value_[lane]; }
  // The lanes that gave a value other than zero.
  uint32_t ballot(int lane) const { return ballot_[lane]; }

  // Lets a lane wait for all lanes of the mask. Returns why they can never meet, or nothing.
  std::string arrive(int lane, uint32_t mask, const Site& site) {
    const auto is_joined = [&](const Group& g) { return g.mask == mask && g.site == &site; };
    for (const Group& other : groups_) {
      if (is_joined(other) || !has(other.mask, lane) || (other.arrived & mask) == 0) continue;
      if (other.site == &site) return "lanes of a warp give different masks to " + site.name;
      return "lanes of a warp wait for each other at different places: " + other.site->name +
             " and " + site.name;
    }
    auto group = std::find_if(groups_.begin(), groups_.end(), is_joined);
    if (group == groups_.end()) group = groups_.insert(groups_.end(), {mask, 0, &site});
    group->arrived |= uint32_t{1} << lane;
    return {};
  }

  void exit(int lane) { running_ &= ~(uint32_t{1} << lane); }

  // Lanes that need not wait any longer; to be asked for until there are none.
  uint32_t release() {
    const auto is_complete = [&](const Group& g) { return (g.mask & running_) == g.arrived; };
    const auto group = std::find_if(groups_.begin(), groups_.end(), is_complete);
    if (group == groups_.end()) return 0;
    const uint32_t lanes = group->arrived;
    groups_.erase(group);
    exchange(lanes);
    return lanes;
  }

 private:
  struct Group {
    uint32_t mask, arrived;
    const Site* site;
  };

  static bool has(uint32_t lanes, int lane) { return (lanes >> lane & 1) != 0; }

  void exchange(uint32_t lanes) {
    uint64_t given[kWarp];
    uint32_t ballot = 0;
    for (int k = 0; k < kWarp; ++k) {
      given[k] = has(lanes, k) ? value_[k] : ~uint64_t{0};
      if (has(lanes, k) && value_[k] != 0) ballot |= uint32_t{1} << k;
    }
    for (uint32_t left = lanes; left != 0; left &= left - 1) {
      const int k = std::countr_zero(left);
      value_[k] = given[source_[k]];
      ballot_[k] = ballot;
    }
  }

  uint32_t running_;           // lanes that have not exited
  std::vector<Group> groups_;  // that wait
  uint64_t value_[kWarp] = {};
  int source_[kWarp] = {};
  uint32_t ballot_[kWarp] = {};
};

}  // namespace cuda_emulator
