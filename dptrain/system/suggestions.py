"""What people type for a flag or key that has another name here, or that there is no use for.

Words are written without leading dashes, with - for _. `SYNONYMS` gives the names a word may stand for: the first that
the command has is proposed. `EXPLANATIONS` are for words that no name stands for; they belong to `dptrain train`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

NEAR = 0.7  # difflib's ratio from which a name is proposed
FEW = 7  # names that are listed where none is near
NOTHING_EXPLAINED: Mapping[str, str] = {}

_WORDS_OF = {
    "lr": "learning-rate learningrate base-lr initial-lr init-lr max-lr alpha eta",
    "schedule": "lr-schedule lr-scheduler scheduler sched lr-policy decay lr-scheduler-type",
    "epochs": "num-epochs n-epochs max-epochs nb-epochs epoch-count num-train-epochs ep",
    "max-steps": "steps num-steps iterations iters max-iter max-iters num-iterations total-steps max-train-steps",
    "batch-size": "batch bs b global-batch-size train-batch-size batchsize minibatch-size mini-batch-size mbs",
    "weight-decay": "wd l2 l2-penalty decay-weight regularization",
    "warmup-steps": "warmup warm-up warm-up-steps num-warmup-steps warmup-iters lr-warmup-steps",
    "step-epochs": "step-size lr-step-size decay-epochs lr-drop milestones",
    "step-factor": "gamma lr-gamma lr-decay lr-decay-rate decay-rate",
    "optimizer": "optim opt",
    "momentum": "beta mu sgd-momentum",
    "seed": "random-seed random-state rng-seed manual-seed",
    "threads": "workers num-workers n-workers jobs j num-threads n-threads nthreads cpus cores num-cpus n-jobs",
    "run-dir": (
        "checkpoint-dir checkpoints-dir ckpt-dir output output-dir out out-dir o save-dir save-path save logdir "
        "log-dir work-dir workdir results-dir name run-name exp-name experiment"
    ),
    "checkpoint-every": "save-every save-steps save-interval save-freq checkpoint-interval checkpoint-steps ckpt-every",
    "log-every": "log-interval log-freq log-steps logging-steps print-freq print-every report-every",
    "resume": "resume-from resume-from-checkpoint ckpt ckpt-path load load-checkpoint restart continue",
    "model": "arch architecture network net model-name model-type backbone",
    "model-options": "model-args model-kwargs arch-args",
    "augment": "augmentation aug data-augmentation transforms",
    "flip": "hflip horizontal-flip random-flip mirror",
    "crop": "random-crop padding pad crop-padding",
    "config": "config-file cfg conf yaml toml",
    "reduction": "allreduce reduce",
    "elastic": "fault-tolerant",
    "json": "format",
    # of data-prep and launch
    "shards": "num-shards n-shards splits parts",
    "force": "overwrite f replace",
    "archive": "input file source tar path",
    "limit": "max-samples num-samples samples subset n",
    "train": "num-train n-train train-size",
    "test": "num-test n-test test-size",
    "ranks": "np nproc nprocs num-ranks n-ranks nproc-per-node num-processes processes world-size ntasks workers",
    "max-restarts": "restarts retries max-retries",
    "min-ranks": "min-np min-nodes",
}
_RANKS = "ranks are started with: dptrain launch -n R -- train DATA"
_CPU = "dptrain computes on CPUs only; --threads N sets how many shards a rank computes at a time"
_WORDS_EXPLAINED = {
    _CPU: "device devices gpu gpus cuda no-cuda use-cuda accelerator num-gpus ngpu gpu-id gpu-ids tpu mps",
    "choose the optimizer with --optimizer NAME": "adam adamw sgd",
    _RANKS: (
        "ranks np n nproc nprocs nproc-per-node nnodes nodes num-processes num-nodes processes world-size rank "
        "distributed backend dist-backend ddp strategy master-addr master-port"
    ),
    "the data set's folder is named without a flag: dptrain train FOLDER": (
        "data dataset data-dir data-path dataset-dir data-root train-data train-dir datadir data-folder root input"
    ),
    "dptrain computes in float32": "fp16 bf16 fp32 amp mixed-precision precision dtype half float16",
    "every run is deterministic: the same seed gives the same bits": "deterministic reproducible benchmark",
    "the test split is evaluated after every epoch": (
        "eval-every eval-interval eval-freq eval-steps validate-every val-interval val-split validation-split valid "
        "test-every eval-batch-size test-batch-size val-batch-size"
    ),
    "arguments of the architecture are given as --model-options 'widths = [32, 64]'": (
        "width widths hidden hidden-size channels filters kernel-size num-layers depth layers"
    ),
    "the number of classes comes from the data set": "num-classes n-classes classes",
}

SYNONYMS: dict[str, tuple[str, ...]] = {}
for _name, _words in _WORDS_OF.items():
    for _word in _words.split():
        SYNONYMS[_word] = (*SYNONYMS.get(_word, ()), _name)
EXPLANATIONS = {word: text for text, words in _WORDS_EXPLAINED.items() for word in words.split()}


def did_you_mean(
    word: str, known: Iterable[str], otherwise: str = "see --help", explanations: Mapping[str, str] = NOTHING_EXPLAINED
) -> str:
    """A sentence that helps whoever typed `word`, which is none of the `known` names.

    It proposes the name of which the word is a synonym, or the nearest ones; where there is none, it is the word's
    explanation, if it has one, or all names if they are few, or `otherwise`. Leading dashes, case and the difference
    between - and _ do not count.
    """
    names = {_plain(name): name for name in sorted(known)}
    typed = _plain(word)
    near = [name for name in SYNONYMS.get(typed, ()) if name in names][:1]
    if not near and typed in explanations:
        return explanations[typed]
    if not near and len(typed) >= 3:
        near = [name for name in names if name.startswith(typed)][:2]
    near = near or difflib.get_close_matches(typed, names, n=1, cutoff=NEAR)
    if near:
        return f"did you mean {' or '.join(repr(names[name]) for name in near)}?"
    return f"known: {', '.join(names.values())}" if len(names) <= FEW else otherwise


def _plain(name: str) -> str:
    return name.lstrip("-").replace("_", "-").lower()
