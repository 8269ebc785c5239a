"""Draw the example pair `category/robot_and_teddy`: pictures, exact masks, metadata.jsonl.

    npm pack @lobehub/fluent-emoji-3d@1.1.0 && tar xzf lobehub-*.tgz
    python dataset/make_example.py --emoji package/assets

Each subject is one emoji, recoloured and given an accessory so that it becomes a particular robot
and a particular bear. It is the same in all its five pictures; the background, place, size and
angle change. Needs numpy and Pillow only. The same seed draws the same pictures.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from mudi.ground.errors import SetupError, program, refuse
from mudi.ground.flags import flag, parse, range_complaints

Background = Callable[[int, np.random.Generator], np.ndarray]  # -> (size, size, 3), 0 to 255

SUBJECT_ALPHA = 128  # from here on a pixel shows more subject than background
JPEG_QUALITY = 92
MIN_SIZE = 64  # pixels; below, antennas and seams vanish
HEADROOM = 64  # emoji pixels added on every side, so that a hat fits on top
OUTPUT_DIR = Path(__file__).parent / "category" / "robot_and_teddy"


@dataclass(frozen=True)
class Art:
    """One emoji and how it is recoloured: hue turn in degrees, saturation factor, RGB tint."""

    codepoint: str
    turn: float = 0.0
    saturation: float = 1.0
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Subject:
    """A body wearing an accessory: its width and centre (x, y) are in pixels of the body emoji."""

    name: str
    body: Art
    accessory: Art
    width: int
    centre: tuple[int, int]


@dataclass(frozen=True)
class Scene:
    """Height and centre (x, y) of the subject as shares of the picture's side; angle in degrees."""

    background: Background
    height: float
    centre: tuple[float, float]
    angle: float  # counter-clockwise
    flip: bool = False


def blend(low: tuple[int, ...], high: tuple[int, ...], share: np.ndarray) -> np.ndarray:
    """Mix two RGB colours by share (H, W), 0 to 1, into an (H, W, 3) float array."""
    return np.asarray(low) + (np.asarray(high) - np.asarray(low)) * share[..., None]


