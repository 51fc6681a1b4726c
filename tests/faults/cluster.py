"""A Ray cluster of several nodes on this machine, in a process of its own that takes orders on its standard input.

    add CPUS [NAME=AMOUNT]    one more node; answers its id
    remove ID                 ends a node without warning
    free [ID]                 answers the CPUs that a node, or all of them, have left

The first node's CPUs and resources are this script's arguments; GPU=2 gives it made-up GPUs, client=10001 a server for
ray:// addresses. Started by test_ray_runs.py, in a folder that holds none of the user's code.
"""

from __future__ import annotations

import sys

import ray
from ray.cluster_utils import Cluster


def amounts(words: list[str]) -> dict[str, float]:
    return {name: float(amount) for name, _, amount in (word.partition("=") for word in words)}


def main() -> None:
    resources = amounts(sys.argv[2:])
    head = {"num_cpus": int(sys.argv[1]), "include_dashboard": False}
    for name, option in (("GPU", "num_gpus"), ("client", "ray_client_server_port")):
        if name in resources:
            head[option] = int(resources.pop(name))
    head["resources"] = resources
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = {}
    ray.init(address=cluster.address, log_to_driver=False)
    print(cluster.address, flush=True)
    for line in sys.stdin:
        order, *words = line.split()
        if order == "add":
            node = cluster.add_node(num_cpus=int(words[0]), resources=amounts(words[1:]))
            cluster.wait_for_nodes()
            nodes[node.node_id] = node
            print(node.node_id, flush=True)
        elif order == "remove":
            cluster.remove_node(nodes.pop(words[0]), allow_graceful=False)
            print("removed", flush=True)
        else:
            free = ray._private.state.available_resources_per_node()
            chosen = words or list(free)
            print(sum(free[node].get("CPU", 0.0) for node in chosen if node in free), flush=True)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
