"""Who may import whom, and what the published part may never do, read from the source of every module."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = {
    "nodes": {"guidance", "training", "feedback", "diffusion"},
    "guidance": {"feedback", "diffusion"},
    "training": {"feedback", "diffusion"},
    "feedback": set(),
    "diffusion": set(),
}
COMFYUI = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "latent_preview", "nodes", "server"}
# The registry refuses packs that start programs, evaluate text, talk to the network or unpickle.
FORBIDDEN_MODULES = {
    *("subprocess", "multiprocessing", "pty", "socket", "ssl", "ftplib", "smtplib", "telnetlib", "urllib.request"),
    *("http.client", "http.server", "requests", "httpx", "pip", "ensurepip", "pickle", "cPickle", "dill", "marshal"),
    *("shelve", "runpy", "ctypes", "code", "webbrowser"),
}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "input", "breakpoint"}
FORBIDDEN_ATTRIBUTES = {
    ("os", "system"),
    ("os", "popen"),
    ("sys", "path"),
    ("torch", "load"),
    ("torch", "save"),
}


def modules_of(package: str) -> list[Path]:
    return sorted(path for path in (ROOT / package).rglob("*.py") if "__pycache__" not in path.parts)


PUBLISHED = [ROOT / "__init__.py", *(path for package in LAYERS for path in modules_of(package))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(source: str, package: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yields ("own" | "foreign", dotted name) for every import, at the top of the module or inside a function.

    `package` is the folder of the module below the root, () for the root itself: `from ..diffusion import x` in
    guidance/ is ("own", "diffusion.x").
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (("foreign", alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (("foreign", f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1]
            assert node.level <= len(package) + 1, f"a relative import leaves the pack: {ast.unparse(node)}"
            base = [*above, *([node.module] if node.module else [])]
            yield from (("own", ".".join([*base, alias.name])) for alias in node.names)


def imports_of(path: Path) -> Iterator[tuple[str, str]]:
    return imports(path.read_text("utf-8"), path.relative_to(ROOT).parts[:-1])


def is_or_lies_in(name: str, modules: set[str]) -> bool:
    return any(name == module or name.startswith(module + ".") for module in modules)


def test_every_package_of_the_house_is_there() -> None:
    for package in LAYERS:
        assert modules_of(package), package


@pytest.mark.parametrize("package", LAYERS)
def test_a_package_imports_only_itself_and_what_lies_below_it(package: str) -> None:
    allowed = LAYERS[package] | {package}
    for path in modules_of(package):
        own = {name.split(".")[0] for kind, name in imports_of(path) if kind == "own"}
        assert own <= allowed, f"{name_of(path)} imports {sorted(own - allowed)}"


@pytest.mark.parametrize("path", PUBLISHED, ids=name_of)
def test_only_nodes_knows_comfyui(path: Path) -> None:
    foreign = {name for kind, name in imports_of(path) if kind == "foreign"}
    if path.is_relative_to(ROOT / "nodes"):
        return
    known = {name for name in foreign if is_or_lies_in(name, COMFYUI)}
    assert not known, f"{name_of(path)} imports {sorted(known)}"


@pytest.mark.parametrize("path", PUBLISHED, ids=name_of)
def test_inside_the_pack_imports_are_relative_and_never_reach_the_demo(path: Path) -> None:
    for kind, name in imports_of(path):
        if kind == "foreign":
            assert not is_or_lies_in(name, {"feedback_loop", "demo", "bench", "tests", *LAYERS} - COMFYUI), name
        else:
            assert name.split(".")[0] in LAYERS, f"{name_of(path)} imports {name}"


@pytest.mark.parametrize("path", PUBLISHED, ids=name_of)
def test_the_published_part_starts_no_program_evaluates_no_text_and_opens_no_connection(path: Path) -> None:
    assert list(offences(path)) == []


def offences(path: Path) -> Iterator[str]:
    for _, name in imports_of(path):
        if is_or_lies_in(name, FORBIDDEN_MODULES):
            yield f"imports {name}"
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
            yield f"line {node.lineno} calls {node.func.id}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (node.value.id, node.attr) in FORBIDDEN_ATTRIBUTES:
                yield f"line {node.lineno} uses {node.value.id}.{node.attr}"


@pytest.mark.parametrize("path", PUBLISHED, ids=name_of)
def test_devices_come_from_tensors_and_from_comfyui(path: Path) -> None:
    """A literal "cuda" or `.cuda()` leaves ROCm, MPS and the CPU out, and ComfyUI's memory management blind."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            assert node.attr not in ("cuda", "mps"), f"{name_of(path)}:{node.lineno}"
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not re.fullmatch(r"(cuda|mps)(:\d+)?", node.value), f"{name_of(path)}:{node.lineno}"


def test_the_checks_see_what_they_forbid() -> None:
    source = "from ..training import loop\nfrom . import gradient\ndef f():\n    from ...x import y\n"
    with pytest.raises(AssertionError, match="leaves the pack"):
        list(imports(source, ("guidance",)))
    found = list(imports("from ..training import loop\nimport comfy.sd\n", ("guidance",)))
    assert found == [("own", "training.loop"), ("foreign", "comfy.sd")]
    assert is_or_lies_in("urllib.request.urlopen", FORBIDDEN_MODULES)
    assert not is_or_lies_in("urllib.parse.quote", FORBIDDEN_MODULES)


def test_importing_the_core_packages_needs_no_comfyui(core_modules: set[str]) -> None:
    assert not {name for name in core_modules if is_or_lies_in(name, COMFYUI)}


def test_importing_the_core_packages_leaves_the_heavy_ones_for_later(core_modules: set[str]) -> None:
    """ComfyUI has torch, SQLAlchemy and alembic loaded by then; these would slow its start on every day."""
    heavy = {"peft", "diffusers", "transformers", "accelerate", "sklearn", "scipy", "pandas", "torchvision"}
    assert core_modules & heavy == set()


@pytest.fixture(scope="module")
def core_modules() -> set[str]:
    """The top-level modules that a fresh interpreter holds once it has imported every core module that nodes/ reach."""
    import subprocess
    import sys

    names = sorted(reached_from_nodes())
    code = (
        "import importlib, importlib.util as u, sys\n"
        f"s = u.spec_from_file_location('feedback_loop', {str(ROOT / '__init__.py')!r}, "
        f"submodule_search_locations=[{str(ROOT)!r}])\n"
        "m = sys.modules['feedback_loop'] = u.module_from_spec(s); s.loader.exec_module(m)\n"
        f"for name in {names!r}: importlib.import_module('feedback_loop.' + name)\n"
        "print('\\n'.join({name.split('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def reached_from_nodes() -> set[str]:
    """The core modules that a module of nodes/ imports at its top level."""
    return {
        module
        for path in modules_of("nodes")
        for statement in ast.parse(path.read_text("utf-8")).body
        for kind, name in imports(ast.unparse(statement), path.relative_to(ROOT).parts[:-1])
        if kind == "own" and (module := module_behind(name)) and not module.startswith("nodes")
    }


def module_behind(name: str) -> str | None:
    """`feedback.store.FeedbackStore` -> `feedback.store`: the longest prefix that is a file or a package."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        stem = ROOT.joinpath(*parts[:length])
        if stem.with_suffix(".py").is_file() or (stem / "__init__.py").is_file():
            return ".".join(parts[:length])
    return None
