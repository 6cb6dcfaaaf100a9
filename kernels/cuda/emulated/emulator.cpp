// Runs a kernel's blocks one after the other, and a block's threads as fibers that take turns (see cuda.h).

#include "cuda.h"

#include <csetjmp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <string>
#include <vector>

namespace emulated {

uint3 thread, block, block_size, grid_size;
unsigned char* dynamic_shared;

namespace {

using Kernel = void (*)(const void* parameters);

constexpr size_t STACK = 256 << 10;
constexpr unsigned MAX_THREADS = 1024;

struct Copy {
  unsigned char* to;
  const unsigned char* from;
  unsigned bytes;
};

enum class State { Ready, AtBarrier, InWarp, Done };

struct Fiber {
  jmp_buf at;
  ucontext_t start;
  bool started;
  State state;
  int line;
  std::vector<std::vector<Copy>> groups;
  std::vector<Copy> issued;
};

struct Warp {
  unsigned arrived;
  Act act;
  void* lanes[32];
};

Fiber fibers[MAX_THREADS];
Warp warps[MAX_THREADS / 32];
unsigned char* stacks;
unsigned threads, running, schedule;
size_t shared_bytes;
Kernel kernel;
const void* parameters;
jmp_buf scheduler;
sigjmp_buf failed;
std::string message;

// A saved place on one stack goes on on another; the compiler must keep nothing of this function in registers.
__attribute__((noinline)) void suspend() {
  if (_setjmp(fibers[running].at) == 0) _longjmp(scheduler, 1);
}

void body() {
  kernel(parameters);
  fibers[running].state = State::Done;
  _longjmp(scheduler, 1);
}

__attribute__((noinline)) void resume(unsigned index) {
  running = index;
  thread = {index % block_size.x, index / block_size.x % block_size.y, index / (block_size.x * block_size.y)};
  Fiber& fiber = fibers[index];
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.at, 1);
  fiber.started = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = stacks + index * STACK;
  fiber.start.uc_stack.ss_size = STACK;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, body, 0);
  setcontext(&fiber.start);
}

void land(const Copy& copy) {
  memset(copy.to, 0, 16);
  memcpy(copy.to, copy.from, copy.bytes);
}

// Runs one warp until none of its threads can go on. Gives whether any did.
bool run_warp(unsigned warp) {
  bool any = false, moved = true;
  while (moved) {
    moved = false;
    for (unsigned i = 0; i < 32; i++) {
      unsigned index = warp * 32 + (schedule == 0 ? i : 31 - i);
      if (fibers[index].state == State::Ready) {
        resume(index);
        any = moved = true;
      }
    }
  }
  return any;
}

void run_block() {
  unsigned count = threads / 32;
  memset(dynamic_shared, 0xff, shared_bytes);
  for (unsigned i = 0; i < threads; i++) {
    fibers[i].started = false;
    fibers[i].state = State::Ready;
    fibers[i].groups.clear();
    fibers[i].issued.clear();
  }
  for (unsigned i = 0; i < count; i++) warps[i].arrived = 0;
  for (;;) {
    bool any = false;
    for (unsigned i = 0; i < count; i++) any |= run_warp(schedule == 0 ? i : count - 1 - i);
    unsigned waiting = 0, done = 0;
    for (unsigned i = 0; i < threads; i++) {
      waiting += fibers[i].state == State::AtBarrier;
      done += fibers[i].state == State::Done;
    }
    if (done == threads) return;
    if (waiting == threads) {
      for (unsigned i = 0; i < threads; i++) {
        if (fibers[i].line != fibers[0].line) fail("the threads wait at different barriers", fibers[i].line);
        fibers[i].state = State::Ready;
      }
    } else if (!any) {
      fail("some threads wait for others that do not come", waiting > 0 ? fibers[0].line : 0);
    }
  }
}

void on_signal(int signal) {
  message = signal == SIGSEGV || signal == SIGBUS ? "an access outside of the memory" : "an index outside of its array";
  siglongjmp(failed, 1);
}

size_t pages(size_t bytes) {
  size_t page = size_t(sysconf(_SC_PAGESIZE));
  return (bytes + page - 1) / page * page;
}

}  // namespace

void fail(const char* what, int line) {
  message = std::string(what) + " (line " + std::to_string(line) + ")";
  siglongjmp(failed, 1);
}

void barrier(int line) {
  Fiber& fiber = fibers[running];
  fiber.state = State::AtBarrier;
  fiber.line = line;
  suspend();
}

