"""launch/slurm.sh on a real SLURM of one node, which the test starts itself."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

REPOSITORY = pathlib.Path(__file__).parents[1]
DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch")
FLAGS = (
  "--config=experiments/pretrain.py",
  "--config.total_steps=1000",
  "--config.checkpoint.every=50",
  "--config.batch.num_rows=8",
  "--config.model.num_layers=1",
)


def free_port() -> int:
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


@pytest.fixture
def slurm(tmp_path, monkeypatch):
  """A SLURM of this machine alone; the environment names its configuration."""
  if not all(map(shutil.which, DAEMONS)) or os.geteuid():
    pytest.skip("needs root and apt-get install slurm-wlm munge")
  folder = tmp_path / "slurm"
  (folder / "state").mkdir(parents=True)
  key = folder / "munge.key"
  key.write_bytes(os.urandom(128))
  key.chmod(0o400)
  host, at = socket.gethostname().split(".")[0], folder / "munge.socket"
  conf = folder / "slurm.conf"
  settings = {
    "ClusterName": "test",
    "SlurmctldHost": f"{host}(127.0.0.1)",
    "SlurmUser": "root",
    "AuthType": "auth/munge",
    "AuthInfo": f"socket={at}",
    "ProctrackType": "proctrack/linuxproc",
    "TaskPlugin": "task/none",
    "SelectType": "select/cons_tres",
    "SelectTypeParameters": "CR_Core",
    "ReturnToService": "2",
    "SlurmctldPidFile": folder / "slurmctld.pid",
    "SlurmdPidFile": folder / "slurmd.pid",
    "SlurmctldPort": free_port(),
    "SlurmdPort": free_port(),
    "StateSaveLocation": folder / "state",
    "SlurmdSpoolDir": folder / "spool",
    "KillWait": 10,
    "NodeName": f"{host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()}",
    "PartitionName": f"all Nodes={host} Default=YES State=UP",
  }
  conf.write_text("".join(f"{k}={v}\n" for k, v in settings.items()))
  monkeypatch.setenv("SLURM_CONF", str(conf))
  files = {name: folder / f"munge.{name}" for name in ("log", "pid", "seed")}
  daemons = (
    [
      *("munged", "--foreground", "--force"),
      *(f"--key-file={key}", f"--socket={at}", f"--log-file={files['log']}"),
      *(f"--pid-file={files['pid']}", f"--seed-file={files['seed']}"),
    ],
    ["slurmctld", "-D"],
    ["slurmd", "-D"],
  )
  with contextlib.ExitStack() as stack:
    for command in daemons:
      output = stack.enter_context(open(folder / f"{command[0]}.out", "w"))
      daemon = subprocess.Popen(command, stdout=output, stderr=output)
      stack.callback(daemon.wait, 30)
      stack.callback(daemon.terminate)
      time.sleep(2)
    until(lambda: "idle" in asked("sinfo", "--noheader"), 60)
    yield
    asked("scancel", "--user=root")


def asked(*command: str) -> str:
  return subprocess.run(command, capture_output=True, text=True).stdout


def until(true, seconds: float) -> None:
  deadline = time.monotonic() + seconds
  while not true():
    assert time.monotonic() < deadline
    time.sleep(1)


def tasks_of(workdir: pathlib.Path) -> list[int]:
  """The processes of a run, by their command lines."""
  found = []
  for file in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    with contextlib.suppress(OSError):
      words = file.read_bytes().decode().split("\0")
      if f"--workdir={workdir}" in words and "grpo_jax.main" in words:
        found.append(int(file.parent.name))
  return found


@pytest.mark.slow
def test_a_job_of_two_tasks_goes_on_after_one_was_killed(slurm, tmp_path):
  pytest.importorskip("grpo_jax.processes")
  workdir, log = tmp_path / "run", tmp_path / "job.log"
  environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  sent = subprocess.run(
    [
      *("bash", "launch/slurm.sh", "--tasks=2", "--cpus=1", "--time=01:00:00"),
      *(f"--output={log}", "--", *FLAGS, f"--workdir={workdir}"),
    ],
    cwd=REPOSITORY,
    env=environment
    | dict(
      PYTHON=sys.executable,
      JAX_PLATFORMS="cpu",
      JAX_NUM_CPU_DEVICES="1",
      JAX_COORDINATOR_PORT=str(free_port()),
    ),
    capture_output=True,
    text=True,
    check=True,
  )
  assert "2 processes are expected, on 1 nodes" in sent.stderr
  job = re.search(r"Submitted batch job (\d+)", sent.stdout)[1]
  until(lambda: (workdir / "checkpoints" / "50").is_dir(), 1200)
  os.kill(tasks_of(workdir)[-1], signal.SIGKILL)
  until(lambda: "Queued again" in log.read_text(), 120)
  # SLURM waits two minutes before it starts a job again.
  until(lambda: " PD " in asked("squeue", f"--job={job}"), 60)
  asked("scontrol", "update", f"jobid={job}", "StartTime=now")
  until(lambda: job not in asked("squeue", "--noheader"), 1800)
  told = log.read_text()
  assert "2 processes are expected; start 2." in told
  rows = (workdir / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(row)["step"] for row in rows][-1] == 1000
