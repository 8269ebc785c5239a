r"""Train a small OWLv2 that finds the world's things by their names.

    python -m mini.training.detector --output output/mini/detector --minutes 60

The metric counts an OWLv2's boxes above 0.4 without non-maximum suppression, so each thing must be
answered by one patch: boxes are matched to things one to one, and every other patch learns to say
no (DETR's set loss, arXiv 2005.12872, as OWL-ViT trains with it, arXiv 2205.06230). Besides, every
patch learns of which class the thing is that it shows.

Words come first: the text tower learns to tell the classes' names apart and is then left as it is;
trained along, it soon had one vector for all, as most answers are no. The objectness head, which
only serves queries by picture, stays untrained.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from PIL import Image, ImageDraw
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import (
    box_convert,
    box_iou,
    generalized_box_iou,
    generalized_box_iou_loss,
    sigmoid_focal_loss,
)
from transformers import Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor, Owlv2Processor

from detect_and_compare.args import THRESHOLD
from detect_and_compare.detect import without_overlaps
from mini.training.checkpoint import Learner
from mini.training.embedder import contrastive_loss
from mini.training.examples import (
    COUNT_SHARES,
    HELD_OUT,
    NOTHING,
    NOUNS,
    Example,
    draw_counted,
    draw_training,
)
from mini.training.redrawn import Redrawn
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
from mini.training.tokenizer import world_tokenizer
from mini.world import SIZE, with_article
from mudi.ground.errors import program, refuse
from mudi.ground.files import finish_folder, temporary_folder, write_image, write_text
from mudi.ground.flags import flag, parse
from mudi.ground.sheets import contact_sheet
from mudi.masks.segment import Detection, Detector

PHRASINGS = ("{noun}", "{noun}", "{article}", "a photo of {article}", "a picture of {article}")
TEXT_TOKENS = 16  # OWLv2's; the longest phrasing has 8
TEXT_WIDTH = 96
TEXT_LAYERS = 2
WORD_STEPS, WORD_RATE = 100, 1e-3  # of the text tower's own training; it takes seconds
FIRST_SCALE, FIRST_SHIFT = 8.0, -0.5  # of class logits: a cosine of 0 is a no (2 %), 1 a yes
POSITION_SCALE = 0.3  # of waves; about as large as what the patches hold
# DETR's weights. The focal loss weighs yes and no alike (alpha 0.5), so that a box of an even
# chance has a confidence of 0.5, near the metric's threshold.
L1_WEIGHT, GIOU_WEIGHT, CLASS_COST, CLASS_WEIGHT = 5.0, 2.0, 2.0, 2.0
FOCUS, YES_WEIGHT = 2.0, 0.5  # gamma and alpha
PLACE_COST = 1.0  # a patch between patch and thing: without it several patches answered for one
NAMING_WEIGHT = 10.0  # with 2 and a rate of 1e-3 classes were not learnt in 7,000 pictures
SURE, OVERLAP = 0.2, 0.1  # what counts best on held-out scenes: a lower threshold, and suppression
REDRAWN_SHARE = 0.5  # of the pictures, with --redrawn
NUM_COUNTED = 100  # held-out scenes of each count, for the report
NUM_SHOWN = 6  # of them on the sheet


@dataclass(frozen=True)
class ExampleBatch:
    """pixels (B, 3, S, S) uint8; boxes and nouns of each, and shown (B, S, S), as in `Example`."""

    pixels: Tensor
    boxes: list[Tensor]
    nouns: list[Tensor]
    shown: Tensor

    def to(self, device: torch.device) -> "ExampleBatch":
        boxes, nouns = ([part.to(device) for part in x] for x in (self.boxes, self.nouns))
        return ExampleBatch(self.pixels.to(device), boxes, nouns, self.shown.to(device))


def new_detector(
    processor: Owlv2Processor, width: int, layers: int, patch: int
) -> Owlv2ForObjectDetection:
    """Build an untrained OWLv2 for SIZE-pixel pictures and the world's words."""
    tokenizer = processor.tokenizer
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 4 * TEXT_WIDTH,
        "num_hidden_layers": TEXT_LAYERS,
        "num_attention_heads": TEXT_WIDTH // HEAD_WIDTH,
        "max_position_embeddings": TEXT_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // HEAD_WIDTH,
        "image_size": SIZE,
        "patch_size": patch,
    }
    config = Owlv2Config(text_config=text, vision_config=vision, projection_dim=TEXT_WIDTH)
    model = Owlv2ForObjectDetection(config)
    positions = model.owlv2.vision_model.embeddings.position_embedding.weight
    positions.data[1:] = POSITION_SCALE * waves(SIZE // patch, width)  # the first is the class's
    for layer in (*model.class_head.children(), *model.box_head.children()):
        if isinstance(layer, torch.nn.Linear):  # transformers draws these wildly, unit normal
            torch.nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            torch.nn.init.zeros_(layer.bias)
    for layer, bias in (
        (model.class_head.logit_scale, FIRST_SCALE - 1),  # the model takes elu(x) + 1
        (model.class_head.logit_shift, FIRST_SHIFT),
        (model.box_head.dense2, 0.0),
    ):
        torch.nn.init.normal_(layer.weight, std=0.02)
        torch.nn.init.constant_(layer.bias, bias)
    return model


def teach_words(
    model: Owlv2ForObjectDetection, processor: Owlv2Processor, rng: np.random.Generator
) -> None:
    """Train the text tower until a class's name is the same in all phrasings, and no other's."""
    sides = (model.owlv2.text_model, model.owlv2.text_projection)
    parameters = [parameter for side in sides for parameter in side.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=WORD_RATE)
    for _ in range(WORD_STEPS):
        twice = zip(random_queries(rng), random_queries(rng), strict=True)
        queries = [query for pair in twice for query in pair]
        contrastive_loss(embed_queries(model, processor, queries)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def waves(grid: int, width: int) -> Tensor:
    """Return sines and cosines of where the patches lie, (grid * grid, width), row by row.

    Started from these and not from noise, attention soon knows what is beside what.
    """
    frequencies = grid ** torch.linspace(0, -1, width // 4)
    angles = torch.arange(grid)[:, None] * frequencies  # (grid, width / 4)
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    down, across = line.repeat_interleave(grid, dim=0), line.repeat(grid, 1)
    return torch.cat([across, down], dim=1)


def new_processor() -> Owlv2Processor:
    image_processor = Owlv2ImageProcessor(size={"height": SIZE, "width": SIZE})
    tokenizer = world_tokenizer()
    tokenizer.model_max_length = TEXT_TOKENS
    return Owlv2Processor(image_processor=image_processor, tokenizer=tokenizer)


def draw_example(rng: np.random.Generator, redrawn: Redrawn | None = None) -> Example:
    """Draw a training scene, or take one that a base redrew."""
    if redrawn is not None and rng.random() < REDRAWN_SHARE:
        return redrawn.draw(rng)
    return draw_training(rng)


def collate(examples: list[Example]) -> ExampleBatch:
    pixels = torch.from_numpy(np.stack([example.pixels for example in examples]))
    boxes = [torch.from_numpy(example.boxes) for example in examples]
    nouns = [torch.from_numpy(example.nouns) for example in examples]
    shown = torch.from_numpy(np.stack([example.shown for example in examples]))
    return ExampleBatch(pixels.permute(0, 3, 1, 2), boxes, nouns, shown)


def random_queries(rng: np.random.Generator) -> list[str]:
    """Name every class, each in a phrasing of its own."""
    phrasings = rng.choice(PHRASINGS, len(NOUNS))
    return [
        str(phrasing).format(noun=noun, article=with_article(noun))
        for phrasing, noun in zip(phrasings, NOUNS, strict=True)
    ]


def embed_queries(
    model: Owlv2ForObjectDetection, processor: Owlv2Processor, queries: list[str]
) -> Tensor:
    """Return (Q, TEXT_WIDTH)."""
    tokens = processor(text=queries, return_tensors="pt").to(model.device)
    pooled = model.owlv2.text_model(tokens["input_ids"], tokens["attention_mask"]).pooler_output
    return model.owlv2.text_projection(pooled)


def predict(
    model: Owlv2ForObjectDetection, processor: Owlv2Processor, pixels: Tensor, queries: list[str]
) -> tuple[Tensor, Tensor, Tensor]:
    """Ask the same queries of every picture, as the model's forward does, but encode them once.

    Args:
        pixels: (B, 3, S, S) uint8.

    Returns:
        Class logits (B, P, Q); boxes (B, P, 4), centre and size as shares of the side; and cosines
        of patches and queries (B, P, Q), which the logits come from. All float32.
    """
    inputs = processor(images=pixels, return_tensors="pt").to(pixels.device)
    features = model.image_embedder(inputs["pixel_values"])[0]  # (B, h, w, D)
    queried = embed_queries(model, processor, queries).expand(len(pixels), -1, -1)
    patches = features.flatten(1, 2)

    logits, named = model.class_predictor(patches, queried)
    boxes = model.box_predictor(patches, features)
    cosines = F.normalize(named.float(), dim=-1) @ F.normalize(queried.float(), dim=-1).mT
    return logits.float(), boxes.float(), cosines


def set_loss(logits: Tensor, boxes: Tensor, batch: ExampleBatch) -> Tensor:
    """Return the scalar set loss, per thing: focal loss of classes, L1 and GIoU of matched boxes.

    Args:
        logits: (B, P, Q), Q the NOUNS.
        boxes: (B, P, 4), centre and size.
    """
    pictures_and_things = zip(
        logits.detach(), boxes.detach(), batch.boxes, batch.nouns, strict=True
    )
    pairs = [match(*one) for one in pictures_and_things]
    pictures = torch.cat([torch.full_like(patch, i) for i, (patch, _) in enumerate(pairs)])
    patches = torch.cat([patch for patch, _ in pairs])
    nouns = torch.cat([n[thing] for n, (_, thing) in zip(batch.nouns, pairs, strict=True)])
    wanted = torch.cat([b[thing] for b, (_, thing) in zip(batch.boxes, pairs, strict=True)])

    answers = torch.zeros_like(logits)
    answers[pictures, patches, nouns] = 1
    classes = sigmoid_focal_loss(logits, answers, YES_WEIGHT, FOCUS, reduction="sum")
    found = boxes[pictures, patches]
    distance = F.l1_loss(found, wanted, reduction="sum")
    giou = generalized_box_iou_loss(as_corners(found), as_corners(wanted), reduction="sum")
    total = CLASS_WEIGHT * classes + L1_WEIGHT * distance + GIOU_WEIGHT * giou
    return total / len(wanted)


def naming_loss(cosines: Tensor, shown: Tensor) -> Tensor:
    """Return the scalar cross entropy of what patches' centres show, where it is a thing.

    Args:
        cosines: (B, P, Q), Q the NOUNS.
        shown: (B, S, S), as in `Example`.
    """
    patch = shown.shape[-1] // round(cosines.shape[1] ** 0.5)
    nouns = shown[:, patch // 2 :: patch, patch // 2 :: patch].flatten()
    logits = FIRST_SCALE * cosines.flatten(0, 1)
    total = F.cross_entropy(logits, nouns, ignore_index=NOTHING, reduction="sum")
    return total / (nouns != NOTHING).sum().clamp(min=1)


def match(logits: Tensor, boxes: Tensor, wanted: Tensor, nouns: Tensor) -> tuple[Tensor, Tensor]:
    """Find the patch that is to answer for each thing: the assignment that costs least.

    Besides DETR's costs, the patch should lie at the thing's centre (as in FCOS, arXiv 1904.01355):
    all patches of a thing soon predict the same box, and which of them answers must not be chance.

    Args:
        logits, boxes: (P, Q) and (P, 4) of one picture.
        wanted, nouns: (n, 4) and (n,) of its things.

    Returns:
        Patches and things (n,), in pairs.
    """
    grid = round(len(boxes) ** 0.5)
    cost = (
        L1_WEIGHT * torch.cdist(boxes, wanted, p=1)
        - GIOU_WEIGHT * generalized_box_iou(as_corners(boxes), as_corners(wanted))
        - CLASS_COST * logits.sigmoid()[:, nouns]
        + PLACE_COST * grid * torch.cdist(patch_centres(grid).to(wanted), wanted[:, :2])
    )
    patches, things = linear_sum_assignment(cost.cpu().numpy())
    return torch.as_tensor(patches, device=nouns.device), torch.as_tensor(
        things, device=nouns.device
    )


def patch_centres(grid: int) -> Tensor:
    """Return x and y of the patches as shares of the side, (grid * grid, 2), row by row."""
    line = (torch.arange(grid) + 0.5) / grid
    return torch.cartesian_prod(line, line).flip(1)


def as_corners(boxes: Tensor) -> Tensor:
    return box_convert(boxes, "cxcywh", "xyxy")


@dataclass
class DetectorArgs(TransformerArgs):
    """detector"""

    redrawn: Path | None = flag(None, "folder of mini.training.redrawn: half of the pictures")


def parse_args(argv: list[str] | None = None) -> DetectorArgs:
    return parse(DetectorArgs, __doc__, argv, state_dir=STATE_DIR / "detector", batch_size=32)


@program
def main(args: DetectorArgs) -> None:
    refuse(shape_complaints(args))
    redrawn = Redrawn(args.redrawn) if args.redrawn else None
    accelerator = make_accelerator(args)
    if args.start_from:
        processor = Owlv2Processor.from_pretrained(args.start_from)  # with the words it knows
        model = Owlv2ForObjectDetection.from_pretrained(args.start_from, dtype=torch.float32)
    else:
        processor = new_processor()
        model = new_detector(processor, args.width, args.layers, args.patch)
        teach_words(model, processor, np.random.default_rng(args.seed))
    for side in (model.owlv2.text_model, model.owlv2.text_projection):
        side.requires_grad_(False)
    plain_attention(accelerator, model)
    learner = prepare(accelerator, model.train())

    config = model.config.vision_config
    shape = f"{config.num_hidden_layers} layers, width {config.hidden_size}"
    with Run(
        accelerator, learner, args, f"a detector of {shape}, patch {config.patch_size}"
    ) as run:
        train(accelerator, processor, learner, run, args, redrawn)

    report = save(learner.model, processor, learner.ema, run, args.output)
    print(f"{args.output}: {json.dumps(report)}")


def train(
    accelerator: Accelerator,
    processor: Owlv2Processor,
    learner: Learner,
    run: Run,
    args: DetectorArgs,
    redrawn: Redrawn | None,
) -> None:
    first = run.progress.pictures
    draw = partial(draw_example, redrawn=redrawn)
    loader = numbered_loader(draw, collate, args.seed, first, args.batch_size, args.num_workers)
    for batch in loader:
        if run.finished:
            break
        batch = batch.to(accelerator.device)
        queries = random_queries(np.random.default_rng([args.seed, run.progress.step]))

        with accelerator.autocast():
            logits, boxes, cosines = predict(learner.model, processor, batch.pixels, queries)
        loss = set_loss(logits, boxes, batch) + NAMING_WEIGHT * naming_loss(cosines, batch.shown)
        learn(loss, learner, run)

        run.count(len(batch.pixels), loss.detach())
        if run.sheet_due():
            save(learner.model, processor, learner.ema, run, args.output)


@torch.no_grad()
def save(
    model: Owlv2ForObjectDetection,
    processor: Owlv2Processor,
    ema: EMAModel,
    run: Run,
    output: Path,
) -> dict[str, float]:
    """Write the running means, what they find, and a sheet; return the figures."""
    result = Owlv2ForObjectDetection(model.config).to(model.device)
    ema.copy_to(result.parameters())
    folder = temporary_folder(output)
    save_in_half(result, folder)
    processor.save_pretrained(folder)

    detector = Detector(str(folder), model.device)
    report: dict[str, float] = {
        "pictures": run.progress.pictures,
        "minutes": round(run.progress.seconds / 60, 1),
    }
    shown = []
    for count in range(1, len(COUNT_SHARES) + 1):
        rng = np.random.default_rng([HELD_OUT_SEED, count])
        examples = [draw_counted(count, HELD_OUT, rng) for _ in range(NUM_COUNTED)]
        found = find(detector, examples, THRESHOLD)
        report |= {f"{key}_{count}": value for key, value in accuracy(examples, found).items()}
        found = [without_overlaps(boxes, OVERLAP) for boxes in find(detector, examples, SURE)]
        report[f"right_suppressed_{count}"] = accuracy(examples, found)["right"]
        pairs = list(zip(examples, found, strict=True))[:NUM_SHOWN]
        shown += [outlined(example, detections) for example, detections in pairs]
    write_text(folder / "report.json", json.dumps(report))
    finish_folder(output)
    sheet = contact_sheet(shown, [""] * len(shown), columns=NUM_SHOWN, tile=160)
    write_image(run.folder / f"sheet-{run.progress.pictures:08d}.png", sheet)
    return report


def find(detector: Detector, examples: list[Example], threshold: float) -> list[list[Detection]]:
    """Ask for the classes that a scene shows, as the metric does."""
    images = [Image.fromarray(example.pixels) for example in examples]
    queries = [[NOUNS[noun] for noun in dict.fromkeys(e.nouns.tolist())] for e in examples]
    # One at a time: the processor pads shorter lists of queries
    return [
        detector([image], [texts], threshold)[0]
        for image, texts in zip(images, queries, strict=True)
    ]


def accuracy(examples: list[Example], found: list[list[Detection]]) -> dict[str, float]:
    """Return the share of scenes with the right count, and the things' mean IoU with their boxes.

    A thing that no box was left for counts 0.
    """
    right = [
        len(detections) == len(example.boxes)
        for example, detections in zip(examples, found, strict=True)
    ]
    overlaps = []
    for example, detections in zip(examples, found, strict=True):
        boxes = torch.tensor([d.box for d in detections], dtype=torch.float32).reshape(-1, 4)
        overlap = box_iou(as_corners(torch.from_numpy(example.boxes)) * SIZE, boxes).numpy()
        things, chosen = linear_sum_assignment(overlap, maximize=True)
        overlaps.append(overlap[things, chosen].sum() / len(example.boxes))
    return {"right": float(np.mean(right)), "iou": round(float(np.mean(overlaps)), 3)}


def outlined(example: Example, detections: list[Detection], scale: int = 3) -> Image.Image:
    """Draw what was found into an enlarged scene."""
    image = Image.fromarray(example.pixels)
    image = image.resize((scale * image.width, scale * image.height), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(image)
    for detection in detections:
        left, top, right, bottom = (scale * edge for edge in detection.box)
        pen.rectangle((left, top, right, bottom), outline="red", width=2)
        pen.text((left, top), f"{detection.score:.2f}", fill="red", stroke_width=1)
    return image


if __name__ == "__main__":
    main(parse_args())
