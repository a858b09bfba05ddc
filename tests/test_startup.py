"""What startup.sh decides on machines of several kinds.

Nothing is installed and no network is used: the PATH holds only plain tools and stubs, and pip
writes down what it was asked for.
"""

import errno
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
TOOLS = (
    "awk basename bash cat chmod cut date df dirname flock grep head id mkdir mv rm sed sha256sum "
    "sleep sort tail tee tr uname"
).split()

with open(PROJECT / "pyproject.toml", "rb") as file:
    EXTRAS = tomllib.load(file)["project"]["optional-dependencies"]

# Stands for python3 and, copied by `-m venv`, for .venv/bin/python.
PYTHON = f"""#!{shutil.which("bash")}
case "$*" in
    *"import ensurepip, venv"*) [ -z "${{FAKE_NO_VENV:-}}" ] ;;
    "-m venv"*) [ -z "${{FAKE_NO_VENV:-}}" ] || exit 1
        mkdir -p .venv/bin && cat "$0" >.venv/bin/python && chmod +x .venv/bin/python ;;
    "-m pip --version") [ -z "${{FAKE_NO_VENV:-}}" ] ;;
    "-m pip"*" install "*|"-m pip uninstall"*)
        echo "$*" >>"$CALLS"
        echo "${{FAKE_PIP_OUTPUT:-Installing collected packages: torch}}"
        exit "${{FAKE_PIP_STATUS:-0}}" ;;
    "-m ensurepip"*|"-m virtualenv"*|"-m pip"*) exit 1 ;;
    "-m torch.distributed.run"*|"-m pytest"*|"-m benchmarks.check"*|*run_5_models.py*)
        echo "OMP_NUM_THREADS=${{OMP_NUM_THREADS:-}} $*" >>"$CALLS"
        exit "${{FAKE_RUN_STATUS:-0}}" ;;
    "- cpu"|"- cuda"|"- xpu") echo "torch 2.13.0" ;;
    *"version_info"*) [ -z "${{FAKE_VERSION:-}}" ] && echo 3.12 || echo "$FAKE_VERSION" ;;
    *) exec {sys.executable} "$@" ;;
esac
"""


