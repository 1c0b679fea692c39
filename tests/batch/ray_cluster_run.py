"""Runs `patchcaption batch` on a cluster of three machines, and kills one in the middle. Run by test_ray_cluster.py.

Usage: ray_cluster_run.py ARGUMENTS..., those of the command, to which the address of the cluster is added. Prints the
exit code, and how many parts were done when the machine was killed.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from runtime.batch.run_folder import RunFolder
from runtime.cli.main import main as run_command

LOOPBACK = {"node_ip_address": "127.0.0.1", "num_cpus": 1, "object_store_memory": 80 * 2**20}
QUICK_TO_NOTICE = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 3,
}
KILLED_AFTER = 2


def main() -> None:
    head = {**LOOPBACK, "include_dashboard": False, "_system_config": QUICK_TO_NOTICE}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    machines = [cluster.add_node(**LOOPBACK) for _ in range(2)]
    cluster.wait_for_nodes()
    killed_after = list[int]()

    def add(folder: RunFolder, number: int, data: bytes) -> None:
        add_part(folder, number, data)
        if len(folder.done()) == KILLED_AFTER:
            killed_after.append(len(folder.done()))
            os.kill(machines[0].all_processes["raylet"][0].process.pid, signal.SIGKILL)

    add_part, RunFolder.add = RunFolder.add, add  # type: ignore[assignment, method-assign]
    code = run_command([*sys.argv[1:], "--ray", cluster.address])
    print(code, *killed_after)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    assert not Path("ray").exists(), "the folder would hide the package"
    main()
