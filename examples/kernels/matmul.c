/* c = a b for square row-major matrices, in tiles of TILE_I x TILE_J x TILE_K.
 *
 * The tile of b is copied to a buffer on the stack, so that it is read from one contiguous piece. ORDER is the nesting
 * of the loops within a tile, outermost first: 0 is i, 1 is j, 2 is k. */

#define PACKED_BYTES (32 * 1024)
_Static_assert(TILE_K * TILE_J * sizeof(float) <= PACKED_BYTES, "the tile of b is too big for the buffer");

#define PRAGMA(text) _Pragma(#text)
#define UNROLLED(times) PRAGMA(GCC unroll times)
#define LOOP_0 for (long i = i0; i < i1; i++)
#define LOOP_1 for (long j = j0; j < j1; j++)
#define LOOP_2 for (long k = k0; k < k1; k++)
#define NEST_OF(outer, middle, inner) LOOP_##outer LOOP_##middle UNROLLED(UNROLL) LOOP_##inner
#define NEST(...) NEST_OF(__VA_ARGS__)

static long least(long a, long b) { return a < b ? a : b; }

static void multiply_tile(const float *restrict a, const float *restrict packed, float *restrict c, long n,
                          long i0, long i1, long j0, long j1, long k0, long k1)
{
    NEST(ORDER) c[i * n + j] += a[i * n + k] * packed[(k - k0) * TILE_J + (j - j0)];
}

void matmul(const float *a, const float *b, float *c, long n)
{
    _Alignas(64) float packed[TILE_K * TILE_J];

    for (long i = 0; i < n * n; i++)
        c[i] = 0;
    for (long k0 = 0; k0 < n; k0 += TILE_K) {
        for (long j0 = 0; j0 < n; j0 += TILE_J) {
            const long k1 = least(k0 + TILE_K, n), j1 = least(j0 + TILE_J, n);
            for (long k = k0; k < k1; k++)
                for (long j = j0; j < j1; j++)
                    packed[(k - k0) * TILE_J + (j - j0)] = b[k * n + j];
            for (long i0 = 0; i0 < n; i0 += TILE_I)
                multiply_tile(a, packed, c, n, i0, least(i0 + TILE_I, n), j0, j1, k0, k1);
        }
    }
}
