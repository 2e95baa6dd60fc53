// Which instruction set the CPU kernels use.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace fused_lif::cpu {

// The kernels in use: the best that this machine runs, or the one that the environment variable
// FUSED_LIF_CPU_CAPABILITY names.
const Kernels& current_kernels();

// Names that this machine can run, the slowest first.
std::vector<std::string> supported_capabilities();

// Switches to the kernels of this name; throws std::invalid_argument if this machine cannot run
// them.
void set_capability(const std::string& name);

}  // namespace fused_lif::cpu
