"""The show on a real HTCondor: a private pool on loopback, real jobs, glideins as the resources."""

from __future__ import annotations

import json
import os
import textwrap
from pathlib import Path

from rich.console import Console

from apf_elastic.demo import Progress
from apf_elastic.testing.htcondor_install import ensure
from apf_elastic.testing.htcondor_pool import SERVICE_DAEMONS, PrivatePool

CONFIG = """\
[factory]
name = "demo"
state_dir = "{base}/state"
cycle = "2 s"

[sources.jobs]
type = "htcondor"
collector = "{collector}"
schedds = ["{schedd}"]
config = "{config}"
token_dir = "{token_dir}"
every = "1 s"

[pools.home]
type = "htcondor"
collector = "{collector}"
config = "{config}"
token_dir = "{token_dir}"
bin_dir = "{bin}"
domain = "apf.test"
node_condor = "{release}"
network = "127.0.0.1"
overcommit = true            # the jobs only sleep: more cores are offered than the machine has
idle = "10 s"
lease = "10 min"
update = "5 s"
every = "2 s"

[backends.here]
type = "local"
[backends.here.offerings.one]
cores = 1
memory_mb = 512
limit = 4
[backends.here.offerings.two]
cores = 2
memory_mb = 1024
limit = 4

[queues.demo]
source = "jobs"
pool = "home"
backends = ["here"]
[queues.demo.retirement]
idle = "3 s"
hysteresis = "5 s"
"""

SUBMIT = """\
universe = vanilla
executable = /bin/sleep
arguments = 3
should_transfer_files = yes
when_to_transfer_output = on_exit
transfer_executable = false
request_memory = 128
request_disk = 1024
log = {work}/jobs.log
request_cpus = 1
queue {ones}
request_cpus = 2
queue {twos}
"""


class HTCondorShow:
    """Real jobs in a real queue."""

    what = "jobs"

    def __init__(self, base: Path, tasks: int) -> None:
        self._base = base
        self._tasks = tasks
        self._pool: PrivatePool | None = None
        self.config = base / "apf-elastic.toml"
        self.ledger = base / "state" / "ledger.sqlite"
        self.log = base / "service.log"

    def open(self, console: Console) -> None:
        installation = ensure(lambda line: console.print(line, style="dim"))
        console.print(f"starting a private pool, HTCondor {installation.version_text}", style="dim")
        pool = PrivatePool("demo", installation=installation, directory=self._base / "pool", daemons=SERVICE_DAEMONS)
        self._pool = pool.start()
        text = CONFIG.format(
            base=self._base,
            collector=pool.collector,
            schedd=pool.schedd_name,
            config=pool.client_config,
            token_dir=pool.token_dir("apf"),
            bin=installation.program("condor_status").parent,
            release=installation.program("condor_status").parent.parent,
        )
        self.config.write_text(text)
        twos = self._tasks // 3
        description = SUBMIT.format(work=pool.work_dir, ones=self._tasks - twos, twos=twos)
        pool.tool("condor_submit", "-", identity="user", text_input=textwrap.dedent(description))

    def progress(self) -> Progress:
        assert self._pool is not None
        done = self._pool.tool(
            "condor_history", "-json", "-attributes", "QDate,JobStartDate,CompletionDate,RequestCpus,ExitCode"
        )
        ads = json.loads(done.stdout or "[]")
        finished = [ad for ad in ads if ad.get("CompletionDate")]
        return Progress(
            total=self._tasks,
            done=sum(ad.get("ExitCode") == 0 for ad in finished),
            failed=sum(ad.get("ExitCode") != 0 for ad in finished),
            core_seconds=sum((ad["CompletionDate"] - ad["JobStartDate"]) * ad["RequestCpus"] for ad in finished),
            waits_s=[ad["JobStartDate"] - ad["QDate"] for ad in finished],
        )

    def environment(self) -> dict[str, str]:
        assert self._pool is not None
        path = os.environ.get("PATH", "/usr/bin:/bin")
        return {"PATH": f"{self._pool.installation.program('condor_status').parent}:{path}"}

    def close(self) -> None:
        if self._pool is not None:
            self._pool.stop()