def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the x and y of every pixel, each (size, size), from 0 to below 1."""
    ys, xs = np.mgrid[:size, :size] / size
    return xs, ys


def soft_noise(size: int, rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """Return smooth noise (size, size), 0 to 1, of about rows x columns blobs."""
    coarse = Image.fromarray(rng.random((rows, columns), dtype=np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)).clip(0, 1)


def checkered_cloth(size: int, rng: np.random.Generator) -> np.ndarray:
    """Gingham: red and white threads that cross, with a fine weave."""
    xs, ys = grid(size)
    threads = (np.floor(xs * 10) % 2 + np.floor(ys * 10) % 2) / 2
    weave = soft_noise(size, 160, 160, rng)[..., None]
    return blend((244, 240, 234), (196, 40, 48), threads) - 18 * weave


def wooden_planks(size: int, rng: np.random.Generator) -> np.ndarray:
    """Five horizontal boards, each with its own tone and grain, dark at the joints."""
    _, ys = grid(size)
    tone = rng.uniform(0, 0.5, 5)[(ys * 5).astype(int)]
    grain = 0.3 * soft_noise(size, 120, 4, rng) + 0.2 * soft_noise(size, 30, 3, rng)
    joint = np.where(ys * 5 % 1 < 0.03, 0.45, 1.0)[..., None]
    return blend((134, 86, 50), (206, 156, 104), tone + grain) * joint


def starry_night(size: int, rng: np.random.Generator) -> np.ndarray:
    """Dark blue from top to bottom, dotted with small white stars."""
    _, ys = grid(size)
    image = Image.fromarray(blend((8, 10, 34), (34, 40, 92), ys).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for x, y, glow in rng.random((150, 3)):
        level, radius = int(130 + 125 * glow), size * (0.001 + 0.003 * glow**3)
        draw.circle((x * size, y * size), radius, fill=(level, level, level))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(size / 900)), dtype=float)


def yellow_wall(size: int, rng: np.random.Generator) -> np.ndarray:
    """One plain colour, a little darker towards the lower right corner."""
    xs, ys = grid(size)
    return blend((250, 208, 84), (232, 178, 56), (xs + ys) / 2)


def terracotta_tiles(size: int, rng: np.random.Generator) -> np.ndarray:
    """Four by four square tiles of slightly different tone between pale joints."""
    xs, ys = grid(size)
    tone = rng.random((4, 4))[(ys * 4).astype(int), (xs * 4).astype(int)]
    tiles = blend((176, 92, 62), (204, 122, 86), 0.7 * tone + 0.3 * soft_noise(size, 60, 60, rng))
    joint = (np.minimum(xs * 4 % 1, ys * 4 % 1) < 0.05)[..., None]
    return np.where(joint, (222, 212, 198), tiles)


def evening_lights(size: int, rng: np.random.Generator) -> np.ndarray:
    """Out-of-focus lights: large translucent warm discs on dark green."""
    image = Image.new("RGB", (size, size), (20, 44, 40))
    draw = ImageDraw.Draw(image, "RGBA")
    for x, y, spread, warmth in rng.random((45, 4)):
        colour = (255, int(150 + 90 * warmth), int(60 + 90 * warmth), int(40 + 60 * spread))
        draw.circle((x * size, y * size), size * (0.03 + 0.06 * spread), fill=colour)
    return np.asarray(image.filter(ImageFilter.GaussianBlur(size / 170)), dtype=float)


def cloudy_sky(size: int, rng: np.random.Generator) -> np.ndarray:
    """Blue that pales downwards, with wide white clouds."""
    _, ys = grid(size)
    noise = 0.7 * soft_noise(size, 7, 4, rng) + 0.3 * soft_noise(size, 18, 11, rng)
    clouds = ((noise - 0.5) * 4).clip(0, 0.95)[..., None]
    return blend((66, 138, 216), (176, 216, 244), ys) * (1 - clouds) + 252 * clouds


def diagonal_stripes(size: int, rng: np.random.Generator) -> np.ndarray:
    """Slanting navy and cream stripes of equal width with soft edges."""
    xs, ys = grid(size)
    wave = 12 * np.sin((xs + ys) * 2 * np.pi * 6)
    return blend((38, 62, 118), (240, 232, 212), (wave + 0.5).clip(0, 1))


def brown_paper(size: int, rng: np.random.Generator) -> np.ndarray:
    """Wrapping paper: broad creases and fine fibres."""
    creases, fibres = soft_noise(size, 6, 6, rng), soft_noise(size, 200, 90, rng)
    return blend((160, 124, 84), (208, 174, 130), 0.6 * creases + 0.4 * fibres)


def green_lawn(size: int, rng: np.random.Generator) -> np.ndarray:
    """Short blades of grass, lighter the later they are drawn."""
    image = Image.new("RGB", (size, size), (38, 84, 34))
    draw = ImageDraw.Draw(image)
    blades = rng.random((3500, 4))
    for age, (x, y, lean, tone) in enumerate(blades):
        light = 0.5 * tone + 0.5 * age / len(blades)
        foot, tip = (x * size, y * size * 1.1), ((x + 0.04 * lean - 0.02) * size, y * size * 1.1)
        colour = (int(44 + 70 * light), int(96 + 80 * light), int(36 + 26 * light))
        draw.line([foot, (tip[0], tip[1] - size * 0.07)], fill=colour, width=max(1, size // 120))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(size / 600)), dtype=float)


def example_subjects() -> dict[str, Subject]:
    """Return the two subjects by id."""
    mint, blue_bow = (0.66, 1.0, 0.80), Art("1f380", turn=-120)
    robot = Subject("olis robot", Art("1f916", tint=mint), Art("1f3a9"), 120, (128, 8))
    bear = Subject("hta teddy bear", Art("1f9f8", -48, 0.75), blue_bow, 70, (128, 142))
    return {"a": robot, "b": bear}


def example_scenes() -> dict[str, Scene]:
    """Return what each picture shows, by file stem, which starts with the subject's id."""
    return {
        "a00": Scene(checkered_cloth, 0.76, (0.50, 0.50), 4),
        "a01": Scene(wooden_planks, 0.60, (0.33, 0.58), -9),
        "a02": Scene(starry_night, 0.66, (0.55, 0.47), 12),
        "a03": Scene(yellow_wall, 0.84, (0.50, 0.52), 0),
        "a04": Scene(terracotta_tiles, 0.54, (0.68, 0.37), -5),
        "b00": Scene(evening_lights, 0.74, (0.50, 0.54), -3),
        "b01": Scene(cloudy_sky, 0.52, (0.64, 0.60), 10),
        "b02": Scene(diagonal_stripes, 0.66, (0.36, 0.50), 0, flip=True),
        "b03": Scene(brown_paper, 0.80, (0.50, 0.50), -14),
        "b04": Scene(green_lawn, 0.58, (0.40, 0.64), 6, flip=True),
    }


