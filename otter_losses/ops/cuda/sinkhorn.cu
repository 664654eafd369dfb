// Both transport problems of ops/eager/sinkhorn.py, K = exp(L - shift) held as numbers, in one launch.
//
// Each block (CTA) keeps `rows` consecutive rows of K in its shared memory for the whole solve. A round takes the row sums of
// both problems from there (image to text u = 1/(K v), text to image u' = 1/(K v')), then the column sums u K and u' K of its
// rows, which the blocks add up through global memory. Sums are taken in a fixed order, without atomics: results repeat to the
// bit. Two kernels differ in how blocks wait for each other:
//
//   sinkhorn_cluster  the grid is one cluster (sm_90 on). Few blocks, so each adds up all columns for itself: one barrier a round.
//   sinkhorn_grid     a cooperative grid, a counter in global memory. Many blocks, so each adds up a slice: two barriers a round.
//
// Built by NVRTC with -DTHREADS (a multiple of 32); no header is needed. -DEMULATED leaves out what only a GPU has.

constexpr int WARP = 32, WARPS = THREADS / WARP;
constexpr int ROWS = 4;      // that a warp sums at once, so that it reads the columns' scalings once for them
constexpr int FLIGHT = 4;    // reads that a thread starts before it needs the first
constexpr int STRANDS = 16;  // at most: threads that share the sum of one column over the blocks

#ifndef EMULATED
extern __shared__ float4 shared_memory[];

// What another block wrote during this launch: never from this multiprocessor's own cache.
__device__ __forceinline__ float read(const float* from) {
    float value;
    asm volatile("ld.relaxed.gpu.global.f32 %0, [%1];" : "=f"(value) : "l"(from) : "memory");
    return value;
}

__device__ __forceinline__ unsigned read(const unsigned* from) {
    unsigned value;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
}

__device__ __forceinline__ void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}
#endif

// `target`: blocks times the barriers passed so far, this one included. All blocks must be resident.
__device__ __forceinline__ void grid_barrier(unsigned* arrived, unsigned target) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        atomicAdd(arrived, 1u);
        while (read(arrived) < target) {
        }
        __threadfence();
    }
    __syncthreads();
}

struct Block {
    int n, pitch;      // of a row in shared memory: n, rounded up to whole float4, with zeros
    int first, count;  // of its rows
    float* kernel;     // [count][pitch]
    float* columns;    // v, then v': [2][pitch]
    float* factors;    // (u, u') of each row: [count][2]
    float* scratch;    // [THREADS]
};

// Brings L into shared memory as K, and writes K back over L.
__device__ __forceinline__ void enter(const Block& b, float* matrix, float shift) {
    float* rows = matrix + (long long)b.first * b.n;
    if (b.n == b.pitch && ((unsigned long long)rows & 15) == 0) {
        const int quads = b.count * (b.n / 4);
        float4* global = (float4*)rows;
        for (int start = threadIdx.x; start < quads; start += FLIGHT * THREADS) {
            float4 values[FLIGHT];
#pragma unroll
            for (int k = 0; k < FLIGHT; k++) {
                if (start + k * THREADS < quads) values[k] = global[start + k * THREADS];
            }
#pragma unroll
            for (int k = 0; k < FLIGHT; k++) {
                if (start + k * THREADS < quads) {
                    float4 x = values[k];
                    x = {expf(x.x - shift), expf(x.y - shift), expf(x.z - shift), expf(x.w - shift)};
                    ((float4*)b.kernel)[start + k * THREADS] = x;
                    global[start + k * THREADS] = x;
                }
            }
        }
        return;
    }
    for (int i = threadIdx.x / WARP; i < b.count; i += WARPS) {
        for (int j = threadIdx.x % WARP; j < b.pitch; j += WARP) {
            float x = 0;
            if (j < b.n) {
                x = expf(rows[(long long)i * b.n + j] - shift);
                rows[(long long)i * b.n + j] = x;
            }
            b.kernel[i * b.pitch + j] = x;
        }
    }
}

__device__ __forceinline__ float dot(float4 x, float4 y, float sum) {
    return fmaf(x.w, y.w, fmaf(x.z, y.z, fmaf(x.y, y.y, fmaf(x.x, y.x, sum))));
}

