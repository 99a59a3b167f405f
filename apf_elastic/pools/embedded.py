"""The embedded pool: workers of the embedded work queue. A newcomer's first pool, without any server."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

import apf_elastic
from apf_elastic.contracts import CallError, Context, Payload
from apf_elastic.embedded import worker
from apf_elastic.embedded.store import Store, StoreError
from apf_elastic.model import Resource, Shape, Slot

LAUNCHER = Path(worker.__file__).with_name("worker.sh")


class EmbeddedPool:
    """Sees, drains and lets in the workers of one work queue: the one whose tasks a source of the same directory
    counts. The tasks of a worker that dies wait again once its heart has not beaten for `store.DEAD_S`."""

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)

        directory: Path = Field(strict=False, description="where the work queue lies, on a local disk")
        lease_s: float = Field(60.0, gt=0, description="a worker leaves when the service was silent for so long, s")
        idle_s: float = Field(30.0, gt=0, description="a worker leaves after so long without a task, s")

    def __init__(self, name: str, options: Options, context: Context) -> None:
        self.name = name
        self.lease_s = options.lease_s
        self._options = options
        self._factory = context.factory

    @contextmanager
    def _store(self) -> Iterator[Store]:
        try:
            with Store(self._options.directory) as store:
                yield store
        except StoreError as error:
            raise CallError(str(error)) from error

    def slots(self) -> list[Slot]:
        """One entry per worker of this factory that has joined and neither left nor died."""
        with self._store() as store:
            workers = store.joined(self._factory)
        return [
            Slot(
                id=joined.id,
                free=Shape(
                    cores=max(0, joined.cores - joined.busy_cores),
                    memory_mb=max(0, joined.memory_mb - joined.busy_memory_mb),
                ),
                jobs=joined.jobs,
                idle_since=joined.idle_since,
                draining=joined.draining,
                machine=joined.machine,
                queue=joined.queue,
                backend=joined.backend,
                offering=joined.offering,
            )
            for joined in workers
        ]

    def drain(self, ids: Sequence[str]) -> Mapping[str, str]:
        """These workers claim no new task and leave once they run none. Returns id -> reason for those that failed."""
        with self._store() as store:
            return store.drain(self._factory, ids)

    def undrain(self, ids: Sequence[str]) -> Mapping[str, str]:
        """These workers claim tasks again. Returns id -> reason for those that failed, such as "has left already"."""
        with self._store() as store:
            return store.drain(self._factory, ids, back=True)

    def payloads(self, resources: Sequence[Resource]) -> list[Payload]:
        """What starts a worker, with a secret of its own that lets it join once. Only digests of them are kept."""
        tokens = {resource.id: secrets.token_urlsafe(32).encode() for resource in resources}
        with self._store() as store:
            store.issue(self._factory, tokens)
        return [self._payload(resource, tokens[resource.id]) for resource in resources]

    def _payload(self, resource: Resource, token: bytes) -> Payload:
        return Payload(
            script=LAUNCHER,
            environment={
                "ELASTIC_PYTHON": sys.executable,
                "ELASTIC_PATH": str(Path(apf_elastic.__path__[0]).resolve().parent),
                "ELASTIC_DIRECTORY": str(self._options.directory.absolute()),
                "ELASTIC_ID": resource.id,
                "ELASTIC_QUEUE": resource.queue,
                "ELASTIC_BACKEND": resource.backend,
                "ELASTIC_OFFERING": resource.offering,
                "ELASTIC_CORES": str(resource.shape.cores),
                "ELASTIC_MEMORY_MB": str(resource.shape.memory_mb),
                "ELASTIC_IDLE_S": str(self._options.idle_s),
                "ELASTIC_LEASE_S": str(self._options.lease_s),
            },
            secrets={worker.TOKEN: token},
        )

    def renew_lease(self) -> None:
        """Tell the workers that the service lives."""
        with self._store() as store:
            store.renew_lease(self._factory)

    def close(self) -> None:
        """Nothing is kept open."""
