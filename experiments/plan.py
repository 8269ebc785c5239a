"""What is compared with what: experiments, the variants that they need, and the units of work.

A variant is a way of making pictures, a training what its LoRA needs; several variants share one.
Knows no torch.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from detect_and_compare.references import default_query
from mudi.segmix import CUTMIX_NEGATIVE_PROMPT

SEGMIX_PROB = 0.3  # of the published runs
GAMMAS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # from plain sampling to beyond the formula's 1
SIZE_RATIOS = (0.4, 0.63, 1.0, 1.6, 2.5)  # second subject's size to the first's, even on a log axis
SAME_CLASS, DIFFERENT_CLASSES = "same class", "different classes"


@dataclass(frozen=True)
class Training:
    """How a LoRA is trained, and what keeps its habits out of pictures.

    Attributes:
        name: of its folder.
        flags: of the training script.
        prior: with prior preservation instead of DCO.
        negative_prompt: for all pictures made with it.
    """

    name: str
    flags: tuple[str, ...]
    prior: bool = False
    negative_prompt: str | None = None


@dataclass(frozen=True)
class Variant:
    """A way of making pictures: a LoRA and a start.

    Attributes:
        gamma: strength of the mean shift; 0 is ordinary sampling.
        size_ratio: size of the second subject to the first's in the layout; None: random.
    """

    training: Training
    gamma: float = 0.0
    size_ratio: float | None = None

    @property
    def name(self) -> str:
        size = "" if self.size_ratio is None else f"_size_{self.size_ratio:g}"
        return f"{self.training.name}_gamma_{self.gamma:g}{size}"

    def scales(self, ids: Sequence[str]) -> dict[str, float] | None:
        """Return the relative sizes of two subjects, the larger 1; None where they are random."""
        if self.size_ratio is None:
            return None
        larger = max(1.0, self.size_ratio)
        return dict(zip(ids, (1 / larger, self.size_ratio / larger), strict=True))


@dataclass(frozen=True)
class DataSet:
    """Subjects that are personalised together; names by id, "<rare token> <noun>"."""

    name: str
    folder: Path
    names: dict[str, str]

    @property
    def nouns(self) -> dict[str, str]:
        return {subject: default_query(name) for subject, name in self.names.items()}

    @property
    def kind(self) -> str:
        """What its pictures are counted under."""
        if len(self.names) != 2:
            return f"{len(self.names)} subjects"
        return SAME_CLASS if len(set(self.nouns.values())) == 1 else DIFFERENT_CLASSES


@dataclass(frozen=True)
class Case:
    """One bar of an experiment, or one point of a curve.

    Attributes:
        label: of the bar or the curve.
        value: place on the curve's axis.
    """

    experiment: str
    label: str
    variant: Variant
    value: float | None = None


@dataclass(frozen=True)
class Unit:
    """A piece of work: one LoRA and all pictures that are made with it."""

    training: Training
    data_set: DataSet
    variants: tuple[Variant, ...]

    @property
    def name(self) -> str:
        return f"{self.training.name}/{self.data_set.name}"


def _segmix(name: str, prob: float = SEGMIX_PROB, *flags: str) -> Training:
    return Training(name, (f"--segmix_prob={prob:g}", *flags))


DREAMBOOTH = _segmix("dreambooth", 0)
CUTMIX = Training(
    "cutmix",
    (f"--segmix_prob={SEGMIX_PROB:g}", "--mix=cutmix"),
    negative_prompt=CUTMIX_NEGATIVE_PROMPT,
)
SEGMIX = _segmix("segmix")


def with_prior(training: Training) -> Training:
    """Return the same training with prior preservation instead of DCO."""
    flags = (*training.flags, "--with_prior_preservation", "--dco_beta=0")
    return Training(f"{training.name}_prior", flags, True, training.negative_prompt)


def methods(gamma: float) -> dict[str, Variant]:
    """Return what is compared, the method of the paper last; they differ in two steps only."""
    return {
        "DreamBooth": Variant(DREAMBOOTH),
        "Cut-Mix": Variant(CUTMIX),
        "Seg-Mix": Variant(SEGMIX),
        "MuDI": Variant(SEGMIX, gamma),
    }


def _methods(gamma: float) -> list[Case]:
    found = [Case("methods", label, variant) for label, variant in methods(gamma).items()]
    return found + [
        Case("methods", f"{label}, prior", Variant(with_prior(v.training), v.gamma))
        for label, v in methods(gamma).items()
    ]


def _gamma(gamma: float) -> list[Case]:
    values = sorted({*GAMMAS, gamma})
    return [Case("gamma", "Seg-Mix", Variant(SEGMIX, value), value) for value in values]


def _subjects(gamma: float) -> list[Case]:
    return [Case("subjects", label, variant) for label, variant in methods(gamma).items()]


def _size(gamma: float) -> list[Case]:
    return [Case("size", "MuDI", Variant(SEGMIX, gamma, ratio), ratio) for ratio in SIZE_RATIOS]


def _ablations(gamma: float) -> list[Case]:
    trainings = {
        "MuDI": SEGMIX,
        "Seg-Mix off": DREAMBOOTH,
        "loss: prior preservation": with_prior(SEGMIX),
        "loss: plain MSE": _segmix("segmix_mse", SEGMIX_PROB, "--dco_beta=0"),
        "soft_alpha 0": _segmix("segmix_alpha_0", SEGMIX_PROB, "--soft_alpha=0"),
        "segmix_prob 1": _segmix("segmix_prob_1", 1),
    }
    found = [
        Case("ablations", label, Variant(training, gamma)) for label, training in trainings.items()
    ]
    return [*found[:2], Case("ablations", "noise off", Variant(SEGMIX)), *found[2:]]


def _is_pair(data_set: DataSet) -> bool:
    return len(data_set.names) == 2


def _is_of_different_classes(data_set: DataSet) -> bool:
    return data_set.kind != SAME_CLASS


# What an experiment compares, and on which data sets
EXPERIMENTS: dict[str, tuple[Callable[[float], list[Case]], Callable[[DataSet], bool]]] = {
    "methods": (_methods, _is_pair),
    "gamma": (_gamma, _is_pair),
    "subjects": (_subjects, _is_of_different_classes),
    "size": (_size, _is_pair),
    "ablations": (_ablations, _is_pair),
}


def plan_cases(experiments: Iterable[str], gamma: float) -> list[Case]:
    """Return the cases of some of EXPERIMENTS; gamma is the method's own."""
    return [case for name in experiments for case in EXPERIMENTS[name][0](gamma)]


def covers(case: Case, data_set: DataSet) -> bool:
    """Say whether a case's pictures of a data set count."""
    return EXPERIMENTS[case.experiment][1](data_set)


def plan_units(cases: Iterable[Case], data_sets: Sequence[DataSet]) -> list[Unit]:
    """Return the work that the cases need, each LoRA and each variant's pictures once."""
    cases = list(cases)
    trainings = dict.fromkeys(case.variant.training for case in cases)
    units = []
    for training in trainings:
        for data_set in data_sets:
            variants = dict.fromkeys(
                case.variant
                for case in cases
                if case.variant.training == training and covers(case, data_set)
            )
            if variants:
                units.append(Unit(training, data_set, tuple(variants)))
    return units
