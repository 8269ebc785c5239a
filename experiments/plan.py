"""What is compared with what: experiments, the variants that they need, and the units of work.

A variant is a way of making pictures, a training what its LoRA needs; several variants share one.
Knows no torch.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from detect_and_compare.references import default_query
from mudi.segmix import CUTMIX_NEGATIVE_PROMPT

SEGMIX_PROB = 0.3  # of the published runs
GAMMAS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # from plain sampling to beyond the formula's 1
REWARDS = (3.0, 5.0)  # DCO's, here ordinary guidance with the base's null pass as well; and more
SIZE_RATIOS = (0.4, 0.63, 1.0, 1.6, 2.5)  # second subject's size to the first's, even on a log axis
SAME_CLASS, DIFFERENT_CLASSES = "same class", "different classes"
DOSE = re.compile(
    r"_dose_(\d+)$"
)  # at the end of a data set's name: traits in which a pair differs


@dataclass(frozen=True)
class Training:
    """How a LoRA is trained, and what keeps its habits out of pictures.

    Attributes:
        name: of its folder.
        flags: of the training script.
        prior: with prior preservation instead of DCO.
        negative_prompt: for all pictures made with it.
        collages: one of `interventions.COLLAGES`, in place of Seg-Mix's own.
    """

    name: str
    flags: tuple[str, ...]
    prior: bool = False
    negative_prompt: str | None = None
    collages: str | None = None


@dataclass(frozen=True)
class Variant:
    """A way of making pictures: a LoRA and a start.

    Attributes:
        gamma: strength of the mean shift; 0 is ordinary sampling.
        size_ratio: size of the second subject to the first's in the layout; None: random.
        reward: of reward guidance; None: ordinary guidance.
        start: one of `interventions.STARTS`, in place of the subjects' own cut-outs.
    """

    training: Training
    gamma: float = 0.0
    size_ratio: float | None = None
    reward: float | None = None
    start: str | None = None

    @property
    def name(self) -> str:
        more = "" if self.size_ratio is None else f"_size_{self.size_ratio:g}"
        more += "" if self.reward is None else f"_reward_{self.reward:g}"
        more += "" if self.start is None else f"_{self.start}"
        return f"{self.training.name}_gamma_{self.gamma:g}{more}"

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
    def dose(self) -> int | None:
        """In how many traits a pair of the dose experiment differs; None: it is of no dose."""
        found = DOSE.search(self.name)
        return int(found[1]) if found else None

    @property
    def kind(self) -> str:
        """What its pictures are counted under."""
        if self.dose is not None:
            return f"{self.dose} traits"
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
    """A piece of work: one LoRA and all pictures that are made with it.

    Attributes:
        seed: of the training; a pair's LoRAs differ in nothing else.
        alone: the variants that also show each subject alone.
    """

    training: Training
    data_set: DataSet
    seed: int
    variants: tuple[Variant, ...]
    alone: frozenset[Variant] = frozenset()

    @property
    def name(self) -> str:
        return f"{self.training.name}/{self.data_set.name}/{self.seed}"


def _segmix(name: str, prob: float = SEGMIX_PROB, *flags: str) -> Training:
    return Training(name, (f"--segmix_prob={prob:g}", *flags))


DREAMBOOTH = _segmix("dreambooth", 0)
CUTMIX = Training(
    "cutmix",
    (f"--segmix_prob={SEGMIX_PROB:g}", "--mix=cutmix"),
    negative_prompt=CUTMIX_NEGATIVE_PROMPT,
)
SEGMIX = _segmix("segmix")
LEARN_WORDS = "--learn_words"


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
    return [Case("methods", label, variant) for label, variant in methods(gamma).items()]


def _losses(gamma: float) -> list[Case]:
    found = [
        Case("losses", f"{label}, prior", Variant(with_prior(v.training), v.gamma))
        for label, v in methods(gamma).items()
    ]
    mse = _segmix("segmix_mse", SEGMIX_PROB, "--dco_beta=0")
    return [*found, Case("losses", "MuDI, plain MSE", Variant(mse, gamma))]


def with_words(training: Training) -> Training:
    """Return the same training with a learned word in each name's place."""
    return replace(training, name=f"{training.name}_words", flags=(*training.flags, LEARN_WORDS))


def _words(gamma: float) -> list[Case]:
    """Return learned words beside rare tokens, and either with reward guidance."""
    found = []
    for label in ("DreamBooth", "MuDI"):
        plain = methods(gamma)[label]
        learned = replace(plain, training=with_words(plain.training))
        for told, variant in (("rare tokens", plain), ("learned words", learned)):
            found.append(Case("words", f"{label}, {told}", variant))
            found += [
                Case(
                    "words", f"{label}, {told}, reward {reward:g}", replace(variant, reward=reward)
                )
                for reward in REWARDS
            ]
    return found


