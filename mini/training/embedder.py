r"""Train a small DINOv2 to tell instances apart: class, colours and what is worn.

    python -m mini.training.embedder --output output/mini/embedder --minutes 30

and a second one that checks the first, of another shape and with other random numbers:

    python -m mini.training.embedder --seed 1 --width 128 --layers 8 --patch 16 --minutes 30 \
        --state_dir ~/.cache/mudi-mini2/embedder-2 --output output/mini/embedder-2

Two views of an instance attract each other, all others repel (NT-Xent, arXiv 2002.05709): a whole
picture as the metric's references are, and a crop as it cuts from a scene. The embedding is the
mean over all tokens, which detect_and_compare takes of any DINOv2.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import Tensor
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from detect_and_compare.detect import square_crop
from detect_and_compare.score import similarity_matrix, verdicts
from mini.backgrounds import random_name
from mini.subjects import PHOTOS, SETS, subjects_of
from mini.training.checkpoint import Learner
from mini.training.instances import (
    HELD_OUT,
    TRAINING,
    Instance,
    draw_instance,
    draw_instances,
    family,
    soften,
)
from mini.training.state import (
    HEAD_WIDTH,
    STATE_DIR,
    Run,
    TransformerArgs,
    learn,
    make_accelerator,
    plain_attention,
    prepare,
    save_in_half,
    shape_complaints,
)
from mini.training.stream import HELD_OUT_SEED, numbered_loader
from mini.world import OVERLAP_SHARE, SIZE, arrange
from mudi.ground.errors import program, refuse
from mudi.ground.files import finish_folder, temporary_folder, write_image, write_text
from mudi.ground.flags import parse
from mudi.ground.sheets import contact_sheet
from mudi.images import Box, tight_box

FAMILY_VIEWS = 10  # pictures of a family: five instances, two views
TEMPERATURE = 0.1
JITTER = 0.06  # of a box's sides, by which its edges are off
SOFT_SCENES, SOFT_REFERENCES = 0.7, 0.2  # shares that look generated
NUM_FAMILIES = 24  # held out, for the report
NUM_CROPS = 2  # of each of their instances
NUM_SUBJECT_SCENES = 20  # of each set of subjects
NUM_SHOWN = 8  # held-out crops on the sheet


@dataclass(frozen=True)
class Gallery:
    """Held-out instances as the metric sees them.

    Attributes:
        references: PHOTOS whole pictures of each instance.
        crops: from scenes.
        shown: the index of the instance in each crop.
        families: the family of each instance.
    """

    references: list[list[Image.Image]]
    crops: list[Image.Image]
    shown: np.ndarray
    families: np.ndarray


def new_embedder(width: int, layers: int, patch: int) -> Dinov2Model:
    """Build an untrained DINOv2 for SIZE-pixel pictures."""
    config = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // HEAD_WIDTH,
        image_size=SIZE,
        patch_size=patch,
        use_mask_token=False,
    )
    return Dinov2Model(config)


def new_processor() -> BitImageProcessor:
    """Return the preparation of pictures: to SIZE, nothing cut off."""
    size = {"height": SIZE, "width": SIZE}
    return BitImageProcessor(size=size, do_center_crop=False)


def reference_view(instance: Instance, rng: np.random.Generator) -> Image.Image:
    """Draw an instance alone on any background."""
    pixels, _ = arrange([instance], random_name(rng), rng, drawing=draw_instance)
    return Image.fromarray(soften(pixels, rng, SOFT_REFERENCES))


def crop_views(instances: Sequence[Instance], rng: np.random.Generator) -> list[Image.Image]:
    """Draw instances in one scene; cut each out as detect_and_compare does, by a box a bit off."""
    pixels, masks = draw_instances(instances, rng, OVERLAP_SHARE, SOFT_SCENES)
    scene = Image.fromarray(pixels)
    return [_resized(square_crop(scene, jittered(tight_box(mask), rng))) for mask in masks]


def jittered(box: Box, rng: np.random.Generator) -> Box:
    """Move each edge of a box in a SIZE-pixel picture a little."""
    x, y = JITTER * box.width, JITTER * box.height
    moved = np.round(np.array(box) + rng.normal(0, 1, 4) * [x, y, x, y]).astype(int)
    left, top = np.clip(moved[:2], 0, np.array(box[2:]) - 1)
    right, bottom = np.clip(moved[2:], np.array(box[:2]) + 1, SIZE)
    return Box(int(left), int(top), int(max(right, left + 1)), int(max(bottom, top + 1)))


def _resized(image: Image.Image) -> Image.Image:
    return image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def draw_family_views(rng: np.random.Generator) -> np.ndarray:
    """Draw two views of each of a family: (FAMILY_VIEWS, S, S, 3) uint8, an instance's in a row."""
    members = family(rng, TRAINING)
    crops: list[Image.Image] = [Image.new("RGB", (SIZE, SIZE))] * len(members)
    for group in random_groups(len(members), rng):
        views = crop_views([members[i] for i in group], rng)
        for i, view in zip(group, views, strict=True):
            crops[i] = view
    pairs = zip([reference_view(member, rng) for member in members], crops, strict=True)
    return np.stack([np.asarray(view) for pair in pairs for view in pair])