// u and u' of the block's rows; u' also to global memory where `text_rows` is given.
__device__ __forceinline__ void match_rows(const Block& b, float* text_rows) {
    const int lane = threadIdx.x % WARP, quads = b.pitch / 4;
    const float4* columns = (const float4*)b.columns;
    for (int i = threadIdx.x / WARP * ROWS; i < b.count; i += WARPS * ROWS) {
        const float4* row[ROWS];
        float image[ROWS] = {}, text[ROWS] = {};
#pragma unroll
        for (int k = 0; k < ROWS; k++) row[k] = (const float4*)(b.kernel + min(i + k, b.count - 1) * b.pitch);
        for (int j = lane; j < quads; j += WARP) {
            const float4 v = columns[j], v_text = columns[quads + j];
#pragma unroll
            for (int k = 0; k < ROWS; k++) {
                const float4 x = row[k][j];
                image[k] = dot(x, v, image[k]);
                text[k] = dot(x, v_text, text[k]);
            }
        }
#pragma unroll
        for (int k = 0; k < ROWS; k++) {
#pragma unroll
            for (int distance = WARP / 2; distance; distance /= 2) {
                image[k] += __shfl_xor_sync(0xffffffffu, image[k], distance);
                text[k] += __shfl_xor_sync(0xffffffffu, text[k], distance);
            }
            if (lane == k && i + k < b.count) {
                const float u = 1 / image[k], u_text = 1 / text[k];
                b.factors[2 * (i + k)] = u;
                b.factors[2 * (i + k) + 1] = u_text;
                if (text_rows) text_rows[b.first + i + k] = u_text;
            }
        }
    }
}

// The rows' share of u K and u' K, to [2][n].
__device__ __forceinline__ void add_rows(const Block& b, float* sums) {
    for (int j = threadIdx.x; j < b.n; j += THREADS) {
        const float* column = b.kernel + j;
        float image = 0, text = 0;
        int i = 0;
#pragma unroll 4
        for (; i + 1 < b.count; i += 2) {
            const float4 u = ((const float4*)b.factors)[i / 2];
            const float x = column[i * b.pitch], y = column[(i + 1) * b.pitch];
            image = fmaf(u.z, y, fmaf(u.x, x, image));
            text = fmaf(u.w, y, fmaf(u.y, x, text));
        }
        if (i < b.count) {
            const float x = column[i * b.pitch];
            image = fmaf(b.factors[2 * i], x, image);
            text = fmaf(b.factors[2 * i + 1], x, text);
        }
        sums[j] = image;
        sums[b.n + j] = text;
    }
}

// v and v' of every column from the blocks' shares [blocks][2][n], straight into shared memory.
__device__ __forceinline__ void match_columns(const Block& b, const float* shares) {
    const int blocks = gridDim.x;
    for (int j = threadIdx.x; j < b.n; j += THREADS) {
        float image = 0, text = 0;
#pragma unroll 8
        for (int block = 0; block < blocks; block++) {
            image += read(shares + 2 * block * b.n + j);
            text += read(shares + (2 * block + 1) * b.n + j);
        }
        b.columns[j] = 1 / image;
        b.columns[b.pitch + j] = 1 / text;
    }
}

// v and v' of this block's slice of the columns, to global memory. More than one turn takes one strand only, and then no thread
// reads what another one wrote to `scratch`.
__device__ __forceinline__ void match_slice(const Block& b, const float* shares, float* image_columns, float* text_columns) {
    const int blocks = gridDim.x, width = (b.n + blocks - 1) / blocks;
    const int from = min((int)blockIdx.x * width, b.n), sums = 2 * min(width, b.n - from);
    if (sums == 0) return;
    const int span = min(sums, THREADS), strands = min(THREADS / span, STRANDS);
    const int strand = threadIdx.x / span;
    for (int start = 0; start < sums; start += span) {
        const int sum = start + threadIdx.x % span, problem = sum >= sums / 2;
        const int column = from + sum - problem * (sums / 2);
        float share = 0;
        if (strand < strands && sum < sums) {
            for (int block = strand; block < blocks; block += FLIGHT * strands) {
                float values[FLIGHT];
#pragma unroll
                for (int k = 0; k < FLIGHT; k++) {
                    const int from_block = block + k * strands;
                    values[k] = from_block < blocks ? read(shares + (2 * from_block + problem) * b.n + column) : 0;
                }
#pragma unroll
                for (int k = 0; k < FLIGHT; k++) share += values[k];
            }
        }
        b.scratch[threadIdx.x] = share;
        __syncthreads();
        if (strand == 0 && sum < sums) {
            float total = 0;
            for (int k = 0; k < strands; k++) total += b.scratch[k * span + threadIdx.x];
            (problem ? text_columns : image_columns)[column] = 1 / total;
        }
    }
}

