// Fibers must keep their registers and stacks apart; on every processor that fiber.cpp knows.
#include <array>
#include <cmath>
#include <cstdio>
#include <functional>
#include <memory>
#include <vector>

#include "runtime/fiber.h"

namespace {

constexpr int kFibers = 20, kRounds = 50;

struct Runner {
  int number;
  std::unique_ptr<cuda_emulator::Fiber> fiber;
  double result = 0;
};

// Many values are alive across a switch, so that some are in registers that it must preserve.
void body(void* argument) {
  Runner& runner = *static_cast<Runner*>(argument);
  std::array<double, 12> values{};
  std::array<long, 12> counts{};
  for (int round = 0;; ++round) {
    for (size_t k = 0; k < values.size(); ++k) {
      values[k] += std::sqrt(static_cast<double>(runner.number)) * static_cast<double>(k);
      counts[k] += runner.number + static_cast<long>(k);
      if (k % 5 == 0) runner.fiber->suspend();
    }
    if (round + 1 == kRounds)
      for (size_t k = 0; k < values.size(); ++k)
        runner.result += values[k] + static_cast<double>(counts[k]);
  }
}

double expected(int number) {
  double result = 0;
  for (int k = 0; k < 12; ++k) {
    double value = 0;
    for (int round = 0; round < kRounds; ++round) value += std::sqrt(number) * k;
    result += value + static_cast<double>(kRounds * (number + k));
  }
  return result;
}

}  // namespace

int main() {
  std::vector<Runner> runners(kFibers);
  for (int n = 0; n < kFibers; ++n) {
    runners[n].number = n;
    runners[n].fiber = std::make_unique<cuda_emulator::Fiber>(&body, &runners[n]);
  }
  double own = 1;  // of the resuming side
  for (int turn = 0; turn < 3 * kRounds + 1; ++turn)
    for (Runner& runner : runners) {
      own *= 1.0001;
      runner.fiber->resume();
    }
  for (const Runner& runner : runners)
    if (runner.result != expected(runner.number)) {
      std::printf("fiber %d: %f, not %f\n", runner.number, runner.result, expected(runner.number));
      return 1;
    }
  return std::abs(own - std::pow(1.0001, kFibers * (3 * kRounds + 1))) < 1e-9 ? 0 : 2;
}
