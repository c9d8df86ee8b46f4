// The transpose of a matrix of rows x columns single-precision numbers, through tiles in shared memory.
//
// A block of TILE x THREAD_ROWS threads moves TILE x TILE numbers. PAD keeps the threads that read a column of the tile
// off each other's banks. With STREAM nothing is kept in the caches for a later reader.

static_assert(TILE % THREAD_ROWS == 0, "a tile is a whole number of thread rows");

__device__ float load(const float *from) { return STREAM ? __ldcs(from) : *from; }

__device__ void store(float *to, float value)
{
    if (STREAM) __stcs(to, value);
    else *to = value;
}

extern "C" __global__ void transpose(const float *x, float *y, int rows, int columns)
{
    __shared__ float tile[TILE][TILE + PAD];
    const long long left = (long long)blockIdx.x * TILE, top = (long long)blockIdx.y * TILE;

#pragma unroll
    for (int i = threadIdx.y; i < TILE; i += THREAD_ROWS)
        if (top + i < rows && left + threadIdx.x < columns)
            tile[i][threadIdx.x] = load(x + (top + i) * columns + left + threadIdx.x);

    __syncthreads();

#pragma unroll
    for (int i = threadIdx.y; i < TILE; i += THREAD_ROWS)
        if (left + i < columns && top + threadIdx.x < rows)
            store(y + (left + i) * rows + top + threadIdx.x, tile[threadIdx.x][i]);
}
