"""The HTCondor source against real schedds."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from apf_elastic.contracts import CallError, Context, Selection
from apf_elastic.model import Demand, JobGroup, Shape
from apf_elastic.sources.htcondor import HTCondorSource, HTCondorSourceOptions
from apf_elastic.testing.htcondor_install import Installation
from apf_elastic.testing.htcondor_pool import PrivatePool

pytestmark = pytest.mark.real

JOB = (
    "executable = /bin/sleep\narguments = 600\ntransfer_executable = false\nrequest_memory = 256\nrequest_disk = 1GB\n"
)
STALLED = JOB + 'requirements = TARGET.Machine == "nowhere"\n'
Make = Callable[..., HTCondorSource]


def submit(pool: PrivatePool, text: str) -> str:
    """Submit as `user`; the cluster's number."""
    done = pool.tool("condor_submit", "-terse", "-", identity="user", text_input=text)
    return done.stdout.split(".")[0]


@pytest.fixture
def queue(pool: PrivatePool) -> Iterator[PrivatePool]:
    """`pool`, with an empty queue before and after."""
    pool.tool("condor_rm", "-all", check=False)
    yield pool
    pool.tool("condor_rm", "-all", check=False)


@pytest.fixture
def make(pool: PrivatePool, tmp_path: Path) -> Iterator[Make]:
    """Makes sources of `pool`, which are closed at the end; options as keywords, queues as selections."""
    made = []

    def make(selections: Mapping[str, Selection] | None = None, **options: object) -> HTCondorSource:
        given = {
            "collector": pool.collector,
            "schedds": [pool.schedd_name],
            "config": pool.client_config,
            "token_dir": pool.token_dir("apf"),
            "timeout_s": 15,
        }
        options = HTCondorSourceOptions.model_validate(given | options)  # type: ignore[assignment]
        made.append(HTCondorSource("jobs", options, Context("f", tmp_path), selections or {"all": Selection()}))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for source in made:
        source.close()


def by_shape(demand: Demand) -> Mapping[Shape, JobGroup]:
    return {group.shape: group for group in demand.groups}


def test_an_empty_queue_has_an_empty_demand(queue: PrivatePool, make: Make) -> None:
    assert make().demand() == {"all": Demand()}


def test_jobs_are_counted_by_shape_and_state(queue: PrivatePool, make: Make) -> None:
    submit(queue, JOB + "queue 3\nrequest_cpus = 4\nrequest_gpus = 1\nqueue 2\nhold = true\nqueue 1\n")
    submit(queue, JOB + "allowed_job_duration = 3500\nqueue 2\n")
    groups = by_shape(make().demand()["all"])
    assert {shape: (group.waiting, group.held) for shape, group in groups.items()} == {
        Shape(1, 256, 1024): (3, 0),
        Shape(4, 256, 1024, 1): (2, 1),
        Shape(1, 256, 1024, walltime_s=3540): (2, 0),
    }


def test_expressions_are_evaluated_and_nonsense_is_noted(queue: PrivatePool, make: Make) -> None:
    submit(
        queue, JOB + "+RequestMemory = 1000 * RequestCpus\nrequest_cpus = ifThenElse(NumJobStarts > 2, 8, 2)\nqueue 2\n"
    )
    submit(queue, JOB + "+A = B\n+B = C + 1\n+C = 2\n+RequestCpus = A\nqueue\n")
    submit(queue, JOB + "+RequestMemory = ifThenElse(MemoryUsage isnt undefined, MemoryUsage, 500)\nqueue\n")
    odd = {"cores": ("1/0", '"many"', "-3", "1e999"), "memory": ("error", "TARGET.Nothing", "{ 1, 2 }")}
    for value in odd["cores"]:
        submit(queue, JOB + f"+RequestCpus = {value}\nqueue\n")
    for value in odd["memory"]:
        submit(queue, JOB + f"+RequestMemory = {value}\nqueue\n")
    demand = make().demand()["all"]
    groups = by_shape(demand)
    assert groups[Shape(2, 2048, 1024)].waiting == 2
    assert groups[Shape(3, 256, 1024)].waiting == 1
    assert groups[Shape(1, 512, 1024)].waiting == 1
    assert groups[Shape(1, 256, 1024)].waiting == 4
    assert groups[Shape(1, 0, 1024)].waiting == 3
    notes = "\n".join(demand.notes)
    for said in ("an error (RequestCpus)", "'many'", "is -3", "is inf", "an error (RequestMemory)", "[1, 2]"):
        assert said in notes
    assert "for example in job" in notes


