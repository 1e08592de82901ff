"""Whether a pinned dependency has a known vulnerability: `make audit`, which asks osv.dev through pip-audit.

Exit code 1 where one has; 0 where none has, or where nobody could be asked, which is said in one line.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PINS = Path(__file__).resolve().parent.parent / "constraints.txt"
OPTIONS = ("--no-deps", "--disable-pip", "--progress-spinner", "off", "--vulnerability-service", "osv", "-f", "json")
UNREACHABLE = ("ConnectionError", "ConnectTimeout", "ReadTimeout", "ConnectionRefused", "ServiceError", "ProxyError")


def audit(command: Sequence[str]) -> tuple[int, list[str]]:
    """The exit code and what to print, from what `command` answers of `PINS`."""
    done = subprocess.run(
        [*command, *OPTIONS, "-r", str(PINS)], capture_output=True, text=True, check=False, timeout=600
    )
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "it says nothing")
        if any(word in done.stderr for word in UNREACHABLE):
            return 0, [f"audit: not checked, osv.dev cannot be reached ({last[:120]})"]
        return 2, [f"audit: pip-audit failed ({last[:200]})"]
    # A package that the service does not know counts as none without vulnerabilities in pip-audit's own summary.
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    found = [
        f"{package['name']} {package['version']}: {flaw['id']}, mended in {', '.join(flaw['fix_versions']) or 'none'}"
        for package in packages
        for flaw in package.get("vulns", [])
    ]
    checked = len(packages) - len(skipped)
    lines = [f"audit: {checked} of {len(packages)} pinned packages checked, {len(found)} known vulnerabilities"]
    if skipped:
        shown = ", ".join(skipped[:5]) + (", ..." if len(skipped) > 5 else "")
        lines.append(f"audit: {len(skipped)} not checked ({shown})")
    return (1 if found else 0), [*lines, *found]


def main() -> int:
    """Ask, print, and return the exit code."""
    code, lines = audit([sys.executable, "-m", "pip_audit"])
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