def _gamma(gamma: float) -> list[Case]:
    values = sorted({*GAMMAS, gamma})
    return [Case("gamma", "Seg-Mix", Variant(SEGMIX, value), value) for value in values]


def _subjects(gamma: float) -> list[Case]:
    return [Case("subjects", label, variant) for label, variant in methods(gamma).items()]


def _dose(gamma: float) -> list[Case]:
    return [Case("dose", label, variant) for label, variant in methods(gamma).items()]


def _size(gamma: float) -> list[Case]:
    return [Case("size", "MuDI", Variant(SEGMIX, gamma, ratio), ratio) for ratio in SIZE_RATIOS]


def _ablations(gamma: float) -> list[Case]:
    trainings = {
        "MuDI": SEGMIX,
        "Seg-Mix off": DREAMBOOTH,
        "soft_alpha 0": _segmix("segmix_alpha_0", SEGMIX_PROB, "--soft_alpha=0"),
        "segmix_prob 1": _segmix("segmix_prob_1", 1),
    }
    found = [
        Case("ablations", label, Variant(training, gamma)) for label, training in trainings.items()
    ]
    return [*found[:2], Case("ablations", "noise off", Variant(SEGMIX)), *found[2:]]


def _interventions(gamma: float) -> list[Case]:
    """Return what the method's parts do, shown by what happens without one of their ideas."""
    collages = {
        "names_at_random": "names at random",
        "one_twice": "one subject twice",
        "alone": "cut-outs alone",
    }
    starts = {"blobs": "from grey blobs", "exchanged": "subjects exchanged"}
    changed = {
        told: replace(SEGMIX, name=f"segmix_{name}", collages=name)
        for name, told in collages.items()
    }
    return [
        Case("interventions", "Seg-Mix", Variant(SEGMIX)),
        *(Case("interventions", f"Seg-Mix, {t}", Variant(own)) for t, own in changed.items()),
        Case("interventions", "MuDI", Variant(SEGMIX, gamma)),
        *(
            Case("interventions", f"MuDI, {told}", Variant(SEGMIX, gamma, start=name))
            for name, told in starts.items()
        ),
    ]


def _is_pair(data_set: DataSet) -> bool:
    return len(data_set.names) == 2 and data_set.dose is None


def _is_of_different_classes(data_set: DataSet) -> bool:
    return data_set.kind != SAME_CLASS and data_set.dose is None


@dataclass(frozen=True)
class Experiment:
    """What is compared, and where.

    Attributes:
        cases: for the method's gamma.
        covers: whether a data set's pictures count.
        alone: whether each subject is also asked for alone.
        reference: label of the case that the others are set against; "": none.
    """

    cases: Callable[[float], list[Case]]
    covers: Callable[[DataSet], bool] = _is_pair
    alone: bool = True
    reference: str = ""


EXPERIMENTS = {
    "methods": Experiment(_methods, reference="MuDI"),
    "losses": Experiment(_losses),
    "words": Experiment(_words, reference="MuDI, learned words"),
    "gamma": Experiment(_gamma, alone=False),
    "subjects": Experiment(_subjects, _is_of_different_classes, alone=False, reference="MuDI"),
    "size": Experiment(_size, alone=False),
    "ablations": Experiment(_ablations, reference="MuDI"),
    "interventions": Experiment(_interventions, reference="MuDI"),
    "dose": Experiment(_dose, lambda data_set: data_set.dose is not None, False, "MuDI"),
}


def plan_cases(experiments: Iterable[str], gamma: float) -> list[Case]:
    """Return the cases of some of EXPERIMENTS; gamma is the method's own."""
    return [case for name in experiments for case in EXPERIMENTS[name].cases(gamma)]


def covers(case: Case, data_set: DataSet) -> bool:
    """Say whether a case's pictures of a data set count."""
    return EXPERIMENTS[case.experiment].covers(data_set)


def plan_units(
    cases: Iterable[Case], data_sets: Sequence[DataSet], seeds: Sequence[int] = (0,)
) -> list[Unit]:
    """Return the work that the cases need, each LoRA and each variant's pictures once.

    What is to be compared comes together, so that a stopped run has something to compare.

    Args:
        seeds: of the trainings; one LoRA each.
    """
    cases = list(cases)
    trainings = dict.fromkeys(case.variant.training for case in cases)
    units = []
    for seed in seeds:
        for data_set in data_sets:
            for training in trainings:
                own = [
                    case
                    for case in cases
                    if case.variant.training == training and covers(case, data_set)
                ]
                variants = tuple(dict.fromkeys(case.variant for case in own))
                alone = {case.variant for case in own if EXPERIMENTS[case.experiment].alone}
                if variants:
                    units.append(Unit(training, data_set, seed, variants, frozenset(alone)))
    return units
