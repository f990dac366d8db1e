"""The kernels of gpu.py, in Triton: what one program does with its tile of a matrix (chapter 10).

A kernel runs as many programs at the same time. Each works on a tile, BLOCK_R rows by BLOCK_C
columns, and learns from its number which. Blocks are powers of two, so tiles reach over the edges:
what lies outside is read as 0 and never written, but it is computed with, and as ReLU(β) need not
be 0, sums over rows leave it out. Matrices have a pixel in each row and a channel in each column; a
stride is the distance from one row to the next. All sums are made in float32, whatever the type
of the matrices. No two programs write to the same place, so results are the same each time: a
sum over all rows is left as one part for each block of rows, in ``parts``, and added up later.
NaN stays NaN.
"""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


# --- What several kernels need -------------------------------------------------------------------


@triton.jit
def my_tile(rows, columns, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return a program's block of rows, its rows, its columns, and which places are inside.

    Neighbours have the same rows, which are then read from memory only once. Rows are numbers of 64
    bits, because a row times a stride may need them.
    """
    across = tl.cdiv(columns, BLOCK_C)
    number = tl.program_id(0)
    block = (number // across).to(tl.int64)
    r = block * BLOCK_R + tl.arange(0, BLOCK_R)
    c = number % across * BLOCK_C + tl.arange(0, BLOCK_C)
    return block, r, c, (r < rows)[:, None] & (c < columns)[None, :]


@triton.jit
def load(matrix, stride, r, c, inside):
    """Read a tile; outside it is 0."""
    places = matrix + r[:, None] * stride + c[None, :]
    return tl.load(places, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def store(matrix, stride, r, c, inside, values):
    """Write a tile."""
    places = matrix + r[:, None] * stride + c[None, :]
    tl.store(places, values.to(matrix.dtype.element_ty), mask=inside)


@triton.jit
def load_row(row, c, columns):
    """Read a number for each column."""
    return tl.load(row + c, mask=c < columns, other=0.0).to(tl.float32)[None, :]


@triton.jit
def relu(x):
    """Return x, or 0 where it is negative."""
    return tl.where(x < 0, 0.0, x)


@triton.jit
def dot(left, right, total, PRECISION: tl.constexpr):
    """Return total + the product of tiles of one type, which the interpreter cannot do in bfloat16.

    A product of two numbers of 16 bits has no more than 24 digits: float32 holds it exactly.
    """
    if INTERPRETED:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, total, input_precision=PRECISION)


@triton.jit
def store_sums(parts, block, c, columns, first, second):
    """Write this block's part of two sums for each column."""
    places = parts + block * 2 * columns + c
    tl.store(places, first, mask=c < columns)
    tl.store(places + columns, second, mask=c < columns)


@triton.jit
def store_moments(parts, block, c, rows, columns, values, inside, BLOCK_R: tl.constexpr):
    """Write the mean of a tile's rows inside, and the sum of squared distances from it.

    The sums are of the distances from a first guess at the mean, lest a large mean leave no digits
    for a small variance.
    """
    count = tl.minimum(rows - block * BLOCK_R, BLOCK_R).to(tl.float32)
    guess = tl.sum(tl.where(inside, values, 0.0), 0) / count
    distance = tl.where(inside, values - guess[None, :], 0.0)
    plain, squares = tl.sum(distance, 0), tl.sum(distance * distance, 0)
    store_sums(parts, block, c, columns, guess + plain / count, squares - plain * plain / count)


# --- The four chains -----------------------------------------------------------------------------


@triton.jit
def moments(x, x_stride, parts, rows, columns, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Find the moments of each block of rows, for each column."""
    block, r, c, inside = my_tile(rows, columns, BLOCK_R, BLOCK_C)
    values = load(x, x_stride, r, c, inside)
    store_moments(parts, block, c, rows, columns, values, inside, BLOCK_R)


@triton.jit
def merge(
    parts, mean, variance, inverse, rows, columns, blocks, eps,
    BLOCK_R: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Make one mean, variance and 1/σ out of those of all blocks of BLOCK_R rows.

    The squared distances from the common mean are those from the block's own, and, for each
    row, the squared distance between the two.
    """
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    first = load_row(parts, c, columns)
    found = tl.zeros((BLOCK_B, BLOCK_C), tl.float32)
    for start in range(0, blocks, BLOCK_B):
        b = start + tl.arange(0, BLOCK_B).to(tl.int64)
        count = tl.minimum(tl.maximum(rows - b * BLOCK_R, 0), BLOCK_R).to(tl.float32)[:, None]
        inside = (b < blocks)[:, None] & (c < columns)[None, :]
        found += count / rows * (load(parts, 2 * columns, b, c, inside) - first)
    centre = first + tl.sum(found, 0)[None, :]

    found = tl.zeros((BLOCK_B, BLOCK_C), tl.float32)
    for start in range(0, blocks, BLOCK_B):
        b = start + tl.arange(0, BLOCK_B).to(tl.int64)
        count = tl.minimum(tl.maximum(rows - b * BLOCK_R, 0), BLOCK_R).to(tl.float32)[:, None]
        inside = (b < blocks)[:, None] & (c < columns)[None, :]
        distance = load(parts, 2 * columns, b, c, inside) - centre
        found += load(parts + columns, 2 * columns, b, c, inside) + count * distance * distance
    squares = tl.sum(found, 0)

    sigma = tl.sqrt_rn(squares / rows + eps)
    tl.store(mean + c, tl.sum(centre, 0), mask=c < columns)
    tl.store(variance + c, squares / tl.maximum(rows - 1, 1), mask=c < columns)
    tl.store(inverse + c, tl.div_rn(tl.full((BLOCK_C,), 1.0, tl.float32), sigma), mask=c < columns)


@triton.jit
def affine(
    x, x_stride, mean, inverse, scale, shift, out, out_stride, rows, columns,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """x̂ = (x - μ)/σ, if there is a mean; then ReLU(scale x + shift), if there is a scale."""
    _, r, c, inside = my_tile(rows, columns, BLOCK_R, BLOCK_C)
    values = load(x, x_stride, r, c, inside)
    if mean is not None:
        values = (values - load_row(mean, c, columns)) * load_row(inverse, c, columns)
    if scale is not None:
        values = relu(load_row(scale, c, columns) * values + load_row(shift, c, columns))
    store(out, out_stride, r, c, inside, values)


@triton.jit
def combined(gradient, g_stride, x, x_stride, scale, slope, shift, r, c, columns, inside):
    """Return a tile of scale gradient + slope x + shift."""
    g = load_row(scale, c, columns) * load(gradient, g_stride, r, c, inside)
    g += load_row(slope, c, columns) * load(x, x_stride, r, c, inside)
    return g + load_row(shift, c, columns)


@triton.jit
def combine(
    gradient, g_stride, x, x_stride, scale, slope, shift, out, out_stride, rows, columns,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out = scale gradient + slope x + shift"""
    _, r, c, inside = my_tile(rows, columns, BLOCK_R, BLOCK_C)
    rows_of = (scale, slope, shift)
    values = combined(gradient, g_stride, x, x_stride, *rows_of, r, c, columns, inside)
    store(out, out_stride, r, c, inside, values)


@triton.jit
def activate_backward(
    gradient, g_stride, a, a_stride, x, x_stride, weight, total, total_stride, parts, rows, columns,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """g is 0 where a was cut to 0. Sum g x and g; add weight g to total, or gradient = g."""
    block, r, c, inside = my_tile(rows, columns, BLOCK_R, BLOCK_C)
    g = load(gradient, g_stride, r, c, inside)
    g = tl.where(load(a, a_stride, r, c, inside) <= 0, 0.0, g)
    values = load(x, x_stride, r, c, inside)
    store_sums(parts, block, c, columns, tl.sum(g * values, 0), tl.sum(g, 0))
    if total is not None:
        g = load(total, total_stride, r, c, inside) + load_row(weight, c, columns) * g
        store(total, total_stride, r, c, inside, g)
    else:
        store(gradient, g_stride, r, c, inside, g)


@triton.jit
def add_sums(
    gradient, g_stride, x, x_stride, parts, rows, columns,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sum g x and g."""
    block, r, c, inside = my_tile(rows, columns, BLOCK_R, BLOCK_C)
    g = load(gradient, g_stride, r, c, inside)
    values = load(x, x_stride, r, c, inside)
    store_sums(parts, block, c, columns, tl.sum(g * values, 0), tl.sum(g, 0))


# --- A bottleneck --------------------------------------------------------------------------------


@triton.jit
def product(
    x, x_stride, scale, shift, matrix, m_stride, r, rows, columns, m, outputs,
    PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Return a tile of ReLU(scale x + shift) Wᵀ. What is activated lives in registers only."""
    kind = x.dtype.element_ty
    found = tl.zeros((BLOCK_R, BLOCK_M), tl.float32)
    for start in range(0, columns, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        inside = (r < rows)[:, None] & (c < columns)[None, :]
        a = load_row(scale, c, columns) * load(x, x_stride, r, c, inside)
        a = relu(a + load_row(shift, c, columns)).to(kind)
        inside = (m < outputs)[:, None] & (c < columns)[None, :]
        w = load(matrix, m_stride, m, c, inside).to(kind)
        found = dot(a, tl.trans(w), found, PRECISION)
    return found


@triton.jit
def project(
    x, x_stride, scale, shift, matrix, m_stride, out, out_stride, parts, rows, columns, outputs,
    PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """out = ReLU(scale x + shift) Wᵀ, with the moments of what is stored of it."""
    block, r, m, inside = my_tile(rows, outputs, BLOCK_R, BLOCK_M)
    found = product(
        x, x_stride, scale, shift, matrix, m_stride, r, rows, columns, m, outputs,
        PRECISION, BLOCK_R, BLOCK_C, BLOCK_M,
    )  # fmt: skip
    store(out, out_stride, r, m, inside, found)
    found = found.to(out.dtype.element_ty).to(tl.float32)
    store_moments(parts, block, m, rows, outputs, found, inside, BLOCK_R)


@triton.jit
def store_centred(
    values, mean, scale, shift, z, z_stride, h, h_stride, r, m, outputs, inside
):  # fmt: skip
    """z = values - mean, h = ReLU(scale z + shift)"""
    values = (values - load_row(mean, m, outputs)).to(z.dtype.element_ty).to(tl.float32)
    store(z, z_stride, r, m, inside, values)
    values = relu(load_row(scale, m, outputs) * values + load_row(shift, m, outputs))
    store(h, h_stride, r, m, inside, values)


@triton.jit
def project_again(
    x, x_stride, scale, shift, matrix, m_stride, mean, z_scale, z_shift, z, z_stride, h, h_stride,
    rows, columns, outputs,
    PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """z = ReLU(scale x + shift) Wᵀ - mean, and h, what the next convolution has read."""
    _, r, m, inside = my_tile(rows, outputs, BLOCK_R, BLOCK_M)
    found = product(
        x, x_stride, scale, shift, matrix, m_stride, r, rows, columns, m, outputs,
        PRECISION, BLOCK_R, BLOCK_C, BLOCK_M,
    )  # fmt: skip
    store_centred(found, mean, z_scale, z_shift, z, z_stride, h, h_stride, r, m, outputs, inside)


@triton.jit
def centre(
    x, x_stride, mean, scale, shift, z, z_stride, h, h_stride, rows, columns,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """z = x - mean, h = ReLU(scale z + shift)"""
    _, r, c, inside = my_tile(rows, columns, BLOCK_R, BLOCK_C)
    values = load(x, x_stride, r, c, inside)
    store_centred(values, mean, scale, shift, z, z_stride, h, h_stride, r, c, columns, inside)


@triton.jit
def project_backward(
    gradient, g_stride, z, z_stride, z_scale, z_slope, z_shift,
    x, x_stride, scale, shift, matrix, m_stride, total, total_stride, parts, rows, columns, outputs,
    PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """g = (∂z W) where ReLU(scale x + shift) > 0. Sum g x and g; add scale g to total.

    ∂z is combined on the way in; ∂a = ∂z W, as large as X̂, is never in memory.
    """
    kind = x.dtype.element_ty
    block, r, c, inside = my_tile(rows, columns, BLOCK_R, BLOCK_C)
    g = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for start in range(0, outputs, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        there = (r < rows)[:, None] & (m < outputs)[None, :]
        rows_of = (z_scale, z_slope, z_shift)
        grad_z = combined(gradient, g_stride, z, z_stride, *rows_of, r, m, outputs, there)
        w = load(matrix, m_stride, m, c, (m < outputs)[:, None] & (c < columns)[None, :])
        g = dot(grad_z.to(kind), w.to(kind), g, PRECISION)
    values, gamma = load(x, x_stride, r, c, inside), load_row(scale, c, columns)
    cut = gamma * values + load_row(shift, c, columns) <= 0
    g = tl.where(cut | (r >= rows)[:, None], 0.0, g)
    store_sums(parts, block, c, columns, tl.sum(g * values, 0), tl.sum(g, 0))
    store(total, total_stride, r, c, inside, load(total, total_stride, r, c, inside) + gamma * g)


@triton.jit
def project_weights(
    gradient, g_stride, z, z_stride, z_scale, z_slope, z_shift,
    x, x_stride, scale, shift, parts, rows, columns, outputs, share,
    PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Write a part of ∂W = ∂zᵀ ReLU(scale x + shift): what ``share`` rows add to it.

    Both factors are made again, tile by tile, from what is in memory anyway.
    """
    kind = x.dtype.element_ty
    part = tl.program_id(0)
    across = tl.cdiv(columns, BLOCK_C)
    m = tl.program_id(1) // across * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(1) % across * BLOCK_C + tl.arange(0, BLOCK_C)
    found = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for start in range(0, share, BLOCK_R):
        r = part.to(tl.int64) * share + start + tl.arange(0, BLOCK_R)
        here = (r < rows)[:, None]
        rows_of, there = (z_scale, z_slope, z_shift), here & (m < outputs)[None, :]
        grad_z = combined(gradient, g_stride, z, z_stride, *rows_of, r, m, outputs, there)
        grad_z = tl.where(here, grad_z, 0.0).to(kind)
        values = load(x, x_stride, r, c, here & (c < columns)[None, :])
        a = relu(load_row(scale, c, columns) * values + load_row(shift, c, columns)).to(kind)
        found = dot(tl.trans(grad_z), a, found, PRECISION)
    places = parts + part.to(tl.int64) * outputs * columns + m[:, None] * columns + c[None, :]
    tl.store(places, found, mask=(m < outputs)[:, None] & (c < columns)[None, :])


# --- A pooling -----------------------------------------------------------------------------------


@triton.jit
def pool(
    x, x_stride, scale, shift, out, out_stride, results, columns,
    height, width, down, across, window_height, window_width,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Average ReLU(scale x + shift) over windows: down×across of them in each height×width image.

    A program has a result for each of its rows, and goes through the pixels of all their windows.
    """
    _, r, c, inside = my_tile(results, columns, BLOCK_R, BLOCK_C)
    top = r // across % down * window_height
    left = r % across * window_width
    first = (r // (down * across) * height + top) * width + left
    gamma, beta = load_row(scale, c, columns), load_row(shift, c, columns)
    found = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for pixel in range(0, window_height * window_width):
        place = first + pixel // window_width * width + pixel % window_width
        found += relu(gamma * load(x, x_stride, place, c, inside) + beta)
    store(out, out_stride, r, c, inside, found / (window_height * window_width))


@triton.jit
def pool_backward(
    gradient, g_stride, x, x_stride, scale, shift, out, out_stride, parts, rows, columns,
    height, width, down, across, window_height, window_width,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """g = a pixel's share of its window's gradient, where ReLU(scale x + shift) > 0.

    Sum g x and g; out = scale g. A pixel in no window has no gradient.
    """
    block, r, c, inside = my_tile(rows, columns, BLOCK_R, BLOCK_C)
    i, j = r // width % height // window_height, r % width // window_width
    window = (r // (height * width) * down + i) * across + j
    pooled = inside & ((i < down) & (j < across))[:, None]
    g = load(gradient, g_stride, window, c, pooled) / (window_height * window_width)
    values, gamma = load(x, x_stride, r, c, inside), load_row(scale, c, columns)
    g = tl.where(gamma * values + load_row(shift, c, columns) <= 0, 0.0, g)
    store_sums(parts, block, c, columns, tl.sum(g * values, 0), tl.sum(g, 0))
    store(out, out_stride, r, c, inside, gamma * g)