def random_groups(count: int, rng: np.random.Generator) -> list[list[int]]:
    """Split the numbers up to count into groups of one to three at random."""
    order = rng.permutation(count).tolist()
    groups = []
    while order:
        size = int(rng.integers(1, 4))
        groups.append(order[:size])
        order = order[size:]
    return groups


def collate(families: list[np.ndarray]) -> Tensor:
    """Return the views (B, 3, S, S) uint8."""
    return torch.from_numpy(np.concatenate(families)).permute(0, 3, 1, 2)


def contrastive_loss(embeddings: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Return NT-Xent per view (B,) of embeddings (B, D); rows 2i and 2i + 1 are one instance."""
    directions = F.normalize(embeddings.float(), dim=1)
    logits = directions @ directions.T / temperature
    itself = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    partner = torch.arange(len(logits), device=logits.device) ^ 1
    return F.cross_entropy(logits.masked_fill(itself, -torch.inf), partner, reduction="none")


def embed(model: Dinov2Model, processor: BitImageProcessor, pixels: Tensor) -> Tensor:
    """Return the mean over tokens (B, D) of pictures (B, 3, S, S) uint8."""
    inputs = processor(images=pixels, return_tensors="pt")["pixel_values"]
    return model(pixel_values=inputs.to(pixels.device)).last_hidden_state.mean(1)


def parse_args(argv: list[str] | None = None) -> TransformerArgs:
    return parse(TransformerArgs, __doc__, argv, state_dir=STATE_DIR / "embedder", batch_size=40)


def complaints(args: TransformerArgs) -> list[str]:
    """Complain about sizes that do not divide each other."""
    found = shape_complaints(args)
    if args.batch_size % FAMILY_VIEWS:
        found.append(f"--batch_size {args.batch_size}: must be a multiple of {FAMILY_VIEWS}")
    return found


@program
def main(args: TransformerArgs) -> None:
    refuse(complaints(args))
    accelerator = make_accelerator(args)
    if args.start_from:
        model = Dinov2Model.from_pretrained(args.start_from, dtype=torch.float32)
    else:
        model = new_embedder(args.width, args.layers, args.patch)
    plain_attention(accelerator, model)
    learner = prepare(accelerator, model.train())

    config = model.config
    shape = f"{config.num_hidden_layers} layers, width {config.hidden_size}"
    with Run(
        accelerator, learner, args, f"an embedder of {shape}, patch {config.patch_size}"
    ) as run:
        train(accelerator, learner, run, args)

    report = save(learner.model, learner.ema, run, args.output)
    print(f"{args.output}: {json.dumps(report)}")


def train(
    accelerator: Accelerator,
    learner: Learner,
    run: Run,
    args: TransformerArgs,
) -> None:
    processor = new_processor()
    first, families = run.progress.pictures // FAMILY_VIEWS, args.batch_size // FAMILY_VIEWS
    loader = numbered_loader(
        draw_family_views, collate, args.seed, first, families, args.num_workers
    )
    for pixels in loader:
        if run.finished:
            break

        with accelerator.autocast():
            embeddings = embed(learner.model, processor, pixels.to(accelerator.device))
        loss = contrastive_loss(embeddings).mean()
        learn(loss, learner, run)

        run.count(len(pixels), loss.detach())
        if run.sheet_due():
            save(learner.model, learner.ema, run, args.output)


@torch.no_grad()
def save(model: Dinov2Model, ema: EMAModel, run: Run, output: Path) -> dict[str, float]:
    """Write the running means, what they can do, and a sheet; return the figures."""
    result = Dinov2Model(model.config).to(model.device).eval()
    ema.copy_to(result.parameters())
    gallery = held_out_gallery(np.random.default_rng(HELD_OUT_SEED))
    references = [embed_images(result, images) for images in gallery.references]
    similarity = similarity_matrix(embed_images(result, gallery.crops), references)
    report = {
        "pictures": run.progress.pictures,
        "minutes": round(run.progress.seconds / 60, 1),
        **retrieval(similarity, gallery),
        **subjects_told_apart(result, np.random.default_rng(HELD_OUT_SEED)),
    }

    folder = temporary_folder(output)
    save_in_half(result, folder)
    new_processor().save_pretrained(folder)
    write_text(folder / "report.json", json.dumps(report))
    finish_folder(output)
    sheet = retrieval_sheet(similarity, gallery)
    write_image(run.folder / f"sheet-{run.progress.pictures:08d}.png", sheet)
    return report


def held_out_gallery(rng: np.random.Generator) -> Gallery:
    """Draw families that wear what only subjects wear."""
    families = [family(rng, HELD_OUT) for _ in range(NUM_FAMILIES)]
    everyone = [member for members in families for member in members]
    references = [[reference_view(m, rng) for _ in range(PHOTOS)] for m in everyone]
    crops, shown = [], []
    for _ in range(NUM_CROPS):
        for group in random_groups(len(everyone), rng):
            crops += crop_views([everyone[i] for i in group], rng)
            shown += group
    numbers = np.repeat(np.arange(NUM_FAMILIES), [len(members) for members in families])
    return Gallery(references, crops, np.array(shown), numbers)


def retrieval(similarity: np.ndarray, gallery: Gallery) -> dict[str, float]:
    """Return how often a crop is nearest to its own instance, by similarity (crops, instances).

    Among all held-out instances, and among its family.
    """
    relatives = gallery.families == gallery.families[gallery.shown][:, None]
    among_family = np.where(relatives, similarity, -np.inf)
    return {
        "nearest_of_all": float((similarity.argmax(1) == gallery.shown).mean()),
        "nearest_of_family": float((among_family.argmax(1) == gallery.shown).mean()),
    }


def subjects_told_apart(model: Dinov2Model, rng: np.random.Generator) -> dict[str, float]:
    """Return the metric's verdicts on scenes that show every evaluated subject of a set."""
    statuses = []
    for name in SETS:
        members = [Instance(subject.thing) for subject in subjects_of(name)]
        references = [
            embed_images(model, [reference_view(member, rng) for _ in range(PHOTOS)])
            for member in members
        ]
        for _ in range(NUM_SUBJECT_SCENES):
            crops = embed_images(model, crop_views(members, rng))
            statuses += [verdict.status for verdict in verdicts(crops, references)]
    return {"subjects_present": statuses.count("present") / len(statuses)}


def embed_images(model: Dinov2Model, images: Sequence[Image.Image]) -> np.ndarray:
    """Return embeddings (n, D) float32 of SIZE-pixel pictures."""
    pixels = collate([np.stack([np.asarray(image) for image in images])]).to(model.device)
    return embed(model, new_processor(), pixels).float().cpu().numpy()


def retrieval_sheet(similarity: np.ndarray, gallery: Gallery) -> Image.Image:
    """Show held-out crops, each with its five nearest instances and their similarities."""
    pictures, captions = [], []
    for crop in range(NUM_SHOWN):
        pictures.append(gallery.crops[crop])
        captions.append("crop")
        for nearest in np.argsort(-similarity[crop])[:5]:
            own = " (itself)" if nearest == gallery.shown[crop] else ""
            pictures.append(gallery.references[nearest][0])
            captions.append(f"{similarity[crop, nearest]:.2f}{own}")
    return contact_sheet(pictures, captions, columns=6, tile=96)


if __name__ == "__main__":
    main(parse_args())
