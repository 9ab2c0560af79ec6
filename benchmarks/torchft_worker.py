"""One site of torchft's DiLoCo over shaped links: `python torchft_worker.py JOB`. Started by wan.py.

The same model as `model=tiny` in plain PyTorch, one replica group of one rank a site. Its interface is that of torchft
0.2.0; numbers cross in fp32, since its quantisation needs CUDA.
"""

import datetime
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from contenders import PlainModel, random_batches
from torch.nn import functional

from isthmus.config import compose
from isthmus.launch.lab.namespaces import DEVICE
from isthmus.train.config import Config

PATIENCE = datetime.timedelta(minutes=10)
_LIGHTHOUSE_PORT, _STORE_PORT = 29510, 29520


def main() -> None:
    job: dict[str, Any] = json.loads(sys.argv[1])
    site, addresses = job["site"], job["addresses"]
    os.environ["GLOO_SOCKET_IFNAME"] = DEVICE
    torch.set_num_threads(1)
    lighthouse = _lighthouse(addresses[0]) if site == 0 else None
    try:
        rows = _train(job, addresses[site], f"http://{addresses[0]}:{_LIGHTHOUSE_PORT}")
    finally:
        if lighthouse is not None:
            lighthouse.kill()
    Path(job["out"]).write_text(json.dumps(rows))
    # Its threads may still wait for the other site, which does not matter any more.
    os._exit(0)


def _lighthouse(address: str) -> "subprocess.Popen[bytes]":
    command = shutil.which("torchft_lighthouse")
    assert command, "torchft_lighthouse is not on the path"
    bound = ["--bind", f"{address}:{_LIGHTHOUSE_PORT}", "--min_replicas", "2", "--join_timeout_ms", "60000"]
    return subprocess.Popen([command, *bound])


def _train(job: dict[str, Any], address: str, lighthouse: str) -> list[dict[str, float]]:
    from torchft import Manager, ProcessGroupGloo
    from torchft.local_sgd import DiLoCo

    config = compose(Config, "train", [*job["overrides"], "train.steps=1"])
    torch.manual_seed(0)
    model = PlainModel(config)
    store = torch.distributed.TCPStore(address, _STORE_PORT, is_master=True, wait_for_workers=False)
    manager = Manager(
        pg=ProcessGroupGloo(timeout=PATIENCE),
        min_replica_size=2,
        load_state_dict=lambda state: None,
        state_dict=dict,
        use_async_quorum=False,
        init_sync=False,
        timeout=PATIENCE,
        quorum_timeout=PATIENCE,
        rank=0,
        world_size=1,
        store_addr=address,
        store_port=store.port,
        lighthouse_addr=lighthouse,
        hostname=address,
        replica_id=f"site{job['site']}",
    )
    inner = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    layers, count = list(model.layers), job["fragments"]
    ends = [model.embedding, model.norm, model.output]
    parts = [torch.nn.ModuleList([*layers[number::count], *([] if number else ends)]) for number in range(count)]
    outer = [torch.optim.SGD(part.parameters(), lr=0.7, momentum=0.9, nesterov=True) for part in parts]
    batches = random_batches(config, job["steps"], torch.Generator().manual_seed(1))
    rows = []
    with DiLoCo(
        manager,
        parts,
        inner,
        outer,
        sync_every=job["every"],
        backup_device=torch.device("cpu"),
        pin_memory=False,
        fragment_sync_delay=job["delay"],
    ):
        for batch in batches:
            started, cpu = time.perf_counter(), time.process_time()
            inner.zero_grad(set_to_none=True)
            for tokens, labels in zip(batch.tokens_BS.split(2), batch.labels_BS.split(2), strict=True):
                logits = model(tokens)
                functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            inner.step()
            rows.append({"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu})
    return rows


if __name__ == "__main__":
    main()
