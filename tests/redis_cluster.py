"""A real Redis Cluster for tests: three masters, three replicas, slots that move, nodes that die or stand still.

    with RedisCluster(folder) as cluster:
        cluster.url                            # any node's address, for a cluster client
        with cluster.moving(slot) as move:     # in the middle of a live migration
            move.migrate(move.keys()[:1])
        cluster.kill_master(slot)
        cluster.wait_failover(slot)
        cluster.heal()                         # all nodes up again, nothing moving, nothing stored

All calls block: an async test runs them in a thread where something else must go on meanwhile. `start`, `restart`, `revive` and
`heal` must come from a thread that outlives the nodes (see `redis_process.spawn`).
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import redis
from redis.crc import key_slot
from redis_process import client, spawn, until, words_of

SLOTS: Final = 16_384
_HOST: Final = "127.0.0.1"
_MASTERS: Final = 3
_NODES: Final = 6
_BUS: Final = 10_000  # a node's bus listens on its port plus this
# Node and bus ports do not overlap, and both lie below those that Linux hands out by itself (32768 on).
_PORTS: Final = (10_000, 20_000)
_PORT_TRIES: Final = 5
_START_S: Final = 20.0
_SETTLE_S: Final = 20.0


class Node:
    """One redis-server of the cluster; its folder and ports outlive its process."""

    def __init__(self, folder: Path, configuration: dict[str, object], binary: Path | None = None) -> None:
        self._folder = folder
        self._configuration = configuration
        self._binary = binary
        self.id = ""
        self.process: subprocess.Popen[bytes] | None = None
        self.paused = False
        folder.mkdir()
        self._take_port()

    def __repr__(self) -> str:
        return f"<node {self.port}>"

    @property
    def alive(self) -> bool:
        """Whether it runs and is not standing still."""
        return self.process is not None and not self.paused

    def start(self) -> None:
        own = {"port": self.port, "dir": self._folder, "logfile": self._folder / "redis.log"}
        self.process = spawn(self._configuration | own, binary=self._binary)

    def await_answer(self) -> None:
        """Raises RuntimeError if the server ended at once, and quotes its log."""
        tries = 0

        def answers() -> bool:
            nonlocal tries
            assert self.process is not None
            if self.process.poll() is not None:
                tries += 1
                if self.id or tries == _PORT_TRIES:
                    raise RuntimeError(f"{self} ended at once: {words_of(self._folder / 'redis.log')}")
                self._take_port()  # someone else was faster; nobody knows this node yet, so it may have another
                self.start()
            return bool(self.client.ping())

        until(answers, _START_S, f"{self} answers")

    def kill(self) -> None:
        """SIGKILL. Does nothing to a node that is dead already."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.process, self.paused = None, False
        self.client.close()

    def pause(self) -> None:
        """SIGSTOP. The kernel still accepts connections and data for it."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)
        self.paused = True

    def resume(self) -> None:
        """SIGCONT."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)
        self.paused = False

    def ask(self, *command: Any) -> Any:
        """The raw reply to a command, its words given one by one: under one joined name redis-py would parse some replies."""
        return self.client.execute_command(*command)

    def info(self, section: str) -> dict[str, Any]:
        """INFO's section."""
        found: dict[str, Any] = self.client.info(section)  # type: ignore[assignment]
        return found

    def view(self) -> dict[str, list[str]]:
        """CLUSTER NODES as this node sees it: node id -> fields of its line (flags, master, ..., slots)."""
        lines = self.ask("CLUSTER", "NODES").decode().splitlines()
        return {fields[0]: fields[1:] for fields in map(str.split, lines)}

    def state_ok(self) -> bool:
        """Whether it serves."""
        return b"cluster_state:ok" in self.ask("CLUSTER", "INFO")

    def _take_port(self) -> None:
        self.port = free_port()
        self.client = client(host=_HOST, port=self.port)


