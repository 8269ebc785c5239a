"""Captions by a model that sees: everything in the photo but the subject's own looks.

describe = served_model(url, name)  # or LocalModel(folder or hub id, device)
caption = suggest_caption(image, "olis robot", describe)  # of one photo
suggestions = suggest_captions(folder, describe)  # of a whole folder, into its metadata.jsonl
problems = caption_complaints(caption, "olis robot")  # also of a caption by hand

The paper's authors let a chat model write theirs. What a caption says is not learned as part of
the subject, so that what the name alone is to carry must be left out.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from posixpath import normpath

import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPTokenizer, pipeline

from mudi.ground.chat import again, ask
from mudi.ground.errors import SetupError, first_line
from mudi.ground.files import write_records
from mudi.ground.flags import model_folder_complaints
from mudi.images import ImageError, load_rgb
from mudi.masks.args import CaptionArgs
from mudi.masks.folder import METADATA, PLAIN_CAPTION
from mudi.metadata import NO_NAMES, PHOTO_TEXTS, MetadataError, file_problem, read_records
from mudi.prompt_tokens import clip_tokenizer, cut_text
from mudi.texts import class_noun, find_file, folded, has_half_character, mark_names

TRIES = 3
SIDE = 1024  # px, the longer one of what a model is shown
NEW_TOKENS = 160  # of an answer; twice what a caption may have
SILENCE = 300.0  # s; a server may have to load the model first

COLOURS = frozenset(
    "red green blue yellow orange purple pink brown black white grey gray golden silver beige "
    "cyan magenta turquoise teal violet maroon navy tan cream crimson scarlet lime olive mint "
    "reddish greenish bluish yellowish brownish whitish blackish pinkish".split()
)
_PLACES = frozenset(
    "on in at under near beside against before behind by over next between beneath above below "
    "inside outside among amid atop around wearing holding carrying and while".split()
)
_OPENERS = frozenset("a an the this that its one".split())

Describer = Callable[[Image.Image, str], str]
"""Answers a question about a picture; LlmError or CaptionError where it can't at all."""


class CaptionError(SetupError):
    """A model can't be loaded, or there is no caption of its to write; the message is one line."""


@dataclass(frozen=True)
class Suggestion:
    """What came of a photo: its new caption, or why it keeps the one that it has."""

    name: str
    caption: str | None
    problem: str | None


class LocalModel:
    """A vision model of transformers' `image-text-to-text`, by its folder or hub id.

    Raises:
        CaptionError: it can't be loaded, or can't be asked anything.
    """

    def __init__(self, checkpoint: str, device: str | torch.device = "cpu"):
        on_cpu = torch.device(device).type == "cpu"
        kind = torch.float32 if on_cpu else "auto"
        try:
            model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=kind)
            processor = AutoProcessor.from_pretrained(checkpoint)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise CaptionError(
                f"--caption_model {checkpoint}: cannot be loaded ({first_line(error)})"
            ) from error
        if getattr(processor, "chat_template", None) is None:
            raise CaptionError(
                f"--caption_model {checkpoint}: has no chat template, so it takes no instructions; "
                "take one that was trained to (its name often ends in -it, -chat or -Instruct)"
            )
        self._pipeline = pipeline(
            "image-text-to-text", model=model, processor=processor, device=device
        )

    def __call__(self, image: Image.Image, question: str) -> str:
        content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
        [answer] = self._pipeline(
            text=[{"role": "user", "content": content}],
            return_full_text=False,
            generate_kwargs={"max_new_tokens": NEW_TOKENS, "do_sample": False},
        )
        return answer["generated_text"]


def served_model(
    url: str, model: str, api_key: str | None = None, timeout: float = SILENCE
) -> Describer:
    """Return a vision model behind an OpenAI-compatible server; arguments: see `chat.ask`."""

    def describe(image: Image.Image, question: str) -> str:
        return ask(url, model, question, api_key, timeout, image)

    return describe


