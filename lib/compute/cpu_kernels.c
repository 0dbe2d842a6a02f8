/* What lies between the matrix products of a transformer block, in bfloat16 with float32 inside.

   Each function passes over memory once. lib/compute/cpu_kernels.py compiles and calls this file;
   lib/compute/cpu_block.py says what is computed when. Rows are divided among `threads` in one
   fixed way, and a sum over rows leaves one partial sum a thread, (threads, columns): the same
   number of threads gives the same bits. No function allocates, fails or keeps state. */

#include <stdint.h>
#include <string.h>

typedef uint16_t bf16;
typedef int64_t i64;

static inline float to_float(bf16 v) {
    uint32_t u = (uint32_t)v << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

/* To nearest, ties to even. NaN stays NaN, but for one whose low bits are all set. */
static inline bf16 to_bf16(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return (u + 0x7fff + ((u >> 16) & 1)) >> 16;
}

/* 2^x for x <= 0 as 2^r 2^f with f in [-1/2, 1/2]; relative error 3e-6. */
static inline float exp2_of_negative(float x) {
    x = x < -126.f ? -126.f : x;
    float r = x + 12582912.f; /* r ends in the bits of the nearest integer */
    float f = x - (r - 12582912.f);
    float p = 0.05591786f + f * 0.00957007f;
    p = 0.24024746f + f * p;
    p = 0.69312182f + f * p;
    p = 0.99999926f + f * p;
    uint32_t bits, whole;
    memcpy(&bits, &p, 4);
    memcpy(&whole, &r, 4);
    bits += whole << 23;
    memcpy(&p, &bits, 4);
    return p;
}

/* 1 / x for a normal x > 0, relative error 1e-6: two steps from a guess. */
static inline float reciprocal(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    bits = 0x7eb53567 - bits;
    float y;
    memcpy(&y, &bits, 4);
    y *= 1.9395974f * (1.436142f - x * y);
    return y * (2.f - x * y);
}

/* The normal distribution's mass beyond z >= 0, and its density there, to a relative error of
   1e-5: the density times a polynomial in 1 / (1 + 0.31 z), a minimax fit of 5e-6 on z <= 14. */
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

/* The first row of thread t; that of thread t + 1 is where it ends. */
static inline i64 first_row(i64 rows, int threads, i64 t) { return rows * t / threads; }

/* Asks for what a function will read or write AHEAD bytes further on: memory is waited for
   otherwise. Past the end of an array that does nothing. */
#define AHEAD 1024

static inline void prefetch_read(const void *from, i64 bytes) {
    for (i64 c = 0; c < bytes; c += 64) __builtin_prefetch((const char *)from + AHEAD + c, 0);
}

static inline void prefetch_write(const void *to, i64 bytes) {
    for (i64 c = 0; c < bytes; c += 64) __builtin_prefetch((const char *)to + AHEAD + c, 1);
}

/* Long rows are passed over BLOCK columns at a time; dim is a multiple of it. */
#define BLOCK 32

/* LayerNorm: x (rows, dim) -> out, with the mean and 1 / deviation of every row. */
void norm_forward(const float *x, const float *weight, const float *bias, float eps, i64 rows,
                  i64 dim, bf16 *out, float *mean, float *rstd, int threads) {
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (i64 t = 0; t < threads; t++) {
        i64 end = first_row(rows, threads, t + 1);
        for (i64 i = first_row(rows, threads, t); i < end; i++) {
            const float *row = x + i * dim;
            bf16 *to = out + i * dim;
            float sum = 0.f, squares = 0.f;
            prefetch_read(row, dim * sizeof *row);
            prefetch_write(to, dim * sizeof *to);
#pragma omp simd reduction(+ : sum)
            for (i64 j = 0; j < dim; j++) sum += row[j];
            float m = sum / dim;
#pragma omp simd reduction(+ : squares)
            for (i64 j = 0; j < dim; j++) squares += (row[j] - m) * (row[j] - m);
            float r = 1.f / __builtin_sqrtf(squares / dim + eps);
#pragma omp simd
            for (i64 j = 0; j < dim; j++) to[j] = to_bf16((row[j] - m) * r * weight[j] + bias[j]);
            mean[i] = m;
            rstd[i] = r;
        }
    }
}

/* The gradient of LayerNorm. d_x is it plus `residual`, the gradient that reaches x past the norm.
   out is the forward output again. sums (threads, 2, dim): partial gradients of weight and bias. */
void norm_backward(const bf16 *d_out, const float *residual, const float *x, const float *mean,
                   const float *rstd, const float *weight, const float *bias, i64 rows, i64 dim,
                   float *d_x, bf16 *out, float *sums, int threads) {
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (i64 t = 0; t < threads; t++) {
        float *d_weight = sums + t * 2 * dim, *d_bias = d_weight + dim;
        memset(d_weight, 0, 8 * dim);
        i64 end = first_row(rows, threads, t + 1);
        for (i64 i = first_row(rows, threads, t); i < end; i++) {
            const float *row = x + i * dim, *other = residual + i * dim;
            const bf16 *d = d_out + i * dim;
            float *d_row = d_x + i * dim;
            bf16 *to = out + i * dim;
            float m = mean[i], r = rstd[i], sum = 0.f, product = 0.f;
            prefetch_read(row, dim * sizeof *row);
            prefetch_read(other, dim * sizeof *other);
            prefetch_read(d, dim * sizeof *d);
            prefetch_write(d_row, dim * sizeof *d_row);
            prefetch_write(to, dim * sizeof *to);
#pragma omp simd reduction(+ : sum, product)
            for (i64 j = 0; j < dim; j++) {
                float g = to_float(d[j]), n = (row[j] - m) * r;
                d_weight[j] += g * n;
                d_bias[j] += g;
                sum += g * weight[j];
                product += g * weight[j] * n;
            }
            sum /= dim;
            product /= dim;
#pragma omp simd
            for (i64 j = 0; j < dim; j++) {
                float n = (row[j] - m) * r;
                d_row[j] = other[j] + r * (to_float(d[j]) * weight[j] - sum - n * product);
                to[j] = to_bf16(n * weight[j] + bias[j]);
            }
        }
    }
}

/* GELU of x + bias, exact up to rounding (not the tanh form). */
void gelu_forward(const bf16 *x, const float *bias, i64 rows, i64 dim, bf16 *out, int threads) {
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (i64 t = 0; t < threads; t++) {
        i64 end = first_row(rows, threads, t + 1);
        for (i64 i = first_row(rows, threads, t); i < end; i++) {
            const bf16 *row = x + i * dim;
            bf16 *to = out + i * dim;
            for (i64 first = 0; first < dim; first += BLOCK) {
                prefetch_read(row + first, BLOCK * sizeof *row);
                prefetch_write(to + first, BLOCK * sizeof *to);
#pragma omp simd
                for (i64 j = first; j < first + BLOCK; j++) {
                    float v = to_float(row[j]) + bias[j], z = magnitude(v), density;
                    to[j] = to_bf16((v > 0.f ? v : 0.f) - z * normal_tail(z, &density));
                }
            }
        }
    }
}

/* The gradient of GELU: d_out -> d_x. out is the forward output again. sums (threads, dim):
   partial gradients of bias. */
void gelu_backward(const bf16 *d_out, const bf16 *x, const float *bias, i64 rows, i64 dim,
                   bf16 *d_x, bf16 *out, float *sums, int threads) {
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (i64 t = 0; t < threads; t++) {
        float *d_bias = sums + t * dim;
        memset(d_bias, 0, 4 * dim);
        i64 end = first_row(rows, threads, t + 1);
        for (i64 i = first_row(rows, threads, t); i < end; i++) {
            const bf16 *row = x + i * dim, *d_row = d_out + i * dim;
            bf16 *to = out + i * dim, *d_to = d_x + i * dim;
            for (i64 first = 0; first < dim; first += BLOCK) {
                prefetch_read(row + first, BLOCK * sizeof *row);
                prefetch_read(d_row + first, BLOCK * sizeof *d_row);
                prefetch_write(to + first, BLOCK * sizeof *to);
                prefetch_write(d_to + first, BLOCK * sizeof *d_to);
#pragma omp simd
                for (i64 j = first; j < first + BLOCK; j++) {
                    float v = to_float(row[j]) + bias[j], z = magnitude(v), density;
                    float tail = normal_tail(z, &density);
                    float mass = v < 0.f ? tail : 1.f - tail;
                    float d = to_float(d_row[j]) * (mass + v * density);
                    d_bias[j] += d;
                    d_to[j] = to_bf16(d);
                    to[j] = to_bf16((v > 0.f ? v : 0.f) - z * tail);
                }
            }
        }
    }
}

/* x + scale of the image * (y + bias); scale (rows / tokens), or NULL for 1. */
void add_forward(const float *x, const bf16 *y, const float *bias, const float *scale, i64 rows,
                 i64 tokens, i64 dim, float *out, int threads) {
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (i64 t = 0; t < threads; t++) {
        i64 end = first_row(rows, threads, t + 1);
        for (i64 i = first_row(rows, threads, t); i < end; i++) {
            const float *row = x + i * dim;
            const bf16 *more = y + i * dim;
            float *to = out + i * dim, s = scale ? scale[i / tokens] : 1.f;
            for (i64 first = 0; first < dim; first += BLOCK) {
                prefetch_read(row + first, BLOCK * sizeof *row);
                prefetch_read(more + first, BLOCK * sizeof *more);
                prefetch_write(to + first, BLOCK * sizeof *to);
#pragma omp simd
                for (i64 j = first; j < first + BLOCK; j++)
                    to[j] = row[j] + s * (to_float(more[j]) + bias[j]);
            }
        }
    }
}

/* The gradient of y and, as sums (threads, dim), the partial gradients of bias. That of x is
   d_out. */
void add_backward(const float *d_out, const float *scale, i64 rows, i64 tokens, i64 dim, bf16 *d_y,
                  float *sums, int threads) {
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (i64 t = 0; t < threads; t++) {
        float *d_bias = sums + t * dim;
        memset(d_bias, 0, 4 * dim);
        i64 end = first_row(rows, threads, t + 1);
        for (i64 i = first_row(rows, threads, t); i < end; i++) {
            const float *row = d_out + i * dim;
            bf16 *to = d_y + i * dim;
            float s = scale ? scale[i / tokens] : 1.f;
            for (i64 first = 0; first < dim; first += BLOCK) {
                prefetch_read(row + first, BLOCK * sizeof *row);
                prefetch_write(to + first, BLOCK * sizeof *to);
#pragma omp simd
                for (i64 j = first; j < first + BLOCK; j++) {
                    d_bias[j] += s * row[j];
                    to[j] = to_bf16(s * row[j]);
                }
            }
        }
    }
}

/* Where token n of an image lies. The first `own` tokens of each image are rows of their own. The
   others are rows of a table that comes after all of these: ids (images, tokens - own) say which. */
static inline i64 row_of(i64 image, i64 n, const i64 *ids, i64 images, i64 tokens, i64 own) {
    if (n < own) return image * own + n;
    return images * own + ids[image * (tokens - own) + n - own];
}

/* x (images * own + table, 3, heads, dim) plus bias -> out (3, images, heads, tokens, dim). */
void split_heads(const bf16 *x, const float *bias, const i64 *ids, i64 images, i64 tokens, i64 own,
                 i64 heads, i64 dim, bf16 *out, int threads) {
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (i64 t = 0; t < threads; t++) {
        i64 end = first_row(images, threads, t + 1);
        for (i64 i = first_row(images, threads, t); i < end; i++) {
            for (i64 n = 0; n < tokens; n++) {
                const bf16 *row = x + row_of(i, n, ids, images, tokens, own) * 3 * heads * dim;
                for (i64 k = 0; k < 3 * heads; k++) {
                    const bf16 *from = row + k * dim;
                    const float *b = bias + k * dim;
                    i64 head = (k / heads * images + i) * heads + k % heads;
                    bf16 *to = out + (head * tokens + n) * dim;
                    prefetch_read(from, dim * sizeof *from);
                    prefetch_write(to, dim * sizeof *to);
#pragma omp simd
                    for (i64 j = 0; j < dim; j++) to[j] = to_bf16(to_float(from[j]) + b[j]);
                }
            }
        }
    }
}

/* The reverse of split_heads for gradients: d_q (images, heads, wanted, dim) of the last `wanted`
   tokens and d_kv (2, images, heads, tokens, dim) -> d_x of the own rows. sums (threads, 1 + table,
   3, heads, dim): partial gradients of bias, and of the table's rows. */
void merge_heads(const bf16 *d_q, const bf16 *d_kv, const i64 *ids, i64 images, i64 tokens, i64 own,
                 i64 wanted, i64 table, i64 heads, i64 dim, bf16 *d_x, float *sums, int threads) {
    i64 width = 3 * heads * dim, unwanted = tokens - wanted;
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (i64 t = 0; t < threads; t++) {
        float *d_bias = sums + t * (1 + table) * width;
        memset(d_bias, 0, 4 * (1 + table) * width);
        i64 end = first_row(images, threads, t + 1);
        for (i64 i = first_row(images, threads, t); i < end; i++) {
            for (i64 n = 0; n < tokens; n++) {
                i64 row = row_of(i, n, ids, images, tokens, own);
                for (i64 k = n < unwanted ? heads : 0; k < 3 * heads; k++) {
                    const bf16 *from;
                    if (k < heads) {
                        from = d_q + ((i * heads + k) * wanted + n - unwanted) * dim;
                    } else {
                        i64 head = ((k / heads - 1) * images + i) * heads + k % heads;
                        from = d_kv + (head * tokens + n) * dim;
                    }
                    float *b = d_bias + k * dim;
                    prefetch_read(from, dim * sizeof *from);
#pragma omp simd
                    for (i64 j = 0; j < dim; j++) b[j] += to_float(from[j]);
                    if (n < own) {
                        bf16 *to = d_x + row * width + k * dim;
                        prefetch_write(to, dim * sizeof *to);
#pragma omp simd
                        for (i64 j = 0; j < dim; j++) to[j] = from[j];
                    } else {
                        float *to = d_bias + (1 + row - images * own) * width + k * dim;
#pragma omp simd
                        for (i64 j = 0; j < dim; j++) to[j] += to_float(from[j]);
                    }
                }
                if (n < own && n < unwanted) memset(d_x + row * width, 0, 2 * heads * dim);
            }
        }
    }
}

/* x (images, heads, tokens, dim) -> out (images, tokens, heads, dim), or back. */
void swap_heads(const bf16 *x, i64 images, i64 heads, i64 tokens, i64 dim, bf16 *out, int threads) {
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (i64 t = 0; t < threads; t++) {
        i64 end = first_row(images, threads, t + 1);
        for (i64 i = first_row(images, threads, t); i < end; i++) {
            for (i64 h = 0; h < heads; h++) {
                for (i64 n = 0; n < tokens; n++) {
                    const bf16 *from = x + ((i * heads + h) * tokens + n) * dim;
                    bf16 *to = out + ((i * tokens + n) * heads + h) * dim;
                    prefetch_read(from, dim * sizeof *from);
                    prefetch_write(to, dim * sizeof *to);
#pragma omp simd
                    for (i64 j = 0; j < dim; j++) to[j] = from[j];
                }
            }
        }
    }
}

/* softmax of scale * x over rows (rows, dim), in place. A row, filled up to whole vectors, is on
   the stack. */
void softmax_forward(bf16 *x, float scale, i64 rows, i64 dim, int threads) {
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (i64 t = 0; t < threads; t++) {
        i64 full = (dim + 15) / 16 * 16;
        float row[full], power[full];
        for (i64 j = dim; j < full; j++) row[j] = -3e38f;
        i64 end = first_row(rows, threads, t + 1);
        for (i64 i = first_row(rows, threads, t); i < end; i++) {
            bf16 *own = x + i * dim;
            prefetch_read(own, dim * sizeof *own);
            for (i64 j = 0; j < dim; j++) row[j] = to_float(own[j]);
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
            for (i64 j = 0; j < dim; j++) own[j] = to_bf16(power[j] * sum);
        }
    }
}

/* The softmax y and its gradient d_y -> the gradient of x, in the place of d_y. */
void softmax_backward(const bf16 *y, bf16 *d_y, float scale, i64 rows, i64 dim, int threads) {
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (i64 t = 0; t < threads; t++) {
        i64 end = first_row(rows, threads, t + 1);
        for (i64 i = first_row(rows, threads, t); i < end; i++) {
            const bf16 *p = y + i * dim;
            bf16 *d = d_y + i * dim;
            float sum = 0.f;
#pragma omp simd reduction(+ : sum)
            for (i64 j = 0; j < dim; j++) sum += to_float(p[j]) * to_float(d[j]);
#pragma omp simd
            for (i64 j = 0; j < dim; j++) {
                d[j] = to_bf16(scale * to_float(p[j]) * (to_float(d[j]) - sum));
            }
        }
    }
}
