"""Matryoshka MNRL as Triton kernels: the mathematics of `tiled.py`, with no logits ever written to memory.

- `forward`: a program owns a block of queries, walks a range of candidates, and keeps of every dim a running
  log-sum-exp and the mean logit under the softmax. With few queries the candidates are cut into ranges to fill the GPU,
  which are joined afterwards.
- `slopes`: backward computes the logits of a chunk of queries by candidates again, turns them into the C_m of every
  dim, and leaves the suffix sums S_k in a workspace of fixed size.
- `products`: adds S_k @ c[:, block k] to the gradient for all blocks of columns at once; with rows and columns
  exchanged, S_k.T @ a[:, block k].

Why a workspace. A gradient row is E wide: 128 of them in fp32 take 384 KiB at E = 768, and a multiprocessor has 256 KiB
of registers, so the logits and the gradient cannot meet in one program. Without a workspace a program owns a block of
rows and a block of columns, and the logits are computed again for each of those, for queries and for candidates. With
it a step takes four E-wide products, 8 Q G E operations, and two exponentials a logit and dim. Those are not free: an
H100 does 16 a clock on a multiprocessor, so that those of five dims take 0.4 times as long as the products. The
workspace stays within second-level cache.

Why the dims share one copy of the code after a product, with the dim as a number: a copy for each dim needs ten times
the registers there are, by the compiler's own report for sm_90.

There are no atomics: with the same tiles a run repeats to the bit. bf16 rows are multiplied as they are and summed in
fp32, the workspace is bf16 too; fp32 rows take three tf32 products for one, which keeps fp32 accuracy.

The kernels run on a CPU too, in Triton's interpreter (TRITON_INTERPRET=1), which is how they are tested without a GPU.

Shapes: Q queries, G candidates, M dims ascending. Rows come padded to whole multiples of ROWS, each block of columns to
whole multiples of DEPTH, so that tiles need no bounds. EDGES are the first columns of the blocks, and their end.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = triton.knobs.runtime.interpret
ROWS, DEPTH = (16, 16) if INTERPRETED else (128, 64)
# No kernel is compiled anew for other numbers of these.
SIZES = ("Q", "G", "count", "stride_q", "stride_g", "stride_mask", "stride_sums")
LOWEST = tl.constexpr(-1e30)  # the logit of what is masked: finite, so that times 0 it is 0


def _configs(*tiles: tuple[int, int, int, int, int]) -> list[triton.Config]:
    """From (rows, columns, depth, warps, stages) of a tile; the interpreter gets one small tile and times nothing."""
    names = ("BLOCK_ROWS", "BLOCK_COLUMNS", "BLOCK_DEPTH")
    if INTERPRETED:
        return [triton.Config(dict.fromkeys(names, 16))]
    return [triton.Config(dict(zip(names, t[:3], strict=True)), num_warps=t[3], num_stages=t[4]) for t in tiles]


@triton.jit
def _ended_dim(chunk, EDGES: tl.constexpr, BLOCK_DEPTH: tl.constexpr):
    """Which dim ends with this chunk of columns, -1 if none does."""
    ended = -1
    for k in tl.static_range(len(EDGES) - 1):
        ended = tl.where(chunk == EDGES[k + 1] // BLOCK_DEPTH - 1, k, ended)
    return ended


@triton.jit
def _unmasked(logits, mask, first_row, first_column, Q, G, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The logits of a tile, LOWEST where a candidate is not there or masked out."""
    rows, columns = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    kept = columns < G - first_column
    if mask is not None:
        corner = mask + first_row.to(tl.int64) * stride + first_column
        kept = tl.load(corner + (rows * stride + columns), mask=kept & (rows < Q - first_row), other=1) == 0
    return tl.where(kept, logits, LOWEST)