__device__ __forceinline__ void read_columns(const Block& b, const float* image_columns, const float* text_columns) {
    for (int j = threadIdx.x; j < b.n; j += THREADS) {
        b.columns[j] = read(image_columns + j);
        b.columns[b.pitch + j] = read(text_columns + j);
    }
}

// `shares`: [2][blocks][2][n] in a cluster, which has one barrier between a round's readers and the next round's writers, so the
// rounds take turns; [blocks][2][n] in a grid. `arrived`, of a grid alone, starts at zero.
template <bool CLUSTER>
__device__ __forceinline__ void sinkhorn(
    float* matrix, const float* shift, float* image_columns, float* text_rows, float* text_columns, float* shares,
    unsigned* arrived, int n, int rows, int iterations
) {
    Block b;
    b.n = n;
    b.pitch = (n + 3) / 4 * 4;
    b.first = min((int)blockIdx.x * rows, n);
    b.count = min(rows, n - b.first);
    b.columns = (float*)shared_memory;
    b.factors = b.columns + 2 * b.pitch;
    b.scratch = b.factors + (rows + 1) / 2 * 4;
    b.kernel = b.scratch + (CLUSTER ? 0 : THREADS);

    enter(b, matrix, *shift);
    for (int i = threadIdx.x; i < 2 * b.count; i += THREADS) b.factors[i] = 1;
    for (int j = threadIdx.x; j < 2 * b.pitch; j += THREADS) b.columns[j] = 0;
    if (iterations == 0) {
        for (int i = threadIdx.x; i < b.count; i += THREADS) text_rows[b.first + i] = 1;
    }
    __syncthreads();

    unsigned target = 0;
    for (int round = 0; round <= iterations; round++) {
        const bool opening = round == 0, last = round == iterations;
        if (!opening) {
            match_rows(b, last ? text_rows : nullptr);
            __syncthreads();
        }
        float* turn = shares + (CLUSTER && round % 2 ? 2 * (long long)gridDim.x * n : 0);
        add_rows(b, turn + 2 * blockIdx.x * n);
        if (CLUSTER) {
            cluster_barrier();
            match_columns(b, turn);
        } else {
            target += gridDim.x;
            grid_barrier(arrived, target);
            match_slice(b, shares, image_columns, text_columns);
            if (!last) {
                target += gridDim.x;
                grid_barrier(arrived, target);
                read_columns(b, image_columns, text_columns);
            }
        }
        if (opening) {  // the image problem starts from columns scaled by one
            for (int j = threadIdx.x; j < n; j += THREADS) b.columns[j] = 1;
        }
        __syncthreads();
    }

    if (CLUSTER) {
        for (int j = blockIdx.x * THREADS + threadIdx.x; j < n; j += gridDim.x * THREADS) {
            image_columns[j] = b.columns[j];
            text_columns[j] = b.columns[b.pitch + j];
        }
    } else if (iterations == 0) {
        // This block's own slice, which it alone wrote.
        const int width = (n + gridDim.x - 1) / gridDim.x, from = blockIdx.x * width;
        for (int j = from + threadIdx.x; j < min(from + width, n); j += THREADS) image_columns[j] = 1;
    }
}

#define PARAMETERS                                                                                                        \
    float *matrix, const float *shift, float *image_columns, float *text_rows, float *text_columns, float *shares,        \
        unsigned *arrived, int n, int rows, int iterations
#define ARGUMENTS matrix, shift, image_columns, text_rows, text_columns, shares, arrived, n, rows, iterations

extern "C" __global__ void __launch_bounds__(THREADS, 1) sinkhorn_grid(PARAMETERS) { sinkhorn<false>(ARGUMENTS); }

#if defined(EMULATED) || __CUDA_ARCH__ >= 900
extern "C" __global__ void __launch_bounds__(THREADS, 1) sinkhorn_cluster(PARAMETERS) { sinkhorn<true>(ARGUMENTS); }
#endif