void together(Act act, void* brought) {
  Warp& warp = warps[running / 32];
  if (warp.arrived == 0) warp.act = act;
  if (warp.act != act) fail("the threads of a warp do different things together", 0);
  warp.lanes[running % 32] = brought;
  if (++warp.arrived < 32) {
    fibers[running].state = State::InWarp;
    return suspend();
  }
  warp.arrived = 0;
  act(warp.lanes);
  for (unsigned lane = 0; lane < 32; lane++) fibers[running / 32 * 32 + lane].state = State::Ready;
}

void check_shared(const void* at) {
  auto byte = static_cast<const unsigned char*>(at);
  if (byte < dynamic_shared || byte + 16 > dynamic_shared + shared_bytes) fail("an address outside of shared memory", 0);
  if (reinterpret_cast<uintptr_t>(at) % 16 != 0) fail("an address in shared memory is not aligned to 16 bytes", 0);
}

void copy_async(void* to, const void* from, unsigned bytes) {
  check_shared(to);
  if (bytes > 0 && reinterpret_cast<uintptr_t>(from) % 16 != 0) fail("a copy's source is not aligned to 16 bytes", 0);
  Copy copy{static_cast<unsigned char*>(to), static_cast<const unsigned char*>(from), bytes};
  if (schedule == 0) return land(copy);
  fibers[running].issued.push_back(copy);
}

void commit_copies() {
  fibers[running].groups.push_back(fibers[running].issued);
  fibers[running].issued.clear();
}

void wait_copies(unsigned groups) {
  auto& pending = fibers[running].groups;
  while (pending.size() > groups) {
    for (const Copy& copy : pending.front()) land(copy);
    pending.erase(pending.begin());
  }
}

}  // namespace emulated

using namespace emulated;

// Memory that ends where a page without access begins, so that a read or write behind it fails. `bytes` of it are used,
// and start at a multiple of 16; what is left before the page is filled with NaN.
extern "C" void* emulated_allocate(size_t bytes) {
  size_t page = size_t(sysconf(_SC_PAGESIZE)), used = (bytes + 15) / 16 * 16, size = pages(used);
  auto memory = static_cast<unsigned char*>(
      mmap(nullptr, size + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (memory == MAP_FAILED || mprotect(memory + page, size + (size == 0), PROT_READ | PROT_WRITE) != 0) abort();
  memset(memory + page, 0xff, size);
  return memory + page + size - used;
}

extern "C" void emulated_free(void* at, size_t bytes) {
  size_t page = size_t(sysconf(_SC_PAGESIZE)), used = (bytes + 15) / 16 * 16, size = pages(used);
  munmap(static_cast<unsigned char*>(at) + used - size - page, size + 2 * page);
}

// Runs `kernel` with the `parameters` that it takes, and gives null or what went wrong. Not for two threads at once.
extern "C" const char* emulated_launch(void (*function)(const void*), const void* values, const unsigned* grid,
                                       const unsigned* size, size_t bytes, unsigned order) {
  message.clear();
  kernel = function;
  parameters = values;
  schedule = order;
  grid_size = {grid[0], grid[1], grid[2]};
  block_size = {size[0], size[1], size[2]};
  threads = size[0] * size[1] * size[2];
  shared_bytes = bytes;
  if (threads == 0 || threads > MAX_THREADS || threads % 32 != 0) return "a block of no whole warps";
  if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0 || grid[1] > 65535 || grid[2] > 65535) return "a grid that cannot be";
  if (bytes > 227 << 10) return "more shared memory than any GPU has";
  if (stacks == nullptr) {
    stacks = static_cast<unsigned char*>(
        mmap(nullptr, MAX_THREADS * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (stacks == MAP_FAILED) abort();
  }
  dynamic_shared = static_cast<unsigned char*>(emulated_allocate(bytes));
  struct sigaction action {}, former[4];
  const int signals[4] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP};
  action.sa_handler = on_signal;
  action.sa_flags = SA_NODEFER;
  for (int i = 0; i < 4; i++) sigaction(signals[i], &action, &former[i]);
  if (sigsetjmp(failed, 1) == 0) {
    unsigned blocks = grid[0] * grid[1] * grid[2];
    for (unsigned i = 0; i < blocks; i++) {
      unsigned index = schedule == 0 ? i : blocks - 1 - i;
      block = {index % grid[0], index / grid[0] % grid[1], index / (grid[0] * grid[1])};
      run_block();
    }
  }
  for (int i = 0; i < 4; i++) sigaction(signals[i], &former[i], nullptr);
  emulated_free(dynamic_shared, bytes);
  return message.empty() ? nullptr : message.c_str();
}
