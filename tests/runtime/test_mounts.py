"""A directory of Moat's own goes, and what is mounted below it, the user's, stays."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from moat.paths import Home
from moat.runtime import mounts
from moat.runtime.records import RunRecord, State

Moat = Callable[..., subprocess.CompletedProcess[str]]
RUN = "run_00000000beef"


def test_a_workspace_that_cannot_be_unmounted_is_not_deleted(
    moat: Moat, moat_bin: str, home: Path, tmp_path: Path
) -> None:
    """`moat destroy` after a crash, by a root that may not unmount.

    Seen failing without `mounts.remove` looking at what is left: it said that the run was removed.
    """
    place = Home.from_environment()
    precious = tmp_path / "workspace" / "precious"
    precious.write_text("x")
    bound = tmp_path / RUN / f"{RUN}.binds" / "0"
    bound.mkdir(parents=True)
    subprocess.run(["mount", "--bind", precious.parent, bound], check=True)
    record = RunRecord(
        id=RUN,
        name="crashed",
        workspace=str(precious.parent),
        argv=("true",),
        created_at=0.0,
        state=State.LOST,
        runtime="embedded",
        directory=str(tmp_path / RUN),
    )
    place.run(RUN).mkdir(parents=True)
    (place.run(RUN) / "run.json").write_text(json.dumps(record.to_json()))
    try:
        refused = subprocess.run(
            ["setpriv", "--bounding-set=-sys_admin", moat_bin, "destroy", RUN],
            capture_output=True,
            text=True,
            check=False,
        )
        assert refused.returncode == 3
        assert refused.stderr == f"moat: error: it cannot be unmounted: {bound}\n"
        assert precious.exists()
        assert moat("destroy", RUN).returncode == 0
    finally:
        subprocess.run(["umount", "--lazy", bound], check=False)
    assert mounts.below(tmp_path) == []
    assert not (tmp_path / RUN).exists()
    assert not place.run(RUN).exists()
    assert precious.read_text() == "x"
