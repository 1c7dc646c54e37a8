"""What takes a test run minutes to build, built once for all its workers. Leaves out what that is."""

import fcntl
import os
import shutil


def built_once(tmp_path_factory, name, build):
    """The folder of that name in which `build(folder)` came to its end, by whichever worker came first."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    shared.mkdir(exist_ok=True)
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "done").exists():
            shutil.rmtree(shared / "made", ignore_errors=True)
            build(shared / "made")
            (shared / "done").touch()
    return shared / "made"