def test_the_first_queue_that_selects_a_job_has_it(queue: PrivatePool, make: Make) -> None:
    submit(queue, JOB + '+Project = "a"\nqueue 2\n+Project = "b"\nqueue 3\n+Project = "c"\nrequest_cpus = 8\nqueue 4\n')
    source = make(
        {
            "big": Selection("RequestCpus >= 8"),
            "a or c": Selection('Project == "a" || Project == "c"'),
            "undefined": Selection("NoSuchThing > 3"),
        }
    )
    demand = source.demand()
    assert {name: found.waiting for name, found in demand.items()} == {"big": 4, "a or c": 2, "undefined": 0}
    assert source.unclaimed == 3


def test_a_constraint_on_an_attribute_that_is_not_asked_for_holds(queue: PrivatePool, make: Make) -> None:
    submit(queue, JOB + '+Project = "a"\nqueue 2\n+Project = "b"\nqueue 3\n')
    assert make(constraint='Project == "b" && JobUniverse == 5').demand()["all"].waiting == 3


def test_pilots_of_ours_are_not_work(queue: PrivatePool, make: Make) -> None:
    submit(queue, JOB + '+ApfElasticFactory = "another"\n+ApfElasticId = "x"\nqueue 5\n')
    submit(queue, "universe = scheduler\nexecutable = /bin/sleep\narguments = 600\nhold = true\nqueue\n")
    assert make().demand() == {"all": Demand()}


def test_hostile_strings_in_jobs_neither_break_nor_leak(queue: PrivatePool, make: Make) -> None:
    for value in ('q"; true', "$(id)", "\\\\", "snö☃ \u202e", "x" * 5000, "' || true || '"):
        escaped = value.replace('"', '\\"').replace("$", "$(DOLLAR)")
        submit(queue, JOB + f'+Project = "{escaped}"\nqueue\n')
    source = make({"a": Selection('Project == "a"'), "rest": Selection("isString(Project)")})
    demand = source.demand()
    assert (demand["a"].waiting, demand["rest"].waiting) == (0, 6)
    assert demand["rest"].notes == ()


def test_running_and_suspended_jobs_count_as_running(ce_pool: PrivatePool, make: Make) -> None:
    cluster = submit(ce_pool, JOB.replace("request_memory = 256", "request_memory = 16") + "queue 2\n")
    source = make(
        {"mine": Selection(f"ClusterId == {cluster}")},
        collector=ce_pool.collector,
        schedds=[ce_pool.schedd_name],
        token_dir=ce_pool.token_dir("apf"),
        config=ce_pool.client_config,
    )
    wait_for(lambda: source.demand()["mine"].running == 2)
    ce_pool.tool("condor_suspend", f"{cluster}.0", check=False)
    demand = source.demand()["mine"]
    assert (demand.waiting, demand.running) == (0, 2)
    ce_pool.tool("condor_rm", cluster)


def test_only_jobs_that_have_waited_pass_a_burst_threshold(queue: PrivatePool, make: Make) -> None:
    submit(queue, JOB + "queue 3\n")
    submit(queue, JOB + "+QDate = time() - 0\nqueue\n")
    first = submit(queue, JOB + "queue 2\n")
    queue.tool("condor_qedit", first, "QDate", str(int(time.time()) - 1000))
    source = make({"now": Selection("RequestCpus > 1"), "all": Selection("", (60.0, 5000.0))})
    group = source.demand()["all"].groups[0]
    assert group.waiting_since(0) == 6
    assert group.waiting_since(60.0) == 2
    assert group.waiting_since(5000.0) == 0


def test_the_oldest_wait_is_that_of_the_first_job(queue: PrivatePool, make: Make) -> None:
    first = submit(queue, JOB + "queue 2\n")
    submit(queue, JOB + "queue 2\n")
    queue.tool("condor_qedit", first, "QDate", str(int(time.time()) - 500))
    source = make()
    oldest = source.demand()["all"].oldest_wait_s
    assert oldest is not None
    assert 498 <= oldest <= 510
    queue.tool("condor_rm", first)
    newest = source.demand()["all"].oldest_wait_s
    assert newest is not None
    assert newest < 60


def test_a_grouping_that_is_too_fine_is_made_coarser_and_noted(queue: PrivatePool, make: Make) -> None:
    submit(queue, JOB + "request_memory = 256 + 128 * $(Process)\nqueue 150\n")
    demand = make(max_groups=100).demand()["all"]
    assert demand.waiting == 150
    assert {group.shape for group in demand.groups} == {Shape(1, 0, 1024)}
    assert any("memory_mb (RequestMemory) differs in too many jobs" in note for note in demand.notes)


