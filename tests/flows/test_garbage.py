"""Where the garbage of a server is looked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows.services import PATIENCE

SERVER = """
import gc, sqlite3, sys, threading, time, weakref
from flows import garbage

class Node:
    pass

def cycle(kept=None):
    node = Node()
    node.itself, node.kept = node, kept
    return weakref.ref(node)

def write():
    began.set()
    try:
        waits.execute("insert into t values (1)")
        print("written")
    except sqlite3.OperationalError as error:
        print(error)

if sys.argv[2] == "beside":
    garbage.collect_beside()
seconds = float(sys.argv[3])
options = {"check_same_thread": False, "isolation_level": None, "timeout": seconds}
waits, holds = (sqlite3.connect(sys.argv[1], **options) for _ in range(2))
waits.execute("create table t (a)")
statement = waits.execute("select 1 union select 2")
holds.execute("begin immediate")
began = threading.Event()
writer = threading.Thread(target=write)
writer.start()
began.wait()
time.sleep(0.5)
cycle(statement)
del statement
for _ in range(10_000):
    late = cycle()
deadline = time.monotonic() + seconds
while late() is not None and time.monotonic() < deadline:
    cycle()
    time.sleep(0.0001)
holds.execute("commit")
writer.join()
while late() is not None:
    cycle()
"""


@pytest.mark.parametrize(
    ("collector", "seconds", "said"), [("beside", PATIENCE, "written"), ("own", 2, "database is locked")]
)
def test_a_server_does_not_wait_for_a_statement_whose_connection_waits_for_the_server(
    tmp_path: Path, collector: str, seconds: float, said: str
) -> None:
    """The interpreter's own collector does, in the thread that allocates: until the database's time-out.

    That the script ends says that the garbage is collected, with either.
    """
    command = [sys.executable, "-c", SERVER, tmp_path / "a.db", collector, str(seconds)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=2 * PATIENCE)
    assert ended.stdout.strip() == said
