// Loads and stores with cache hints: plain ones that check the alignment.
#pragma once

#include <type_traits>

#include "cuda_emulator/machine.h"

namespace cuda_emulator {

template <typename T>
void check_alignment(const T* address, const char* primitive, Location where) {
  if (reinterpret_cast<uintptr_t>(address) % alignof(T) != 0)
    fail(
        std::string(primitive) + " of an address that is not aligned to " +
            std::to_string(alignof(T)) + " bytes",
        where);
}

}  // namespace cuda_emulator

#define CUDA_EMULATOR_LOAD(name)                                                                \
  template <typename T>                                                                         \
  T name(const T* address, cuda_emulator::Location here = cuda_emulator::Location::current()) { \
    cuda_emulator::check_alignment(address, #name, here);                                       \
    return *address;                                                                            \
  }
CUDA_EMULATOR_LOAD(__ldg)
CUDA_EMULATOR_LOAD(__ldca)
CUDA_EMULATOR_LOAD(__ldcg)
CUDA_EMULATOR_LOAD(__ldcs)
CUDA_EMULATOR_LOAD(__ldcv)
CUDA_EMULATOR_LOAD(__ldlu)
#undef CUDA_EMULATOR_LOAD

#define CUDA_EMULATOR_STORE(name)                                          \
  template <typename T>                                                    \
  void name(                                                               \
      T* address, std::type_identity_t<T> value,                           \
      cuda_emulator::Location here = cuda_emulator::Location::current()) { \
    cuda_emulator::check_alignment(address, #name, here);                  \
    *address = value;                                                      \
  }
CUDA_EMULATOR_STORE(__stcg)
CUDA_EMULATOR_STORE(__stcs)
CUDA_EMULATOR_STORE(__stwb)
CUDA_EMULATOR_STORE(__stwt)
#undef CUDA_EMULATOR_STORE
