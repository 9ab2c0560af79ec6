#!/usr/bin/env bash
# isthmus: site west of big, node 0 of 1
# Written by `isthmus launch`.
set -euo pipefail
cd -- /mnt/runs
mkdir -p -- /mnt/runs/runs/big/west/launch
temporary="$(mktemp -- /mnt/runs/runs/big/west/launch/.config.XXXXXX)"
cat >"$temporary" <<'END_OF_CONFIGURATION'
...
END_OF_CONFIGURATION
mv -- "$temporary" /mnt/runs/runs/big/west/launch/config.yaml
export OMP_WAIT_POLICY=PASSIVE
exec python3 -m isthmus.launch.node --ranks=8 --taking-part=1 --meeting-port=29600 --nodes=1 --node=0 --launch-id=1a2b3c4d --config=/mnt/runs/runs/big/west/launch/config.yaml