def caption_flag_complaints(args: CaptionArgs) -> list[str]:
    """Say which flags do not go together, and what is no model; `range_complaints` says more."""
    complaints = []
    local, url, model = args.caption_model, args.llm_url, args.llm_model
    if bool(url) != bool(model):
        complaints.append("--llm_url and --llm_model go together")
    if args.suggest_captions and bool(local) == bool(url):
        complaints.append("--suggest_captions: give --caption_model, or --llm_url and --llm_model")
    more = local or url or args.caption_colours or args.overwrite_captions
    if more and not args.suggest_captions:
        complaints.append("flags of captions say nothing without --suggest_captions")
    if local:
        complaints += model_folder_complaints("--caption_model", local, "config.json")
    return complaints


def load_describer(args: CaptionArgs, device: str | torch.device) -> Describer:
    """Load what the flags choose.

    Raises:
        CaptionError: it can't be loaded.
    """
    if args.caption_model:
        return LocalModel(args.caption_model, device)
    return served_model(args.llm_url or "", args.llm_model or "")


def caption_question(name: str, colours: bool = False) -> str:
    """Return what a model is asked about a photo of a subject.

    Args:
        name: rare token and noun, as in "olis robot".
        colours: the caption may say the subject's colours.
    """
    looks = "shape, material or parts" if colours else "colour, shape, material or parts"
    return (
        f"This photo shows a {class_noun(name)}, whose name is {name}. Write the photo's caption, "
        "from which an image generator is to learn that name.\n"
        f"- It is one sentence of at most forty words that holds {name} word for word, once.\n"
        "- It tells where the subject is, how it stands or lies, how large it is in the picture, "
        "what is around and behind it, the light, and the view.\n"
        f"- It does not tell what the subject itself looks like: no {looks}. The name says that.\n"
        "Answer with the caption only."
    )


def caption_complaints(
    text: str, name: str, colours: bool = False, tokenizer: CLIPTokenizer | None = None
) -> list[str]:
    """Say what keeps a caption from serving to learn a subject's name.

    Args:
        text: one caption, as it would stand in metadata.jsonl.
        name: the subject's.
        colours: it may say the subject's colours.
        tokenizer: of the text encoder that is to read it; None: SDXL's.
    """
    if not text.strip():
        return ["it is empty"]
    if has_half_character(text) or not all(c.isprintable() for c in text):
        return ["it holds a line break or a character that cannot be printed"]
    marked, [mark] = mark_names(text, [name])
    count = marked.count(mark)
    complaints = []
    if count != 1:
        complaints.append(f'it has the name "{name}" {_times(count)}, not once')
    elif folded(name) not in folded(text):
        complaints.append(f'the name must be written "{name}", in these very letters')
    if re.search(r"[.!?]\W*\s\W*\w", text):
        complaints.append("it is more than one sentence")
    if cut := cut_text(text, tokenizer or _clip()):
        complaints.append(cut)
    found = [] if colours else subject_colours(text, name)
    if found:
        complaints.append(f"it tells the subject's colour ({', '.join(found)})")
    return complaints


_clip = cache(clip_tokenizer)


def _times(count: int) -> str:
    return {0: "nowhere", 2: "twice"}.get(count, f"{count} times")


def subject_colours(text: str, name: str) -> list[str]:
    """Return the colour words that a caption gives to a subject, not to what is about it.

    That is those of its noun phrase, "a small pink hta teddy bear", and those after its name up to
    a word that leads elsewhere: "hta teddy bear, pink with a blue bow, on a red sofa" has two.
    Colours that are part of the name itself do not count.
    """
    marked, [mark] = mark_names(text.lower(), [name])
    found = []
    for before, after in pairwise(marked.split(mark)):
        phrase = _until(_words(before)[::-1], _OPENERS | _PLACES)[::-1]
        found += [word for word in phrase + _until(_words(after), _PLACES) if word in COLOURS]
    return found


def _words(text: str) -> list[str]:
    """Return a text's words, the parts of "light-blue" each, and sentence ends."""
    return re.findall(r"[^\W_]+|[.;]", text)


def _until(words: list[str], ends: frozenset[str]) -> list[str]:
    stop = next((i for i, word in enumerate(words) if word in ends or word in ".;"), len(words))
    return words[:stop]