def test_a_selection_by_what_differs_from_job_to_job_is_refused_in_words(queue: PrivatePool, make: Make) -> None:
    submit(queue, JOB + "queue 150\n")
    with pytest.raises(CallError, match="use attributes that many jobs share"):
        make({"odd": Selection("ProcId > 3")}, max_groups=100).demand()


@pytest.mark.parametrize(
    ("select", "column"), [("RequestCpus >", 14), ("a = 3", 3), ("f(", 2), ('a == "x', 6), ("a b", 3)]
)
def test_a_bad_selection_is_refused_where_it_is_wrong(make: Make, select: str, column: int) -> None:
    with pytest.raises(ValueError, match=rf"select of queue q: column {column}: ") as refusal:
        make({"q": Selection(select)})
    assert str(refusal.value).splitlines()[-1].index("^") == 4 + column - 1


@pytest.fixture
def second(condor: Installation, pool_base: Path) -> Iterator[PrivatePool]:
    """Another pool with a schedd."""
    daemons = ("MASTER", "COLLECTOR", "SCHEDD", "SHARED_PORT")
    with PrivatePool("second", installation=condor, directory=pool_base / "S", daemons=daemons) as started:
        yield started


class TestSeveralSchedds:
    def test_one_that_does_not_answer_makes_all_unknown(self, queue: PrivatePool, make: Make) -> None:
        submit(queue, JOB + "queue 2\n")
        source = make(schedds=[queue.schedd_name, "<127.0.0.1:1?sock=schedd>"])
        with pytest.raises(CallError, match=r"schedd <127.0.0.1:1.*nothing answers there"):
            source.demand()

    def test_one_that_the_collector_does_not_know_makes_all_unknown(self, queue: PrivatePool, make: Make) -> None:
        with pytest.raises(CallError, match=r"knows no schedd other@apf\.test"):
            make(schedds=[queue.schedd_name, "other@apf.test"]).demand()

    def test_one_that_hangs_costs_its_timeout_and_no_more(self, queue: PrivatePool, make: Make) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            source = make(schedds=[f"<127.0.0.1:{silent.getsockname()[1]}>"], timeout_s=1.5)
            began = time.monotonic()
            with pytest.raises(CallError):
                source.demand()
            assert time.monotonic() - began < 3

    def test_a_star_asks_all_that_the_collector_lists(self, queue: PrivatePool, make: Make) -> None:
        submit(queue, JOB + "queue 2\n")
        source = make(schedds=["*"])
        assert source.demand()["all"].waiting == 2
        assert source.ping().startswith(f"schedd {queue.schedd_name}, {queue.installation.version_text}, 2 jobs")

    def test_the_schedds_of_two_pools_add_up_until_one_dies(
        self, queue: PrivatePool, make: Make, second: PrivatePool
    ) -> None:
        address = second.tool("condor_status", "-schedd", "-af", "MyAddress").stdout.strip()
        both = {queue.trust_domain: queue.token("apf"), second.trust_domain: second.token("apf")}
        for name, token in both.items():
            queue.add_client("both", token)
            (queue.token_dir("both") / queue.trust_domain).rename(queue.token_dir("both") / f"for.{name}")
        submit(queue, JOB + "queue 2\n")
        submit(second, JOB + "queue 3\nrequest_cpus = 2\nqueue 1\n")
        source = make(schedds=[queue.schedd_name, address], token_dir=queue.token_dir("both"), config=None)
        demand = source.demand()["all"]
        assert {group.shape.cores: group.waiting for group in demand.groups} == {1: 5, 2: 1}
        second.stop()
        with pytest.raises(CallError, match="nothing answers there"):
            source.demand()


def test_twenty_thousand_jobs_take_less_than_a_second(queue: PrivatePool, make: Make) -> None:
    for cores in (1, 2, 4, 8):
        submit(queue, STALLED + f"request_cpus = {cores}\nqueue 5000\n")
    source = make({"small": Selection("RequestCpus < 4", (1000.0,)), "big": Selection("RequestCpus >= 4")})
    source.demand()
    began = time.monotonic()
    demand = source.demand()
    took_s = time.monotonic() - began
    assert {name: found.waiting for name, found in demand.items()} == {"small": 10_000, "big": 10_000}
    assert len(demand["small"].groups) == 2
    assert took_s < 3


def wait_for(predicate: Callable[[], bool], deadline_s: float = 30) -> None:
    deadline = time.monotonic() + deadline_s
    while not predicate():
        assert time.monotonic() < deadline, f"not within {deadline_s} s"
        time.sleep(0.1)
