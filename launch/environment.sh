# What quickstart.sh, test.sh and .ci/run share; to be sourced by bash, run on its own it does nothing.
#
# PYTHON may name the interpreter to build environments with.

say() { printf '==> %s\n' "$*"; }

fail() {
    printf '%s: error: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# Print the first Python >= 3.11 that can build a virtual environment.
find_python() {
    local candidate old="" bare="" candidates=(python3 python3.13 python3.12 python3.11 python)
    [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        "$candidate" -c '' 2>/dev/null || continue
        if ! "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            old="$candidate ($("$candidate" -V 2>&1))"
        elif ! "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            bare="$candidate"
        else
            printf '%s\n' "$candidate"
            return
        fi
    done
    [[ -z $bare ]] || fail "$bare cannot build virtual environments (no ensurepip): apt install python3-venv"
    [[ -z $old ]] || fail "Python 3.11 or later is needed, found $old; PYTHON=/path/to/python names another"
    fail "no working ${candidates[*]} found; install Python 3.11 or later, or set PYTHON=/path/to/python"
}

# make_environment FOLDER EXTRAS...: the project, editable, with these extras in a virtual environment.
# A stamp for each extra, holding all that decides what is installed, makes the next call instant and offline.
make_environment() {
    local folder=$1 extra wanted missing=0 extras
    shift
    extras=$(IFS=, && printf '%s' "$*")
    wanted=$(printf '%s\n' "$PWD" && cat pyproject.toml)
    for extra; do
        [[ $(cat "$folder/installed-$extra" 2>/dev/null) == "$wanted" ]] || missing=1
    done
    if ! "$folder/bin/python" -c 'import pip' 2>/dev/null; then # none yet, or only half of one
        new_environment "$folder"
    elif ((missing == 0)); then
        return
    fi
    say "Installing dptrain[$extras] and what it needs into $folder (once; $(download_size "$@"))"
    # shellcheck disable=SC2046 - its lines are arguments, meant to split
    pip_install "$folder/bin/python" -e ".[$extras]" $(torch_arguments "$folder/bin/python" "$@")
    for extra; do
        printf '%s\n' "$wanted" >"$folder/installed-$extra"
    done
}

# How much is downloaded at most, in words.
download_size() {
    case " $* " in
        *" torch "*) printf 'about 1.2 GB to download' ;;
        *" test "* | *" dev "*) printf 'about 110 MB to download' ;;
        *) printf 'about 42 MB to download' ;;
    esac
}

# pip_install PYTHON ARGUMENTS...: pip, which says in short lines what it does; its errors are shown as they are.
pip_install() {
    local python=$1 line
    shift
    PYTHONUNBUFFERED=1 "$python" -m pip install --disable-pip-version-check --progress-bar off "$@" |
        while IFS= read -r line; do
            case $line in
                *"Installing build dependencies: started"*) printf '    preparing to build\n' ;;
                *.metadata*) ;;
                *" Downloading "*.whl* | *" Using cached "*.whl*)
                    line=${line##* Downloading } line=${line##* Using cached }
                    printf '    %s%s\n' "${line%%-*}" "${line##*.whl}"
                    ;;
                "Installing collected packages:"*) printf '    unpacking\n' ;;
            esac
        done
}

new_environment() {
    local python
    python=$(find_python)
    "$python" -m venv --clear "$1"
}

# pip's arguments for the extra "torch": the version the tests are held against, and the index of its CPU builds
# where it can be reached. A build named 2.13.0+cpu goes before the plain one, which on Linux brings gigabytes of CUDA.
torch_arguments() {
    local python=$1 index=https://download.pytorch.org/whl/cpu
    shift
    [[ " $* " == *" torch "* ]] || return 0
    printf 'torch==2.13.0\n'
    if "$python" -c "import urllib.request as r; r.urlopen('$index/torch/', timeout=5)" 2>/dev/null; then
        printf '%s\n' "--extra-index-url $index"
    fi
}
