// A GPU on the CPU for kernels written for it with -DEMULATED: every thread of the grid is a fiber, run until it waits.
//
// Between two waits the threads run one after the other, in an order that `seed` shuffles anew each time, and one block after
// another falls behind: where a barrier is missing, some order reads or writes too early. Shared and global scratch memory starts as NaN, and writes beyond a block's share show.
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

using std::max, std::min;

struct alignas(16) float4 {
    float x, y, z, w;
};

struct Barrier {
    int expected = 0, arrived = 0, generation = 0;
};

struct CTA {
    std::vector<float4> shared;
    Barrier barrier;
    std::vector<Barrier> warps;
};

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    unsigned block, thread, shuffles = 0;
    Barrier* waits = nullptr;
    int generation = 0;
    bool done = false;
};

struct {
    unsigned x;
} threadIdx, blockIdx, gridDim;

static std::vector<Fiber> fibers;
static std::vector<CTA> ctas;
static std::vector<float> lanes;
static Barrier all;
static Fiber* current;
static ucontext_t scheduler;

#define shared_memory (ctas[blockIdx.x].shared.data())

__attribute__((noinline)) static void leave() { swapcontext(&current->context, &scheduler); }

__attribute__((noinline)) static void wait(Barrier& barrier) {
    const int generation = barrier.generation;
    if (++barrier.arrived == barrier.expected) {
        barrier.arrived = 0;
        barrier.generation++;
        return;
    }
    current->waits = &barrier;
    current->generation = generation;
    leave();
}

static void __syncthreads() { wait(ctas[blockIdx.x].barrier); }
static void cluster_barrier() { wait(all); }
static void __threadfence() {}
static void atomicAdd(unsigned* to, unsigned value) { *to += value; }
static float read(const float* from) { return *from; }

// Only ever read by a thread that spins on it.
static unsigned read(const unsigned* from) {
    leave();
    return *from;
}

static float __shfl_xor_sync(unsigned, float value, int distance) {
    const unsigned turn = current->shuffles++ % 2;
    float* mine = &lanes[2 * (blockIdx.x * THREADS + threadIdx.x)];
    mine[turn] = value;
    wait(ctas[blockIdx.x].warps[threadIdx.x / 32]);
    return lanes[2 * (blockIdx.x * THREADS + (threadIdx.x ^ distance)) + turn];
}

// 0, or 1 where a block wrote beyond its `shared_bytes`, or 2 where all threads wait for each other.
template <typename... Arguments>
int run(void (*kernel)(Arguments...), int blocks, int shared_bytes, unsigned seed, std::type_identity_t<Arguments>... arguments) {
    static std::function<void()> body;
    body = [&] { kernel(arguments...); };
    void (*start)() = [] {
        body();
        current->done = true;
        leave();
    };
    constexpr int GUARD = 64, STACK = 64 << 10;
    const float nan = std::numeric_limits<float>::quiet_NaN(), canary = 12345;
    gridDim.x = blocks;
    all = {blocks * THREADS};
    lanes.assign(2 * blocks * THREADS, nan);
    ctas.clear();
    ctas.resize(blocks);
    fibers.clear();
    fibers.resize(blocks * THREADS);
    for (CTA& cta : ctas) {
        cta.shared.assign(shared_bytes / 16 + GUARD, {nan, nan, nan, nan});
        std::fill_n((float*)cta.shared.data() + shared_bytes / 4, 4 * GUARD - 4, canary);
        cta.barrier = {THREADS};
        cta.warps.assign(THREADS / 32, {32});
    }
    for (unsigned i = 0; i < fibers.size(); i++) {
        Fiber& fiber = fibers[i];
        fiber.block = i / THREADS;
        fiber.thread = i % THREADS;
        fiber.stack.reset(new char[STACK]);
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = STACK;
        makecontext(&fiber.context, start, 0);
    }
    std::vector<unsigned> order(fibers.size());
    std::iota(order.begin(), order.end(), 0);
    std::mt19937 random(seed);
    unsigned passes = 0, behind = 0;
    for (bool running = true; running;) {
        running = false;
        bool progress = false;
        std::shuffle(order.begin(), order.end(), random);
        if (passes++ % 64 == 0) behind = random() % blocks;
        for (unsigned i : order) {
            Fiber& fiber = fibers[i];
            if (fiber.done) continue;
            running = true;
            if (fiber.block == behind && blocks > 1) continue;
            if (fiber.waits && fiber.waits->generation == fiber.generation) continue;
            progress = true;
            fiber.waits = nullptr;
            threadIdx.x = fiber.thread;
            blockIdx.x = fiber.block;
            current = &fiber;
            swapcontext(&scheduler, &fiber.context);
        }
        if (running && !progress) {
            if (behind == unsigned(blocks)) return 2;
            behind = blocks;
        }
    }
    for (CTA& cta : ctas) {
        const float* guard = (float*)cta.shared.data() + shared_bytes / 4;
        if (!std::all_of(guard, guard + 4 * GUARD - 4, [=](float x) { return x == canary; })) return 1;
    }
    return 0;
}