class Machine:
    """A made-up machine: a copy of startup.sh, a PATH of our own, a /sys and /dev of our own."""

    def __init__(self, folder: Path):
        self.project, self.bin, self.root = folder / "project", folder / "bin", folder / "root"
        for path in (self.project, self.bin, self.root):
            path.mkdir()
        (self.project / "commands").mkdir()
        for name in ("startup.sh", "requirements.txt", "pyproject.toml", "commands/jobs.py"):
            shutil.copy(PROJECT / name, self.project / name)
        for tool in TOOLS:
            if found := shutil.which(tool):
                (self.bin / tool).symlink_to(found)
        self.stub("df", 'echo "Filesystem blocks"; echo "disk 9 9 ${FAKE_FREE_KB:-90000000} 1% /"')
        self.stub("ldconfig", 'echo "${FAKE_LIBRARIES:-}"')
        self.write("python3", PYTHON)

    def stub(self, name: str, body: str) -> None:
        self.write(name, f"#!{shutil.which('bash')}\n{body}\n")

    def write(self, name: str, text: str) -> None:
        """A program that can be started: a busy machine may hold a new file open for a moment."""
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)
        for _ in range(100):
            try:
                subprocess.run(
                    [path, "-m", "ensurepip"], stdin=subprocess.DEVNULL, capture_output=True, env={}
                )
                return
            except OSError as error:
                if error.errno != errno.ETXTBSY:
                    raise
                time.sleep(0.05)

    def run(self, *arguments: str, cwd: Path | None = None, **environment: str):
        environment = {
            "PATH": str(self.bin),
            "HOME": str(self.root),
            "CALLS": str(self.project / "calls"),
            "ABLATE_FAKE_ROOT": str(self.root),
            "ABLATE_TORCH_INDEX": "http://127.0.0.1:9",  # nobody listens there
            **environment,
        }
        return subprocess.run(
            [str(self.bin / "bash"), str(self.project / "startup.sh"), *arguments],
            cwd=cwd or self.project,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self) -> list[str]:
        """What pip, torchrun, pytest and the scripts were called with since the last look."""
        path = self.project / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def nvidia(self, cuda: str, capability: str, cards: int = 1) -> None:
        listing = "\n".join(f"GPU {i}: NVIDIA Test (UUID: GPU-{i})" for i in range(cards))
        self.stub(
            "nvidia-smi",
            f"""case "$*" in
                -L) echo "{listing}" ;;
                *compute_cap*) echo {capability} ;;
                *) echo "| NVIDIA-SMI 1.2  Driver Version: 1.2  CUDA Version: {cuda} |" ;;
            esac""",
        )

    def intel(self, bus: str, device_id: str) -> None:
        device = self.root / "sys" / "devices" / bus
        device.mkdir(parents=True)
        (device / "vendor").write_text("0x8086\n")
        (device / "device").write_text(device_id + "\n")
        node = self.root / "sys" / "class" / "drm" / "renderD128"
        node.mkdir(parents=True)
        (node / "device").symlink_to(device)


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.fixture
def index():
    """A server on this machine that plays PyTorch's package index."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            time.sleep(self.server.delay_seconds)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'<a href="torch-2.13.0%2Bcpu-cp312-cp312-linux.whl">torch</a>')

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.delay_seconds, server.url = 0, f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_help_names_every_command_and_does_nothing(machine):
    result = machine.run("help")
    assert result.returncode == 0
    for command in ("demo", "test", "smoke", "check", "plan", "ABLATE_DEVICE", "ABLATE_PYTHON"):
        assert command in result.stdout
    assert not (machine.project / ".venv").exists()


def test_unknown_command_is_refused_with_the_list(machine):
    result = machine.run("tset")
    assert result.returncode != 0 and "demo, test, smoke, check" in result.stderr


def test_no_python_gives_one_clear_line(machine):
    (machine.bin / "python3").unlink()
    result = machine.run("setup")
    assert result.returncode != 0
    assert "no Python 3.11 to 3.14 found" in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (machine.project / ".venv").exists()


@pytest.mark.parametrize("version", ["3.10", "3.15"])
def test_python_that_the_packages_do_not_fit_is_named(machine, version):
    result = machine.run("setup", FAKE_VERSION=version)
    assert result.returncode != 0 and f"python3 is {version}" in result.stderr


def test_python_can_be_forced(machine):
    (machine.bin / "python3").rename(machine.bin / "mine")
    result = machine.run("plan", ABLATE_PYTHON=str(machine.bin / "mine"))
    assert f"python: {machine.bin / 'mine'} (3.12)" in result.stdout


def test_cpu_wheels_only_if_their_index_answers(machine, index):
    plan = machine.run("plan", ABLATE_TORCH_INDEX=index.url).stdout
    assert f"CPU wheels from {index.url}/cpu" in plan
    assert "torch 2.13.0 from PyPI" in machine.run("plan").stdout


def test_an_index_that_takes_longer_than_three_seconds_is_left_alone(machine, index):
    index.delay_seconds = 4
    started = time.monotonic()
    assert "torch 2.13.0 from PyPI" in machine.run("plan", ABLATE_TORCH_INDEX=index.url).stdout
    assert time.monotonic() - started < 4


@pytest.mark.parametrize(
    "cuda, capability, expected",
    [
        ("13.0", "9.0", "torch 2.13.0 from PyPI (CUDA 13)"),
        ("12.8", "8.0", "/cu126"),  # the driver is too old for CUDA 13
        ("13.0", "7.0", "/cu126"),  # CUDA 13 has no code for Volta
    ],
)
def test_torch_for_nvidia_fits_driver_and_card(machine, index, cuda, capability, expected):
    machine.nvidia(cuda, capability, cards=2)
    result = machine.run("plan", ABLATE_TORCH_INDEX=index.url)
    assert "2 x NVIDIA Test" in result.stdout and "cuda will be used" in result.stdout
    assert expected in result.stdout and "disk: 9 GB" in result.stdout


def test_a_driver_tool_without_a_card_means_cpu(machine):
    machine.stub("nvidia-smi", 'echo "No devices were found"; exit 6')
    assert "the CPU will be used" in machine.run("plan").stdout


def test_device_can_be_forced(machine):
    machine.nvidia("13.0", "9.0")
    assert "the CPU will be used" in machine.run("plan", ABLATE_DEVICE="cpu").stdout
    refused = machine.run("plan", ABLATE_DEVICE="gpu")
    assert refused.returncode != 0 and "auto, cpu, cuda, xpu or mps" in refused.stderr


@pytest.mark.parametrize(
    "bus, device_id, libraries, expected",
    [
        ("0000:03:00.0", "0x56a0", "libze_intel_gpu.so.1", "xpu will be used"),  # Arc A770
        ("0000:00:02.0", "0x64a0", "libze_intel_gpu.so.1", "xpu will be used"),  # Lunar Lake
        ("0000:00:02.0", "0x9a49", "libze_intel_gpu.so.1", "the CPU will be used"),  # Tiger Lake
        ("0000:03:00.0", "0x56a0", "", "install Intel's compute runtime"),
    ],
)
def test_intel_gpus_are_told_apart(machine, index, bus, device_id, libraries, expected):
    machine.intel(bus, device_id)
    result = machine.run("plan", ABLATE_TORCH_INDEX=index.url, FAKE_LIBRARIES=libraries)
    assert expected in result.stdout
    assert (f"{index.url}/xpu" in result.stdout) == ("xpu will" in expected)


def test_xpu_without_its_index(machine):
    machine.intel("0000:03:00.0", "0x56a0")
    forced = machine.run("setup", ABLATE_DEVICE="xpu")
    assert forced.returncode != 0 and "/xpu, which does not answer" in forced.stderr
    found = machine.run("setup", FAKE_LIBRARIES="libze_intel_gpu.so.1")
    assert found.returncode == 0 and "ready for cpu" in found.stdout
    assert "setting up for the CPU" in found.stderr


def test_wsl_is_told_about_intel(machine):
    (machine.root / "dev").mkdir()
    (machine.root / "dev" / "dxg").touch()
    result = machine.run("plan")
    assert "the CPU will be used" in result.stdout and "ABLATE_DEVICE=xpu" in result.stdout


def test_full_disk_stops_before_anything_is_made(machine):
    result = machine.run("setup", FAKE_FREE_KB="1048576")
    assert result.returncode != 0
    assert "about 3 GB" in result.stderr and "1.0 GB free" in result.stderr
    assert not (machine.project / ".venv").exists()


def test_setup_is_one_pip_command_and_is_not_repeated(machine, index):
    first = machine.run("setup", ABLATE_TORCH_INDEX=index.url)
    assert first.returncode == 0, first.stderr
    (call,) = machine.calls()
    wanted = " ".join(EXTRAS["demo"])
    assert call.endswith(f" --extra-index-url {index.url}/cpu -r requirements.txt {wanted}")
    assert not (machine.project / ".venv" / "unfinished").exists()

    started = time.monotonic()
    assert machine.run("setup").returncode == 0 and machine.calls() == []
    assert time.monotonic() - started < 1

    for name, old, new in (("requirements.txt", "", "# c\n"), ("pyproject.toml", "0.0.2", "0.0.3")):
        path = machine.project / name
        path.write_text(path.read_text().replace(old, new, 1))
        assert "the requirements have changed" in machine.run("setup").stdout
        assert len(machine.calls()) == 1


def test_the_tests_add_pytest_and_a_later_setup_keeps_it(machine):
    assert machine.run("test", "-x").returncode == 0
    install, tests = machine.calls()
    for package in EXTRAS["demo"] + EXTRAS["dev"]:
        assert f" {package}" in install
    assert re.search(
        r"-m pytest -q --numprocesses=\d --dist=loadfile --no-loadscope-reorder "
        r"tests --ignore=tests/long -x$",
        tests,
    )
    assert machine.run("setup").returncode == 0 and machine.calls() == []
    (machine.project / "tests").mkdir()
    (machine.project / "tests" / "test_a.py").touch()
    machine.run("test", "tests/test_a.py::test_b")
    assert machine.calls()[0].endswith("tests/test_a.py::test_b")
    machine.run("test", "--quick")
    assert machine.calls()[0].endswith(" tests --ignore=tests/long --quick")
    machine.run("test", "-x", "--long")
    assert machine.calls()[0].endswith(" tests/long -x")


def test_half_made_environment_is_made_again(machine):
    killed = machine.run("setup", FAKE_PIP_STATUS="1")
    assert killed.returncode != 0
    (machine.project / ".venv" / "leftover").touch()
    result = machine.run("setup")
    assert result.returncode == 0 and "was not finished: making it again" in result.stdout
    assert not (machine.project / ".venv" / "leftover").exists()


def test_environment_without_its_python_is_made_again(machine):
    machine.run("setup")
    python = machine.project / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to("/gone/python3")  # a volume that came back on another image
    assert "is gone: making it again" in machine.run("setup").stdout


def test_failed_update_does_not_cost_the_environment(machine):
    machine.run("setup")
    (machine.project / ".venv" / "mine").touch()
    (machine.project / "requirements.txt").open("a").write("# changed\n")
    failed = machine.run("setup", FAKE_PIP_STATUS="1", FAKE_PIP_OUTPUT="Connection refused")
    assert failed.returncode != 0
    assert machine.run("setup").returncode == 0
    assert (machine.project / ".venv" / "mine").exists()


def test_environment_not_made_here_is_kept(machine):
    (machine.project / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(machine.bin / "python3", machine.project / ".venv" / "bin" / "python")
    (machine.project / ".venv" / "mine").touch()
    result = machine.run("setup")
    assert result.returncode == 0 and "not made by startup.sh" in result.stdout
    assert (machine.project / ".venv" / "mine").exists()


def test_torch_is_replaced_when_a_gpu_appears_and_kept_when_it_goes(machine):
    machine.run("setup")
    machine.calls()
    machine.nvidia("13.0", "9.0")
    assert machine.run("setup").returncode == 0
    assert [("uninstall" in call) for call in machine.calls()] == [True, False]
    (machine.bin / "nvidia-smi").unlink()
    assert machine.run("setup").returncode == 0 and machine.calls() == []


def test_pip_failure_shows_its_last_lines_and_a_sentence(machine):
    result = machine.run(
        "setup",
        FAKE_PIP_STATUS="1",
        FAKE_PIP_OUTPUT="Failed to establish a new connection",
        PIP_INDEX_URL="https://name:secret@index.example/simple",
    )
    assert result.returncode != 0
    assert "Failed to establish" in result.stderr
    assert "no network? pip could not reach https://index.example/simple" in result.stderr
    assert "secret" not in result.stdout + result.stderr


def test_missing_venv_module_ends_with_the_command_to_type(machine):
    result = machine.run("setup", FAKE_NO_VENV="1")
    assert result.returncode != 0 and "apt-get install -y python3.12-venv" in result.stderr
    assert not (machine.project / ".venv").exists()


def test_demo_puts_the_run_where_the_user_stood(machine, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    result = machine.run("demo", "--epochs", "1", "--out", "runs/a", cwd=elsewhere)
    assert result.returncode == 0, result.stderr
    call = machine.calls()[-1]
    assert call == (
        "OMP_NUM_THREADS=1 -m torch.distributed.run --standalone --nproc_per_node=2 "
        "run_2_appendprompt.py --config configs/preference/demo.yaml "
        f"--out {elsewhere}/runs/a --epochs 1"
    )
    assert "stopped before its test" in result.stdout
    (elsewhere / "runs" / "a" / "test" / "metrics").mkdir(parents=True)
    (elsewhere / "runs" / "a" / "test" / "metrics" / "metrics.json").write_text("{}")
    again = machine.run("demo", "--out=runs/a", cwd=elsewhere)
    assert f"result: {elsewhere}/runs/a/test/metrics/metrics.json" in again.stdout


def test_demo_ends_as_its_run_ends_and_respects_the_user(machine):
    machine.nvidia("13.0", "9.0", cards=2)
    result = machine.run("demo", FAKE_RUN_STATUS="3")
    assert result.returncode == 3 and "exit code 3" in result.stderr
    assert "OMP_NUM_THREADS= -m" in (call := machine.calls()[-1]) and "_node=2 " in call
    machine.run("demo", "--device", "cpu", OMP_NUM_THREADS="5")
    call = machine.calls()[-1]
    assert call.startswith("OMP_NUM_THREADS=5 ")
    assert call.endswith(f"--out {machine.project}/results/demo --device cpu")


def test_check_is_named_after_a_setup_for_a_gpu_and_writes_its_lines(machine):
    assert "startup.sh check" not in machine.run("setup").stdout
    machine.nvidia("13.0", "9.0")
    assert "startup.sh check" in machine.run("setup").stdout.splitlines()[-1]
    machine.run("check", "--items", "waits")
    wanted = "-m benchmarks.check --device cuda --output check.jsonl --items waits"
    assert machine.calls()[-1].endswith(wanted)
    assert machine.run("check", FAKE_RUN_STATUS="1").returncode == 1


def test_smoke_refuses_a_run_that_leaves_no_record(machine):
    result = machine.run("smoke", "--out", "s")
    assert result.returncode != 0 and "no readable" in result.stderr
    assert machine.calls()[-1].endswith(f"--out {machine.project}/s --device cpu --stop_after 1")


def test_every_package_is_pinned_and_torch_in_the_file_that_each_installation_has():
    lines = (PROJECT / "requirements.txt").read_text().splitlines()
    base = [line.split("#")[0].strip() for line in lines]
    for package in [*filter(None, base), *sum(EXTRAS.values(), [])]:
        assert re.fullmatch(r"[\w.\-]+(\[\w+\])?==[\w.+]+", package), package
    [torch] = [package for package in base if package.startswith("torch==")]
    assert EXTRAS["xpu"] == [f"{torch}+xpu"]
    named = [line.split("==")[0] for line in lines if line.startswith("# ")]
    assert {"# flash-attn", "# intel-extension-for-pytorch"} <= set(named)
    assert any(f"# {EXTRAS['cuda'][0]} " in line for line in lines)
    by_name = {}
    for package in sum(EXTRAS.values(), []):
        name, version = package.split("==")
        assert by_name.setdefault(name, version) == version, package


@pytest.mark.parametrize("name", ["demo", "dev", "bench", "light"])
def test_an_extra_is_added_by_name_and_kept(machine, name):
    assert machine.run("setup", f"--{name}").returncode == 0
    [install] = machine.calls()
    assert install.split("requirements.txt ")[1].split()[-len(EXTRAS[name]) :] == EXTRAS[name]
    assert machine.run(f"--{name}").returncode == 0 and machine.calls() == []
    text = (machine.project / "pyproject.toml").read_text()
    changed = EXTRAS[name][-1] + "1"
    (machine.project / "pyproject.toml").write_text(text.replace(EXTRAS[name][-1], changed))
    assert machine.run("setup", f"--{name}").returncode == 0
    assert f" {changed}" in machine.calls()[0]
    machine.run("setup", "--light")
    kept = machine.calls()
    assert kept == [] if name == "light" else f" {changed}" in kept[0]


def test_an_unknown_extra_is_refused_with_those_there_are(machine):
    for word in ("--devv", "dev", "--"):
        result = machine.run("setup", word)
        assert result.returncode != 0 and "--demo, --dev, --bench, --light" in result.stderr
    assert machine.calls() == []


UV = """echo "uv $*" >>"$CALLS"
case "$*" in
    venv*) [ -z "${FAKE_UV_NO_VENV:-}" ] || exit 2
        mkdir -p .venv/bin && cat "$(command -v python3)" >.venv/bin/python
        chmod +x .venv/bin/python ;;
    pip*) echo "${UV_DEFAULT_INDEX:-}" >>"$CALLS"; echo "Prepared 1 package"
        exit "${FAKE_UV_STATUS:-0}" ;;
