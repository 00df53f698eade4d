"""What lines the street: houses, trees, hedges, walls, fences, lamps, signs, traffic lights."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from datasets.generated.camera import NEAR_M, Point
from datasets.generated.canvas import Canvas, Colour, Image
from datasets.generated.draws import Draws, Purpose
from datasets.generated.look import Look
from datasets.generated.scene import House, Thing
from datasets.generated.texture import crown, facade, half_sizes, leaf_tile

STATIC, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION = 4, 11, 12, 13, 17, 19, 20, 21
_ROOF_M = 2.6
_HEDGE = 6
_CROWN_SHAPES = ("round", "round", "round", "tall", "conifer", "round", "hedge")
_RED, _BLUE, _WHITE, _YELLOW, _BACK = (
    (172.0, 40.0, 38.0),
    (42.0, 84.0, 152.0),
    (222.0, 220.0, 214.0),
    (212.0, 174.0, 52.0),
    (138.0, 140.0, 142.0),
)
_SIGNS: tuple[tuple[str, float, Colour, Colour, bool], ...] = (
    ("round", 0.36, _RED, _WHITE, False),
    ("round", 0.36, _BLUE, _BLUE, True),
    ("triangle", 0.5, _RED, _WHITE, False),
    ("diamond", 0.44, _WHITE, _YELLOW, False),
    ("round", 0.36, _RED, _RED, True),
    ("upright", 0.40, _BLUE, _WHITE, False),
    ("round", 0.36, _BLUE, _RED, False),
    ("upright", 0.42, _WHITE, _WHITE, False),
    ("round", 0.36, _BACK, _BACK, False),
    ("triangle", 0.5, _BACK, _BACK, False),
    ("octagon", 0.4, _RED, _RED, True),
    ("wide", 0.5, _BLUE, _BLUE, False),
)
"""Outline, radius in metres, rim, field, whether it has a white bar."""
_LAMPS: tuple[tuple[Colour, Colour], ...] = (
    ((236, 60, 44), (70, 30, 28)),
    ((240, 178, 52), (76, 62, 30)),
    ((60, 206, 130), (28, 62, 46)),
)
_SHAPES: dict[str, tuple[tuple[float, float], ...]] = {
    name: tuple(
        (math.cos(math.pi * (2 * n / sides + turn)), math.sin(math.pi * (2 * n / sides + turn)))
        for n in range(sides)
    )
    for name, sides, turn in (
        ("round", 20, 0.0),
        ("triangle", 3, 0.5),
        ("diamond", 4, 0.5),
        ("octagon", 8, 0.125),
    )
} | {
    "upright": ((-1, -1.3), (1, -1.3), (1, 1.3), (-1, 1.3)),
    "wide": ((-2, -0.8), (2, -0.8), (2, 0.8), (-2, 0.8)),
}


def paint_house(canvas: Canvas, look: Look, house: House) -> None:
    """Paint the end that faces the camera, then the front, then the roof."""
    limit = canvas.camera.z + NEAR_M * 1.02
    start, end = max(house.start_z, limit), house.end_z
    if end <= start:
        return
    surface = canvas.add_surface(BUILDING, start - canvas.camera.z)
    back, height = house.x + house.side * house.depth, house.height
    middle, top = 0.5 * (house.x + back), house.height + _ROOF_M
    if house.start_z > limit:
        corners = _upright((house.x, start), (back, start), height)
        canvas.texture(_wall_texture(look, house, at_end=True), corners, surface)
        if house.roof is not None:
            gable = ((house.x, height, start), (back, height, start), (middle, top, start))
            canvas.polygon(gable, look.shade(house.wall, (0, 0, -1)), surface)
    levels = _wall_texture(look, house, at_end=False)
    if start > house.start_z:
        share = (start - house.start_z) / (house.end_z - house.start_z)
        levels = tuple(level[:, min(int(share * level.shape[1]), level.shape[1] - 2) :] for level in levels)
    canvas.texture(levels, _upright((house.x, start), (house.x, end), height), surface)
    if house.roof is not None:
        eaves = house.x - house.side * 0.35
        roof = (
            (eaves, height - 0.1, start),
            (eaves, height - 0.1, end),
            (middle, top, end),
            (middle, top, start),
        )
        canvas.polygon(roof, look.shade(house.roof, (-house.side * 0.5, 0.86, 0)), surface)


@lru_cache(maxsize=128)
def _wall_texture(look: Look, house: House, *, at_end: bool) -> tuple[Image, ...]:
    normal = (0.0, 0.0, -1.0) if at_end else (-float(house.side), 0.0, 0.0)
    width = house.depth if at_end else house.end_z - house.start_z
    draws = Draws(house.key, Purpose.FACADE, item=int(at_end))
    return facade(
        draws,
        house.style,
        (width, house.height),
        house.wall,
        look.light_on(normal),
        look.shade(look.light.sky_low, normal),
        look.light.lit_windows,
    )


def _upright(
    first: tuple[float, float], second: tuple[float, float], height: float
) -> tuple[Point, Point, Point, Point]:
    """Corners of a wall between two (x, z): top first, top second, bottom second, bottom first."""
    (x0, z0), (x1, z1) = first, second
    return (x0, height, z0), (x1, height, z1), (x1, 0.0, z1), (x0, 0.0, z0)


@lru_cache(maxsize=4)
def _crown_textures(look: Look) -> tuple[tuple[Image, ...], ...]:
    draws = Draws(look.key, Purpose.SPRITES)
    right, up, _ = look.sun_direction
    light = look.light_on((right, up, -0.3))
    textures = []
    for shape in _CROWN_SHAPES:
        leaves = (60.0, 74.0, 54.0) if shape == "conifer" else draws.pick(look.town.leaves)
        textures.append(crown(draws, shape, leaves, right, light, look.light.ambient))
    return tuple(textures)


def paint_tree(canvas: Canvas, look: Look, thing: Thing, x: float, z: float, frame: int) -> None:
    """Paint trunk and crown."""
    if z < canvas.camera.z + NEAR_M + 0.5:
        return
    surface = canvas.add_surface(VEGETATION, z - canvas.camera.z)
    tall, texture = thing.size, thing.variant % _HEDGE
    bark = look.shade(thing.colours[0], (math.copysign(0.6, look.sun_direction[0]), 0, -0.6))
    canvas.limb((x, 0, z), (x, 0.55 * tall, z), 0.05 * tall**0.8 + 0.08, bark, surface)
    half = tall * (0.36 + 0.02 * (thing.variant % 7))
    low, high = (0.08 * tall, 1.05 * tall) if _CROWN_SHAPES[texture] == "conifer" else (0.27 * tall, tall)
    _billboard(canvas, look, texture, (x, z), half, (low, high), surface)


def paint_bush(canvas: Canvas, look: Look, thing: Thing, x: float, z: float, frame: int) -> None:
    """Paint a bush."""
    if z >= canvas.camera.z + NEAR_M + 0.5:
        surface, size = canvas.add_surface(VEGETATION, z - canvas.camera.z), thing.size
        _billboard(canvas, look, thing.variant % 3, (x, z), 0.75 * size, (-0.25 * size, 1.05 * size), surface)


def _billboard(
    canvas: Canvas,
    look: Look,
    texture: int,
    place: tuple[float, float],
    half: float,
    heights: tuple[float, float],
    surface: int,
) -> None:
    (x, z), (low, high) = place, heights
    corners = ((x - half, high, z), (x + half, high, z), (x + half, low, z), (x - half, low, z))
    canvas.texture(_crown_textures(look)[texture], corners, surface)


def paint_edge(canvas: Canvas, look: Look, thing: Thing, x: float, z: float, frame: int) -> None:
    """Paint a piece of hedge, wall or fence along the street."""
    start, end = max(z, canvas.camera.z + NEAR_M * 1.02), z + thing.reach
    if end <= start:
        return
    label_id = {"hedge": VEGETATION, "wall": WALL, "fence": FENCE}[thing.kind]
    surface = canvas.add_surface(label_id, start - canvas.camera.z)
    side, tall, colour = math.copysign(1.0, x), thing.size, thing.colours[0]
    if thing.kind != "fence":
        back = x + 0.5 * side
        top = ((x, tall, start), (x, tall, end), (back, tall, end), (back, tall, start))
        canvas.polygon(top, look.shade(colour, (0, 1, 0)), surface)
    texture = (
        _crown_textures(look)[_HEDGE]
        if thing.kind == "hedge"
        else _edge_texture(thing.kind, look.shade(colour, (-side, 0.1, -0.1)), thing.variant)
    )
    canvas.texture(texture, _upright((x, start), (x, end), tall), surface)


@lru_cache(maxsize=512)
def _edge_texture(kind: str, colour: Colour, variant: int) -> tuple[Image, ...]:
    """Four metres of a wall or fence."""
    rows, columns = 32, 96
    if kind == "wall":
        relief = 0.78 + 0.5 * leaf_tile()[variant * 32 : variant * 32 + rows, :columns]
        relief[:3] *= 1.15
        relief[3:5] *= 0.7
        if variant % 2:
            relief[::5] *= 0.84
        image = relief[..., None] * np.array(colour, np.float32)
    else:
        image = np.full((rows, columns, 3), colour, np.float32)
        width, step = ((2, 6), (5, 7), (1, 4), (3, 12))[variant]
        for column in range(0, columns, step):
            image[4:-2, column + width : column + step] *= 0.55
        image[:3] *= 1.1
    return half_sizes(np.clip(image, 0, 255).astype(np.uint8))


def paint_lamp(canvas: Canvas, look: Look, thing: Thing, x: float, z: float, frame: int) -> None:
    """Paint a street lamp; the variant says how far its arm reaches."""
    if z < canvas.camera.z + NEAR_M + 0.5:
        return
    surface, tall = canvas.add_surface(POLE, z - canvas.camera.z), thing.size
    grey = look.shade(thing.colours[0], (math.copysign(0.5, look.sun_direction[0]), 0, -0.5))
    canvas.limb((x, 0, z), (x, tall, z), 0.18, grey, surface)
    canvas.limb((x, 0, z), (x, 0.9, z), 0.22, grey, surface)
    if thing.variant:
        tip = x + thing.heading * (1.6 if thing.variant == 1 else 0.9)
        canvas.limb((x, tall, z), (tip, tall + 0.25, z), 0.10, grey, surface)
        canvas.limb((tip, tall + 0.2, z), (tip + thing.heading * 0.6, tall + 0.2, z), 0.2, grey, surface)
    else:
        canvas.limb((x, tall, z), (x, tall + 0.4, z), 0.36, grey, surface)


def paint_sign(canvas: Canvas, look: Look, thing: Thing, x: float, z: float, frame: int) -> None:
    """Paint a post with a traffic sign, sometimes two; the variant is the number of the sign."""
    if z < canvas.camera.z + NEAR_M + 0.5:
        return
    tall, distance = thing.size, z - canvas.camera.z
    grey = look.shade(thing.colours[0], (0, 0, -0.7))
    canvas.limb((x, 0, z), (x, tall + 0.3, z), 0.10, grey, canvas.add_surface(POLE, distance))
    surface = canvas.add_surface(SIGN, distance)
    shape, radius, rim, field, barred = _SIGNS[thing.variant]
    radius *= 1.15

    def plate(shape: str, y: float, radius: float, colour: Colour) -> None:
        corners = [(x + radius * dx, y + radius * dy, z) for dx, dy in _SHAPES[shape]]
        canvas.polygon(corners, look.shade(colour, (0, 0.2, -0.9)), surface)

    plate(shape, tall, radius, rim)
    if field != rim:
        plate(shape, tall, 0.7 * radius, field)
    if barred:
        bar = (
            (x - 0.22, tall - 0.05, z),
            (x + 0.22, tall - 0.05, z),
            (x + 0.22, tall + 0.06, z),
            (x - 0.22, tall + 0.06, z),
        )
        canvas.polygon(bar, look.shade(_WHITE, (0, 0.2, -0.9)), surface)
    if thing.variant % 4 == 2:
        plate("upright", tall - 0.75, 0.3, _WHITE)


def paint_signal(canvas: Canvas, look: Look, thing: Thing, x: float, z: float, frame: int) -> None:
    """Paint a traffic light on its post; the variant is the lamp that burns."""
    if z < canvas.camera.z + NEAR_M + 0.5:
        return
    distance, middle = z - canvas.camera.z, thing.size - 0.1
    grey = look.shade(thing.colours[0], (0, 0, -0.7))
    canvas.limb((x, 0, z), (x, thing.size, z), 0.15, grey, canvas.add_surface(POLE, distance))
    surface = canvas.add_surface(LIGHT, distance)
    case = (
        (x - 0.26, middle - 0.62, z),
        (x + 0.26, middle - 0.62, z),
        (x + 0.26, middle + 0.62, z),
        (x - 0.26, middle + 0.62, z),
    )
    canvas.polygon(case, look.shade((48, 50, 50), (0, 0, -0.8)), surface)
    for lamp, (burning, dark) in enumerate(_LAMPS):
        colour = burning if lamp == thing.variant else dark
        canvas.disc((x, middle + 0.38 * (1 - lamp), z), (0.15, 0.15), colour, surface)


def paint_bollard(canvas: Canvas, look: Look, thing: Thing, x: float, z: float, frame: int) -> None:
    """Paint a bollard."""
    if z >= canvas.camera.z + NEAR_M + 0.4:
        grey = look.shade(thing.colours[0], (0, 0, -0.7))
        canvas.limb((x, 0, z), (x, thing.size, z), 0.14, grey, canvas.add_surface(POLE, z - canvas.camera.z))


def paint_bin(canvas: Canvas, look: Look, thing: Thing, x: float, z: float, frame: int) -> None:
    """Paint a litter bin: "static" for Cityscapes, which is void."""
    if z < canvas.camera.z + NEAR_M + 0.6:
        return
    surface, half = canvas.add_surface(STATIC, z - canvas.camera.z), 0.32
    canvas.darken(
        ((x - 0.4, 0, z - 0.4), (x + 0.4, 0, z - 0.4), (x + 0.4, 0, z + 0.3), (x - 0.4, 0, z + 0.3)), 0.6
    )
    front = ((x - half, 0.05, z), (x + half, 0.05, z), (x + half, thing.size, z), (x - half, thing.size, z))
    canvas.polygon(front, look.shade(thing.colours[0], (0, 0.2, -0.8)), surface)
    lid = (
        (x - half, thing.size - 0.12, z),
        (x + half, thing.size - 0.12, z),
        (x + half, thing.size, z),
        (x - half, thing.size, z),
    )
    canvas.polygon(lid, look.shade((50, 52, 54), (0, 0.5, -0.6)), surface)
