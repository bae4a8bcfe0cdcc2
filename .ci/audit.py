"""Are there known vulnerabilities in what an environment has installed? `audit.py VENV SCRATCH`.

pip-audit, in an environment of its own in SCRATCH, compares the packages of VENV with PyPI's
advisories. Where it cannot be installed, or nobody answers, that is said and no failure: a missing
network is no vulnerability. Two minutes at most.
"""

import json
import subprocess
import sys
import venv
from pathlib import Path


def verdict(report: str) -> tuple[str, int]:
    """What pip-audit's report says, and the status to exit with.

    Args:
      report: pip-audit's output with `--format json`; anything else means that it has none.

    Returns:
      Lines to print; 1 where there is a known vulnerability, else 0.
    """
    try:
        packages = json.loads(report)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return "audit skipped: pip-audit could not reach its index", 0
    audited = [package for package in packages if "skip_reason" not in package]
    found = [
        f"{package['name']} {package['version']}: {vulnerability['id']}, fixed in "
        f"{', '.join(vulnerability['fix_versions']) or 'no version yet'}"
        for package in audited
        for vulnerability in package["vulns"]
    ]
    if found:
        return "\n".join(["known vulnerabilities:", *found]), 1
    if not audited:  # a mirror without advisories answers of every package that it is not there
        return f"audit skipped: the index knows none of the {len(packages)} packages", 0
    return f"audited {len(audited)} of {len(packages)} packages: no known vulnerability", 0


def report_of(environment: Path, scratch: Path) -> str:
    """pip-audit's report on an environment; nothing where it cannot be had within two minutes."""
    try:
        venv.create(scratch, with_pip=True)
        pip = [scratch / "bin" / "pip", "--disable-pip-version-check", "--timeout", "10"]
        install = [*pip, "install", "--quiet", "--retries", "1", "pip-audit"]
        subprocess.run(install, check=True, timeout=60, capture_output=True)
        (packages,) = (environment / "lib").glob("python3.*/site-packages")
        audit = [scratch / "bin" / "pip-audit", "--path", packages, "--skip-editable"]
        options = ["--format", "json", "--progress-spinner", "off", "--timeout", "10"]
        result = subprocess.run(
            [*audit, *options], check=False, timeout=60, capture_output=True, text=True
        )
        return result.stdout
    except (OSError, subprocess.SubprocessError):
        return ""


if __name__ == "__main__":
    text, status = verdict(report_of(Path(sys.argv[1]), Path(sys.argv[2])))
    print(text)
    sys.exit(status)