@triton.autotune(
    _configs((128, 128, 64, 8, 3), (128, 64, 64, 8, 3), (64, 64, 64, 4, 3), (64, 128, 64, 4, 3)), key=["EDGES"]
)
@triton.jit(do_not_specialize=SIZES)
def forward(
    a, c, a_factors, c_factors, targets, mask, log_sums, means, target_logits, Q, G, stride_q, stride_g, stride, width,
    EDGES: tl.constexpr, OPERAND: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_DEPTH: tl.constexpr,
):  # fmt: skip
    """Log-sum-exp and mean logit under the softmax of each range of candidates [ranges, M, Q]; target logits [M, Q]."""
    M: tl.constexpr = len(EDGES) - 1
    CHUNKS: tl.constexpr = EDGES[M] // BLOCK_DEPTH
    SLOTS: tl.constexpr = triton.next_power_of_2(M)
    first_row = tl.program_id(0) * BLOCK_ROWS
    rows = first_row + tl.arange(0, BLOCK_ROWS)
    depth = tl.arange(0, BLOCK_DEPTH)
    slots = tl.arange(0, SLOTS)[None, :]
    a_rows = a + rows.to(tl.int64)[:, None] * stride + depth[None, :]
    target = tl.load(targets + rows)
    sums = tl.zeros([BLOCK_ROWS, SLOTS], log_sums.dtype.element_ty)
    weighted = tl.zeros_like(sums)
    highest = sums + LOWEST
    dot = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], sums.dtype)
    start = tl.program_id(1) * width
    tiles = tl.cdiv(tl.minimum(width, G - start), BLOCK_COLUMNS)
    # One loop over tiles and chunks, so that the next tile is being loaded while this one is summed up.
    for step in range(0, tiles * CHUNKS):
        chunk = step % CHUNKS
        first = start + step // CHUNKS * BLOCK_COLUMNS
        columns = first + tl.arange(0, BLOCK_COLUMNS)
        a_tile = tl.load(a_rows + chunk * BLOCK_DEPTH).to(OPERAND)
        c_rows = c + columns.to(tl.int64)[None, :] * stride + depth[:, None]
        c_tile = tl.load(c_rows + chunk * BLOCK_DEPTH).to(OPERAND)
        dot = tl.dot(a_tile, c_tile, dot, input_precision="tf32x3", out_dtype=dot.dtype)
        k = _ended_dim(chunk, EDGES, BLOCK_DEPTH)
        if k >= 0:
            a_factor = tl.load(a_factors + k * stride_q + rows)[:, None]
            logits = dot * a_factor * tl.load(c_factors + k * stride_g + columns)[None, :]
            logits = _unmasked(logits, mask, first_row, first, Q, G, G, BLOCK_ROWS, BLOCK_COLUMNS)
            hits = tl.sum(tl.where(columns[None, :] == target[:, None], logits, 0.0), 1)
            in_tile = (target >= first) & (target < first + BLOCK_COLUMNS)
            tl.store(target_logits + k * stride_q + rows, hits, mask=in_tile)
            old = tl.max(tl.where(slots == k, highest, LOWEST), 1)
            top = tl.maximum(old, tl.max(logits, 1))
            shrink = tl.exp(old - top)[:, None]
            powers = tl.exp(logits - top[:, None])
            sums = tl.where(slots == k, sums * shrink + tl.sum(powers, 1)[:, None], sums)
            weighted = tl.where(slots == k, weighted * shrink + tl.sum(powers * logits, 1)[:, None], weighted)
            highest = tl.where(slots == k, top[:, None], highest)
        if chunk == CHUNKS - 1:
            dot = tl.zeros_like(dot)
    out = (tl.program_id(1) * M + slots) * stride_q + rows[:, None]
    sums = tl.where(slots < M, sums, 1.0)
    tl.store(log_sums + out, highest + tl.log(sums), mask=slots < M)
    tl.store(means + out, weighted / sums, mask=slots < M)


