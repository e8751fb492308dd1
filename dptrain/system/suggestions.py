"""Names that other programs use for flags and keys, and the nearest name to a misspelt one.

Words have no leading dashes, and - instead of _. `SYNONYMS` maps a word to our names for it. `EXPLANATIONS` is advice
for words that have no equivalent flag of `dptrain train`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

NEAR = 0.7  # the smallest ratio of difflib at which a name is proposed
FEW = 7  # so few names are all listed if none is near

_WORDS_OF = {
    "lr": "learning-rate base-lr max-lr",
    "schedule": "lr-schedule lr-scheduler scheduler lr-policy",
    "epochs": "num-epochs max-epochs num-train-epochs",
    "max-steps": "steps num-steps iterations max-iters total-steps",
    "batch-size": "batch bs global-batch-size train-batch-size",
    "optimizer": "optim opt",
    "weight-decay": "wd l2",
    "warmup-steps": "warmup num-warmup-steps warmup-iters",
    "step-epochs": "step-size lr-step-size milestones",
    "step-factor": "gamma lr-gamma",
    "seed": "random-seed random-state manual-seed",
    "threads": "workers num-workers jobs num-threads cpus cores",
    "run-dir": "checkpoint-dir output output-dir out save-dir log-dir logdir work-dir name",
    "checkpoint-every": "save-every save-steps save-interval checkpoint-interval",
    "log-every": "log-interval logging-steps print-freq",
    "resume": "resume-from-checkpoint ckpt-path load-checkpoint",
    "model": "arch architecture network net",
    "model-options": "model-args model-kwargs",
    "augment": "augmentation data-augmentation transforms",
    "flip": "hflip horizontal-flip mirror",
    "crop": "random-crop padding",
    "config": "config-file cfg",
    "reduction": "allreduce",
    "shards": "num-shards",
    "force": "overwrite",
    "archive": "input file",
    "limit": "max-samples num-samples",
    "ranks": "np nproc nproc-per-node num-processes world-size ntasks",
    "max-restarts": "restarts retries",
}
_WORDS_EXPLAINED = {
    "dptrain computes on CPUs; --threads N sets how many shards a rank computes at the same time": (
        "device devices gpu gpus cuda num-gpus accelerator tpu mps"
    ),
    "to start several ranks: dptrain launch -n R -- train DATA": (
        "ranks np nproc nproc-per-node nnodes num-processes world-size distributed backend ddp"
    ),
    "the data set is given without a flag: dptrain train DATA": "data dataset data-dir data-path data-root train-dir",
    "choose the optimizer with --optimizer NAME": "adam adamw sgd",
    "dptrain computes in float32": "fp16 bf16 amp mixed-precision precision dtype",
    "every run is deterministic: the same seed gives the same bits": "deterministic",
    "the test split is evaluated after every epoch": "eval-every eval-interval eval-steps val-split eval-batch-size",
    "give arguments of the architecture as --model-options 'widths = [32, 64]'": "width widths depth layers",
    "the number of classes comes from the data set": "num-classes classes",
}

SYNONYMS: dict[str, list[str]] = {}
for _name, _words in _WORDS_OF.items():
    for _word in _words.split():
        SYNONYMS.setdefault(_word, []).append(_name)
EXPLANATIONS = {word: text for text, words in _WORDS_EXPLAINED.items() for word in words.split()}


def did_you_mean(
    word: str, known: Iterable[str], otherwise: str = "see --help", explanations: Mapping[str, str] | None = None
) -> str:
    """Advice for `word`, which is not one of the `known` names.

    It is the name that the word is a synonym of, else the word's explanation, else the nearest names, else all names if
    they are few, else `otherwise`. Leading dashes, case and the difference between - and _ are ignored.
    """
    names = {_plain(name): name for name in sorted(known)}
    typed = _plain(word)
    near = [name for name in SYNONYMS.get(typed, ()) if name in names][:1]
    if not near and explanations and typed in explanations:
        return explanations[typed]
    if not near and len(typed) >= 3:
        near = [name for name in names if name.startswith(typed)][:2]
    near = near or difflib.get_close_matches(typed, names, n=1, cutoff=NEAR)
    if near:
        return f"did you mean {' or '.join(repr(names[name]) for name in near)}?"
    return f"known: {', '.join(names.values())}" if len(names) <= FEW else otherwise


def _plain(name: str) -> str:
    return name.lstrip("-").replace("_", "-").lower()
