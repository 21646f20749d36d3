"""A Ray cluster of three nodes in a process of its own: `python tests/three_nodes.py DASHBOARD_PORT`.

Prints one line of JSON when it stands; then `kill` (SIGKILL to all processes of the newest node) and `add` on standard
input are answered by a line each. It ends, with all its nodes, when standard input does.
"""

from __future__ import annotations

import json
import sys
import tempfile
from typing import Any

from ray.cluster_utils import Cluster

NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}


def main() -> None:
    """Hold the cluster until standard input ends."""
    dashboard = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": int(sys.argv[1])}
    # The head's agent, which takes jobs, would have a fixed port; any other Ray on this machine may hold that one.
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, **dashboard, "dashboard_agent_listen_port": 0})
    with tempfile.TemporaryDirectory(prefix="nodes-", ignore_cleanup_errors=True) as folder:

        def add() -> Any:
            # As on a machine of its own: in a folder that nodes share, a new one unpacks the job's code anew under
            # the workers of the others that are importing it.
            return cluster.add_node(**NODE, temp_dir=tempfile.mkdtemp(dir=folder))

        nodes = [add() for _ in range(2)]
        say({"address": cluster.address})
        try:
            for line in sys.stdin:
                if line.strip() == "kill":
                    cluster.remove_node(nodes.pop(), allow_graceful=False)
                else:
                    nodes.append(add())
                say({"nodes": 1 + len(nodes)})
        finally:
            cluster.shutdown()


def say(message: object) -> None:
    """One line of JSON on standard output."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
