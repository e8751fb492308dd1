"""The nearest name to a misspelt one, and the names that other programs use for flags and keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

NEAR = 0.7  # the smallest ratio of difflib at which a name is proposed
FEW = 7  # so few names are all listed if none is near

# Our name of a flag or key, and other programs' names for it, without dashes at the front and with - instead of _.
SYNONYMS = {
    "lr": "learning-rate base-lr max-lr",
    "schedule": "lr-schedule lr-scheduler scheduler",
    "epochs": "num-epochs max-epochs num-train-epochs",
    "max-steps": "steps num-steps iterations max-iters",
    "batch-size": "batch bs global-batch-size train-batch-size",
    "weight-decay": "wd l2",
    "threads": "workers num-workers jobs num-threads cpus cores",
    "run-dir": "checkpoint-dir output output-dir out save-dir log-dir name",
    "checkpoint-every": "save-every save-steps save-interval checkpoint-interval",
    "log-every": "log-interval logging-steps print-freq",
    "model": "arch architecture network net",
    "init-from": "pretrained weights init-checkpoint load finetune fine-tune warm-start",
    "freeze": "frozen freeze-layers freeze-backbone",
    "ranks": "np nproc nproc-per-node num-processes world-size",
}
# Advice, and words that have no equivalent flag of `dptrain train`.
_EXPLAINED = {
    "dptrain computes on CPUs; --threads N sets how many cores a rank uses": "device gpu gpus cuda",
    "to start several ranks: dptrain launch -n R -- train DATA": "ranks np nproc num-processes world-size",
    "the data set is given without a flag: dptrain train DATA": "data dataset data-dir data-path",
    "choose the optimizer with --optimizer NAME": "adam adamw sgd",
    "give arguments of the architecture as --model-options 'widths = [32, 64]'": "width widths depth layers",
}
EXPLANATIONS = {word: text for text, words in _EXPLAINED.items() for word in words.split()}


def did_you_mean(
    word: str, known: Iterable[str], otherwise: str = "see --help", explanations: Mapping[str, str] | None = None
) -> str:
    """Advice for `word`, which is not one of the `known` names.

    It is the name that the word is a synonym of, else the word's explanation, else the nearest names, else all names if
    they are few, else `otherwise`. Leading dashes, case and the difference between - and _ are ignored.
    """
    import difflib

    names = {_plain(name): name for name in sorted(known)}
    typed = _plain(word)
    near = [name for name in names if typed in SYNONYMS.get(name, "").split()]
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
