"""Tileable noise, house fronts and tree crowns, as small images that the renderer maps onto the scene."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from datasets.generated.canvas import Colour, Image
from datasets.generated.draws import Draws, Purpose

FloatImage = npt.NDArray[np.float32]
TILE_PX = 512
FACADE_PX_PER_M = 14
FLOOR_M = 3.1


def noise_tile(draws: Draws, size: int, cells: Sequence[int], weights: Sequence[float]) -> FloatImage:
    """Tileable noise in [0, 1], float32 [size, size]: random grids of `cells` a side, smoothly enlarged."""
    total = np.zeros((size, size), np.float32)
    for count, weight in zip(cells, weights, strict=True):
        grid = np.pad(draws.uniforms(count, count), 2, mode="wrap")
        step = size // count
        grown = cv2.resize(grid, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
        total += np.float32(weight) * grown[2 * step : 2 * step + size, 2 * step : 2 * step + size]
    total -= total.mean()
    tile: FloatImage = np.clip(0.5 + total / (5 * total.std()), 0, 1)
    return tile


@lru_cache(maxsize=1)
def ground_tiles() -> Image:
    """uint8 [512, 512, 3], 128 = unchanged: asphalt, paving stones and grass, 20.48 m a side."""
    draws = Draws(0, Purpose.TILES, 0)
    grain = noise_tile(draws, TILE_PX, (512, 256, 16), (1.0, 0.6, 0.7)) - 0.5
    patches = noise_tile(draws, TILE_PX, (64, 8), (0.5, 1.0)) - 0.5
    asphalt = 128 + 70 * grain + 30 * patches
    for _ in range(14):
        points = np.cumsum(draws.uniforms(9, 2) * 30 - 15, axis=0) + draws.uniforms(2) * TILE_PX
        cv2.polylines(asphalt, [np.rint(points).astype(np.int32)], False, 92.0, 1)
    for _ in range(5):
        corner = (draws.uniforms(2) * (TILE_PX - 130)).astype(int)
        asphalt[
            corner[1] : corner[1] + draws.integer(20, 120), corner[0] : corner[0] + draws.integer(15, 60)
        ] -= draws.uniform(-12, 20)
    stones = np.kron(draws.uniforms(32, 32), np.ones((16, 16), np.float32)) - 0.5
    paving = 128 + 34 * stones + 46 * grain + 16 * patches
    paving[::16] -= 34
    paving[:, ::16] -= 34
    grass = 128 + 130 * (noise_tile(draws, TILE_PX, (512, 128, 32), (1.0, 0.7, 0.5)) - 0.5) + 50 * patches
    return np.clip(np.dstack([asphalt, paving, grass]), 0, 255).astype(np.uint8)


@lru_cache(maxsize=1)
def cloud_tile() -> FloatImage:
    """Cloud density, tileable, float32 [512, 512] in [0, 1]."""
    return noise_tile(Draws(0, Purpose.TILES, 1), TILE_PX, (4, 8, 16, 32, 64), (1.0, 0.7, 0.45, 0.25, 0.12))


@lru_cache(maxsize=1)
def leaf_tile() -> FloatImage:
    """Light and dark leaves, tileable, float32 [512, 512] in [0, 1]."""
    return noise_tile(Draws(0, Purpose.TILES, 2), TILE_PX, (16, 64, 128, 256), (0.6, 0.8, 0.8, 0.5))


@lru_cache(maxsize=1)
def grain_tile() -> FloatImage:
    """Near-Gaussian noise of variance 1, float32 [512, 512, 3]."""
    total = Draws(0, Purpose.TILES, 3).uniforms(4, TILE_PX, TILE_PX, 3).sum(axis=0)
    grain: FloatImage = (total - 2) * np.float32(3**0.5)
    return grain


def half_sizes(image: Image, levels: int = 3) -> tuple[Image, ...]:
    """The image and its repeated halves, finest first."""
    sizes = [image]
    while len(sizes) < levels and min(sizes[-1].shape[:2]) >= 16:
        rows, columns = sizes[-1].shape[:2]
        half = cv2.resize(sizes[-1], (columns // 2, rows // 2), interpolation=cv2.INTER_AREA)
        sizes.append(half.astype(np.uint8, copy=False))
    return tuple(sizes)


def facade(
    draws: Draws,
    style: str,
    size_m: tuple[float, float],
    wall: Colour,
    light: Colour,
    glass: Colour,
    lit_windows: float,
) -> tuple[Image, ...]:
    """A house front, finest level first.

    Args:
        draws: decides windows, doors and stains.
        style: plaster, brick, stone, concrete or glass.
        size_m: width and height.
        wall: colour in neutral light, RGB 0 to 255.
        light: factor on the wall's colour for the light on this side.
        glass: what the panes reflect.
        lit_windows: share of windows with a lamp behind them.
    """
    columns, rows = (max(24, int(side * FACADE_PX_PER_M)) for side in size_m)
    relief = _relief(draws, style, rows, columns)
    image = relief[..., None] * np.array(wall, np.float32)
    floors = max(1, round(size_m[1] / FLOOR_M))
    bay_m = {"glass": 1.7, "concrete": 2.6}.get(style, draws.uniform(2.2, 3.0))
    bays = max(1, round(size_m[0] / bay_m))
    share_w, share_h = {"glass": (0.9, 0.78), "concrete": (0.72, 0.5)}.get(
        style, (draws.uniform(0.36, 0.52), draws.uniform(0.48, 0.62))
    )
    floor_px, bay_px = rows / floors, columns / bays
    frame: Colour = draws.pick(((214, 212, 206), (92, 84, 76), (170, 166, 158), (60, 62, 64)))
    shop = floors > 2 and draws.chance(0.55)
    shopfront: Colour = draws.pick(
        ((128, 46, 44), (46, 72, 110), (52, 86, 62), (170, 150, 96), (70, 66, 66), (176, 172, 164))
    )
    for floor in range(floors):
        bottom = rows - floor * floor_px
        for bay in range(bays):
            left = bay * bay_px
            if floor == 0 and shop:
                box = (left + 0.06 * bay_px, bottom - 0.74 * floor_px, 0.88 * bay_px, 0.70 * floor_px)
            elif floor == 0 and bay == bays // 2 and style != "glass":
                box = (left + 0.3 * bay_px, bottom - 0.72 * floor_px, 0.4 * bay_px, 0.72 * floor_px)
            else:
                box = (
                    left + (0.5 - share_w / 2) * bay_px,
                    bottom - (0.22 + share_h) * floor_px,
                    share_w * bay_px,
                    share_h * floor_px,
                )
            _window(image, draws, box, frame, glass, lit_windows, wall)
        if floor and style in ("stone", "concrete"):
            image[int(bottom) - 1 : int(bottom) + 1] *= 0.8
    if shop:
        image[int(rows - 1.0 * floor_px) : int(rows - 0.78 * floor_px)] = shopfront
    image[:2] *= 1.15
    image[2:5] *= 0.7
    image *= np.linspace(1.04, 0.84, rows, dtype=np.float32)[:, None, None] * np.array(light, np.float32)
    return half_sizes(np.clip(image, 0, 255).astype(np.uint8), 4)


def _relief(draws: Draws, style: str, rows: int, columns: int) -> FloatImage:
    """Brightness of a bare wall: stains, and the joints of its material."""

    def crop(tile: FloatImage, step: float) -> FloatImage:
        row, column = draws.integer(0, 255), draws.integer(0, 255)
        ys = (row + np.arange(rows) * step).astype(int) % TILE_PX
        xs = (column + np.arange(columns) * step).astype(int) % TILE_PX
        cut: FloatImage = tile[ys[:, None], xs]
        return cut

    relief = 0.8 + 0.22 * crop(leaf_tile(), 1.0) + 0.26 * (crop(cloud_tile(), 0.6) - 0.3)
    if style == "brick":
        relief[:: FACADE_PX_PER_M // 4] *= 0.86
        relief *= 0.9 + 0.2 * crop(leaf_tile(), 2.5)
    elif style == "stone":
        relief[:: FACADE_PX_PER_M // 2] *= 0.88
        relief[:, ::FACADE_PX_PER_M] *= 0.92
    elif style == "concrete":
        relief[:: 3 * FACADE_PX_PER_M] *= 0.75
        relief[:, :: int(2.6 * FACADE_PX_PER_M)] *= 0.78
    result: FloatImage = relief.astype(np.float32)
    return result


def _window(
    image: FloatImage,
    draws: Draws,
    box: tuple[float, float, float, float],
    frame: Colour,
    glass: Colour,
    lit_windows: float,
    wall: Colour,
) -> None:
    left, top, width, height = (int(value + 0.5) for value in box)
    top = max(top, 0)
    if width < 3 or height < 4:
        return
    image[max(top - 1, 0) : top + height + 1, max(left - 1, 0) : left + width + 1] = frame
    pane = image[top : top + height, left : left + width]
    kind = draws.uniform()
    if kind < lit_windows:
        pane[:] = (236, 196, 120)
    elif kind < lit_windows + 0.15:
        pane[:] = np.array(wall, np.float32) * 0.8
    else:
        dark = draws.uniform(0.25, 0.85)
        reflected = np.linspace(1.0, 0.55, pane.shape[0], dtype=np.float32)[:, None, None]
        pane[:] = np.array(glass, np.float32) * dark * reflected
    if width > 8:
        pane[:, width // 2] = frame
    image[top + height : top + height + 2, max(left - 2, 0) : left + width + 2] *= 0.7


def _around(centre: float, reach: float, size: int) -> slice:
    """The pixels, of `size` from -1 to 1, in which a bough covers more than the empty -1, and some."""
    scale, wide = (size - 1) / 2, 1.42 * reach
    first, last = (centre - wide + 1) * scale - 2, (centre + wide + 1) * scale + 3
    return slice(max(0, int(first)), max(0, int(last)))


def crown(
    draws: Draws, shape: str, leaves: Colour, sun_side: float, light: Colour, shade: Colour
) -> tuple[Image, ...]:
    """A tree crown, bush or hedge with ragged edges: RGB and coverage, finest level first.

    Args:
        draws: decides the boughs.
        shape: round, tall, conifer or hedge.
        leaves: colour in neutral light.
        sun_side: where the sun stands, -1 left to 1 right.
        light: factor on colours in the sun.
        shade: factor on colours in the shade.
    """
    size = 192
    ys, xs = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    promoted = (xs[:1] - np.float64(0)).dtype  # of what follows, which numpy 1 and 2 decide differently
    cover, bulge = np.full((size, size), -1.0, promoted), np.zeros((size, size), promoted)
    for bough in range(64):
        angle, radius = draws.uniform(0, 2 * np.pi), draws.uniform(0, 1) ** 0.5
        y = np.sin(angle) * radius * 0.68
        limit = {"round": 0.66, "tall": 0.36, "conifer": 0.1 + 0.5 * (y + 0.68) / 1.36, "hedge": 1.0}[shape]
        x = np.cos(angle) * radius * limit
        reach = draws.uniform(0.20, 0.32) if bough < 16 and shape != "conifer" else draws.uniform(0.09, 0.19)
        near = _around(y, reach, size), _around(x, reach, size)
        xs_near, ys_near = xs[near], ys[near]
        distance = 1 - ((xs_near - x) ** 2 + (ys_near - y) ** 2) / reach**2
        above = distance > cover[near]
        lit_side = 0.6 * (y - ys_near) / reach + 0.6 * sun_side * (xs_near - x) / reach
        bulge[near] = np.where(above, lit_side, bulge[near])
        cover[near] = np.maximum(cover[near], distance)
    row, column = draws.integer(0, TILE_PX - size), draws.integer(0, TILE_PX - size)
    leaf = leaf_tile()[row : row + size, column : column + size]
    if shape == "hedge":
        cover = np.minimum(3.0, (ys + 0.88) * 9)
        bulge = 0.3 * bulge - 0.3 * ys
    lit = np.clip(0.42 + 0.34 * bulge - 0.18 * ys + 1.3 * (leaf - 0.5), 0, 1)[..., None]
    colour = np.array(leaves, np.float32) * (
        lit * np.array(light, np.float32) + (1 - lit) * 0.46 * np.array(shade, np.float32)
    )
    alpha = np.where(cover + 1.8 * (leaf - 0.5) > 0.05, 255, 0)
    return half_sizes(np.dstack([np.clip(colour, 0, 255), alpha]).astype(np.uint8), 5)
