"""The bill of materials: CycloneDX, from the packages as they lie in the runtime. Leaves out installing them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from release_suite.facts import Facts, NotReleasable


def write(facts: Facts, runtime: Path, sums: dict[str, str], path: Path) -> None:
    """`sums`: SHA-256 by normalised package name. Raises NotReleasable for a bill that its schema refuses."""
    python = runtime / "bin/python"
    maker = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible", "--spec-version", "1.6"]
    about = ["--pyproject", facts.root / "pyproject.toml", "--mc-type", "application", "--no-validate"]
    made = subprocess.run([*maker, *about, python], capture_output=True, text=True, env=facts.environ)
    if made.returncode:
        raise NotReleasable(f"the bill of materials could not be made: {made.stderr.strip()}")
    bill = json.loads(made.stdout)
    components = [component for component in bill["components"] if component["name"] != "llm-proxy"]
    for component in components:
        if known := sums.get(component["name"].lower().replace("_", "-").replace(".", "-")):
            component["hashes"] = [{"alg": "SHA-256", "content": known}]
    bill["components"] = sorted([_interpreter(python), *components], key=lambda one: str(one["bom-ref"]))
    bill["metadata"]["component"]["version"] = facts.version
    text = json.dumps(bill, indent=1, sort_keys=True) + "\n"
    check(text)
    path.write_text(text)


def _interpreter(python: Path) -> dict[str, Any]:
    """What is in the tree beside the packages."""
    told = "import json, platform, ssl; print(json.dumps([platform.python_version(), ssl.OPENSSL_VERSION]))"
    version, tls = json.loads(subprocess.check_output([python, "-I", "-c", told], text=True))
    return {
        "type": "platform",
        "bom-ref": f"cpython=={version}",
        "name": "CPython",
        "version": version,
        "cpe": f"cpe:2.3:a:python:python:{version}:*:*:*:*:*:*:*",
        "licenses": [{"license": {"id": "PSF-2.0"}}],
        "properties": [{"name": "openssl", "value": tls}],
    }


def check(text: str) -> None:
    """Raises NotReleasable for what is not CycloneDX."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    if wrong := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        raise NotReleasable(f"the bill of materials is not CycloneDX 1.6: {wrong}")