def suggest_caption(
    image: Image.Image,
    name: str,
    describe: Describer,
    colours: bool = False,
    tries: int = TRIES,
) -> str:
    """Ask a model for a photo's caption; an answer that can't be used is sent back with the reason.

    Args:
        image: upright, RGB.
        name, colours: see `caption_complaints`.
        tries: questions in all, 1 or more.

    Raises:
        CaptionError: no answer was a caption; the message says what was wrong with the last.
        LlmError: the endpoint failed.
    """
    small = image.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    question = text = caption_question(name, colours)
    problem, answer = "", ""
    for _ in range(tries):
        answer = tidy(describe(small, text))
        problem = "; ".join(caption_complaints(answer, name, colours))
        if not problem:
            return answer
        text = again(question, answer, problem, "caption")
    raise CaptionError(f'no caption in {tries} tries; the last was "{answer[:200]}": {problem}')


def tidy(answer: str) -> str:
    """Return a model's answer without what it thought before and what it put round the caption."""
    said = folded(answer.rpartition("</think>")[2])
    said = re.sub(r"^\W*caption\W*:", "", said, flags=re.IGNORECASE)
    return said.strip(" \"'“”*`")


def suggest_captions(
    folder: Path,
    describe: Describer,
    colours: bool = False,
    tries: int = TRIES,
    overwrite: bool = False,
) -> list[Suggestion]:
    """Write captions into a folder's metadata.jsonl, a photo at a time; all else in it stays.

    Photos are asked about whose line has no caption or only the plain one that `write_metadata`
    puts there: captions by hand stay, and what was broken off goes on where it was.

    Args:
        describe, colours, tries: see `suggest_caption`.
        overwrite: ask about all photos.

    Returns:
        What came of each photo that was asked about. One without a usable answer keeps its caption.

    Raises:
        MetadataError: the file is wrong, or names no subjects.
        LlmError: the endpoint failed; captions of earlier photos are written.
    """
    path = folder / METADATA
    names, lines = _named_lines(path)
    wanted = [line for line in lines if overwrite or not _is_captioned(line, names)]
    suggestions = []
    for line in tqdm(wanted, desc="captions"):
        file_name, caption, problem = str(line.get("file_name")), None, None
        try:
            image = load_rgb(_photo(folder, line, names))
            suggested = suggest_caption(image, names[line["id"]], describe, colours, tries)
            write_caption(folder, line, suggested)
            caption = suggested
        except (ImageError, CaptionError) as error:
            problem = str(error)
        suggestions.append(Suggestion(file_name, caption, problem))
    return suggestions


def write_caption(folder: Path, line: dict, caption: str) -> None:
    """Put a caption into a photo's line of metadata.jsonl, as that now is; all else stays.

    Args:
        line: as it was read: its photo, subject and caption tell which of the lines it is, as one
            photo may stand on several.

    Raises:
        CaptionError: somebody else has written the caption meanwhile; that one stays.
        MetadataError: the file is wrong, or no longer lists the photo.
    """
    path = folder / METADATA
    records = read_records(path, PHOTO_TEXTS)
    own = [record for record in records[1:] if _place(record) == _place(line)]
    if not own:
        told = f"has no line of {line.get('file_name')} to write its caption to"
        raise MetadataError([f"{path}: {told}"])
    same = [record for record in own if record.get("text") == line.get("text")]
    if not same:
        raise CaptionError("its caption has changed meanwhile, and stays")
    same[0]["text"] = caption
    write_records(path, records)


def _place(line: dict) -> tuple[str, object]:
    """Return a line's photo and subject."""
    return normpath(line.get("file_name", "")), line.get("id")


def _named_lines(path: Path) -> tuple[dict[str, str], list[dict]]:
    """Return a metadata file's names by id, and its photo lines."""
    first, *lines = read_records(path, PHOTO_TEXTS) or [{}]
    if not isinstance(first.get("id"), dict):
        raise MetadataError([f"{path}: {NO_NAMES}"])
    return first["id"], lines


def _is_captioned(line: dict, names: dict[str, str]) -> bool:
    plain = PLAIN_CAPTION.format(names.get(line.get("id", "")))
    return line.get("text") not in (None, "", plain)


def _photo(folder: Path, line: dict, names: dict[str, str]) -> Path:
    """Return the file of a line's photo, to which a caption can be made."""
    if line.get("id") not in names:
        raise CaptionError('its "id" is none that the first line names')
    name = line.get("file_name")
    path = None if file_problem("file_name", name) else find_file(folder, str(name))
    if path is None:
        raise CaptionError('there is no such photo; mend "file_name"')
    return path
