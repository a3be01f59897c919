"""What is installed, and what comes with the sources alone."""

from __future__ import annotations

import subprocess
import tarfile
import zipfile
from pathlib import Path

from tests.e2e.processes import ROOT, python


def test_files_for_operators_come_with_the_sources_and_are_not_installed(tmp_path: Path) -> None:
    command = python("-m", "build", "--no-isolation", "--outdir", tmp_path, ROOT)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=100)
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        installed = archive.namelist()
    with tarfile.open(sdist) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    tops = {name.partition("/")[0] for name in installed}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"resty_upstream"}
    assert "resty_upstream/contrib/prometheus.py" in installed
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / "contrib").rglob("*") if path.is_file()}
    assert ours <= files
