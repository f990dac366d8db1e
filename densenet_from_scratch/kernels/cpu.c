/* The elementwise work of a dense block, each chain of operations in one pass over memory.

   cpu.py compiles this file and says what each function is for. Matrices have a pixel in each
   row and a channel in each column; a stride is the distance from one row to the next. Each thread
   has rows of its own, and sums are added up in the order of the rows, so results do not depend on
   which thread is first. NaN stays NaN. */

#include <stdlib.h>

#define EACH_THREAD \
    _Pragma("omp parallel for num_threads(threads) schedule(static, 1) if (rows * columns > 32768)") \
    for (long thread = 0; thread < threads; thread++)
#define OWN_ROWS for (long row = rows * thread / threads; row < rows * (thread + 1) / threads; row++)
#define EACH_COLUMN _Pragma("omp simd") for (long c = 0; c < columns; c++)
#define SUMS_FOR_EACH_THREAD double *sums = calloc(2 * columns * threads, sizeof(double))

/* out = scale x + shift, or ReLU of it */
void affine(long threads, long rows, long columns, const REAL *x, long x_stride,
            const REAL *scale, const REAL *shift, REAL *out, long out_stride, int relu)
{
    EACH_THREAD OWN_ROWS {
        const REAL *from = x + row * x_stride;
        REAL *to = out + row * out_stride;
        if (relu)
            EACH_COLUMN {
                REAL value = scale[c] * from[c] + shift[c];
                to[c] = value < 0 ? 0 : value;
            }
        else
            EACH_COLUMN to[c] = scale[c] * from[c] + shift[c];
    }
}

/* out = scale gradient + slope x + shift */
void combine(long threads, long rows, long columns, const REAL *gradient, long gradient_stride,
             const REAL *x, long x_stride, const REAL *scale, const REAL *slope,
             const REAL *shift, REAL *out, long out_stride)
{
    EACH_THREAD OWN_ROWS {
        const REAL *g = gradient + row * gradient_stride, *from = x + row * x_stride;
        REAL *to = out + row * out_stride;
        EACH_COLUMN to[c] = scale[c] * g[c] + slope[c] * from[c] + shift[c];
    }
}

/* mean and variance (with the divisor n) of each column. Sums are of the distance from the first
   row, lest a large mean leave no digits for a small variance. */
void moments(long threads, long rows, long columns, const REAL *x, long x_stride, double *mean,
             double *variance)
{
    SUMS_FOR_EACH_THREAD;
    EACH_THREAD {
        double *plain = sums + 2 * columns * thread, *squares = plain + columns;
        OWN_ROWS {
            const REAL *from = x + row * x_stride;
            EACH_COLUMN {
                double distance = (double)from[c] - x[c];
                plain[c] += distance;
                squares[c] += distance * distance;
            }
        }
    }
    for (long c = 0; c < columns; c++) {
        double plain = 0, squares = 0;
        for (long thread = 0; thread < threads; thread++) {
            plain += sums[2 * columns * thread + c];
            squares += sums[2 * columns * thread + columns + c];
        }
        mean[c] = x[c] + plain / rows;
        variance[c] = (squares - plain * plain / rows) / rows;
        if (variance[c] < 0)
            variance[c] = 0;
    }
    free(sums);
}

/* Where a was cut to 0, so is g. Σ g x and Σ g of each column are added to found (2, columns), and
   either weight g to total, or, without a total, gradient = g. The sums of 64 rows are made in the
   matrix's own type, all others in double. */
void mask_and_sum(long threads, long rows, long columns, REAL *gradient, long gradient_stride,
                  const REAL *a, long a_stride, const REAL *x, long x_stride, const REAL *weight,
                  REAL *total, long total_stride, REAL *found)
{
    SUMS_FOR_EACH_THREAD;
    EACH_THREAD {
        REAL *few = calloc(2 * columns, sizeof(REAL)), *products = few, *plain = few + columns;
        double *own = sums + 2 * columns * thread;
        long end = rows * (thread + 1) / threads;
        OWN_ROWS {
            REAL *g = gradient + row * gradient_stride;
            const REAL *cut = a + row * a_stride, *from = x + row * x_stride;
            if (total) {
                REAL *to = total + row * total_stride;
                EACH_COLUMN {
                    REAL value = cut[c] <= 0 ? 0 : g[c];
                    to[c] += weight[c] * value;
                    products[c] += value * from[c];
                    plain[c] += value;
                }
            } else
                EACH_COLUMN {
                    REAL value = cut[c] <= 0 ? 0 : g[c];
                    g[c] = value;
                    products[c] += value * from[c];
                    plain[c] += value;
                }
            if (row % 64 == 63 || row == end - 1)
                for (long c = 0; c < 2 * columns; c++) {
                    own[c] += few[c];
                    few[c] = 0;
                }
        }
        free(few);
    }
    for (long c = 0; c < 2 * columns; c++)
        for (long thread = 0; thread < threads; thread++)
            found[c] += sums[2 * columns * thread + c];
    free(sums);
}
