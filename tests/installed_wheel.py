"""The wheel as an outsider has it: installed with what it requires, and no checkout on the path."""

import json
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]

RUN = "import json, runpy, sys; sys.path[:0] = json.loads(sys.argv.pop(1)); del sys.argv[0]; "


def build(folder: Path) -> None:
    """Makes a folder with the wheel, built from a copy: building leaves folders behind."""
    copy = folder / "source"
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.rstrip("\0").split("\0")  # fmt: skip
    for file in filter(lambda file: (ROOT / file).is_file(), files):
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        (copy / file).write_bytes((ROOT / file).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, copy],
        check=True,
        capture_output=True,
    )


def required_by(wheel: Path) -> set[str]:
    """Names of what the wheel requires without extras."""
    (path,) = (n for n in zipfile.ZipFile(wheel).namelist() if n.endswith(".dist-info/METADATA"))
    lines = zipfile.ZipFile(wheel).read(path).decode().splitlines()
    return {
        re.match(r"Requires-Dist: ([\w-]+)", line)[1]
        for line in lines
        if line.startswith("Requires-Dist: ") and "extra ==" not in line
    }


def with_their_requirements(distributions: set[str]) -> set[str]:
    """Names of distributions and of all that they require without extras, as installed here."""
    found: set[str] = set()
    waiting = list(distributions)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for another platform or Python
            continue
        found.add(name)
        waiting += [re.match(r"[\w.-]+", r)[0] for r in requires if "extra ==" not in r]
    return found


def install(wheel: Path, folder: Path, *others: str) -> list[Path]:
    """A path to import from: the wheel unpacked, and links to what it and `others` require."""
    installed, dependencies = folder / "installed", folder / "dependencies"
    zipfile.ZipFile(wheel).extractall(installed)
    dependencies.mkdir()
    for name in with_their_requirements(required_by(wheel) | set(others)):
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            link = dependencies / top
            if not link.exists():
                link.symlink_to(Path(str(distribution.locate_file(top))))
    return [installed, dependencies]


def run(path: list[Path], script: Path, *arguments: str, cwd: Path) -> str:
    """What a script prints, in a process that imports from the path alone."""
    code = RUN + "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-I", "-S", "-W", "error::UserWarning", "-c", code]
    paths = json.dumps([str(p) for p in path])
    result = subprocess.run(
        [*command, paths, str(script), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout
