"""Kernels that begin with everything imported are kernels like any other."""

import json
import os
import subprocess
import sys

import psutil
import pytest

from nvret.study import kernels

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere kernels are spawned")

# Two kernels one after the other, then one that nobody shuts down
PARENT = """
import json, os, sys, time
from jupyter_client.manager import start_new_kernel
from nvret.study import kernels

CELL = '''
import json, os, sys, tempfile
print(json.dumps({
    "pid": os.getpid(), "parent": os.getppid(), "here": os.getcwd(), "names": sorted(vars()),
    "imported": "torch" in sys.modules, "own": os.environ["OWN"], "argv": sys.argv[0],
    "threads": __import__("torch").get_num_threads(),
}))
'''

def said(client):
    texts = []
    def hook(message):
        if message["msg_type"] == "stream":
            texts.append(message["content"]["text"])
    reply = client.execute_interactive(CELL, output_hook=hook, timeout=120)
    assert reply["content"]["status"] == "ok", reply
    return json.loads("".join(texts))

if __name__ == "__main__":
    kernels.use()
    for number in range(3):
        os.environ["OWN"] = str(number)
        manager, client = start_new_kernel(cwd=sys.argv[1], startup_timeout=120)
        print(json.dumps(said(client)), flush=True)
        if number < 2:
            client.stop_channels()
            manager.shutdown_kernel()
            print(json.dumps(manager.has_kernel), flush=True)
    time.sleep(60)
"""


def test_kernels_share_a_server_and_nothing_else_and_end_with_their_parent(tmp_path):
    script, folder = tmp_path / "parent.py", tmp_path / "cwd"
    script.write_text(PARENT)
    folder.mkdir()
    with subprocess.Popen(
        [sys.executable, script, folder], stdout=subprocess.PIPE, text=True
    ) as parent:
        lines = [json.loads(parent.stdout.readline()) for _ in range(5)]
        found = lines[::2]
        last = psutil.Process(found[-1]["pid"])
        assert last.is_running()
        server = psutil.Process(found[0]["parent"])
        assert server.parent().pid == parent.pid
        parent.kill()
    last.wait(timeout=20)
    server.wait(timeout=20)
    assert lines[1::2] == [False, False]  # the first two ended when they were asked to
    assert len({one["pid"] for one in found}) == 3
    assert {one["parent"] for one in found} == {server.pid}
    assert [one["own"] for one in found] == ["0", "1", "2"]
    assert {one["here"] for one in found} == {os.path.realpath(folder)}
    assert all(one["imported"] for one in found)
    assert {one["argv"] for one in found} == {"ipykernel_launcher"}
    assert "manager" not in found[0]["names"]  # the parent's
    assert found[0]["names"] == found[2]["names"]


def test_what_is_imported_beforehand_can_be_imported():
    """A server ignores what it cannot import, and would be of no use without a word."""
    command = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
    subprocess.run([sys.executable, "-c", command, *kernels.IMPORTED], check=True)