def example_captions() -> dict[str, str]:
    """Return each picture's caption by file stem; `{}` stands for the subject's name."""
    return {
        "a00": "A photo of a {} in the middle of a red-and-white checkered cloth.",
        "a01": "A {} on brown wooden planks, left of the centre and leaning to the right.",
        "a02": "A photo of a {} tilted to the left against a dark blue night sky full of stars.",
        "a03": "A large {} in front of a plain yellow wall.",
        "a04": "A photo of a small {} on terracotta tiles, in the upper right of the picture.",
        "b00": "A photo of a {} in front of blurred golden lights on a dark green background.",
        "b01": "A small {} in a blue sky with white clouds, to the lower right.",
        "b02": "A photo of a {} on diagonal navy and cream stripes, left of the centre.",
        "b03": "A {} leaning to the right on brown wrapping paper, filling most of the picture.",
        "b04": "A photo of a {} on a green lawn, towards the lower left.",
    }


def load_art(art: Art, emoji_dir: Path) -> Image.Image:
    """Read an emoji as RGBA; turn its hue and scale its saturation about the grey axis; tint it."""
    with Image.open(emoji_dir / f"{art.codepoint}.webp") as image:
        pixels = np.asarray(image.convert("RGBA"), dtype=float)
    angle, grey = np.radians(art.turn), np.full((3, 3), 1 / 3)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    turned = np.cos(angle) * (np.eye(3) - grey) + np.sin(angle) * cross
    rgb = pixels[..., :3] @ (grey + art.saturation * turned).T * art.tint
    return Image.fromarray(np.dstack([rgb.clip(0, 255), pixels[..., 3]]).astype(np.uint8))


