#!/usr/bin/env bash
# isthmus: site east of big, node 2 of 3
# Written by `isthmus launch`.
set -euo pipefail
cd -- '/mnt/my runs'
mkdir -p -- '/mnt/my runs/runs/big/east/launch'
temporary="$(mktemp -- '/mnt/my runs/runs/big/east/launch'/.config.XXXXXX)"
cat >"$temporary" <<'END_OF_CONFIGURATION'
...
END_OF_CONFIGURATION
mv -- "$temporary" '/mnt/my runs/runs/big/east/launch/config.yaml'
export OMP_WAIT_POLICY=PASSIVE
exec python3 -m isthmus.launch.node --ranks=8 --taking-part=2 --nodes=3 --node=2 --launch-id=1a2b3c4d --config='/mnt/my runs/runs/big/east/launch/config.yaml'
