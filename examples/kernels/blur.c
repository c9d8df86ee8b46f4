/* Gaussian blur of a height x width image with (2 RADIUS + 1)^2 taps, in tiles of TILE_Y x TILE_X pixels.
 *
 * The image has a border of RADIUS pixels on every side, the blurred one has none. METHOD is DIRECT (all taps of a
 * pixel at once) or SEPARABLE (rows into a buffer, then columns: fewer operations, more memory). INNER says what the
 * innermost loop runs over: the TAPS of one pixel, or the PIXELS of a row for one tap. */

#define RADIUS 3
#define TAPS_A_SIDE (2 * RADIUS + 1)

enum { DIRECT, SEPARABLE };
enum { TAPS, PIXELS };

#define PRAGMA(text) _Pragma(#text)
#define UNROLLED(times) PRAGMA(GCC unroll times)

static long least(long a, long b) { return a < b ? a : b; }

/* out[x] = sum over taps t of weights[t] * in[x + t * stride] (added to out[x] where add is 1), for x < count. */
static inline void convolve(const float *restrict in, long stride, const float *restrict weights, float scale, int add,
                            float *restrict out, long count)
{
    if (INNER == TAPS) {
        for (long x = 0; x < count; x++) {
            float sum = 0;
            UNROLLED(UNROLL)
            for (long t = 0; t < TAPS_A_SIDE; t++)
                sum += weights[t] * in[x + t * stride];
            out[x] = scale * sum + (add ? out[x] : 0);
        }
    } else {
        for (long t = 0; t < TAPS_A_SIDE; t++) {
            const float weight = scale * weights[t];
            const int first = t == 0 && !add;
            UNROLLED(UNROLL)
            for (long x = 0; x < count; x++)
                out[x] = weight * in[x + t * stride] + (first ? 0 : out[x]);
        }
    }
}

static void direct_tile(const float *restrict in, long pitch, const float *restrict weights, float *restrict out,
                        long width, long rows, long columns)
{
    for (long y = 0; y < rows; y++)
        for (long t = 0; t < TAPS_A_SIDE; t++)
            convolve(in + (y + t) * pitch, 1, weights, weights[t], t > 0, out + y * width, columns);
}

static void separable_tile(const float *restrict in, long pitch, const float *restrict weights, float *restrict out,
                           long width, long rows, long columns)
{
    float buffer[(TILE_Y + 2 * RADIUS) * TILE_X];

    for (long y = 0; y < rows + 2 * RADIUS; y++)
        convolve(in + y * pitch, 1, weights, 1, 0, buffer + y * TILE_X, columns);
    for (long y = 0; y < rows; y++)
        convolve(buffer + y * TILE_X, TILE_X, weights, 1, 0, out + y * width, columns);
}

void blur(const float *image, const float *weights, float *out, long height, long width)
{
    const long pitch = width + 2 * RADIUS;

    for (long y0 = 0; y0 < height; y0 += TILE_Y) {
        for (long x0 = 0; x0 < width; x0 += TILE_X) {
            const long rows = least(TILE_Y, height - y0), columns = least(TILE_X, width - x0);
            const float *in = image + y0 * pitch + x0;
            float *to = out + y0 * width + x0;
            if (METHOD == DIRECT)
                direct_tile(in, pitch, weights, to, width, rows, columns);
            else
                separable_tile(in, pitch, weights, to, width, rows, columns);
        }
    }
}