def draw_subject(subject: Subject, emoji_dir: Path) -> Image.Image:
    """Put the accessory on the body; returns RGBA, cropped to what is not transparent."""
    body, accessory = load_art(subject.body, emoji_dir), load_art(subject.accessory, emoji_dir)
    accessory = accessory.crop(accessory.getbbox())
    height = round(accessory.height * subject.width / accessory.width)
    accessory = accessory.resize((subject.width, height), Image.Resampling.LANCZOS)

    canvas = Image.new("RGBA", (body.width + 2 * HEADROOM, body.height + 2 * HEADROOM))
    layer = canvas.copy()
    canvas.paste(body, (HEADROOM, HEADROOM))
    x, y = subject.centre
    layer.paste(accessory, (HEADROOM + x - subject.width // 2, HEADROOM + y - height // 2))

    shade = ImageChops.multiply(soft_shadow(layer, 4), canvas.getchannel("A"))
    shaded = Image.composite(Image.new("RGBA", canvas.size, "black"), canvas, shade)
    shaded.putalpha(canvas.getchannel("A"))
    canvas = Image.alpha_composite(shaded, layer)
    return canvas.crop(canvas.getbbox())


def soft_shadow(layer: Image.Image, reach: float) -> Image.Image:
    """Return the shadow (L) of an RGBA layer: its alpha moved down by reach, blurred and halved."""
    moved = Image.new("L", layer.size)
    moved.paste(layer.getchannel("A"), (round(reach / 2), round(reach)))
    return moved.filter(ImageFilter.GaussianBlur(reach)).point(lambda level: level // 2)


def place(art: Image.Image, scene: Scene, size: int) -> Image.Image:
    """Lay the subject on a transparent square of the given side; it must not be cut off."""
    if scene.flip:
        art = art.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    height = round(scene.height * size)
    art = art.resize((round(art.width * height / art.height), height), Image.Resampling.LANCZOS)
    art = art.rotate(scene.angle, Image.Resampling.BICUBIC, expand=True)
    art = art.crop(art.getbbox())
    x, y = scene.centre
    left, top = round(x * size - art.width / 2), round(y * size - art.height / 2)
    if min(left, top) < 0 or max(left + art.width, top + art.height) > size:
        raise ValueError(f"the subject is cut off by the edge: {scene}")
    layer = Image.new("RGBA", (size, size))
    layer.paste(art, (left, top))
    return layer


def draw_scene(
    art: Image.Image, scene: Scene, size: int, rng: np.random.Generator
) -> tuple[Image.Image, Image.Image]:
    """Return the picture (RGB) and its mask (L, 255 = subject; the shadow is background)."""
    layer = place(art, scene, size)
    picture = Image.fromarray(scene.background(size, rng).clip(0, 255).astype(np.uint8))
    picture.paste("black", mask=soft_shadow(layer, size / 40))
    picture.paste(layer, mask=layer)
    return picture, layer.getchannel("A").point(lambda level: 255 * (level >= SUBJECT_ALPHA))


@dataclass
class ExampleArgs:
    """example pair"""

    emoji: Path = flag(Path(), "folder of <codepoint>.webp", required=True)
    output: Path = flag(OUTPUT_DIR, "folder to write to")
    size: int = flag(512, "side of a picture (px)", at_least=MIN_SIZE)
    seed: int = flag(0, "of the backgrounds' texture")


def check_args(args: ExampleArgs, subjects: dict[str, Subject]) -> None:
    """Stop with one line if the size is too small or emoji files are missing."""
    refuse(range_complaints(args))
    arts = [art for subject in subjects.values() for art in (subject.body, subject.accessory)]
    paths = [args.emoji / f"{art.codepoint}.webp" for art in arts]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise SetupError(f"--emoji {args.emoji}: no such file: {', '.join(missing)}")


def parse_args(argv: list[str] | None = None) -> ExampleArgs:
    return parse(ExampleArgs, __doc__, argv)


@program
def main(args: ExampleArgs) -> None:
    """Write the ten pictures, their masks and metadata.jsonl."""
    subjects, captions = example_subjects(), example_captions()
    check_args(args, subjects)
    args.output.mkdir(parents=True, exist_ok=True)
    arts = {key: draw_subject(subject, args.emoji) for key, subject in subjects.items()}
    rng = np.random.default_rng(args.seed)

    lines: list[dict] = [{"id": {key: subject.name for key, subject in subjects.items()}}]
    for stem, scene in example_scenes().items():
        key = stem[0]
        picture, mask = draw_scene(arts[key], scene, args.size, rng)
        picture.save(args.output / f"{stem}.jpg", quality=JPEG_QUALITY)
        mask.save(args.output / f"mask_{stem}.png", optimize=True)
        files = {"file_name": f"{stem}.jpg", "mask_path": f"mask_{stem}.png"}
        lines.append({"id": key, **files, "text": captions[stem].format(subjects[key].name)})
    (args.output / "metadata.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))


if __name__ == "__main__":
    main(parse_args())