esac"""


def test_uv_does_the_work_where_it_is_there(machine, index):
    machine.stub("uv", UV)
    result = machine.run("setup", FAKE_NO_VENV="1", ABLATE_TORCH_INDEX=index.url)
    assert result.returncode == 0, result.stderr
    venv, install, used = machine.calls()
    assert venv == f"uv venv --allow-existing --seed --python {machine.bin}/python3 .venv"
    assert install.startswith("uv pip install --python .venv/bin/python --index-strategy unsafe-b")
    wanted = " ".join(EXTRAS["demo"])
    assert install.endswith(f" --extra-index-url {index.url}/cpu -r requirements.txt {wanted}")
    assert used == "https://pypi.org/simple"
    assert machine.run("setup").returncode == 0 and machine.calls() == []


def test_uv_takes_pips_index_and_can_be_switched_off(machine):
    machine.stub("uv", UV)
    machine.run("setup", PIP_INDEX_URL="https://mirror.example/simple")
    assert machine.calls()[-1] == "https://mirror.example/simple"
    shutil.rmtree(machine.project / ".venv")
    machine.run("setup", ABLATE_UV="0")
    [call] = machine.calls()
    assert call.startswith("-m pip ")


@pytest.mark.parametrize("failure", ["FAKE_UV_NO_VENV", "FAKE_UV_STATUS"])
def test_pip_does_what_uv_cannot(machine, failure):
    machine.stub("uv", UV)
    result = machine.run("setup", **{failure: "1"})
    assert result.returncode == 0, result.stderr
    calls = machine.calls()
    assert ("trying pip" in result.stdout) == (failure == "FAKE_UV_STATUS")
    assert any(call.startswith("-m pip ") for call in calls) == (failure == "FAKE_UV_STATUS")


@pytest.mark.skipif(shutil.which("flock") is None, reason="flock is not on this machine")
def test_two_at_once_set_up_once(machine):
    slow = PYTHON.replace('        exit "${FAKE_PIP_STATUS:-0}"', "        sleep 1; exit 0")
    assert slow != PYTHON
    (machine.bin / "python3").write_text(slow)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: machine.run("setup"), range(2)))
    assert [result.returncode for result in results] == [0, 0], results
    assert len(machine.calls()) == 1
    assert any("another startup.sh is setting up" in result.stdout for result in results)


def test_the_script_is_valid_for_bash():
    assert subprocess.run(["bash", "-n", PROJECT / "startup.sh"]).returncode == 0
    assert os.access(PROJECT / ".ci" / "run", os.X_OK)
