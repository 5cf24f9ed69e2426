"""The kernels of `triton_norm`, which says what rows are and how they are summed.

row_tile, channel_tile: how many rows and channels one program handles at a time. rows, channels: how many there are.
If a tensor argument is None, the kernel is compiled without the code for it.
"""

import triton
import triton.language as tl

# Not specialised: a kernel would be compiled again whenever one of these becomes a multiple of 16, or is one no more.
_SIZES = ["rows", "split_rows", "splits", "height", "width"]


@triton.jit
def _load_rows(x, values, chosen, row, end, channel, height, width, channels):  # type: ignore[no-untyped-def]
    """Load rows of `x` as float32. With pooling, load pooled rows, and store them and which of four values each is."""
    inside = (row < end)[:, None] & (channel < channels)[None, :]
    out = row.to(tl.int64)[:, None] * channels + channel[None, :]
    if chosen is None:
        best = tl.load(x + out, inside, other=0.0).to(tl.float32)
    else:
        line, column = row // (width // 2), row % (width // 2)  # lines of all images
        image, line = line // (height // 2), line % (height // 2)
        corner = x + ((image * height + 2 * line) * width + 2 * column).to(tl.int64)[:, None] * channels
        corner += channel[None, :]
        best = tl.load(corner, inside, other=0.0).to(tl.float32)
        place = tl.zeros(best.shape, tl.uint8)
        for at in tl.static_range(1, 4):
            value = tl.load(corner + (at // 2 * width + at % 2) * channels, inside, other=0.0).to(tl.float32)
            better = (value > best) | (value != value)  # NaN is passed on, as in PyTorch
            best = tl.where(better, value, best)
            place = tl.where(better, at, place).to(tl.uint8)
        tl.store(values + out, best.to(values.dtype.element_ty), inside)
        tl.store(chosen + out, place, inside)
    return best, inside


@triton.jit(do_not_specialize=_SIZES)  # type: ignore[untyped-decorator]
def sum_values(  # type: ignore[no-untyped-def]
    x,
    values,
    chosen,
    partial,
    rows,
    split_rows,
    splits,
    height,
    width,
    channels,
    row_tile: tl.constexpr,
    channel_tile: tl.constexpr,
):
    """Write `partial`, (2, C, splits): the mean of each split, and its sum of squared distances from that mean.

    Distances from the mean of the split's first rows are summed, since float32 sums of squares of values that are far
    from zero lose precision.
    """
    channel = tl.program_id(0) * channel_tile + tl.arange(0, channel_tile)
    split = tl.program_id(1)
    first = split * split_rows
    end = tl.minimum(first + split_rows, rows)
    row = first + tl.arange(0, row_tile)
    value, inside = _load_rows(x, values, chosen, row, end, channel, height, width, channels)
    pivot = tl.sum(value, 0) / tl.minimum(end - first, row_tile).to(tl.float32)
    sums = tl.where(inside, value - pivot[None, :], 0.0)
    squares = sums * sums
    for start in range(first + row_tile, end, row_tile):
        row = start + tl.arange(0, row_tile)
        value, inside = _load_rows(x, values, chosen, row, end, channel, height, width, channels)
        distance = tl.where(inside, value - pivot[None, :], 0.0)
        sums += distance
        squares += distance * distance
    count = (end - first).to(tl.float32)
    total = tl.sum(sums, 0)
    out = partial + channel * splits + split
    tl.store(out, pivot + total / count, channel < channels)
    tl.store(out + channels * splits, tl.sum(squares, 0) - total * total / count, channel < channels)


@triton.jit(do_not_specialize=_SIZES)  # type: ignore[untyped-decorator]
def combine_values(  # type: ignore[no-untyped-def]
    partial,
    statistics,
    running_mean,
    running_var,
    batches,
    rows,
    split_rows,
    splits,
    channels,
    eps,
    momentum,
    split_tile: tl.constexpr,
):
    """Write `statistics`, (2, C): mean and 1 / deviation, and update the running statistics. The formula is from Chan,
    Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979.
    """
    channel = tl.program_id(0)
    split = tl.arange(0, split_tile)
    inside = split < splits
    count = tl.where(inside, tl.minimum(rows - split * split_rows, split_rows), 0).to(tl.float32)
    means = tl.load(partial + channel * splits + split, inside, other=0.0)
    squares = tl.load(partial + (channels + channel) * splits + split, inside, other=0.0)
    all_rows = rows.to(tl.float32)
    mean = tl.sum(count * means, 0) / all_rows
    distance = means - mean
    square = tl.maximum(tl.sum(squares + count * distance * distance, 0), 0.0)
    tl.store(statistics + channel, mean)
    tl.store(statistics + channels + channel, 1 / tl.sqrt(square / all_rows + eps))
    old_mean, old_var = tl.load(running_mean + channel), tl.load(running_var + channel)
    tl.store(running_mean + channel, (1 - momentum) * old_mean + momentum * mean)
    tl.store(running_var + channel, (1 - momentum) * old_var + momentum * (square / (all_rows - 1)))
    if channel == 0:
        tl.store(batches, tl.load(batches) + 1)


@triton.jit
def _load_statistics(statistics, weight, bias, channel, channels):  # type: ignore[no-untyped-def]
    """Mean, 1 / deviation, scale and offset of channels, (1, C) each."""
    known = channel < channels
    mean = tl.load(statistics + channel, known, other=0.0)
    inverse = tl.load(statistics + channels + channel, known, other=0.0)
    scale = tl.load(weight + channel, known, other=0.0).to(tl.float32)
    offset = tl.load(bias + channel, known, other=0.0).to(tl.float32)
    return mean[None, :], inverse[None, :], scale[None, :], offset[None, :]


@triton.jit
def _silu_gradient(grad, z):  # type: ignore[no-untyped-def]
    gate = tl.sigmoid(z)
    return grad * gate * (1 + z * (1 - gate))


@triton.jit(do_not_specialize=_SIZES)  # type: ignore[untyped-decorator]
def activate(  # type: ignore[no-untyped-def]
    values, statistics, weight, bias, residual, y, rows, channels, row_tile: tl.constexpr, channel_tile: tl.constexpr
):
    """y = SiLU(scale · (values - mean) / deviation + offset + residual)."""
    blocks = tl.cdiv(channels, channel_tile)
    row = tl.program_id(0) // blocks * row_tile + tl.arange(0, row_tile)
    channel = tl.program_id(0) % blocks * channel_tile + tl.arange(0, channel_tile)
    inside = (row < rows)[:, None] & (channel < channels)[None, :]
    at = row.to(tl.int64)[:, None] * channels + channel[None, :]
    mean, inverse, scale, offset = _load_statistics(statistics, weight, bias, channel, channels)
    z = (tl.load(values + at, inside, other=0.0).to(tl.float32) - mean) * inverse * scale + offset
    if residual is not None:
        z += tl.load(residual + at, inside, other=0.0).to(tl.float32)
    tl.store(y + at, (z * tl.sigmoid(z)).to(y.dtype.element_ty), inside)


@triton.jit(do_not_specialize=_SIZES)  # type: ignore[untyped-decorator]
def sum_gradients(  # type: ignore[no-untyped-def]
    grad,
    values,
    statistics,
    weight,
    bias,
    residual,
    grad_residual,
    partial,
    rows,
    split_rows,
    splits,
    channels,
    row_tile: tl.constexpr,
    channel_tile: tl.constexpr,
):
    """Write `partial`, (2, C, splits): the sums over each split of the gradient of SiLU's input, and of that times the
    normalised values.
    """
    channel = tl.program_id(0) * channel_tile + tl.arange(0, channel_tile)
    split = tl.program_id(1)
    first = split * split_rows
    end = tl.minimum(first + split_rows, rows)
    mean, inverse, scale, offset = _load_statistics(statistics, weight, bias, channel, channels)
    sums = tl.zeros([row_tile, channel_tile], tl.float32)
    products = tl.zeros([row_tile, channel_tile], tl.float32)
    for start in range(first, end, row_tile):
        row = start + tl.arange(0, row_tile)
        inside = (row < end)[:, None] & (channel < channels)[None, :]
        at = row.to(tl.int64)[:, None] * channels + channel[None, :]
        normal = (tl.load(values + at, inside, other=0.0).to(tl.float32) - mean) * inverse
        z = normal * scale + offset
        if residual is not None:
            z += tl.load(residual + at, inside, other=0.0).to(tl.float32)
        change = _silu_gradient(tl.load(grad + at, inside, other=0.0).to(tl.float32), z)
        if residual is not None:
            tl.store(grad_residual + at, change.to(grad_residual.dtype.element_ty), inside)
        sums += change
        products += change * normal
    out = partial + channel * splits + split
    tl.store(out, tl.sum(sums, 0), channel < channels)
    tl.store(out + channels * splits, tl.sum(products, 0), channel < channels)


@triton.jit(do_not_specialize=_SIZES)  # type: ignore[untyped-decorator]
def combine_gradients(  # type: ignore[no-untyped-def]
    partial, means, grad_bias, rows, splits, channels, split_tile: tl.constexpr
):
    """Write `means`, (2, C): both sums over all splits, per row; and the offset's gradient, which is the first sum."""
    channel = tl.program_id(0)
    split = tl.arange(0, split_tile)
    change = tl.sum(tl.load(partial + channel * splits + split, split < splits, other=0.0), 0)
    product = tl.sum(tl.load(partial + (channels + channel) * splits + split, split < splits, other=0.0), 0)
    tl.store(grad_bias + channel, change.to(grad_bias.dtype.element_ty))
    tl.store(means + channel, change / rows.to(tl.float32))
    tl.store(means + channels + channel, product / rows.to(tl.float32))


@triton.jit(do_not_specialize=_SIZES)  # type: ignore[untyped-decorator]
def input_gradient(  # type: ignore[no-untyped-def]
    grad,
    values,
    statistics,
    weight,
    bias,
    chosen,
    means,
    grad_x,
    rows,
    height,
    width,
    channels,
    through_silu: tl.constexpr,
    row_tile: tl.constexpr,
    channel_tile: tl.constexpr,
):
    """Write the gradient of the norm's input, or of the pool's input if there is a pool: `rows` are then its windows,
    including those that an odd height or width cuts off.

    through_silu: whether `grad` is the gradient of SiLU's output, and not of its input.
    """
    blocks = tl.cdiv(channels, channel_tile)
    row = tl.program_id(0) // blocks * row_tile + tl.arange(0, row_tile)
    channel = tl.program_id(0) % blocks * channel_tile + tl.arange(0, channel_tile)
    inside = (row < rows)[:, None] & (channel < channels)[None, :]
    source, whole = row, inside
    if chosen is not None:
        wide, high = tl.cdiv(width, 2), tl.cdiv(height, 2)
        line, column = row // wide, row % wide
        image, line = line // high, line % high
        source = (image * (height // 2) + line) * (width // 2) + column
        whole = inside & ((line < height // 2) & (column < width // 2))[:, None]
    at = source.to(tl.int64)[:, None] * channels + channel[None, :]
    mean, inverse, scale, offset = _load_statistics(statistics, weight, bias, channel, channels)
    known = (channel < channels)[None, :]
    mean_change = tl.load(means + channel[None, :], known, other=0.0)
    mean_product = tl.load(means + channels + channel[None, :], known, other=0.0)
    normal = (tl.load(values + at, whole, other=0.0).to(tl.float32) - mean) * inverse
    change = tl.load(grad + at, whole, other=0.0).to(tl.float32)
    if through_silu:
        change = _silu_gradient(change, normal * scale + offset)
    result = ((change - mean_change - normal * mean_product) * (inverse * scale)).to(grad_x.dtype.element_ty)
    if chosen is None:
        tl.store(grad_x + at, result, inside)
    else:
        place = tl.load(chosen + at, whole, other=4)  # 4: none
        for i in tl.static_range(4):
            y, x = 2 * line + i // 2, 2 * column + i % 2
            target = ((image * height + y) * width + x).to(tl.int64)[:, None] * channels + channel[None, :]
            exists = inside & ((y < height) & (x < width))[:, None]
            tl.store(grad_x + target, tl.where(place == i, result, 0.0), exists)
