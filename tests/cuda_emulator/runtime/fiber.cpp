#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <mutex>
#include <new>
#include <vector>

#include "sanitizer.h"

// Saves the registers that a function must preserve on the current stack, the stack pointer in
// *save, and restores all that from another stack. The system's swapcontext also changes the signal
// mask, with two system calls that take longer than all else.
extern "C" void cuda_emulator_switch_stacks(void** save, void* load);
// Where a new stack begins: calls a function with an argument, both in preserved registers.
extern "C" void cuda_emulator_start_stack();

#if defined(__x86_64__)

asm(R"(
.text
.globl cuda_emulator_switch_stacks
.hidden cuda_emulator_switch_stacks
.type cuda_emulator_switch_stacks, @function
cuda_emulator_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.globl cuda_emulator_start_stack
.hidden cuda_emulator_start_stack
.type cuda_emulator_start_stack, @function
cuda_emulator_start_stack:
  movq %r12, %rdi
  callq *%r13
  ud2
)");

static void* prepare_stack(void** top, void (*function)(void*), void* argument) {
  *--top = nullptr;  // keeps the stack aligned to 16 bytes
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&cuda_emulator_start_stack);
  *--top = nullptr;                            // rbp
  *--top = nullptr;                            // rbx
  *--top = argument;                           // r12
  *--top = reinterpret_cast<void*>(function);  // r13
  *--top = nullptr;                            // r14
  *--top = nullptr;                            // r15
  return top;
}

#elif defined(__aarch64__)

asm(R"(
.text
.globl cuda_emulator_switch_stacks
.hidden cuda_emulator_switch_stacks
.type cuda_emulator_switch_stacks, %function
cuda_emulator_switch_stacks:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.globl cuda_emulator_start_stack
.hidden cuda_emulator_start_stack
.type cuda_emulator_start_stack, %function
cuda_emulator_start_stack:
  mov x0, x19
  blr x20
  brk #0
)");

static void* prepare_stack(void** top, void (*function)(void*), void* argument) {
  void** saved = top - 20;
  for (int k = 0; k < 20; ++k) saved[k] = nullptr;
  saved[0] = argument;                                              // x19
  saved[1] = reinterpret_cast<void*>(function);                     // x20
  saved[11] = reinterpret_cast<void*>(&cuda_emulator_start_stack);  // x30
  return saved;
}

#else
#error "tests/cuda_emulator/runtime/fiber.cpp needs a switch of stacks for this processor"
#endif

namespace cuda_emulator {
namespace {

// Frames are several times larger with the address sanitizer. Memory is only taken when touched.
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackSize = 512 << 10;
#else
constexpr size_t kStackSize = 128 << 10;
#endif

// Stacks that no fiber uses. Kept for the next launch.
class StackPool {
 public:
  void* take() {
    {
      const std::lock_guard lock(mutex_);
      if (!free_.empty()) {
        void* stack = free_.back();
        free_.pop_back();
        return stack;
      }
    }
    void* stack = mmap(
        nullptr, kStackSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
        -1, 0);
    if (stack == MAP_FAILED) throw std::bad_alloc();
    // A kernel that needs more stack crashes right there.
    mprotect(stack, static_cast<size_t>(sysconf(_SC_PAGESIZE)), PROT_NONE);
    return stack;
  }

  void give_back(void* stack) {
    unpoison(stack, kStackSize);  // frames of a fiber that never came to its end
    const std::lock_guard lock(mutex_);
    free_.push_back(stack);
  }

 private:
  std::mutex mutex_;
  std::vector<void*> free_;
};

StackPool& stack_pool() {
  static StackPool* pool = new StackPool;  // never destroyed: launches may run at exit
  return *pool;
}

}  // namespace

Fiber::Fiber(void (*body)(void*), void* argument)
    : body_(body), argument_(argument), stack_(stack_pool().take()) {
  void** top = reinterpret_cast<void**>(static_cast<std::byte*>(stack_) + kStackSize);
  fiber_ = {prepare_stack(top, &Fiber::start, this), stack_, kStackSize, nullptr};
}

Fiber::~Fiber() { stack_pool().give_back(stack_); }

void Fiber::start(void* fiber) {
  Fiber* self = static_cast<Fiber*>(fiber);
  after_switch(nullptr, &self->resumer_.bottom, &self->resumer_.size);
  self->body_(self->argument_);
}

void Fiber::switch_sides(Side& from, Side& to) {
  before_switch(&from.fake_stack, to.bottom, to.size);
  cuda_emulator_switch_stacks(&from.stack_pointer, to.stack_pointer);
  after_switch(from.fake_stack, nullptr, nullptr);
}

void Fiber::resume() { switch_sides(resumer_, fiber_); }

void Fiber::suspend() { switch_sides(fiber_, resumer_); }

}  // namespace cuda_emulator
