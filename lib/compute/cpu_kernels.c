/* The passes between the matrix products of a transformer block, in bfloat16 with float32 inside, each over memory once.

   lib/kernels.py compiles and calls this; lib/fused.py says what is computed when. Rows are shared out among `threads`
   in one fixed way, and a sum over rows leaves one partial sum a thread, (threads, columns): the same number of threads
   gives the same bits. No function allocates, fails or keeps state. */

#include <stdint.h>
#include <string.h>

typedef uint16_t bf16;
typedef int64_t i64;

static inline float up(bf16 v) {
    uint32_t u = (uint32_t)v << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static inline bf16 down(float f) { /* to nearest, ties to even; NaN stays NaN, but for one whose low bits are all set */
    uint32_t u;
    memcpy(&u, &f, 4);
    return (u + 0x7fff + ((u >> 16) & 1)) >> 16;
}

static inline float exp2_of_negative(float x) { /* 2^x for x <= 0 as 2^r 2^f, f in [-1/2, 1/2]; error 3e-6 */
    x = x < -126.f ? -126.f : x;
    float r = x + 12582912.f, f = x - (r - 12582912.f); /* r ends in the bits of the nearest integer */
    float p = 0.99999926f + f * (0.69312182f + f * (0.24024746f + f * (0.05591786f + f * 0.00957007f)));
    uint32_t bits, whole;
    memcpy(&bits, &p, 4);
    memcpy(&whole, &r, 4);
    bits += whole << 23;
    memcpy(&p, &bits, 4);
    return p;
}

static inline float reciprocal(float x) { /* 1 / x for a normal x > 0, error 1e-6: two steps from a guess */
    uint32_t bits;
    memcpy(&bits, &x, 4);
    bits = 0x7eb53567 - bits;
    float y;
    memcpy(&y, &bits, 4);
    y *= 1.9395974f * (1.436142f - x * y);
    return y * (2.f - x * y);
}

/* The normal distribution's mass beyond z >= 0, and its density there, to a relative error of 1e-5: the density times
   a polynomial in 1 / (1 + 0.31 z), a minimax fit of 5e-6 on z <= 14. */
static inline float normal_tail(float z, float *density) {
    float e = exp2_of_negative(-0.72134752f * z * z), t = reciprocal(1.f + 0.31f * z);
    float p = 0.18045161f - t * 0.073929605f;
    p = p * t + 0.015743495f;
    p = p * t + 0.13343025f;
    p = p * t + 0.12044123f;
    p = p * t + 0.1238607f;
    *density = 0.39894228f * e;
    return e * (p * t);
}

static inline float magnitude(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    u &= 0x7fffffff;
    memcpy(&x, &u, 4);
    return x;
}

#define EACH_THREAD _Pragma("omp parallel for schedule(static, 1) num_threads(threads)") for (i64 t = 0; t < threads; t++)
#define EACH_ROW for (i64 i = rows * t / threads; i < rows * (t + 1) / threads; i++)
#define EACH_COLUMN for (i64 j = 0; j < dim; j++)

/* Long rows are passed over 32 columns at a time (dim is a multiple of that), and what a stream holds AHEAD bytes further
   on is asked for meanwhile: memory is waited for otherwise. Past the end of a stream that does nothing. */
#define EACH_BLOCK for (i64 first = 0; first < dim; first += 32)
#define BLOCK_COLUMN for (i64 j = first; j < first + 32; j++)
#define AHEAD 1024
#define SOON(stream, count, write) \
    for (i64 c = 0; c < (i64)((count) * sizeof *(stream)); c += 64) \
        __builtin_prefetch((const char *)(stream) + AHEAD + c, write);

/* LayerNorm: x (rows, dim) -> out, with the mean and 1 / deviation of every row. */
void norm_forward(const float *x, const float *weight, const float *bias, float eps, i64 rows, i64 dim, bf16 *out,
                  float *mean, float *rstd, int threads) {
    EACH_THREAD EACH_ROW {
        const float *row = x + i * dim;
        bf16 *to = out + i * dim;
        float sum = 0.f, squares = 0.f;
        SOON(row, dim, 0) SOON(to, dim, 1)
#pragma omp simd reduction(+ : sum)
        EACH_COLUMN sum += row[j];
        float m = sum / dim;
#pragma omp simd reduction(+ : squares)
        EACH_COLUMN squares += (row[j] - m) * (row[j] - m);
        float r = 1.f / __builtin_sqrtf(squares / dim + eps);
#pragma omp simd
        EACH_COLUMN to[j] = down((row[j] - m) * r * weight[j] + bias[j]);
        mean[i] = m;
        rstd[i] = r;
    }
}

/* Its gradient d_out plus the gradient `past` that reaches x on other ways -> d_x; the forward output again; the partial
   sums (threads, 2, dim) of the gradients of weight and bias. */
void norm_backward(const bf16 *d_out, const float *past, const float *x, const float *mean, const float *rstd,
                   const float *weight, const float *bias, i64 rows, i64 dim, float *d_x, bf16 *out, float *sums,
                   int threads) {
    EACH_THREAD {
        float *d_weight = sums + t * 2 * dim, *d_bias = d_weight + dim;
        memset(d_weight, 0, 8 * dim);
        EACH_ROW {
            const float *row = x + i * dim, *other = past + i * dim;
            const bf16 *d = d_out + i * dim;
            float *d_row = d_x + i * dim;
            bf16 *to = out + i * dim;
            float m = mean[i], r = rstd[i], sum = 0.f, product = 0.f;
            SOON(row, dim, 0) SOON(other, dim, 0) SOON(d, dim, 0) SOON(d_row, dim, 1) SOON(to, dim, 1)
#pragma omp simd reduction(+ : sum, product)
            EACH_COLUMN {
                float g = up(d[j]), n = (row[j] - m) * r;
                d_weight[j] += g * n;
                d_bias[j] += g;
                sum += g * weight[j];
                product += g * weight[j] * n;
            }
            sum /= dim;
            product /= dim;
#pragma omp simd
            EACH_COLUMN {
                float n = (row[j] - m) * r;
                d_row[j] = other[j] + r * (up(d[j]) * weight[j] - sum - n * product);
                to[j] = down(n * weight[j] + bias[j]);
            }
        }
    }
}

/* GELU of x + bias, exact up to rounding (not the tanh form). */
void gelu_forward(const bf16 *x, const float *bias, i64 rows, i64 dim, bf16 *out, int threads) {
    EACH_THREAD EACH_ROW {
        const bf16 *row = x + i * dim;
        bf16 *to = out + i * dim;
        EACH_BLOCK {
            SOON(row + first, 32, 0) SOON(to + first, 32, 1)
#pragma omp simd
            BLOCK_COLUMN {
                float v = up(row[j]) + bias[j], z = magnitude(v), density;
                to[j] = down((v > 0.f ? v : 0.f) - z * normal_tail(z, &density));
            }
        }
    }
}

/* d_out -> d_x; the forward output again; the partial sums (threads, dim) of the gradient of bias. */
void gelu_backward(const bf16 *d_out, const bf16 *x, const float *bias, i64 rows, i64 dim, bf16 *d_x, bf16 *out,
                   float *sums, int threads) {
    EACH_THREAD {
        float *d_bias = sums + t * dim;
        memset(d_bias, 0, 4 * dim);
        EACH_ROW {
            const bf16 *row = x + i * dim, *d_row = d_out + i * dim;
            bf16 *to = out + i * dim, *d_to = d_x + i * dim;
            EACH_BLOCK {
                SOON(row + first, 32, 0) SOON(d_row + first, 32, 0) SOON(to + first, 32, 1) SOON(d_to + first, 32, 1)
#pragma omp simd
                BLOCK_COLUMN {
                    float v = up(row[j]) + bias[j], z = magnitude(v), density, tail = normal_tail(z, &density);
                    float d = up(d_row[j]) * ((v < 0.f ? tail : 1.f - tail) + v * density);
                    d_bias[j] += d;
                    d_to[j] = down(d);
                    to[j] = down((v > 0.f ? v : 0.f) - z * tail);
                }
            }
        }
    }
}

/* x + scale of the image * (y + bias); scale (rows / tokens) or NULL for 1. */
void add_forward(const float *x, const bf16 *y, const float *bias, const float *scale, i64 rows, i64 tokens, i64 dim,
                 float *out, int threads) {
    EACH_THREAD EACH_ROW {
        const float *row = x + i * dim;
        const bf16 *more = y + i * dim;
        float *to = out + i * dim, s = scale ? scale[i / tokens] : 1.f;
        EACH_BLOCK {
            SOON(row + first, 32, 0) SOON(more + first, 32, 0) SOON(to + first, 32, 1)
#pragma omp simd
            BLOCK_COLUMN to[j] = row[j] + s * (up(more[j]) + bias[j]);
        }
    }
}

/* d_out -> d_y, and the partial sums (threads, dim) of the gradient of bias; the gradient of x is d_out. */
void add_backward(const float *d_out, const float *scale, i64 rows, i64 tokens, i64 dim, bf16 *d_y, float *sums,
                  int threads) {
    EACH_THREAD {
        float *d_bias = sums + t * dim;
        memset(d_bias, 0, 4 * dim);
        EACH_ROW {
            const float *row = d_out + i * dim;
            bf16 *to = d_y + i * dim;
            float s = scale ? scale[i / tokens] : 1.f;
            EACH_BLOCK {
                SOON(row + first, 32, 0) SOON(to + first, 32, 1)
#pragma omp simd
                BLOCK_COLUMN {
                    d_bias[j] += s * row[j];
                    to[j] = down(s * row[j]);
                }
            }
        }
    }
}

/* Token n of image b is a row of its own if n < own; the others are rows of a table that comes after all of these,
   chosen by ids (images, tokens - own). */
#define ROW_OF(b, n) ((n) < own ? (b) * own + (n) : images * own + ids[(b) * (tokens - own) + (n) - own])

/* x (images * own + table, 3, heads, dim) plus bias -> out (3, images, heads, tokens, dim). */
void split_heads(const bf16 *x, const float *bias, const i64 *ids, i64 images, i64 tokens, i64 own, i64 heads, i64 dim,
                 bf16 *out, int threads) {
    i64 rows = images;
    EACH_THREAD EACH_ROW {
        for (i64 n = 0; n < tokens; n++) {
            const bf16 *row = x + ROW_OF(i, n) * 3 * heads * dim;
            for (i64 k = 0; k < 3 * heads; k++) {
                const bf16 *from = row + k * dim;
                const float *b = bias + k * dim;
                bf16 *to = out + (((k / heads * images + i) * heads + k % heads) * tokens + n) * dim;
                SOON(from, dim, 0) SOON(to, dim, 1)
#pragma omp simd
                EACH_COLUMN to[j] = down(up(from[j]) + b[j]);
            }
        }
    }
}

/* The gradients d_q (images, heads, wanted, dim) of the last `wanted` tokens and d_kv (2, images, heads, tokens, dim)
   -> d_x of the own rows; partial sums (threads, 1 + table, 3, heads, dim) of bias and of the table's rows. */
void merge_heads(const bf16 *d_q, const bf16 *d_kv, const i64 *ids, i64 images, i64 tokens, i64 own, i64 wanted,
                 i64 table, i64 heads, i64 dim, bf16 *d_x, float *sums, int threads) {
    i64 rows = images, width = 3 * heads * dim;
    EACH_THREAD {
        float *d_bias = sums + t * (1 + table) * width;
        memset(d_bias, 0, 4 * (1 + table) * width);
        EACH_ROW for (i64 n = 0; n < tokens; n++) {
            i64 row = ROW_OF(i, n), unwanted = tokens - wanted;
            for (i64 k = n < unwanted ? heads : 0; k < 3 * heads; k++) {
                const bf16 *from = k < heads ? d_q + ((i * heads + k) * wanted + n - unwanted) * dim
                                             : d_kv + (((k / heads - 1) * images + i) * heads + k % heads) * tokens * dim
                                                   + n * dim;
                float *b = d_bias + k * dim;
                SOON(from, dim, 0)
#pragma omp simd
                EACH_COLUMN b[j] += up(from[j]);
                if (n < own) {
                    bf16 *to = d_x + row * width + k * dim;
                    SOON(to, dim, 1)
#pragma omp simd
                    EACH_COLUMN to[j] = from[j];
                } else {
                    float *to = d_bias + (1 + row - images * own) * width + k * dim;
#pragma omp simd
                    EACH_COLUMN to[j] += up(from[j]);
                }
            }
            if (n < own && n < unwanted) memset(d_x + row * width, 0, 2 * heads * dim);
        }
    }
}

/* x (images, heads, tokens, dim) -> out (images, tokens, heads, dim), or back. */
void swap_heads(const bf16 *x, i64 images, i64 heads, i64 tokens, i64 dim, bf16 *out, int threads) {
    i64 rows = images;
    EACH_THREAD EACH_ROW for (i64 h = 0; h < heads; h++) for (i64 n = 0; n < tokens; n++) {
        const bf16 *from = x + ((i * heads + h) * tokens + n) * dim;
        bf16 *to = out + ((i * tokens + n) * heads + h) * dim;
        SOON(from, dim, 0) SOON(to, dim, 1)
#pragma omp simd
        EACH_COLUMN to[j] = from[j];
    }
}

/* softmax of scale * x over rows (rows, dim), in place; a row, filled up to whole vectors, is on the stack. */
void softmax_forward(bf16 *x, float scale, i64 rows, i64 dim, int threads) {
    EACH_THREAD {
        i64 full = (dim + 15) / 16 * 16;
        float row[full], power[full];
        for (i64 j = dim; j < full; j++) row[j] = -3e38f;
        EACH_ROW {
            bf16 *own = x + i * dim;
            SOON(own, dim, 0)
            EACH_COLUMN row[j] = up(own[j]);
            float top = row[0], sum = 0.f;
#pragma omp simd reduction(max : top)
            for (i64 j = 0; j < full; j++) top = top > row[j] ? top : row[j];
#pragma omp simd reduction(+ : sum)
            for (i64 j = 0; j < full; j++) {
                power[j] = exp2_of_negative(1.44269504f * scale * (row[j] - top));
                sum += power[j];
            }
            sum = 1.f / sum;
#pragma omp simd
            EACH_COLUMN own[j] = down(power[j] * sum);
        }
    }
}

/* The softmax y and its gradient d_y -> the gradient of x, in the place of d_y. */
void softmax_backward(const bf16 *y, bf16 *d_y, float scale, i64 rows, i64 dim, int threads) {
    EACH_THREAD EACH_ROW {
        const bf16 *p = y + i * dim;
        bf16 *d = d_y + i * dim;
        float sum = 0.f;
#pragma omp simd reduction(+ : sum)
        EACH_COLUMN sum += up(p[j]) * up(d[j]);
#pragma omp simd
        EACH_COLUMN d[j] = down(scale * up(p[j]) * (up(d[j]) - sum));
    }
}
