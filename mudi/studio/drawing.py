"""Pictures drawn from a layout while the page waits: one job at a time, in a thread of its own."""

import threading
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from diffusers import DiffusionPipeline
from PIL import Image

from mudi.ground.devices import accelerate_device
from mudi.ground.errors import loading
from mudi.metadata import Subjects
from mudi.pictures.loras import load_loras
from mudi.pictures.pipelines import load_pipeline, pipeline_settings, place
from mudi.pictures.sampling import Sampler, Sampling
from mudi.studio.args import StudioArgs
from mudi.studio.layout import Stages, Wish
from mudi.studio.pictures import png
from mudi.studio.server import Answers, Asked, Refusal, Reply

KEPT = 24  # drawn pictures, each with its start


@dataclass
class Drawn:
    """A picture, or one that is on its way.

    Attributes:
        step, steps: of the denoising; no steps yet: models are being loaded.
        problem: why there is none.
    """

    number: int
    prompt: str
    seed: int
    start: Image.Image
    step: int = 0
    steps: int = 0
    image: Image.Image | None = None
    problem: str | None = None

    @property
    def told(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "prompt": self.prompt,
            "seed": self.seed,
            "step": self.step,
            "steps": self.steps,
            "done": self.image is not None,
            "problem": self.problem,
        }


@dataclass
class Easel:
    """Draws what is asked for, one picture after the other."""

    args: StudioArgs
    drawn: list[Drawn] = field(default_factory=list)
    _busy: threading.Lock = field(default_factory=threading.Lock)
    _sampler: Sampler | None = None
    _made_for: tuple[Subjects, tuple[int, int]] | None = None

    def begin(self, wish: Wish) -> Drawn:
        """Start a picture.

        Raises:
            Refusal: no model was given, or another picture is being drawn.
        """
        if not self.args.pretrained_model_name_or_path:
            told = "start the page with --pretrained_model_name_or_path and --lora to draw"
            raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, told)
        if not self._busy.acquire(blocking=False):
            raise Refusal(HTTPStatus.CONFLICT, "a picture is being drawn; wait for it")
        try:
            start = wish.stage.start(wish.shot).scene.image
            number = self.drawn[-1].number + 1 if self.drawn else 0
            drawn = Drawn(number, wish.prompt, wish.seed, start)
            self.drawn = [*self.drawn, drawn][-KEPT:]
            threading.Thread(target=self._draw, args=(wish, drawn), daemon=True).start()
        except BaseException:
            self._busy.release()
            raise
        return drawn

    def _draw(self, wish: Wish, drawn: Drawn) -> None:
        try:
            sampler = self._sampler_for(wish)

            def tell(step: int, steps: int) -> None:
                drawn.step, drawn.steps = step, steps

            [picture] = sampler.draw([wish.shot], on_step=tell)
            drawn.image = picture.image
        except Exception as error:  # whatever it is, the page has to hear of it
            drawn.problem = str(error) or repr(error)
        finally:
            self._busy.release()

    def _sampler_for(self, wish: Wish) -> Sampler:
        """Return a sampler on a wish's stage; weights are loaded once.

        But under CPU offload, where a sampler has to be made before.
        """
        made_for = wish.stage.subjects, wish.stage.size
        if self._sampler is None or self._made_for != made_for:
            old = self._sampler
            keep = old is not None and not self.args.cpu_offload
            pipeline = old.pipeline if old is not None and keep else self._load()
            sampling = Sampling(wish.stage.size, self.args.steps, self.args.guidance_scale)
            device = accelerate_device()
            self._sampler = Sampler(pipeline, sampling, wish.stage.subjects, device)
            self._made_for = made_for
            if not keep:
                place(pipeline, device, self.args.cpu_offload)
        self._sampler.stage = wish.stage  # cut out of the photos and masks as they are by now
        return self._sampler

    def _load(self) -> DiffusionPipeline:
        args = self.args
        pipeline = load_pipeline(**pipeline_settings(args), device=accelerate_device())
        with loading("--lora", " ".join(args.lora)):
            load_loras(pipeline, args.lora, args.lora_scales, args.cache_dir)
        return pipeline

    def picture(self, number: int) -> Drawn:
        for drawn in self.drawn:
            if drawn.number == number:
                return drawn
        raise Refusal(HTTPStatus.NOT_FOUND, "no such picture any more")


def answers(stages: Stages, easel: Easel) -> Answers:
    """Return what the layout tab asks for to draw."""

    def draw(asked: Asked) -> dict[str, Any]:
        return easel.begin(stages.wish(asked)).told

    def drawn(asked: Asked) -> dict[str, Any]:
        return {"pictures": [picture.told for picture in reversed(easel.drawn)]}

    def drawn_start(asked: Asked) -> Reply:
        return png(easel.picture(asked.whole("number")).start)

    def drawn_picture(asked: Asked) -> Reply:
        image = easel.picture(asked.whole("number")).image
        if image is None:
            raise Refusal(HTTPStatus.NOT_FOUND, "not drawn yet")
        return png(image)

    return {
        ("POST", "draw"): draw,
        ("GET", "drawn"): drawn,
        ("GET", "drawn_start"): drawn_start,
        ("GET", "drawn_picture"): drawn_picture,
    }
