"""The build hook's recipe makes libraries for every machine that it names, on this one."""

import platform
import struct
import subprocess
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytest.importorskip("hatchling")

_spec = spec_from_file_location("hatch_build", ROOT / "tools" / "hatch_build.py")
assert _spec is not None
recipe = module_from_spec(_spec)
_spec.loader.exec_module(recipe)

ELF_MACHINES = {"x86_64": 62, "aarch64": 183}
LIBRARIES = [
    (machine, path, processor)
    for machine, libraries in recipe.TARGETS.items()
    # Those of this machine are compiled by whoever runs the tests.
    if machine != platform.machine()
    for path, processor in libraries.items()
]


def test_every_machine_has_every_library() -> None:
    for libraries in recipe.TARGETS.values():
        folders = {str(Path(path).parent.parent) for path in libraries}
        assert folders == set(recipe.ALL_FOLDERS)
    assert recipe.TARGETS.keys() == ELF_MACHINES.keys()


@pytest.mark.skipif(find_spec("ziglang") is None, reason="the compiler is not installed")
@pytest.mark.parametrize(("machine", "path", "processor"), LIBRARIES)
def test_sources_compile_for_other_machines(
    tmp_path: Path, machine: str, path: str, processor: str
) -> None:
    library = tmp_path / "library.so"
    sources = (ROOT / path).parent.parent / "c"
    command = recipe.compile_command(library, machine, processor, sources)
    # -O0: clang warns the same at any level, and nearly all the time goes into the others.
    subprocess.run([*command, "-O0"], check=True)
    header = library.read_bytes()[:20]
    assert header[:4] == b"\x7fELF"
    assert struct.unpack_from("<H", header, 18) == (ELF_MACHINES[machine],)
