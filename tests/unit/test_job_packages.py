"""What a script needs besides the locked environment: chosen by the real uv, fetched by the real pip, offline."""

import os
import subprocess
import sys
import zipfile

import pytest
from paths import ROOT

FETCH = ROOT / "roles/job_packages/files/fetch_packages.py"
TOOLS = ROOT / ".venv-uv/bin"
LOCK = """\
locked-one==1.0 \\
    --hash=sha256:0000000000000000000000000000000000000000000000000000000000000000
    # via minos
torchlike==2.0+cpu \\
    --hash=sha256:0000000000000000000000000000000000000000000000000000000000000000
"""


def wheel(folder, name, version, *needs):
    """A package of one module."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    files = {
        f"{module}.py": f"VERSION = '{version}'\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        + "".join(f"Requires-Dist: {need}\n" for need in needs),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{module}-{version}-py3-none-any.whl", "w") as packed:
        for file, text in files.items():
            packed.writestr(file, text)


@pytest.fixture
def index(tmp_path):
    """Folders with packages: those of the lock, and others."""
    locked, others = tmp_path / "locked", tmp_path / "others"
    locked.mkdir()
    others.mkdir()
    wheel(locked, "locked-one", "1.0")
    wheel(locked, "torchlike", "2.0+cpu")
    wheel(others, "locked-one", "2.0")
    wheel(others, "shapes", "0.8", "torchlike>=2", "helper")
    wheel(others, "shapes", "0.9", "Locked_One>=2")
    wheel(others, "helper", "3.1", "locked.one")
    wheel(others, "future", "1.0", "locked-one>=2")
    (tmp_path / "lock.txt").write_text(LOCK)
    return tmp_path


def fetch(index, wanted):
    (index / "extra.txt").write_text(wanted)
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index / "others"), "PIP_CONFIG_FILE": os.devnull}
    environment |= {"UV_OFFLINE": "1", "UV_FIND_LINKS": str(index / "others")}
    places = [index / name for name in ("extra.txt", "lock.txt", "locked", "packages-1")]
    return subprocess.run(
        [sys.executable, "-", *places, TOOLS / "uv", TOOLS / "pip", sys.executable],
        input=FETCH.read_text(),
        capture_output=True,
        text=True,
        env=environment,
    )


def test_only_what_the_lock_lacks_is_fetched_and_goes_with_it(index):
    done = fetch(index, "shapes\ntorchlike\n")
    assert done.returncode == 0, done.stderr
    place = index / "packages-1"
    assert (place / "pins.txt").read_text() == "helper==3.1\nshapes==0.8\n", "0.9 would change a locked one"
    assert sorted(file.name.partition("-")[0] for file in (place / "wheels").iterdir()) == ["helper", "shapes"]
    assert (place / "complete").exists()
    assert not list(index.glob(".packages*")), "nothing is left half done"


def test_they_install_without_an_index_beside_the_environment(index):
    fetch(index, "shapes\n")
    target = index / "target"
    command = [TOOLS / "uv", "pip", "install", "--quiet", "--no-cache", "--python", sys.executable, "--target", target]
    place = index / "packages-1"
    subprocess.run(
        [*command, "--no-deps", "--no-index", "--find-links", place / "wheels", "-r", place / "pins.txt"], check=True
    )
    found = "import shapes, torch; print(shapes.VERSION, torch.__version__)"
    shown = subprocess.run(
        [sys.executable, "-c", found], env={"PYTHONPATH": str(target)}, capture_output=True, text=True, check=True
    )
    assert shown.stdout.startswith("0.8 2.")


def test_what_is_all_there_needs_nothing(index):
    done = fetch(index, "locked-one\n")
    assert done.stdout == "nothing: the locked environment has all of it\n"
    assert (index / "packages-1/pins.txt").read_text() == ""
    assert (index / "packages-1/complete").exists()


REFUSED = {
    "one that needs another": ("future\n", "locked-one"),
    "one that is not there": ("nosuch\n", "nosuch"),
}


@pytest.mark.parametrize(("wanted", "named"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_with_one_line(wanted, named, index):
    done = fetch(index, wanted)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("the extra packages do not go with the locked environment: Because ")
    assert named in done.stderr and done.stderr.count("\n") == 1
    assert not (index / "packages-1").exists()


def test_what_cannot_be_fetched_is_refused_with_one_line(index):
    broken = index / "others/helper-3.1-py3-none-any.whl"
    metadata = zipfile.ZipFile(broken).read("helper-3.1.dist-info/METADATA")
    with zipfile.ZipFile(broken, "w") as packed:
        packed.writestr("helper-3.1.dist-info/METADATA", metadata)
    done = fetch(index, "shapes\n")
    assert done.returncode == 2
    assert done.stderr.startswith("the extra packages cannot be fetched: ") and done.stderr.count("\n") == 1
    assert not list(index.glob("*packages-1*"))