class Move:
    """A slot on its way: IMPORTING at `target`, MIGRATING at `source`, keys on either side."""

    def __init__(self, cluster: RedisCluster, slot: int, source: Node, target: Node) -> None:
        self._cluster = cluster
        self.slot = slot
        self.source = source
        self.target = target
        self.done = False
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)

    def keys(self) -> list[bytes]:
        """The slot's keys that are still at the source."""
        keys: list[bytes] = self.source.ask("CLUSTER", "GETKEYSINSLOT", self.slot, 1_000_000)
        return keys

    def migrate(self, keys: Sequence[bytes | str]) -> None:
        """Move these keys now, atomically."""
        if keys:
            self.source.ask("MIGRATE", _HOST, self.target.port, "", 0, 5_000, "KEYS", *keys)

    def finish(self, step: int = 100) -> None:
        """Move what is left, `step` keys at a time, and hand the slot over; returns when all living nodes know. Idempotent."""
        if self.done:
            return
        while left := self.keys():
            self.migrate(left[:step])
        # The target first: were it the last, a source that lost the slot would point at a node that does not own it yet.
        for node in (self.target, self.source, *self._cluster.nodes):
            if node.alive and node.info("replication")["role"] == "master":
                node.ask("CLUSTER", "SETSLOT", self.slot, "NODE", self.target.id)
        self.done = True
        self._cluster.await_owner(self.slot, lambda owner: owner is self.target)


