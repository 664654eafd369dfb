"""Two hosts under torchrun are as one process; they are two network namespaces of this machine, with a cable between them."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from signal import SIGKILL

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from otter_losses import OTTERLoss
from otter_losses.distributed import failures
from tests.distributed.test_distributed import BUILDERS, EVEN, UNEVEN, counts_of, run_case
from tests.helpers.checks import relative
from tests.helpers.paths import ROOT
from tests.helpers.towers import TwoTowers, part_of, whole_batch

HOSTS, RANKS_A_HOST = 2, 2
RANKS = HOSTS * RANKS_A_HOST
INTERFACE, ADDRESSES = "otter0", ("10.213.0.1", "10.213.0.2")
TIMEOUT_S, PATIENCE_S = 4.0, 2.0
CASES = ("otter", "otter, blocks", "info_nce", "siglip")

Measured = tuple[list[dict[tuple[str, str], dict[str, torch.Tensor]]], list[str]]


def work(folder: Path) -> None:
    """One rank: the losses' values and gradients, and then what it is told when the cable is cut."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank = dist.get_rank()
    model = DistributedDataParallel(TwoTowers())
    results = {}
    for sharing in (EVEN, UNEVEN):
        batch = part_of(counts_of(RANKS, sharing), rank)
        for name in CASES:
            loss = BUILDERS[name](rank=rank, world_size=RANKS)
            results[sharing, name] = run_case(model, loss, batch, "given")
    impatient = dist.new_group(timeout=timedelta(seconds=TIMEOUT_S))
    failures.PATIENCE_SECONDS = PATIENCE_S
    loss = OTTERLoss(rank=rank, world_size=RANKS, group=impatient)
    loss(batch["images"], batch["images"], 1.0)
    torch.save(results, folder / f"{rank}.new")
    (folder / f"{rank}.new").rename(folder / f"{rank}.pt")
    while not (folder / "cut").exists():
        time.sleep(0.05)
    start, told = time.monotonic(), "nothing"
    try:
        loss(batch["images"], batch["images"], 1.0)
    except RuntimeError as error:
        told = f"{time.monotonic() - start} {error}"
    (folder / f"{rank}.new").write_text(told)
    (folder / f"{rank}.new").rename(folder / f"{rank}.told")
    os._exit(0)  # leaving a group whose ranks are out of reach can wait for them


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[str]]:
    """Two network namespaces, the ends of a cable that nothing else hangs on."""
    if shutil.which("ip") is None:
        pytest.skip("needs `ip` of iproute2 to make network namespaces")
    names = [f"otter-{os.getpid()}-{host}" for host in range(HOSTS)]
    try:
        ip("netns", "add", names[0])
    except subprocess.CalledProcessError as error:
        pytest.skip(f"may make no network namespace, which takes root: {error.stderr.strip()}")
    try:
        ip("netns", "add", names[1])
        ip("-n", names[0], "link", "add", INTERFACE, "type", "veth", "peer", "name", INTERFACE, "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", INTERFACE)
            for interface in ("lo", INTERFACE):
                ip("-n", name, "link", "set", interface, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def wait_for(paths: list[Path], seconds: float, launched: list[subprocess.Popen[bytes]], log: Path) -> None:
    end = time.monotonic() + seconds
    while not all(path.exists() for path in paths):
        assert time.monotonic() < end, f"{paths} are not there: {log.read_text()[-3000:]}"
        assert all(process.poll() in (None, 0) for process in launched), log.read_text()[-3000:]
        time.sleep(0.05)


@pytest.fixture(scope="module")
def ranks(hosts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    """What every rank measured, and what it was told once the second host's link was down."""
    folder = tmp_path_factory.mktemp("hosts")
    command = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={HOSTS}", f"--nproc-per-node={RANKS_A_HOST}"]
    command += ["--rdzv-backend=c10d", f"--rdzv-endpoint={ADDRESSES[0]}:29400"]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": INTERFACE, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    launched = []
    log = folder / "log"
    try:
        with log.open("wb") as file:
            for name, address in zip(hosts, ADDRESSES, strict=True):
                # Both namespaces have this machine's name, by which torchrun would otherwise know where it is.
                place = [f"--local-addr={address}", f"--rdzv-conf=is_host={int(address == ADDRESSES[0])}"]
                inside = ["ip", "netns", "exec", name, *command, *place, "-m", __name__, str(folder)]
                launched.append(subprocess.Popen(inside, env=environment, stdout=file, stderr=file, start_new_session=True))
        wait_for([folder / f"{rank}.pt" for rank in range(RANKS)], 90, launched, log)
        results = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]
        ip("-n", hosts[1], "link", "set", INTERFACE, "down")
        (folder / "cut").touch()
        told = [folder / f"{rank}.told" for rank in range(RANKS)]
        wait_for(told, 60, [], log)
        yield results, [path.read_text() for path in told]
    finally:
        for process in launched:
            os.killpg(process.pid, SIGKILL)
            process.wait()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("sharing", [EVEN, UNEVEN])
def test_two_hosts_are_as_one_process(ranks: Measured, sharing: str, name: str) -> None:
    expected = run_case(TwoTowers(), BUILDERS[name](), whole_batch(sum(counts_of(RANKS, sharing))), "given")
    for results in ranks[0]:
        actual = results[sharing, name]
        assert actual.keys() == expected.keys()
        for key, wanted in expected.items():
            assert relative(actual[key], wanted, floor=1e-4) <= 1e-10, key


def test_a_host_that_is_cut_off_is_named_within_the_timeout(ranks: Measured) -> None:
    for rank, told in enumerate(ranks[1]):
        seconds, text = told.split(maxsplit=1)
        assert float(seconds) < TIMEOUT_S + 2 * PATIENCE_S + 3
        assert text.startswith("the ranks could not be gathered: ")
        if rank < RANKS_A_HOST:  # the store is on their host
            assert f"rank 2, 3 of {RANKS} gave no sign" in text
        else:
            assert f"nor does the store of the rendezvous answer, so that nobody knows here which of the {RANKS} ranks" in text


if __name__ == "__main__":
    work(Path(sys.argv[1]))