# Always ROWS rows: `column_sums` has one line for so many.
@triton.autotune(_configs((128, 128, 64, 8, 3), (128, 64, 64, 8, 3), (128, 64, 32, 8, 3)), key=["EDGES"])
@triton.jit(do_not_specialize=SIZES)
def slopes(
    a, c, a_factors, c_factors, targets, mask, log_sums, upstream, suffixes, column_sums,
    Q, G, stride_q, stride_g, stride_mask, stride_sums, stride, first_column, side,
    EDGES: tl.constexpr, OPERAND: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_DEPTH: tl.constexpr,
):  # fmt: skip
    """Of a chunk: the suffix sums S_k [M, side, side], and sums of g P l by column, [row blocks, M, side]."""
    M: tl.constexpr = len(EDGES) - 1
    first_row, first = tl.program_id(0) * BLOCK_ROWS, tl.program_id(1) * BLOCK_COLUMNS
    rows, columns = first_row + tl.arange(0, BLOCK_ROWS), first + tl.arange(0, BLOCK_COLUMNS)
    depth = tl.arange(0, BLOCK_DEPTH)
    a_rows = a + rows[:, None] * stride + depth[None, :]
    c_rows = c + columns[None, :] * stride + depth[:, None]
    target = tl.load(targets + rows) - first_column
    dot = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], log_sums.dtype.element_ty)
    out = suffixes + (rows[:, None] * side + columns[None, :])
    for chunk in range(0, EDGES[M] // BLOCK_DEPTH):
        a_tile = tl.load(a_rows + chunk * BLOCK_DEPTH).to(OPERAND)
        c_tile = tl.load(c_rows + chunk * BLOCK_DEPTH).to(OPERAND)
        dot = tl.dot(a_tile, c_tile, dot, input_precision="tf32x3", out_dtype=dot.dtype)
        k = _ended_dim(chunk, EDGES, BLOCK_DEPTH)
        if k >= 0:
            a_factor = tl.load(a_factors + k * stride_q + rows)[:, None]
            c_factor = tl.load(c_factors + k * stride_g + columns)[None, :]
            logits = dot * a_factor * c_factor
            logits = _unmasked(logits, mask, first_row, first, Q, G, stride_mask, BLOCK_ROWS, BLOCK_COLUMNS)
            slopes = tl.exp(logits - tl.load(log_sums + k * stride_q + rows)[:, None])
            slopes = tl.where(columns[None, :] == target[:, None], slopes - 1.0, slopes) * tl.load(upstream + k)
            tl.store(column_sums + (tl.program_id(0) * M + k) * stride_sums + columns, tl.sum(slopes * logits, 0))
            slopes = slopes * a_factor * c_factor
            tl.store(out + k * side * side, slopes.to(suffixes.dtype.element_ty))
    tl.debug_barrier()  # what a thread reads below another may have written
    suffix = tl.load(out + (M - 1) * side * side).to(dot.dtype)
    for k in range(M - 2, -1, -1):
        suffix += tl.load(out + k * side * side)
        tl.store(out + k * side * side, suffix.to(suffixes.dtype.element_ty))


@triton.jit
def _column_tile(tile, EDGES: tl.constexpr, WIDTH: tl.constexpr):
    """Block, first column and end of the tile-th tile, where each block is cut into tiles of its own."""
    block, first, stop, passed = 0, 0, 0, 0
    for k in tl.static_range(len(EDGES) - 1):
        here = tile >= passed
        block = tl.where(here, k, block)
        first = tl.where(here, EDGES[k] + (tile - passed) * WIDTH, first)
        stop = tl.where(here, EDGES[k + 1], stop)
        passed += (EDGES[k + 1] - EDGES[k] + WIDTH - 1) // WIDTH
    return block, first, stop


@triton.autotune(
    _configs((128, 128, 64, 8, 3), (128, 128, 32, 8, 4), (128, 64, 64, 4, 4), (64, 64, 32, 4, 3)),
    key=["EDGES"],
    restore_value=["gradient"],  # each launch adds to it
)
@triton.jit(do_not_specialize=SIZES)
def products(
    suffixes, others, gradient, count, stride, stride_dim, stride_row, stride_column,
    EDGES: tl.constexpr, OPERAND: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_DEPTH: tl.constexpr,
):  # fmt: skip
    """gradient[:, block k] += S_k @ others[:, block k] for every block of columns k, with `count` others."""
    block, first, stop = _column_tile(tl.program_id(1), EDGES, BLOCK_COLUMNS)
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.multiple_of(first, 16) + tl.arange(0, BLOCK_COLUMNS)
    inside = (columns < tl.multiple_of(stop, 16))[None, :]
    depth = tl.arange(0, BLOCK_DEPTH)
    total = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], gradient.dtype.element_ty)
    for start in range(0, count, BLOCK_DEPTH):
        places = block * stride_dim + rows[:, None] * stride_row + (start + depth)[None, :] * stride_column
        s_tile = tl.load(suffixes + places).to(OPERAND)
        places = (start + depth)[:, None] * stride + columns[None, :]
        o_tile = tl.load(others + places, mask=inside, other=0.0).to(OPERAND)
        total = tl.dot(s_tile, o_tile, total, input_precision="tf32x3", out_dtype=total.dtype)
    out = gradient + (rows[:, None] * stride + columns[None, :])
    tl.store(out, tl.load(out, mask=inside, other=0.0) + total, mask=inside)