class RedisCluster:
    """Six redis-servers on free ports of this machine, as a context manager. Nothing is written to disk but the nodes' tables.

    Args:
        folder: for the nodes' folders; must exist.
        node_timeout_ms: after so long without an answer a master is failed over (plus an election of 0.5 to 1 s).
        full_coverage: whether a slot without a master stops the whole cluster.
        binary: another redis-server than the one that is at hand.
        settings: more lines of each node's configuration.
    """

    def __init__(
        self,
        folder: Path,
        *,
        node_timeout_ms: int = 1_000,
        full_coverage: bool = False,
        binary: Path | None = None,
        **settings: object,
    ) -> None:
        configuration: dict[str, object] = {
            "bind": _HOST,
            "cluster-enabled": "yes",
            "cluster-node-timeout": node_timeout_ms,
            "cluster-require-full-coverage": "yes" if full_coverage else "no",
            "cluster-replica-validity-factor": 0,  # a replica stands for election however long it was cut off
            "cluster-migration-barrier": _NODES,  # replicas stay with their masters
            "repl-diskless-sync": "yes",
            "repl-diskless-sync-delay": 0,
            "repl-ping-replica-period": 1,
            "appendonly": "no",
            "save": '""',
            "loglevel": "notice",
        }
        self._folder = folder
        self._binary = binary
        self._configuration = configuration | {name.replace("_", "-"): value for name, value in settings.items()}
        self._moves: list[Move] = []
        self.nodes: list[Node] = []

    def start(self) -> None:
        """Start six nodes, the first three as masters of a third of the slots each, and return when all agree."""
        self.nodes = [Node(self._folder / f"node-{n}", self._configuration, self._binary) for n in range(_NODES)]
        for node in self.nodes:
            node.start()
        for epoch, node in enumerate(self.nodes, start=1):
            node.await_answer()
            node.id = node.ask("CLUSTER", "MYID").decode()
            # Given beforehand: equal epochs would first have to be fought out, while slots already have owners.
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", epoch)
        bounds = [SLOTS * n // _MASTERS for n in range(_MASTERS + 1)]
        for n, master in enumerate(self.nodes[:_MASTERS]):
            master.ask("CLUSTER", "ADDSLOTS", *range(bounds[n], bounds[n + 1]))
        for node in self.nodes:
            for other in self.nodes:  # everyone meets everyone: gossip alone would take seconds
                node.ask("CLUSTER", "MEET", _HOST, other.port)
        ids = {node.id for node in self.nodes}
        for node in self.nodes:
            until(lambda node=node: node.view().keys() == ids, _START_S, f"{node} knows the others")  # type: ignore[misc]
        for master, replica in zip(self.nodes[:_MASTERS], self.nodes[_MASTERS:], strict=True):
            replica.ask("CLUSTER", "REPLICATE", master.id)
        self.await_settled()

    def stop(self) -> None:
        """Kill every node."""
        for node in self.nodes:
            node.kill()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def startup_nodes(self) -> list[tuple[str, int]]:
        """(host, port) of every node, dead ones included."""
        return [(_HOST, node.port) for node in self.nodes]

    @property
    def url(self) -> str:
        """The address of a living node."""
        return f"redis://{_HOST}:{self._living()[0].port}"

    @property
    def masters(self) -> list[Node]:
        """The living masters."""
        return [node for node in self._living() if node.info("replication")["role"] == "master"]

    def owner(self, slot: int) -> Node | None:
        """The slot's master as the first living node sees it, dead or alive; None if it has none."""
        return self._owner_seen_by(self._living()[0], slot)

    def client_of(self, key: str | bytes) -> redis.Redis:
        """A client of the master that has a key."""
        owner = self.owner(slot_of(key))
        assert owner is not None
        return owner.client

    def replica(self, slot: int) -> Node:
        """A living replica of the slot's master."""
        owner = self.owner(slot)
        assert owner is not None
        replicas = (n for n in self.nodes if n is not owner and n.process and self._living()[0].view()[n.id][2] == owner.id)
        return next(replicas)

    def move_slot(self, slot: int, to: Node, *, step: int = 100, between: Callable[[], None] | None = None) -> None:
        """Move a slot with all its keys to another master, live, `step` keys at a time; `between` is called after each step."""
        with self.moving(slot, to) as move:
            while left := move.keys():
                move.migrate(left[:step])
                if between is not None:
                    between()

    @contextmanager
    def moving(self, slot: int, to: Node | None = None) -> Iterator[Move]:
        """A slot in the middle of its move to another master; finished at the end of the block, unless that fails."""
        source = self.owner(slot)
        assert source is not None
        target = to or next(master for master in self.masters if master is not source)
        move = Move(self, slot, source, target)
        self._moves.append(move)
        yield move
        move.finish()

    def kill_master(self, slot: int) -> Node:
        """SIGKILL the slot's master and return it; it keeps nothing but its place in the cluster."""
        owner = self.owner(slot)
        assert owner is not None
        owner.kill()
        return owner

    def restart(self, node: Node) -> None:
        """Start a dead node again, empty; it becomes a replica of whoever has its slots now."""
        node.start()
        node.await_answer()

    def cut_off_replica(self, slot: int) -> Node:
        """Stop the replication of a slot's master, and return the replica, paused: what is written from now on is on the master
        alone.

        To pause the replica is not enough: what the master sends meanwhile waits in the kernel, and is there when it goes on.
        """
        replica, owner = self.replica(slot), self.owner(slot)
        assert owner is not None
        replica.pause()
        owner.ask("CLIENT", "KILL", "TYPE", "replica")
        until(lambda: owner.info("replication")["connected_slaves"] == 0, _SETTLE_S, f"{owner} has lost its replica")
        return replica

    def take_over(self, replica: Node) -> None:
        """Have a replica (resumed if it is paused) take its master's slots at once, without asking anyone."""
        if replica.paused:
            replica.resume()
        replica.ask("CLUSTER", "FAILOVER", "TAKEOVER")
        until(lambda: replica.info("replication")["role"] == "master", _SETTLE_S, f"{replica} is a master")

    def wait_failover(self, slot: int, seconds: float = _SETTLE_S) -> Node:
        """Return the slot's new master when all living nodes name it and serve; the old one must be dead or paused."""
        return self.await_owner(slot, lambda owner: owner is not None and owner.alive, seconds)

    def await_owner(self, slot: int, fits: Callable[[Node | None], bool], seconds: float = _SETTLE_S) -> Node:
        """Return the slot's master when all living nodes name the same one, it fits, and all serve."""

        def agreed() -> bool:
            seen = {self._owner_seen_by(node, slot) for node in self._living()}
            return len(seen) == 1 and fits(next(iter(seen))) and all(node.state_ok() for node in self._living())

        until(agreed, seconds, f"all agree on the master of slot {slot}")
        owner = self.owner(slot)
        assert owner is not None
        return owner

    def await_settled(self) -> None:
        """Return when all six nodes run, agree and serve, and each of three masters has a replica that follows it."""
        until(self._settled, _SETTLE_S, "the cluster settles")

    def revive(self) -> None:
        """All nodes up again and nobody failed; what is stored stays."""
        for node in self.nodes:
            if node.paused:
                node.resume()
        for node in self.nodes:
            if node.process is None:
                self.restart(node)
        self.await_settled()

    def heal(self) -> None:
        """All nodes up, no slot moving, nothing stored: as after the start, but for who has which slots."""
        self.revive()
        for move in self._moves:
            if not move.done:
                self._abandon(move)
        self._moves.clear()
        for master in self.masters:
            master.ask("FLUSHALL")
            master.ask("SCRIPT", "FLUSH")

    def _abandon(self, move: Move) -> None:
        # Whatever its nodes are by now, the slot stays where it is; its keys are about to be deleted anyway.
        for master in self.masters:
            master.ask("CLUSTER", "SETSLOT", move.slot, "STABLE")

    def _living(self) -> list[Node]:
        return [node for node in self.nodes if node.alive]

    def _owner_seen_by(self, node: Node, slot: int) -> Node | None:
        for first, last, (_, port, *_), *_ in node.ask("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(n for n in self.nodes if n.port == port)
        return None

    def _settled(self) -> bool:
        if not all(node.alive and node.state_ok() for node in self.nodes):
            return False
        views = [_shape(node.view()) for node in self.nodes]
        # Not each for itself: a node that has not heard of a failover yet would send a test to the wrong one.
        if views[0] is None or any(view != views[0] for view in views):
            return False
        links = [node.info("replication") for node in self.nodes]
        return all(
            link["master_link_status"] == "up" if link["role"] == "slave" else link["connected_slaves"] == 1 for link in links
        )


def slot_of(key: str | bytes) -> int:
    """The slot of a key, by its hash tag if it has one."""
    slot: int = key_slot(key.encode() if isinstance(key, str) else key)
    return slot


def free_port() -> int:
    """A port that is free together with the bus port that belongs to it."""
    while True:
        port = random.randrange(*_PORTS)
        with socket.socket() as one, socket.socket() as bus:
            try:
                one.bind((_HOST, port))
                bus.bind((_HOST, port + _BUS))
            except OSError:
                continue
        return port


def _shape(view: dict[str, list[str]]) -> dict[str, str | tuple[str, ...]] | None:
    """Of a node's view: each replica's master, each master's slots; None if that is no whole cluster."""
    shape: dict[str, str | tuple[str, ...]] = {}
    slots = 0
    for node, (_, flags, master, _, _, _, link, *ranges) in view.items():
        if "fail" in flags or link != "connected":
            return None
        if "slave" in flags:
            shape[node] = master
        else:
            owned = [range_ for range_ in ranges if not range_.startswith("[")]  # [slot->-node]: on its way
            slots += sum(int(last or first) - int(first) + 1 for first, _, last in (range_.partition("-") for range_ in owned))
            shape[node] = tuple(owned)
    masters = {node for node, of in shape.items() if isinstance(of, tuple)}
    followed = {of for of in shape.values() if isinstance(of, str)}
    return shape if len(shape) == _NODES and len(masters) == _MASTERS and followed == masters and slots == SLOTS else None
